"""The command line, read and checked; nothing is trained here."""

import dataclasses
import fnmatch
import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from harness_runs import ROOT, SCRIPTS, refused

import crl_jax
import envs
import harness
from harness.cli import directory_of, flags_of

pytestmark = pytest.mark.quick


@pytest.fixture
def parse(monkeypatch, tmp_path):
    """A function of a command line: the flags of `crl_jax` that it sets. Starts in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def parse(line="", script="crl_jax"):
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *shlex.split(line)])
        return harness.parse_args(importlib.import_module(script).Args)

    return parse


def store(folder, script="crl_jax", epoch=None, **flags):
    """What a run leaves that the command line looks at."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored = flags_of(importlib.import_module(script).Args(backend="mujoco"))
    (folder / "args.json").write_text(json.dumps({"script": script, "flags": stored | flags}))
    if epoch is not None:
        (folder / "checkpoints" / f"epoch_{epoch:06d}").mkdir(parents=True)


# ---- flags -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_mistakes_get_one_line(script, tmp_path):
    for flags, message in (
        ("--env-id reachr", "error: unknown env id 'reachr'; did you mean reacher or "),
        ("--env-id no_module:Cart", "error: env id 'no_module:Cart': there is no module 'no_module' here"),
        ("--env-id envs:Cart", "error: env id 'envs:Cart': envs has no GoalEnv 'Cart'"),
        ("--layout '#r.g#'", "error: reacher is no maze: it has no layout"),
        ("--backend bullet", "error: reacher does not run on backend 'bullet'; choose one of"),
        ("--eval-env-id ant", "error: a policy of this task cannot act in ant: state_dim is 10 here and 29 there"),
        ("--resume nowhere", "error: there is no directory nowhere"),
        ("--num-envs 0", "error: --num-envs 0: must be at least 1"),
        ("--seed -1", "error: --seed -1: must be at least 0"),
        ("--resume ''", "error: an empty directory: is a shell's variable not set?"),
        ("--resume a --evaluate b", "error: --resume goes on with a run and --evaluate ends one: choose"),
        ("--resume a --run-dir b", "error: --resume and --evaluate are about a run where it is: leave --run-dir out"),
    ):
        err = refused(script, *shlex.split(flags), cwd=tmp_path)
        assert err.startswith(message) and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--seed x", "invalid literal for int"),
        ("--gama 0.9", "--gamma"),
        ("--contrastive-loss nce", "fwd_infonce"),
        ("--energy cosine", "norm"),
        ("--num-envs 0", "--num-envs 0: must be at least 1"),  # checks of `Args`
        ("--gamma 1", "--gamma must lie between 0 and 1"),
    ],
)
def test_what_tyro_refuses(flags, words, tmp_path):
    assert words in refused("crl_jax", *shlex.split(flags), cwd=tmp_path)


def test_devices_that_are_not_there(parse, monkeypatch):
    def devices():
        raise RuntimeError("Unknown backend")

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(envs.UsageError, match=r"JAX_PLATFORMS is 'cuda'\. Unknown backend"):
        parse()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--num-devices 8", "--num-devices 8: there are 4"),
        ("--coordinator 127.0.0.1:9999", "--coordinator, --num-processes and --process-id want --distributed"),
        ("--distributed --coordinator host --num-processes 1 --process-id 0", "--coordinator wants .* HOST:PORT"),
        ("--distributed --coordinator 127.0.0.1:9999", "--distributed: what JAX says"),
        ("--evaluate run --num-devices 2", "--evaluate is for one device: leave --num-devices out"),
    ],
)
def test_devices_and_processes_that_cannot_be(line, message, parse, monkeypatch, tmp_path):
    def initialize(*connection):
        raise ValueError("what JAX says")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "args.json").write_text(json.dumps({"script": "crl_jax", "flags": flags_of(crl_jax.Args())}))
    with pytest.raises(envs.UsageError, match=message):
        parse(line)


