"""What a run prints and leaves on disk, and how it goes on; in this process."""

import importlib
import json
import os
import re
import shlex
import shutil
import signal
import sys
import traceback
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from harness_runs import (
    SCRIPTS,
    actions,
    args_of,
    assert_same_end,
    final_state,
    only_run,
    refused,
    run,
    saved,
    scalars,
    small,
    table,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import envs
from envs import render
from harness.checkpoint import Checkpoints, load_policy
from harness.log import Log

FORK = "harness_fork"
# With `--dist loadgroup`, tests that look at one finished run are in one process.
OF_EACH = [
    pytest.param(FORK, marks=[pytest.mark.xdist_group("fork"), pytest.mark.quick]),
    *(pytest.param(name, marks=pytest.mark.xdist_group(f"run of {name}")) for name in SCRIPTS),
]
of_crl = pytest.mark.xdist_group("run of crl_jax")


def words(text):
    """The first of each line."""
    return [line.split()[0].rstrip(";") for line in text.splitlines()]


class Killed(BaseException):
    """What ends a process."""


def run_until(epoch, script, *flags, cwd):
    """Ends a run when it is about to write this epoch's checkpoint."""

    def save(self, runner, progress):
        if progress["epoch"] == epoch:
            raise Killed
        return original(self, runner, progress)

    original = Checkpoints.save
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoints, "save", save)
        run(script, *flags, cwd=cwd)


# ---- a run of each script --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", OF_EACH)
def test_directory(script, finished):
    directory, args = finished(script), args_of(script, finished(script))
    out = (directory.parents[1] / "out.txt").read_text()
    assert re.fullmatch(rf"{args.env_id}__{script}__{args.seed}__\d+", directory.name)
    assert f"{args.env_id} on mujoco physics, learning on " in out
    assert script == FORK or args.backend == "mujoco"  # for those who go on elsewhere; not all forks have this flag
    assert "\x1b" not in out and "\r" not in out  # readable in a file
    epochs = [f"{epoch}/12" for epoch in range(1, 13)]
    header = words(out).index("epoch")
    assert words(out)[header + 1 :] == [*epochs[:5], "checkpoint", *epochs[5:10], "checkpoint", *epochs[10:],
                                        "checkpoint", "evaluate"]  # fmt: skip
    assert f"--resume runs/{directory.name}" in out.splitlines()[header + 6]
    assert saved(directory) == [12]
    init, train = importlib.import_module(script).make_train(args)
    metrics = jax.eval_shape(lambda key: train(init(key), 1)[1], jax.random.key(0))
    curves, rows = scalars(directory), table(directory)
    assert curves.keys() == metrics.keys()
    if script != FORK:
        assert {"train/success_rate", "train/episode_length", "train/episode_return", "losses/critic"} <= curves.keys()
    steps = [int(row["steps"]) for row in rows]
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(1, 13)]
    assert len(set(np.diff(steps))) == 1 and f"{steps[-1]:,} environment steps in 12 epochs" in out
    assert rows[0].keys() == {"epoch", "steps"} | metrics.keys()
    for tag, values in curves.items():
        assert [step for step, _ in values] == steps
        np.testing.assert_allclose([value for _, value in values], [float(row[tag]) for row in rows], rtol=1e-5)


@pytest.mark.parametrize("script", OF_EACH)
def test_ended_runs_go_on_to_the_same_bits(script, finished, tmp_path):
    """Parameters, buffer, keys, curves and policy."""
    run_until(10, script, *small(script), cwd=tmp_path)
    directory, last = only_run(tmp_path), 5
    assert saved(directory) == [5] and len(table(directory)) == 10
    if script == FORK:  # once more, a checkpoint later
        run_until(12, script, "--resume", f"runs/{directory.name}", cwd=tmp_path)
        last = 10
        assert saved(directory) == [10]
    out = run(script, "--resume", ".", cwd=directory)
    assert f"going on after epoch {last} of ." in out
    assert words(out)[4:][-3:] == ["12/12", "checkpoint", "evaluate"]
    assert_same_end(script, finished(script), directory)


