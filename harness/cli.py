"""The command line of the scripts: flags, and those of an earlier run."""

import contextlib
import dataclasses
import fnmatch
import inspect
import json
import math
import os
import sys
from pathlib import Path
from typing import TypeVar

import jax
import tyro

from envs import UsageError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class RunArgs:
    """The flags that are not about the algorithm, the same for all scripts."""

    # run
    seed: int = 1  # seed of all randomness
    num_seeds: int = 1  # trainings at once, with the seeds from `seed` on; over all devices if these divide them
    num_devices: int = 1  # devices that share one training: each has its part of the environments and of each batch
    exp_name: str | None = None  # name of the experiment, part of the run directory's name; None: the script's
    runs_dir: str = "runs"  # folder in which the run's own directory is made
    run_dir: str | None = None  # the run's own directory; if it holds a run with these flags, that goes on
    checkpoint_every: int = 5  # epochs between two checkpoints; 0 writes none
    keep_checkpoints: int = 1  # newest checkpoints that stay on disk
    capture_video: bool = False  # film the learned policy at the end, as film.gif
    track: bool = False  # mirror the log to Weights & Biases
    wandb_project: str | None = None  # where it goes there; None: wandb's own default, as for the next two
    wandb_entity: str | None = None  # whose project it is
    wandb_group: str | None = None  # the group of runs
    distributed: bool = False  # one of several processes, on one or several hosts, whose devices share the training
    coordinator: str | None = None  # address:port of process 0; None, as the next two: SLURM or Kubernetes knows
    num_processes: int | None = None  # how many processes there are
    process_id: int | None = None  # which of them this is
    compilation_cache: str = "~/.cache/jax"  # folder of compiled programs, "" for none; JAX_COMPILATION_CACHE_DIR wins

    # earlier runs
    resume: str | None = None  # directory of a run: go on, with its flags; after --no-anneal-lr also to more timesteps
    evaluate: str | None = None  # directory of a run or a checkpoint: evaluate its policy, with --capture-video film it
    eval_goal: tuple[float, ...] | None = None  # with --evaluate: the goal of all episodes; None draws them

    def __post_init__(self):
        """Raises UsageError for a count below 1 and another number below 0, unless its default is that low, and for a
        size that the devices do not divide."""
        for field in dataclasses.fields(self):
            value, default = getattr(self, field.name), field.default
            if type(value) in (int, float):  # neither a bool, nor one of JAX's tracers
                from_zero = default == 0 or field.name in ("seed", "checkpoint_every", "process_id")
                counts = "int" in str(field.type) and not from_zero
                lowest = -math.inf if isinstance(default, int | float) and default < 0 else 1 if counts else 0
                flag, wanted = field.name.replace("_", "-"), "finite" if lowest == -math.inf else f"at least {lowest}"
                check(math.isfinite(value) and value >= lowest, f"--{flag} {value}: must be {wanted}")
        for name in ("num_envs", "batch_size", "num_eval_envs"):
            size, whole = getattr(self, name, 0), f"--num-devices {self.num_devices} must divide it"
            check(size % self.num_devices == 0, f"--{name.replace('_', '-')} {size}: {whole}")
        place = (self.wandb_project, self.wandb_entity, self.wandb_group)
        check(self.track or place == (None,) * 3, "--wandb-project, --wandb-entity and --wandb-group want --track")
        check(self.num_seeds == 1 or self.num_devices == 1, "--num-seeds or --num-devices: choose one of them")
        check(self.num_seeds == 1 or not self.distributed, "--distributed trains one seed, on all devices")
        check(not (self.evaluate and self.distributed), "--evaluate is for one process: leave --distributed out")

    @property
    def axes(self) -> tuple[str, ...]:
        """The mapped axis of the devices that share a training, for JAX's collectives, to which () means no axis."""
        return ("devices",) if self.num_devices > 1 else ()


OF_PROCESSES = ("coordinator", "num_processes", "process_id")
# Flags that are no part of a run.
_OF_PROCESS = {"resume", "evaluate", "eval_goal", "run_dir", "compilation_cache", "distributed", *OF_PROCESSES}
# What may be given anew when a run goes on, and when it is evaluated.
_OF_WANDB = {"track", "wandb_project", "wandb_entity", "wandb_group"}
_OF_RESUME = _OF_WANDB | {"capture_video", "checkpoint_every", "keep_checkpoints", "runs_dir", "total_timesteps"}
_OF_EVALUATION = {
    "seed", "num_eval_envs", "capture_video", "eval_env_id", "eval_noise", "episode_length", "backend", "layout",
}  # fmt: skip


def check(condition: bool, message: str):
    """Raises UsageError if the condition does not hold. That of a traced value, as in a sweep, is not known yet."""
    if not isinstance(condition, jax.core.Tracer) and not condition:
        raise UsageError(message)


