"""What a run leaves on disk: checkpoints to go on from, a policy that stands alone, curves, films."""

import dataclasses
import fcntl
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from test_cli import ROOT, run, scalars, start

import envs
from envs import checkpoint, render

SIZES = (
    "--env-id simple_u_maze --total-timesteps 6144 --num-envs 4 --unroll-length 8 --episode-length 20 --num-evals 12"
    " --num-eval-envs 4 --width 8 --checkpoint-every 2"
)
OF_SCRIPT = {
    "crl_jax": "--buffer-size 64 --env-steps-per-update 1 --batch-size 8 --repr-dim 4",
    "sac_her_jax": "--buffer-size 64 --env-steps-per-update 1 --batch-size 8",
    "ppo_jax": "--update-epochs 16",
}


def flags(script="crl_jax", more=""):
    return shlex.split(f"{SIZES} {OF_SCRIPT[script]} {more}")


def only_run(folder):
    (directory,) = (folder / "runs").iterdir()
    return directory


def final_state(script, directory):
    """The runner state of the last checkpoint."""
    module = importlib.import_module(script)
    args = module.Args(**json.loads((directory / "args.json").read_text())["flags"])
    init, _ = module.make_train(args)
    path, info = checkpoint.newest(directory / "checkpoints")
    return args, checkpoint.restore(path, jax.eval_shape(init, jax.random.key(0))), info


def finish(script, folder):
    """A run that nobody disturbs; its directory."""
    code, _, err = run(*flags(script), cwd=folder, script=f"{script}.py")
    assert code == 0, err
    return only_run(folder)


@pytest.fixture(scope="module")
def finished_crl(tmp_path_factory):
    return finish("crl_jax", tmp_path_factory.mktemp("crl_jax"))


@pytest.fixture(scope="module", params=list(OF_SCRIPT))
def finished(request, tmp_path_factory):
    """Each script, and the directory of an undisturbed run of it."""
    script = request.param
    if script == "crl_jax":
        return script, request.getfixturevalue("finished_crl")
    return script, finish(script, tmp_path_factory.mktemp(script))


@pytest.fixture
def crl_run(finished_crl, tmp_path):
    """A copy of an undisturbed run, to be spoilt."""
    return shutil.copytree(finished_crl, tmp_path / "runs" / finished_crl.name)


def learning_curves(directory):
    return {tag: values for tag, values in scalars(directory).items() if not tag.startswith("charts/")}


def test_interrupted_runs_go_on_to_the_same_bits(finished, tmp_path):
    """Whatever ends the process, in the first epochs or later: parameters, buffer, keys and curves end up the same."""
    script, undisturbed = finished
    command = flags(script)
    for lines, number in ((2, signal.SIGKILL), (6, signal.SIGTERM), (7, signal.SIGINT), (9, signal.SIGKILL)):
        for attempt in range(9):  # an epoch takes milliseconds: on a busy machine the signal may come late
            before = shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}_{lines}_{attempt}"))
            process = start(*command, cwd=tmp_path, script=f"{script}.py")
            for line in process.stdout:
                if "/12 " in line and int(line.split("/")[0]) >= lines:
                    process.send_signal(number)
                    break
            out, err = process.communicate(timeout=60)
            saved = [int(path.name[6:]) for path in tmp_path.glob("runs/*/checkpoints/epoch_*[0-9]")]
            if process.returncode and max(saved, default=0) <= lines + 2:  # the next round needs epochs to interrupt
                break
            shutil.rmtree(tmp_path)
            before.rename(tmp_path)
        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), out + err
        directory = only_run(tmp_path)
        if number != signal.SIGKILL:
            script_here = os.path.relpath(ROOT / f"{script}.py", tmp_path)
            again = f"to go on: {sys.executable} {script_here} --resume runs/{directory.name}"
            assert err == f"\nended by {number.name}; {again}\n"
        command = ["--resume", f"runs/{directory.name}"]
        if not saved:
            shutil.rmtree(tmp_path / "runs")
            command = flags(script)
    code, out, err = run(*command, cwd=tmp_path, script=f"{script}.py")
    assert code == 0, err
    assert "going on after epoch" in out
    (_, expected, _), (_, state, _) = final_state(script, undisturbed), final_state(script, directory)
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(state), strict=True):
        if jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_array_equal(one, other)
    assert learning_curves(directory) == learning_curves(undisturbed)
    assert (directory / "policy.jax").read_bytes() == (undisturbed / "policy.jax").read_bytes()