@pytest.mark.parametrize("script", OF_EACH)
def test_policy_stands_alone(script, finished):
    """The exported function is how the final runner acts, for any number of observations, and on other devices too."""
    directory, module = finished(script), importlib.import_module(script)
    args, (runner, progress) = args_of(script, directory), final_state(script, directory)
    env = envs.chunk(envs.make(args.env_id), getattr(args, "action_chunk", 1))
    act = partial(module.act, module.make_networks(args, env)) if script != FORK else module.act
    policy = jax.export.deserialize(bytearray((directory / "policy.jax").read_bytes()))
    assert policy.platforms == ("cpu", "cuda", "tpu")
    for number, scale in ((5, 1.0), (3, 0.0)):
        obs = jax.random.normal(jax.random.key(0), (number, env.observation_size))
        noise = scale * jax.random.normal(jax.random.key(1), (number, env.action_size))
        np.testing.assert_allclose(policy.call(obs, noise), act(runner, obs, noise), rtol=1e-5, atol=1e-6)
    assert progress["epoch"] == 12 and str(progress["steps"]) == table(directory)[-1]["steps"]


@pytest.mark.parametrize("script", OF_EACH)
def test_evaluate(script, finished):
    """Prints what `envs.evaluate` says, with an interval."""
    directory = finished(script)
    more = "--num-eval-envs 50 --seed 7 --episode-length 200 --eval-noise 0.5"
    task = "reacher" if script == FORK else "simple_u_maze_eval"
    out = run(script, "--evaluate", directory, *shlex.split(more), "--eval-env-id", task, cwd=directory)
    policy, args = load_policy(directory / "policy.jax"), args_of(script, directory)
    env = envs.chunk(envs.make(task), getattr(args, "action_chunk", 1))
    expected = jax.jit(lambda key: envs.evaluate(env, policy, key, 50, 200, 0.5))(jax.random.key(7))
    lines = out.splitlines()
    assert lines[0] == f"{task}, 50 episodes, seed 7" and len(lines) == 5
    assert {line.partition(",")[0] for line in lines[1:]} == {f"{name} {x:.3f}" for name, x in expected.items()}
    rate, low, high = map(float, re.findall(r"\d\.\d+", lines[1]))
    assert 0 <= low <= rate <= high <= 1 and 0.05 < high - low < 0.3
    stored = json.loads((directory / f"evaluation_{task}_7_noise_0.5.json").read_text())
    assert {name: stored[name] for name in expected} == pytest.approx({name: float(x) for name, x in expected.items()})
    assert (stored["task"], stored["flags"]["num_eval_envs"], stored["goal"]) == (task, 50, None)
    assert stored["interval"] == pytest.approx([low, high], abs=1e-3)


@of_crl
def test_evaluate_with_a_goal_of_ones_own(finished, tmp_path):
    directory = shutil.copytree(finished("crl_jax"), tmp_path / "run")
    evaluation = "--evaluate", directory, "--num-eval-envs", "4", "--episode-length", "1", "--eval-noise", "0"
    for x, y, distance in ((4.0, 4.0, 0.0), (4.0, 8.0, 4.0)):  # the start's cell, and another
        out = run("crl_jax", *evaluation, "--eval-goal", x, y, cwd=tmp_path)
        assert float(re.search(r"final_dist (.*)", out)[1]) == pytest.approx(distance, abs=0.3)
    assert "has 1 numbers: a goal of simple_u_maze has 2" in refused(
        "crl_jax", *evaluation, "--eval-goal", 4, cwd=tmp_path
    )
    assert "does not come to the goal" in refused("crl_jax", *evaluation, "--eval-goal", 4, 400, cwd=tmp_path)
    assert "--eval-goal wants --evaluate" in refused("crl_jax", "--eval-goal", 4, 4, cwd=tmp_path)


@of_crl
def test_evaluate_a_checkpoint(finished, tmp_path):
    """Of a run whose script has since got and lost flags."""
    directory = shutil.copytree(finished("crl_jax"), tmp_path / "run")
    stored = json.loads((directory / "args.json").read_text())
    stored["flags"] |= {"lost": 3}
    del stored["flags"]["repr_dim"], stored["flags"]["energy"]
    (directory / "args.json").write_text(json.dumps(stored))
    whole = run("crl_jax", "--evaluate", "run", "--num-eval-envs", "5", cwd=tmp_path)
    assert run("crl_jax", "--evaluate", "run/checkpoints/epoch_000012", "--num-eval-envs", "5", cwd=tmp_path) == whole
    err = refused("crl_jax", "--resume", "run", cwd=tmp_path)
    assert "differs in the flags energy, lost, repr_dim" in err


# ---- how long, and how often -----------------------------------------------------------------------------------------