@contextlib.contextmanager
def errors_in_one_line():
    """A `UsageError` ends the process with one line and exit code 2. Every other exception stays what it is."""
    try:
        yield
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def script_of(flags_class: type) -> str:
    """Name of the script that defines the flags, e.g. crl_jax."""
    return Path(getattr(sys.modules[flags_class.__module__], "__file__", "notebook")).stem


def flags_of(args: RunArgs) -> dict:
    """The flags that belong to a run, for JSON."""
    return {name: value for name, value in vars(args).items() if name not in _OF_PROCESS}


def of_task(env_id: str, of_tasks: dict[str, dict]) -> tuple[list[str], dict]:
    """The patterns that fit a task, which fit no class of a user's, and their flags; of two values the later wins."""
    kinds = [name for name in of_tasks if fnmatch.fnmatch(env_id, name) and ":" not in env_id]
    return kinds, {name: value for kind in kinds for name, value in of_tasks[kind].items()}


def as_typed(flags: dict) -> str:
    """Flags as they are typed on the command line."""
    return " ".join(f"--{name.replace('_', '-')} {value}".removesuffix(" True") for name, value in flags.items())


def directory_of(path: str) -> Path:
    """The directory of the run to which this directory, of the run itself or one of its checkpoints, belongs."""
    check(Path(path).is_dir(), f"there is no directory {path}")
    for folder in (Path(path), *Path(path).absolute().parents[:3]):
        if (folder / "args.json").is_file():
            return folder
    raise UsageError(f"{path} is not the directory of a run: there is no args.json in it")


def _stored_flags(path: str, flags_class: type) -> dict:
    """The flags with which a run was started."""
    file = directory_of(path) / "args.json"
    stored = json.loads(file.read_text())
    check(stored["script"] == script_of(flags_class), f"{path} is a run of {stored['script']}.py: take that script")
    return {name: tuple(x) if isinstance(x, list) else x for name, x in stored["flags"].items()}


def _words(flags_class: type) -> list[str]:
    """The command line. Sweeps write --flag True and --flag=False where tyro wants --flag and --no-flag."""
    booleans = {x.name for x in dataclasses.fields(flags_class) if x.type in (bool, "bool")}
    words = []
    for word in sys.argv[1:]:
        flag, equals, value = word.partition("=")
        if words and word.lower() in ("true", "false") and _field_of(words[-1]) in booleans:
            flag, equals, value = words.pop(), "=", word
        if equals and value.lower() in ("true", "false") and _field_of(flag) in booleans:
            word = flag if value.lower() == "true" else f"--no-{flag[2:]}"
        words.append(word)
    return words


def _field_of(flag: str) -> str:
    """The field of the flags' class that this flag sets, which can be written with - or with _."""
    return flag.removeprefix("--").replace("-", "_")


def _parse(default: T) -> T:
    """The command line over these flags."""
    description = (inspect.getdoc(sys.modules[type(default).__module__]) or "").partition("\n")[0]
    return tyro.cli(type(default), args=_words(type(default)), default=default, description=description)


def _env_id(default: RunArgs) -> str:
    """The task alone, which has a say in the defaults of all other flags."""

    def task(env_id: str = default.env_id) -> str:
        return env_id

    return tyro.cli(task, args=_words(type(default)), return_unknown_args=True, add_help=False)[0]


def _parse_over(run: T, directory: str, changeable: set[str]) -> T:
    """The command line over the flags of the run in `directory`, of which it may change these."""
    given = _parse(run)
    for name in flags_of(run).keys() - changeable:
        flag, now, before = name.replace("_", "-"), getattr(given, name), getattr(run, name)
        check(now == before, f"--{flag} {now}: the run in {directory} has {before}, and that stays")
    return given


def _parse_evaluation(default: T, directory: str) -> T:
    """`--evaluate`: the flags of a run, as far as the script still has them."""
    stored, names = _stored_flags(directory, type(default)), flags_of(default)
    one_of = f"{directory} has a folder for each seed: --evaluate {Path(directory, 'seed_' + str(stored.get('seed')))}"
    check(stored.get("num_seeds", 1) == 1 or Path(directory, "policy.jax").is_file(), one_of)
    stored = {name: value for name, value in stored.items() if name in names}
    stored |= {name: getattr(default, name) for name in ("seed", "num_eval_envs", "capture_video", "num_devices")}
    run = dataclasses.replace(default, **stored)
    given = _parse_over(run, directory, _OF_EVALUATION)
    same = getattr(given, "layout", None) == getattr(run, "layout", None)
    other_task = getattr(given, "eval_env_id", None)
    check(same or not other_task, "--layout is that of --env-id, and --eval-env-id has its own: choose")
    return given