def test_policy_stands_alone(finished):
    """The exported function is the policy of the final parameters, sampled with the noise that it is given."""
    script, directory = finished
    args, runner, info = final_state(script, directory)
    module, env = importlib.import_module(script), envs.make(args.env_id)
    obs = jax.random.normal(jax.random.key(0), (5, env.observation_size))
    policy = jax.export.deserialize(bytearray((directory / "policy.jax").read_bytes()))
    networks, noise = module.make_networks(args, env), jax.random.normal(jax.random.key(1), (5, env.action_size))
    seen = module.normalize(runner.statistics, obs) if script == "ppo_jax" else obs
    mean, log_std = module.action_distribution(networks.actor.apply(runner.params["actor"], seen))
    np.testing.assert_allclose(policy.call(obs, noise), np.tanh(mean + np.exp(log_std) * noise), rtol=1e-5)
    np.testing.assert_allclose(policy.call(obs, 0 * noise), np.tanh(mean), rtol=1e-5)
    assert info["epoch"] == 12 and info["steps"] == scalars(directory)["eval/success_rate"][-1][0]


def test_evaluate(finished, tmp_path):
    """Prints what the script's own evaluation says, with an interval, and films; on another maze of its kind too."""
    script, directory = finished
    directory = shutil.copytree(directory, tmp_path / "run")
    more = "--num-eval-envs 50 --seed 7 --eval-env-id simple_u_maze_eval --episode-length 200 --eval-noise 0.5"
    code, out, err = run("--evaluate", "run", *shlex.split(more), cwd=tmp_path, script=f"{script}.py")
    assert code == 0, err
    module, env = importlib.import_module(script), envs.make("simple_u_maze_eval")
    policy = checkpoint.load_policy(directory / "policy.jax")
    expected = jax.jit(lambda key: module.evaluate(env, policy, key, 50, 200, 0.5))(jax.random.key(7))
    lines = out.splitlines()
    assert lines[0] == "simple_u_maze_eval, 50 episodes, seed 7"
    for line, name in zip(lines[1:5], ("success_rate", "time_near_goal", "final_dist", "episode_return"), strict=True):
        assert line.startswith(f"eval/{name} {expected[f'eval/{name}']:.3f}"), line
    low, high = (
        float(word.rstrip(",")) for word in lines[1].split() if word.startswith("0.") and word != lines[1].split()[1]
    )
    assert 0 <= low <= float(expected["eval/success_rate"]) <= high <= 1 and high - low > 0.02
    films = list(directory.glob("film_simple_u_maze_eval_7_noise_0.5.*"))
    if err.startswith("no film: pictures need EGL"):
        assert not films
    else:
        assert {film.suffix for film in films} == {".gif", ".html"} and err == ""


@pytest.mark.parametrize(
    ("spoil", "more", "message"),
    [
        (lambda run: None, "--gamma 0.9", "--gamma 0.9: the run has 0.99, and that stays; leave it out"),
        (lambda run: None, "--width 256", "--width 256: the run has 8, and that stays; leave it out"),
        (lambda run: shutil.rmtree(run / "checkpoints"), "", "checkpoints holds no checkpoint yet: start the run anew"),
        (lambda run: (run / "args.json").unlink(), "", "is not the directory of a run: no readable args.json in it"),
        (lambda run: (run / "args.json").write_text("[1]"), "", "is not the directory of a run"),
        (lambda run: change_args(run, "width", 9), "", "has width 9, but its checkpoint was written with 8"),
        (lambda run: change_args(run, "new_flag", 9), "", "is a run of another version of crl_jax.py"),
        (lambda run: flip_a_bit(run), "", "is damaged; delete it to go on from the one before, if there is one"),
        (lambda run: next(run.glob("checkpoints/*/info.json")).unlink(), "", "is damaged"),
    ],
    ids=["flag", "default-flag", "none", "no-run", "no-args", "other-args", "version", "bit", "file"],
)
def test_what_cannot_be_resumed_is_refused_in_one_line(spoil, more, message, crl_run):
    spoil(crl_run)
    before = sorted(crl_run.rglob("*"))
    code, out, err = run("--resume", str(crl_run), *shlex.split(more), cwd=crl_run.parent)
    assert code == 2 and out == "" and err.startswith("error: ") and message in err and err.count("\n") == 1, err
    assert sorted(crl_run.rglob("*")) == before