@pytest.mark.xdist_group("fork")
@pytest.mark.quick
def test_a_finished_run_can_become_longer(finished, tmp_path):
    """To the bits of one that was that long from the start; its epochs too can become longer."""
    run(FORK, "--total-timesteps", "60", "--checkpoint-every", "3", cwd=tmp_path)
    directory = only_run(tmp_path)
    assert saved(directory) == [4]
    out = run(FORK, "--resume", directory, "--total-timesteps", "140", cwd=tmp_path)
    assert words(out)[4:7] == ["5/12", "6/12", "checkpoint"] and len(table(directory)) == 12
    assert_same_end(FORK, finished(FORK), directory)
    out = run(FORK, "--resume", directory, cwd=tmp_path)  # has nothing to do
    assert "140 environment steps in 12 epochs" in out and words(out)[3:] == ["evaluate"]
    assert_same_end(FORK, finished(FORK), directory)
    out = run(FORK, "--resume", directory, "--total-timesteps", "300", "--num-evals", "12", cwd=tmp_path)
    assert [row["steps"] for row in table(directory)[11:]] == ["140", "170", "200", "230", "260", "290", "320"]


@pytest.mark.quick
@pytest.mark.parametrize("keep", [1, 2])
def test_intervals_of_checkpoints(keep, tmp_path):
    flags = f"--run-dir mine --checkpoint-every 5 --keep-checkpoints {keep}"
    run(FORK, *shlex.split(flags), cwd=tmp_path)
    directory = tmp_path / "mine"
    assert saved(directory) == [10, 12][-keep:]
    newest = directory / "checkpoints" / "epoch_000012" / "policy.jax"
    np.testing.assert_array_equal(actions(newest), actions(directory / "policy.jax"))
    if keep == 2:
        before = directory / "checkpoints" / "epoch_000010" / "policy.jax"
        assert (actions(before) != actions(newest)).any()


@pytest.mark.xdist_group("fork")
@pytest.mark.quick
def test_no_checkpoints(finished, tmp_path):
    out = run(FORK, "--checkpoint-every", "0", cwd=tmp_path)
    directory = only_run(tmp_path)
    assert "checkpoint" not in out and saved(directory) == [] and len(table(directory)) == 12
    np.testing.assert_array_equal(actions(directory / "policy.jax"), actions(finished(FORK) / "policy.jax"))
    assert "holds no checkpoint yet" in refused(FORK, "--resume", directory, cwd=tmp_path)


@pytest.mark.xdist_group("fork")
@pytest.mark.quick
def test_a_run_directory_given_again_goes_on(finished, tmp_path):
    """The same line, whether the run was ended or not."""
    line = ["--run-dir", "queue/mine"]
    run_until(10, FORK, *line, cwd=tmp_path)
    assert saved(tmp_path / "queue" / "mine") == [5]
    for _ in range(2):
        run(FORK, *line, cwd=tmp_path)
        assert_same_end(FORK, finished(FORK), tmp_path / "queue" / "mine")


@pytest.mark.xdist_group("fork")
@pytest.mark.quick
def test_a_run_directory_given_again_before_the_first_checkpoint_starts_anew(finished, tmp_path):
    line = ["--run-dir", "queue/mine"]
    run_until(5, FORK, *line, cwd=tmp_path)
    assert saved(tmp_path / "queue" / "mine") == []
    run(FORK, *line, cwd=tmp_path)
    assert_same_end(FORK, finished(FORK), tmp_path / "queue" / "mine")


@pytest.mark.xdist_group("fork")
@pytest.mark.quick
def test_a_run_whose_script_logs_more_by_now_keeps_its_columns(tmp_path):
    run(FORK, "--run-dir", "mine", cwd=tmp_path)
    before, add = table(tmp_path / "mine"), Log.add
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Log, "add", lambda self, *args: add(self, *args[:-1], {"a_new_one": 7.0} | args[-1]))
        run(FORK, "--resume", "mine", "--total-timesteps", "300", cwd=tmp_path)
    after = table(tmp_path / "mine")
    assert after[: len(before)] == before and len(after) > len(before)
    assert after[-1].keys() == before[-1].keys() and int(after[-1]["steps"]) >= 300


@pytest.mark.quick
def test_a_folder_with_other_results_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("metrics.csv", "events.out.tfevents.1.host.2.0"):
        file = tmp_path / "mine" / name
        file.write_text("somebody's")
        err = refused(FORK, "--run-dir", "mine", cwd=tmp_path)
        assert "mine holds curves of something else" in err and name in err
        assert file.read_text() == "somebody's"
        file.unlink()


# ---- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.quick
def test_a_number_that_is_none_stops_the_run_and_keeps_its_checkpoint(tmp_path):
    err = refused(FORK, "--breaks-at", "8", cwd=tmp_path)
    assert re.match(r"error: \S+ is not finite in epoch 8 with seed 7; checkpoints are of earlier epochs", err)
    assert err.count("\n") == 1
    directory = only_run(tmp_path)
    assert saved(directory) == [5] and len(table(directory)) == 7
    assert load_policy(directory / "policy.jax")