def test_other_errors_keep_their_traceback(tmp_path):
    """Also those of numpy, which are `ValueError`s like ours."""
    for error in (ValueError("shapes (2,) (3,)"), FileNotFoundError("x"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, harness.errors_in_one_line():
            raise error
        assert caught.value is error


def test_flags_with_a_truth_value(parse):
    """As sweeps write them, and as tyro does."""
    for line, expected in (
        ("--layer-norm", True), ("--layer-norm True", True), ("--layer-norm=True", True), ("--layer-norm=False", False),
        ("--layer-norm False", False), ("--no-layer-norm", False), ("--layer-norm False --layer-norm", True),
        ("--layer_norm true", True), ("--layer_norm=false", False), ("--layer-norm --layer-norm FALSE", False),
    ):  # fmt: skip
        assert parse(f"--normalize-observations False {line} --width 8") == crl_jax.Args(
            normalize_observations=False, layer_norm=expected, width=8
        )
    assert parse("--exp-name True").exp_name == "True"


def test_numbers_below_their_range_are_refused():
    """Counts below 1, others below 0; in forks as low as the default. Neither truth values nor tracers are numbers."""

    @dataclasses.dataclass(frozen=True)
    class Args(harness.RunArgs):
        skip: int = 0
        offset: int = -1
        shift: float = -1.0
        target_kl: float | None = None
        epochs: int | None = None
        flag: bool = False

    assert Args(skip=0, offset=-5, shift=-5, target_kl=0.01, seed=0, checkpoint_every=0).offset == -5
    jax.eval_shape(lambda x: Args(shift=x).shift, 1.0)
    for name, value, wanted in (
        ("skip", -1, "at least 0"), ("target_kl", -0.1, "at least 0"), ("epochs", 0, "at least 1"),
        ("keep_checkpoints", 0, "at least 1"), ("seed", -1, "at least 0"), ("target_kl", float("inf"), "at least 0"),
        ("shift", float("nan"), "finite"),
    ):  # fmt: skip
        with pytest.raises(envs.UsageError, match=f"^--{name.replace('_', '-')} {value}: must be {wanted}$"):
            Args(**{name: value})


def test_64_bits_are_refused_at_once(tmp_path):
    with jax.enable_x64(True):
        assert refused("crl_jax", cwd=tmp_path) == (
            "error: JAX_ENABLE_X64 is set: the scripts compute in float32, unset it\n"
        )


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_every_flag(script, parse, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as ended:
        parse("--help", script)
    text, module = capsys.readouterr().out, importlib.import_module(script)
    assert ended.value.code == 0 and module.__doc__.partition("\n")[0] in text
    source = (ROOT / f"{script}.py").read_text() + (ROOT / "harness" / "cli.py").read_text()
    text = " ".join(text.replace("│", " ").replace("'", "").split())
    for field in dataclasses.fields(module.Args):
        pattern = rf"^    {field.name}: .* = .*  # (.*)$"
        (comment,) = re.findall(pattern, source, re.MULTILINE)[:1]
        comment = comment.replace("'", "")
        assert f"--{field.name.replace('_', '-')}" in text
        assert f"{comment} (default: {field.default})" in text


FORK = '''
"""A fork: two spaces, and annotations that are strings."""
from __future__ import annotations
import dataclasses
from typing import Literal
import harness

@dataclasses.dataclass(frozen=True)
class Args(harness.RunArgs):
  env_id: str = "reacher"  # of the fork
  steps_ahead: int = 3
  my_loss: Literal["mine", "yours"] = "mine"  # which loss
  sizes: tuple[int, ...] = (256, 256)  # of the layers
  fast: bool = False  # or slow
  total_timesteps: int = 10  # how long
'''


def test_a_kind_of_task_has_defaults(monkeypatch, capsys):
    """They are printed, and a flag of the user's goes first."""

    def parse(line):
        monkeypatch.setattr(sys, "argv", ["crl_jax.py", *shlex.split(line)])
        kinds = {"ant*": dict(action_chunk=3, layer_norm=True), "ant*maze*": dict(action_chunk=5)}
        args = harness.parse_args(crl_jax.Args, kinds)
        return (args.action_chunk, args.layer_norm), capsys.readouterr().out

    assert parse("--env-id ant_ball") == ((3, True), "for ant*: --action-chunk 3 --layer-norm\n")
    assert parse("--action-chunk 2 --env-id ant") == ((2, True), "for ant*: --layer-norm\n")
    assert parse("--action-chunk 1 --no-layer-norm --env-id ant") == ((1, False), "")
    assert parse("--env-id reacher") == ((1, False), "")
    of_mazes = "for ant*, ant*maze*: --action-chunk 5 --layer-norm\n"  # of two patterns that fit the later wins
    assert parse("--env-id ant_u_maze") == ((5, True), of_mazes)
    for task, flags in crl_jax.OF_TASKS.items():
        assert fnmatch.filter(envs.ENV_IDS, task)
        dataclasses.replace(crl_jax.Args(), **flags)


def test_checks_are_made_with_the_defaults_of_the_task(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Args(harness.RunArgs):
        env_id: str = "reacher"
        horizon: int = 5
        baseline: bool = True

        def __post_init__(self):
            super().__post_init__()
            harness.check(self.baseline or self.horizon > 10, "--no-baseline wants a longer --horizon")

    def parse(line):
        monkeypatch.setattr(sys, "argv", ["crl_jax.py", *line.split()])
        return harness.parse_args(Args, {"ant*": dict(horizon=20)})

    assert parse("--no-baseline --env-id ant").horizon == 20
    for line in ("--no-baseline", "--env-id reacher --no-baseline", "--env-id ant --horizon 6 --no-baseline"):
        with pytest.raises(envs.UsageError, match="wants a longer"):
            parse(line)


def test_a_fork_may_look_as_it_likes(parse, monkeypatch, tmp_path, capsys):
    """Its help is whole, its flags are checked and come back from the disk as they were."""
    (tmp_path / "my_fork.py").write_text(FORK.strip())
    monkeypatch.syspath_prepend(tmp_path)
    args = parse("--steps-ahead 4 --sizes 3 4 --fast True", "my_fork")
    assert (args.steps_ahead, args.sizes, args.fast, args.seed) == (4, (3, 4), True, 1)
    (tmp_path / "args.json").write_text(json.dumps({"script": "my_fork", "flags": flags_of(args)}))
    again = parse(f"--resume {tmp_path}", "my_fork")
    assert again == dataclasses.replace(args, resume=str(tmp_path))
    for line, words in (("--steps-ahead 0", "--steps-ahead 0: must be at least 1"), ("--my-loss theirs", "yours")):
        with pytest.raises((SystemExit, envs.UsageError)) as refused:
            parse(line, "my_fork")
        assert words in str(refused.value) + capsys.readouterr().err
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        parse("--help", "my_fork")
    text = capsys.readouterr().out
    for words in ("A fork: two spaces, and annotations that are strings.", "of the fork", "which loss", "or slow",
                  "{mine,yours}", "seed of all randomness"):  # fmt: skip
        assert words in text


def test_compilation_cache(parse, monkeypatch):
    """The flag says where, if nothing of JAX's own does."""
    settings = {}
    monkeypatch.setattr(jax.config, "update", settings.__setitem__)
    assert jax.config.jax_compilation_cache_dir  # by the environment variable of these tests
    parse("--compilation-cache elsewhere")
    assert not settings
    monkeypatch.setattr(type(jax.config), "jax_compilation_cache_dir", None, raising=False)
    parse("--compilation-cache ''")
    assert not settings
    parse("--compilation-cache ~/elsewhere")
    assert settings["jax_compilation_cache_dir"] == str(Path.home() / "elsewhere")
    assert settings["jax_compilation_cache_max_size"] > 0


# ---- flags of an earlier run -----------------------------------------------------------------------------------------


def test_resume_takes_the_flags_of_the_run(parse):
    store("runs/one", seed=3, width=8, total_timesteps=1000, anneal_lr=False)
    args = parse("--resume runs/one --capture-video --total-timesteps 2000")
    assert (args.seed, args.width, args.backend, args.resume) == (3, 8, "mujoco", "runs/one")
    assert args.capture_video and args.total_timesteps == 2000
    with pytest.raises(envs.UsageError, match="--total-timesteps 999: the run has 1000, and it can only be more"):
        parse("--resume runs/one --total-timesteps 999")
    assert parse("--resume runs/one --width 8").width == 8
    for line, message in (
        ("--width 256", "--width 256: the run in runs/one has 8, and that stays"),
        ("--gamma 0.9", "--gamma 0.9: the run in runs/one has 0.95, and that stays"),
        ("--seed 1", "--seed 1: the run in runs/one has 3, and that stays"),
    ):
        with pytest.raises(envs.UsageError, match=message):
            parse(f"--resume runs/one {line}")


def test_a_run_with_falling_learning_rates_cannot_become_longer(parse):
    store("runs/one", anneal_lr=True, total_timesteps=1000)
    assert parse("--resume runs/one --total-timesteps 1000").anneal_lr
    with pytest.raises(envs.UsageError, match="--anneal-lr takes the learning rates to 0 at the run's end; without it"):
        parse("--resume runs/one --total-timesteps 2000")


def test_a_run_of_another_script_or_version_is_refused(parse):
    store("runs/ppo", script="ppo_jax")
    store("runs/new", brand_new=3)
    for line, message in (
        ("--resume runs/ppo", r"runs/ppo is a run of ppo_jax.py: take that script"),
        ("--evaluate runs/ppo", r"runs/ppo is a run of ppo_jax.py: take that script"),
        ("--resume runs/new", "another version of the script, which differs in the flags brand_new"),
    ):
        with pytest.raises(envs.UsageError, match=message):
            parse(line)


def test_a_run_directory_given_again_goes_on(parse):
    """With the same line; one that was ended before its first checkpoint starts anew."""
    line = "--run-dir runs/mine --seed 3 --width 8"
    assert (parse(line).run_dir, parse(line).resume) == ("runs/mine", None)
    store("runs/mine", seed=3, width=8)
    assert (parse(line).run_dir, parse(line).resume) == ("runs/mine", None)
    with pytest.raises(envs.UsageError, match="--width 9: the run in runs/mine has 8, and that stays"):
        parse("--run-dir runs/mine --seed 3 --width 9")
    store("runs/mine", seed=3, width=8, epoch=5)
    args = parse(line)
    assert (args.resume, args.run_dir, args.seed, args.backend) == ("runs/mine", None, 3, "mujoco")
    with pytest.raises(envs.UsageError, match="--width 9: the run in runs/mine has 8, and that stays"):
        parse("--run-dir runs/mine --seed 3 --width 9")


def test_a_run_that_ended_without_checkpoints_is_not_written_over(parse):
    store("runs/mine", checkpoint_every=0)
    Path("runs/mine/policy.jax").touch()
    with pytest.raises(envs.UsageError, match="runs/mine holds a run that ended without checkpoints"):
        parse("--run-dir runs/mine --checkpoint-every 0")


def test_resume_wants_a_whole_run(parse):
    store("runs/one", epoch=5)
    with pytest.raises(envs.UsageError, match="epoch_000005 is part of a run: --resume wants the run itself"):
        parse("--resume runs/one/checkpoints/epoch_000005")
    store("runs/one/seed_2")
    with pytest.raises(envs.UsageError, match="seed_2 is part of a run: --resume wants the run itself"):
        parse("--resume runs/one/seed_2")
    assert parse("--evaluate runs/one/checkpoints/epoch_000005").evaluate


def test_evaluation_takes_the_flags_of_the_run_as_far_as_it_knows_them(parse):
    """The policy stands alone: the script may have got or lost flags since. How to evaluate is said anew."""
    store("runs/old", seed=3, width=8, num_eval_envs=7, capture_video=True, lost_flag=5, eval_noise=0.5)
    stored = json.loads(Path("runs/old/args.json").read_text())
    del stored["flags"]["gamma"]
    Path("runs/old/args.json").write_text(json.dumps(stored))
    args = parse("--evaluate runs/old")
    default = type(args)()
    assert (args.width, args.gamma, args.eval_noise) == (8, default.gamma, 0.5)
    assert (args.seed, args.num_eval_envs, args.capture_video) == (default.seed, default.num_eval_envs, False)
    more = "--seed 9 --num-eval-envs 50 --eval-noise 0 --eval-env-id x --episode-length 5 --backend mjx --capture-video"
    args = parse(f"--evaluate runs/old {more}")
    assert (args.seed, args.num_eval_envs, args.eval_noise, args.backend) == (9, 50, 0, "mjx")
    with pytest.raises(envs.UsageError, match="--width 9: the run in runs/old has 8"):
        parse("--evaluate runs/old --width 9")


def test_directories_that_belong_to_a_run(tmp_path):
    store(tmp_path / "run", epoch=5)
    folder = tmp_path / "run" / "checkpoints" / "epoch_000005"
    assert directory_of(str(folder)) == directory_of(str(tmp_path / "run")) == tmp_path / "run"
    with pytest.raises(envs.UsageError, match="is not the directory of a run"):
        directory_of(str(tmp_path))


def test_importing_a_script_changes_nothing_of_the_process():
    """And refuses within seconds what it does not take: before anything is compiled."""
    program = (
        "import gc, signal, sys, warnings; handlers = [signal.getsignal(s) for s in signal.valid_signals()];"
        "hooks = sys.excepthook, sys.stdout, sys.stderr, gc.isenabled();"
        "import crl_jax;"
        "assert handlers == [signal.getsignal(s) for s in signal.valid_signals()];"
        "assert hooks == (sys.excepthook, sys.stdout, sys.stderr, gc.isenabled());"
        "import time; began = time.time(); sys.argv = ['crl_jax.py'];"
        "exec('try: crl_jax.main()\\nexcept SystemExit as end: print(end.code, time.time() - began < 1)')"
    )
    environment = {"JAX_ENABLE_X64": "1", "PATH": "", "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1:] == ["2 True"], result.stderr