def change_args(directory, name, value):
    stored = json.loads((directory / "args.json").read_text())
    stored["flags"][name] = value
    (directory / "args.json").write_text(json.dumps(stored))


def flip_a_bit(directory):
    largest = max(directory.glob("checkpoints/**/*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def test_other_mistakes_with_finished_runs(crl_run):
    for more, message in (
        (["--resume", str(crl_run), "--evaluate", str(crl_run)], "choose"),
        (["--resume", ""], "need the directory of a run"),
        (["--evaluate", ""], "need the directory of a run"),
        (
            ["--evaluate", str(crl_run), "--eval-env-id", "ant"],
            "--eval-env-id ant has other states, goals, actions or physics",
        ),
        (["--evaluate", str(crl_run), "--num-eval-envs", "0"], "--num-eval-envs 0: must be a number, at least 1"),
    ):
        code, out, err = run(*more, cwd=crl_run.parent)
        assert code == 2 and out == "" and message in err and err.count("\n") == 1, err
    code, _, err = run("--resume", str(crl_run), cwd=crl_run.parent, script="ppo_jax.py")
    assert code == 2 and "is a run of crl_jax.py: go on with that script" in err
    with (crl_run / "args.json").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as a training holds it
        code, _, err = run("--resume", str(crl_run), cwd=crl_run.parent)
        assert code == 2 and err == f"error: another process trains in {crl_run}: end it first\n"
    (crl_run / "policy.jax").write_bytes(b"no policy")
    code, _, err = run("--evaluate", str(crl_run), cwd=crl_run.parent)
    assert code == 2 and err.endswith("policy.jax is damaged, or was written by another version of jax\n")


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    for epoch in range(5):
        size = checkpoint.save(tmp_path, epoch, {"x": np.arange(epoch + 1, dtype=np.int32)}, {"epoch": epoch}, keep=2)
        assert size == sum(path.stat().st_size for path in tmp_path.glob(f"epoch_{epoch:06d}/**/*") if path.is_file())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch_000003", "epoch_000004"]
    path, info = checkpoint.newest(tmp_path)
    assert info == {"epoch": 4}
    assert checkpoint.restore(path, {"x": jax.ShapeDtypeStruct((5,), np.int32)})["x"].tolist() == [0, 1, 2, 3, 4]
    for wrong in ({"x": jax.ShapeDtypeStruct((6,), np.int32)}, {"y": jax.ShapeDtypeStruct((5,), np.int32)}):
        with pytest.raises(ValueError, match="was written by another version of the script"):
            checkpoint.restore(path, wrong)


def test_a_checkpoint_of_another_device_is_restored_to_this_one(tmp_path):
    state = {"x": jax.numpy.arange(3.0), "key": jax.random.key(7)}
    checkpoint.save(tmp_path, 1, state, {}, keep=1)
    path, _ = checkpoint.newest(tmp_path)
    written = path / "state" / "_sharding"
    assert "cpu:0" in written.read_text()
    written.write_text(written.read_text().replace("cpu:0", "cuda:0"))
    restored = checkpoint.restore(path, jax.eval_shape(lambda: state))
    assert restored["x"].tolist() == [0, 1, 2] and restored["x"].devices() == {jax.devices()[0]}
    assert jax.random.uniform(restored["key"]) == jax.random.uniform(state["key"])


def test_what_a_killed_process_was_writing_does_not_count(tmp_path):
    checkpoint.save(tmp_path, 1, {"x": np.ones(3)}, {"epoch": 1}, keep=1)
    shutil.copytree(tmp_path / "epoch_000001", tmp_path / "epoch_000002.partial")
    assert checkpoint.newest(tmp_path)[1] == {"epoch": 1}
    checkpoint.save(tmp_path, 2, {"x": np.zeros(3)}, {"epoch": 2}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch_000002"]
    assert checkpoint.newest(tmp_path)[1] == {"epoch": 2}


def test_tensorboard_has_hyperparameters_and_film(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    film = []
    try:
        render.check_opengl()
        film = ["--capture-video"]
    except OSError:
        pass
    code, _, err = run(*flags(more="--total-timesteps 256 --num-evals 1"), *film, cwd=tmp_path)
    assert code == 0, err
    directory = only_run(tmp_path)
    events = EventAccumulator(str(directory))
    events.Reload()
    assert "| width | 8 |" in events.Tensors("hyperparameters")[0].tensor_proto.string_val[0].decode()
    assert "_hparams_/session_start_info" in events.SummaryMetadata.__self__.summary_metadata
    if film:
        image = events.Images("film")[0].encoded_image_string
        assert image == (directory / "film.gif").read_bytes() and image.startswith(b"GIF8")
        page = (directory / "film.html").read_text()
        assert "://" not in page and "base64" in page and "simple_u_maze" in page  # needs no network


def test_seeds_at_once(tmp_path):
    """Each has its curve and its policy, the run their means; and a seed learns what it learns alone."""
    code, out, err = run(*flags(more="--total-timesteps 512 --num-evals 2 --num-seeds 2 --seed 5"), cwd=tmp_path)
    assert code == 0, err
    directory = only_run(tmp_path)
    mean, *seeds = (learning_curves(folder) for folder in (directory, directory / "seed_5", directory / "seed_6"))
    for tag, values in mean.items():
        each = [[value for _, value in curves[tag]] for curves in seeds]
        np.testing.assert_allclose([value for _, value in values], np.mean(each, axis=0), rtol=1e-5, atol=1e-7)
    assert seeds[0] != seeds[1]
    code, _, err = run(*flags(more="--total-timesteps 512 --num-evals 2 --seed 6"), cwd=tmp_path / "runs")
    assert code == 0, err
    alone = learning_curves(only_run(tmp_path / "runs"))
    for tag in ("losses/critic", "losses/entropy"):
        np.testing.assert_allclose(alone[tag][0][1], seeds[1][tag][0][1], rtol=1e-2)
    code, _, err = run("--evaluate", str(directory), cwd=tmp_path)
    assert code == 2 and "has 2 seeds: choose the folder of one in it" in err
    code, out, err = run("--evaluate", str(directory / "seed_6"), "--num-eval-envs", "3", cwd=tmp_path)
    assert code == 0 and "3 episodes" in out, err
    code, _, err = run("--resume", str(directory / "seed_6"), cwd=tmp_path)
    assert code == 2 and "is one seed of a run: go on with all" in err
    code, out, err = run("--resume", ".", cwd=directory)
    assert code == 0 and "going on after epoch 2 of" in out, err


def test_track_mirrors_to_wandb(tmp_path, monkeypatch):
    """To a stand-in that notes how it is called."""
    (tmp_path / "wandb.py").write_text(
        "import json\ndef init(**flags):\n    json.dump(flags, open('wandb.json', 'w'))\n"
    )
    small = flags(more="--total-timesteps 256 --num-evals 1")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code, _, err = run(*small, "--track", cwd=tmp_path)
    assert code == 0, err
    called = json.loads((tmp_path / "wandb.json").read_text())
    assert called["sync_tensorboard"] is True and called["id"] == only_run(tmp_path).name
    assert called["config"]["width"] == 8
    only_run(tmp_path).rename(tmp_path / "finished")
    for stand_in, message in (
        ("raise ImportError", "wandb is not installed; pip install wandb"),
        ("class errors:\n    Error = OverflowError\ndef init(**_):\n    raise OverflowError('no\\nkey')", "no key"),
    ):
        (tmp_path / "wandb.py").write_text(stand_in)
        code, out, err = run(*small, "--track", cwd=tmp_path)
        assert code == 2 and err == f"error: --track: {message}\n" and out == ""
        assert not list(tmp_path.glob("runs/*"))
    # Without wandb the run goes on, or ends, as it would have without `--track`.
    code, _, err = run("--resume", "finished", "--no-track", cwd=tmp_path)
    assert code == 0, err


@pytest.mark.parametrize("script", OF_SCRIPT)
def test_help_is_grouped_and_explains_every_flag(script, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")  # one column of groups
    text = subprocess.run(
        [sys.executable, ROOT / f"{script}.py", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for group in ("task", "budget", "algorithm", "networks", "run", "earlier"):
        assert f" {group} options " in text
    for field in dataclasses.fields(importlib.import_module(script).Args):
        flag = f"--{field.name.replace('_', '-')}"
        (line,) = (
            i for i, line in enumerate(text.splitlines()) if line[1:].strip().startswith((f"{flag} ", f"{flag},"))
        )
        entry = " ".join(" ".join(part.strip("│ ") for part in text.splitlines()[line : line + 4]).split())
        assert f"(default: {field.default})" in entry.replace("'", ""), flag


@pytest.mark.parametrize("script", OF_SCRIPT)
def test_numbers_that_are_none_stop_the_run_and_keep_its_checkpoint(script, tmp_path):
    """Learning rates beyond all reason: the loss is not finite after a few updates."""
    rate = "--learning-rate 1e9 --max-grad-norm 1e9" if script == "ppo_jax" else "--actor-lr 1e9 --critic-lr 1e9"
    code, _, err = run(*flags(script, rate), cwd=tmp_path, script=f"{script}.py")
    assert code == 1 and err.count("\n") == 2
    assert re.match(r"\nerror: (losses/\w+ is (nan|-?inf) in epoch|the parameters .* are not finite after)", err), err
    assert err.endswith(f"; logs, but no checkpoint yet, in runs/{only_run(tmp_path).name}\n")


def test_parameters_that_are_not_finite_are_not_saved():
    unsaved = object.__new__(envs.Run)
    unsaved._epoch = 3
    runner = SimpleNamespace(params={"actor": np.ones(2), "phi": np.array([1.0, np.inf])})
    with pytest.raises(FloatingPointError, match=r"the parameters \['phi'\] are not finite after epoch 3"):
        unsaved._save(runner, None)


def test_a_log_that_cannot_be_written_ends_the_run_with_a_sentence():
    """TensorBoard's thread writes; what it meets is raised when the next summary is handed over."""

    def full(event):
        raise OSError("no space left")

    unlogged = object.__new__(envs.Run)
    unlogged._writers = [SimpleNamespace(add_event=full)]
    with pytest.raises(OSError, match="writing the log failed: no space left"):
        unlogged._add(None)
    assert str(unlogged._problem) == "writing the log failed: no space left"


def test_a_closed_pipe_ends_neither_training_nor_evaluation(tmp_path):
    process = start(*flags(), cwd=tmp_path)
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    assert checkpoint.newest(only_run(tmp_path) / "checkpoints")[1]["epoch"] == 12
    process = start("--evaluate", only_run(tmp_path), "--num-eval-envs", "4", cwd=tmp_path)
    process.stdout.close()
    assert process.wait(timeout=120) == 0


def test_a_full_disk_ends_the_run_with_a_sentence(tmp_path):
    """A limit to the size of files stands for it."""
    command = [sys.executable, ROOT / "crl_jax.py", *flags(more="--buffer-size 20000 --compilation-cache=")]
    limited = ["sh", "-c", 'ulimit -f 40 && exec "$@"', "sh", *command]  # blocks of 512 bytes
    result = subprocess.run(limited, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: writing the checkpoint of epoch 2 failed: "), result.stderr
    assert learning_curves(only_run(tmp_path))["losses/critic"]


def test_a_fork_may_add_flags(tmp_path):
    """With a comment or without; a flag of all scripts may have another default. Tuples come back from the disk."""
    mine = "    # my own\n    steps_ahead: int = 3\n    my_rate: float = 0.5  # of mine\n    seed: int = 7  # my\n"
    mine += "    sizes: tuple[int, ...] = (256, 256)\n\n"
    source = (ROOT / "crl_jax.py").read_text().replace("    # networks\n", f"{mine}    # networks\n", 1)
    (tmp_path / "fork.py").write_text(source)
    command = [sys.executable, tmp_path / "fork.py", "--steps-ahead", "4", "--my-rate", "0.1", "--env-id", "x"]
    options = dict(env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"}, capture_output=True, text=True)
    error = subprocess.run(command, **options).stderr
    assert error.startswith("error: unknown env id 'x'") and error.count("\n") == 1
    text = subprocess.run([*command, "--help"], **options).stdout
    assert " my-own options " in text and "of mine (default: 0.5)" in text and "my (default: 7)" in text
    result = subprocess.run([*command[:2], *flags(more="--sizes 3 4")], cwd=tmp_path, **options)
    assert result.returncode == 0, result.stderr
    assert json.loads((only_run(tmp_path) / "args.json").read_text())["flags"]["sizes"] == [3, 4]
    result = subprocess.run([*command[:2], "--resume", only_run(tmp_path)], cwd=tmp_path, **options)
    assert result.returncode == 0, result.stderr


def test_numbers_from_python_need_no_decimal_point():
    assert importlib.import_module("sac_her_jax").Args(her_ratio=0, noise_correlation=0).her_ratio == 0
    with pytest.raises(ValueError, match="--num-envs 0: must be a number, at least 1 "):
        importlib.import_module("sac_her_jax").Args(num_envs=0)


def test_flags_of_forks_may_be_as_small_as_their_defaults():
    @dataclasses.dataclass(frozen=True)
    class Args(envs.RunArgs):
        skip: int = 0
        offset: int = -1
        shift: float = -1.0
        target_kl: float | None = None

    assert Args(skip=0, offset=-5, shift=-5, target_kl=0.01).offset == -5
    with pytest.raises(ValueError, match="--skip -1: must be a number, at least 0 "):
        Args(skip=-1)


def test_the_buffer_size_that_is_advised_would_do(monkeypatch):
    from envs import run as runs

    crl_jax = importlib.import_module("crl_jax")
    monkeypatch.setattr(runs.os, "sysconf", lambda name: 10**9 if name == "SC_PHYS_PAGES" else 1)

    def check(size):
        args = crl_jax.Args(buffer_size=size, unroll_length=24, num_envs=64)
        init, _ = crl_jax.make_train(args)
        runs._check_memory(args, crl_jax.make_schedule(args), jax.eval_shape(init, jax.random.key(0)))

    with pytest.raises(ValueError, match="would do") as error:
        check(1_000_000)
    advised = int(re.search(r"--buffer-size (\d+) would do", str(error.value))[1])
    check(advised)
    with pytest.raises(ValueError, match="memory"):
        check(advised + 24)


@pytest.mark.parametrize("where", ["machine", "container"])
def test_memory_holds_the_rollout(where, monkeypatch):
    """Of PPO, whose state alone is small; the limit is the machine's or a container's."""
    from envs import run as runs

    ppo_jax = importlib.import_module("ppo_jax")
    args = ppo_jax.Args(num_envs=64, num_minibatches=4)
    init, _ = ppo_jax.make_train(args)
    schedule, shapes = ppo_jax.make_schedule(args), jax.eval_shape(init, jax.random.key(0))
    limit = 2 * runs._num_bytes(shapes)
    if where == "machine":
        monkeypatch.setattr(runs.os, "sysconf", lambda name: limit if name == "SC_PHYS_PAGES" else 1)
    else:
        monkeypatch.setattr(runs.Path, "read_text", lambda path: f"{limit}\n")
    runs._check_memory(dataclasses.replace(args, unroll_length=4), schedule, shapes)
    with pytest.raises(ValueError, match="--num-envs 64 --unroll-length 100000: the training needs"):
        runs._check_memory(dataclasses.replace(args, unroll_length=100_000), schedule, shapes)


def test_nohup_keeps_its_word(tmp_path):
    """A signal ends a run, unless the process was started to ignore it."""
    ignored = signal.SIGHUP, signal.SIGINT  # by nohup, and by what a shell script starts with &
    for number, handler in ((signal.SIGHUP, signal.SIG_DFL), *((number, signal.SIG_IGN) for number in ignored)):
        before = signal.signal(number, handler)  # which processes hand on
        process = start(*flags(), cwd=tmp_path)
        signal.signal(number, before)
        for line in process.stdout:
            if line.split()[0].startswith("1/"):
                process.send_signal(number)
                break
        _, err = process.communicate(timeout=120)
        ended = handler == signal.SIG_DFL
        assert (f"ended by {number.name}" in err, process.returncode == 128 + number) == (ended, ended), err
        assert ended or process.returncode == 0


def test_two_signals_at_once(tmp_path):
    """As systemd ends a session. Whichever thread of the process gets them, the run ends with its sentence."""
    for _ in range(3):
        process = start(*flags(), "--total-timesteps", "10000000", "--num-evals", "100000", cwd=tmp_path)
        for line in process.stdout:
            if line.split()[0].startswith("1/"):
                process.send_signal(signal.SIGTERM)
                process.send_signal(signal.SIGHUP)
                break
        try:
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
        ended = {128 + number: f"ended by {number.name}" for number in (signal.SIGTERM, signal.SIGHUP)}
        assert ended[process.returncode] in err and "Traceback" not in err


def test_a_signal_ends_a_run_to_whose_errors_nobody_listens(tmp_path):
    """As ^C does that also ends the `tee` behind the run, or a connection that breaks."""
    process = start(*flags(), "--total-timesteps", "10000000", "--num-evals", "100000", cwd=tmp_path)
    for line in process.stdout:
        if line.split()[0].startswith("1/"):
            process.stderr.close()
            process.send_signal(signal.SIGINT)
            break
    assert process.wait(timeout=30) == 128 + signal.SIGINT


def test_the_newest_checkpoint_is_that_of_the_last_epoch(tmp_path):
    """Neither what is being written, nor a copy of one's own."""
    for name in ("epoch_1000000", "epoch_999999", "epoch_1000001.partial", "epoch_1000000_best"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoint.finished(tmp_path)] == ["epoch_999999", "epoch_1000000"]


def test_two_runs_of_one_name_have_a_directory_each(tmp_path):
    from envs.run import _make_directory

    args = importlib.import_module("crl_jax").Args(runs_dir=str(tmp_path / "deep" / "runs"))
    assert len({_make_directory(args) for _ in range(3)}) == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--seed x", "error: Error parsing --seed: invalid literal for int() with base 10: 'x'"),
        ("--gama 0.9", "error: Unrecognized options: --gama, 0.9 Perhaps you meant: --gamma FLOAT"),
        ("--runs-dir /dev/null", "error: [Errno 20] Not a directory: '/dev/null/reacher__crl_jax__1__"),
        (
            "--buffer-size 100000000",
            "error: --num-envs 256 --buffer-size 100000000 --batch-size 256 --env-steps-per-update 16: "
            "the training needs 1.74e+03 GB",
        ),
        (
            "--batch-size 100000000",
            "error: --num-envs 256 --buffer-size 10000 --batch-size 100000000 --env-steps-per-update 16: "
            "the training needs 2.72e+03 GB",
        ),
        ("--critic-lr nan", "error: --critic-lr nan: must be a number, at least 0 and less than 2**31"),
        ("--eval-env-id ant", "error: --eval-env-id ant has other states, goals, actions or physics than the task"),
        (
            "--env-id ant --eval-env-id ant_push",
            "error: --eval-env-id ant_push has other states, goals, actions or physics",
        ),
    ],
)
def test_mistakes_on_the_command_line_get_one_line(flags, message, tmp_path):
    code, out, err = run(*shlex.split(flags), cwd=tmp_path)
    assert code == 2 and out == "" and err.startswith(message) and err.count("\n") == 1, err
    assert not (tmp_path / "runs").exists()


def test_mistakes_are_told_without_unicode(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "latin1")
    code, _, err = run("--gama", "0.9", cwd=tmp_path)
    assert code == 2 and err.startswith("error: Unrecognized options: --gama, 0.9 Perhaps you meant: --gamma FLOAT")