@of_crl
def test_a_run_under_debug_nans(finished, tmp_path):
    finished("crl_jax")  # which compiles its programs
    with jax.debug_nans(True):
        run("crl_jax", *small("crl_jax", "--total-timesteps 384"), cwd=tmp_path)


@pytest.mark.quick
def test_debug_nans_finds_the_operation(tmp_path):
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="invalid value"):
        run(FORK, "--breaks-at", "3", cwd=tmp_path)


def test_learning_rates_beyond_reason(tmp_path):
    err = refused("crl_jax", *small("crl_jax", "--actor-lr 1e9 --critic-lr 1e9"), cwd=tmp_path)
    assert re.match(r"error: losses/\w+ is not finite in epoch \d+ with seed 1; .* lower learning rates may help", err)


@pytest.mark.quick
def test_an_exception_of_a_fork_reaches_its_own_except(monkeypatch, tmp_path):
    """With its traceback, whether it was raised while the training was built, traced or run."""
    module, cleaned = importlib.import_module(FORK), []

    def fail(*_):
        raise OverflowError("mine")

    def in_init(key):
        return fail()

    def in_program(runner, num_epochs):
        x = jax.pure_callback(fail, jax.ShapeDtypeStruct((), "float32"), runner["search"].weights)
        return runner, {name: x[None] for name in ("eval/success_rate", "eval/time_near_goal", "eval/final_dist")}

    init, train = module.make_train(module.Args())
    for pair in ((in_init, train), (init, fail), (init, in_program)):
        monkeypatch.setattr(module, "make_train", lambda args, env, pair=pair: pair)
        with pytest.raises((OverflowError, jax.errors.JaxRuntimeError)) as caught:
            try:
                run(FORK, cwd=tmp_path)
            finally:
                cleaned.append(True)
        assert "mine" in str(caught.value)
        if pair[1] is not in_program:
            assert type(caught.value) is OverflowError
            assert "in fail" in "".join(traceback.format_exception(caught.value))
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    assert len(cleaned) == 3


@pytest.mark.quick
def test_a_training_that_does_not_fit_into_memory(monkeypatch, tmp_path):
    sysconf = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: 1 if name == "SC_PHYS_PAGES" else sysconf(name))
    err = refused("crl_jax", *small("crl_jax"), cwd=tmp_path)
    assert re.match(r"error: the training needs \S+ GB of memory of 0: take fewer --num-envs", err)
    assert not list(tmp_path.iterdir())


@pytest.mark.quick
def test_a_run_leaves_ctrl_c_to_the_shell(tmp_path):
    """Python would hear it only between two epochs. Who has set it to something else or ignores it keeps that, and so
    does a notebook."""
    python, shell, ignored = signal.default_int_handler, signal.SIG_DFL, signal.SIG_IGN
    for before, notebook, after in ((python, False, shell), (ignored, False, ignored), (python, True, python)):
        during = []
        with pytest.MonkeyPatch.context() as patch:
            if notebook:
                patch.setattr(sys, "ps1", "In : ", raising=False)
            patch.setattr(Log, "add", lambda *_: during.append(signal.getsignal(signal.SIGINT)))
            restore = signal.signal(signal.SIGINT, before)
            try:
                run(FORK, cwd=tmp_path)
                assert signal.getsignal(signal.SIGINT) is before
            finally:
                signal.signal(signal.SIGINT, restore)
        assert set(during) == {after}
        shutil.rmtree(tmp_path / "runs")


# ---- seeds, logs, films ----------------------------------------------------------------------------------------------


@of_crl
def test_seeds_at_once(finished, tmp_path):
    """Each has its curve and its policy, the run their means; and a seed learns what it learns alone."""
    run("crl_jax", *small("crl_jax", "--num-seeds 2"), cwd=tmp_path)
    directory = only_run(tmp_path)
    mean, *seeds = (scalars(folder) for folder in (directory, directory / "seed_1", directory / "seed_2"))
    for tag, values in mean.items():
        each = [[value for _, value in curves[tag]] for curves in seeds]
        np.testing.assert_allclose([value for _, value in values], np.mean(each, axis=0), rtol=1e-5, atol=1e-7)
    assert seeds[0] != seeds[1]
    alone = scalars(finished("crl_jax"))
    for tag in ("losses/critic", "losses/entropy"):
        np.testing.assert_allclose(alone[tag][0][1], seeds[0][tag][0][1], rtol=1e-2)
    each = f"error: {directory} has a folder for each seed: --evaluate {directory / 'seed_1'}"
    assert refused("crl_jax", "--evaluate", directory, cwd=tmp_path).strip() == each
    kept = directory / "checkpoints" / "epoch_000012"
    for seed in (1, 2):
        policies = [actions(folder / f"seed_{seed}" / "policy.jax") for folder in (directory, kept)]
        np.testing.assert_array_equal(*policies)
    assert "3 episodes" in run("crl_jax", "--evaluate", directory / "seed_2", "--num-eval-envs", "3", cwd=tmp_path)
    out = run("crl_jax", "--resume", ".", cwd=directory)
    assert "going on after epoch 12 of ., which is complete: nothing is left to train" in out