def _parse_resumption(default: T, directory: str, anew: bool) -> T:
    """`--resume`, or a `--run-dir` that holds a run: its flags. A run without checkpoints starts anew."""
    stored = _stored_flags(directory, type(default))
    of_seed = Path(directory).resolve().parent / "args.json"
    whole = directory_of(directory).samefile(directory) and not of_seed.is_file()
    check(whole, f"{directory} is part of a run: --resume wants the run itself, and goes on from its newest checkpoint")
    lost = anew and any(Path(directory).rglob("policy.jax"))
    check(not lost, f"{directory} holds a run that ended without checkpoints: take another --run-dir")
    other = ", ".join(sorted(stored.keys() ^ flags_of(default).keys()))
    check(not other, f"{directory} is a run of another version of the script, which differs in the flags {other}")
    run = dataclasses.replace(default, **stored)
    given = _parse_over(run, directory, _OF_RESUME)
    before, now = (getattr(flags, "total_timesteps", 0) for flags in (run, given))
    check(anew or now >= before, f"--total-timesteps {now}: the run has {before}, and it can only be more")
    annealed = (
        "--total-timesteps: --anneal-lr takes the learning rates to 0 at the run's end; without it a run can go on"
    )
    check(anew or now == before or not getattr(run, "anneal_lr", False), annealed)
    _check_devices(given)
    return given if anew else dataclasses.replace(given, resume=directory, run_dir=None)


def _check_devices(args: RunArgs):
    """Raises UsageError for more devices than there are, and for fewer than several processes have."""
    there = jax.device_count()
    check(args.num_devices <= there, f"--num-devices {args.num_devices}: there are {there}")
    whole = f"--distributed wants --num-devices {there}, all of them"
    check(not args.distributed or args.num_devices == there, whole)


def _set_up_jax(args: RunArgs):
    """The cache of compiled programs, the other processes, and the devices. Raises UsageError where one is missing."""
    if args.compilation_cache and not jax.config.jax_compilation_cache_dir:  # JAX's own setting goes first
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(args.compilation_cache))
        jax.config.update("jax_compilation_cache_max_size", 4 << 30)  # bytes; what was not used for longest goes
    connection = [getattr(args, name) for name in OF_PROCESSES]
    check(
        args.distributed or connection == [None] * 3,
        "--coordinator, --num-processes and --process-id want --distributed",
    )
    if args.distributed:
        jax.config.update("jax_enable_preemption_service", False)  # which would swallow SIGTERM
        check(":" in (args.coordinator or ":"), "--coordinator wants the address and the port of process 0, HOST:PORT")
        try:
            jax.distributed.initialize(*connection)  # before any device is touched
        except (ValueError, RuntimeError) as error:
            raise UsageError(f"--distributed: {error}") from error
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked_for = os.environ.get("JAX_PLATFORMS", "")
        raise UsageError(f"JAX finds no device; JAX_PLATFORMS is {asked_for!r}. {error}".rstrip()) from error


def parse_args(flags_class: type[T], of_tasks: dict[str, dict] | None = None) -> T:
    """Reads the command line.

    `of_tasks` has the defaults of kinds of tasks, which `--env-id` chooses: of all keys, patterns, that fit it; of
    two values for a flag the later wins. With `--resume RUN_DIR` the flags are those of that run, and so they are if
    `--run-dir` holds a run; with `--evaluate RUN_DIR` too, as far as the script still has them. Other values are
    refused, but for what `_OF_RESUME` and `_OF_EVALUATION` list.
    """
    check(not jax.config.jax_enable_x64, "JAX_ENABLE_X64 is set: the scripts compute in float32, unset it")
    kinds, chosen = of_task(_env_id(flags_class()), of_tasks or {})
    default = flags_class(**chosen)
    given = _parse(default)
    _set_up_jax(given)
    check("" not in (given.resume, given.evaluate, given.run_dir), "an empty directory: is a shell's variable not set?")
    check(not (given.resume and given.evaluate), "--resume goes on with a run and --evaluate ends one: choose")
    check(given.eval_goal is None or given.evaluate, "--eval-goal wants --evaluate, with the directory of a run")
    elsewhere = given.run_dir and (given.resume or given.evaluate)
    check(not elsewhere, "--resume and --evaluate are about a run where it is: leave --run-dir out")
    if given.evaluate:
        check(given.num_devices == 1, "--evaluate is for one device: leave --num-devices out")
        return _parse_evaluation(default, given.evaluate)
    if given.resume:
        return _parse_resumption(default, given.resume, anew=False)
    if given.run_dir:
        has_checkpoint = any(Path(given.run_dir, "checkpoints").glob("epoch_??????"))
        if has_checkpoint or Path(given.run_dir, "args.json").is_file():
            return _parse_resumption(default, given.run_dir, anew=not has_checkpoint)
    _check_devices(given)
    taken = {name: value for name, value in chosen.items() if getattr(given, name) == value}
    if taken and jax.process_index() == 0:
        print(f"for {', '.join(kinds)}: {as_typed(taken)}")
    return given