def test_seeds_go_on_to_the_same_bits(tmp_path):
    for name in ("whole", "ended"):
        (tmp_path / name).mkdir()
    line = shlex.split("--run-dir mine --num-seeds 3")
    run(FORK, *line, cwd=tmp_path / "whole")
    run_until(10, FORK, *line, cwd=tmp_path / "ended")
    run(FORK, *line, cwd=tmp_path / "ended")
    for folder in ("seed_7", "seed_8", "seed_9", "."):
        one, other = (tmp_path / name / "mine" / folder for name in ("whole", "ended"))
        assert scalars(one) == scalars(other) and table(one) == table(other) and len(table(one)) == 12
        if folder != ".":
            np.testing.assert_array_equal(actions(one / "policy.jax"), actions(other / "policy.jax"))
    stored = json.loads((tmp_path / "whole" / "mine" / "seed_8" / "args.json").read_text())["flags"]
    assert (stored["seed"], stored["num_seeds"]) == (8, 1)


@pytest.mark.quick
def test_evaluate_a_checkpoint_of_one_seed(tmp_path):
    run(FORK, "--run-dir", "mine", "--num-seeds", "2", "--total-timesteps", "40", cwd=tmp_path)
    policy = "mine/checkpoints/epoch_000002/seed_8"
    out = run(FORK, "--evaluate", policy, "--episode-length", "5", cwd=tmp_path)
    assert "reacher, 4 episodes, seed 7" in out


@pytest.mark.quick
def test_track_mirrors_to_wandb(monkeypatch, tmp_path):
    """To a stand-in that notes how it is called."""
    calls = []
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **flags: calls.append(flags), __spec__=...))
    run(FORK, "--track", "--total-timesteps", "40", "--checkpoint-every", "1", cwd=tmp_path)
    (called,), directory = calls, only_run(tmp_path)
    assert called["sync_tensorboard"] is True and called["name"] == directory.name
    assert called["id"] == called["name"] and called["dir"] == str(directory.relative_to(tmp_path))
    assert called["config"]["step_size"] == 0.1
    run(FORK, "--resume", directory, "--total-timesteps", "60", cwd=tmp_path)
    assert calls[1]["id"] == called["id"] and calls[1]["resume"] == "allow"
    monkeypatch.setitem(sys.modules, "wandb", None)  # not installed
    assert "pip install wandb" in refused(FORK, "--track", "--run-dir", "mine", cwd=tmp_path)
    assert not (tmp_path / "mine").exists()
    run(FORK, "--resume", directory, "--no-track", "--total-timesteps", "80", cwd=tmp_path)
    assert len(table(directory)) == 6


def test_tensorboard_has_hyperparameters_and_film(tmp_path):
    film = ["--capture-video"]
    try:
        render.check_opengl()
    except envs.UsageError:
        film = []
    run(FORK, "--total-timesteps", "40", "--episode-length", "5", *film, cwd=tmp_path)
    directory = only_run(tmp_path)
    events = EventAccumulator(str(directory))
    events.Reload()
    assert "| step_size | 0.1 |" in events.Tensors("hyperparameters")[0].tensor_proto.string_val[0].decode()
    assert "_hparams_/session_start_info" in events.summary_metadata
    if film:
        image = events.Images("film")[0]
        assert image.encoded_image_string == (directory / "film.gif").read_bytes() and image.width == 3 * 320
        run(FORK, "--evaluate", directory, "--eval-noise", "0.5", *film, cwd=tmp_path)
        assert (directory / "film_reacher_7_noise_0.5.gif").read_bytes().startswith(b"GIF8")


@pytest.mark.quick
def test_without_opengl_no_film_is_begun(monkeypatch, tmp_path):
    def no_opengl():
        raise envs.UsageError("pictures need a working EGL")

    monkeypatch.setattr(render, "check_opengl", no_opengl)
    assert refused(FORK, "--capture-video", cwd=tmp_path) == "error: pictures need a working EGL\n"
    assert not list(tmp_path.iterdir())
