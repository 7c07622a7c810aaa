"""The command line of the scripts: grouped help, the flags of an earlier run, and mistakes told in one line."""

import contextlib
import dataclasses
import inspect
import io
import json
import os
import re
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated, TypeVar

import jax
import tyro

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class RunArgs:
    """The flags that are not about the algorithm, the same for all scripts."""

    # run
    seed: int = 1  # seed of all randomness
    num_seeds: int = 1  # trainings at once, with the seeds from `seed` on
    exp_name: str | None = None  # name of the experiment, part of the run directory's name; None: the script's
    runs_dir: str = "runs"  # folder in which the run's own directory is made
    checkpoint_every: int = 5  # epochs between two checkpoints, rounded down to a divisor of the run's
    keep_checkpoints: int = 1  # newest checkpoints that stay on disk
    capture_video: bool = False  # film the learned policy at the end: film.gif, film.html
    track: bool = False  # mirror the log to Weights & Biases
    compilation_cache: str = "~/.cache/jax"  # folder of JAX's compiled programs, for quick starts; "" keeps none

    # earlier
    resume: str | None = None  # directory of an interrupted run: go on with it, with its flags
    evaluate: str | None = None  # directory of a run: evaluate and film its policy, on --eval-env-id if given

    def __post_init__(self):
        """Raises ValueError for what is no number, and for one that is too small: negative where the default is not, or
        0 for a count. (A seed is none.)"""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                lowest = 1 if field.type in (int, int | None) and field.name != "seed" else 0
                if isinstance(field.default, int | float) and field.default < lowest:
                    lowest = 0 if field.default == 0 else -(2**31)
                if not lowest <= value < 2**31:
                    flag = field.name.replace("_", "-")
                    raise ValueError(f"--{flag} {value}: must be a number, at least {lowest} and less than 2**31")


_OF_THE_PROCESS = {"resume", "evaluate", "compilation_cache"}  # flags that are no part of a run
OF_THE_MACHINE = {"capture_video", "track"}  # of a run, but a machine on which it goes on may not have what they need
_OF_EVALUATION = {"seed", "num_eval_envs", "eval_env_id", "eval_noise", "episode_length", "backend"}


def flags_of(args) -> dict:
    """The flags that belong to a run, for JSON."""
    return {name: value for name, value in vars(args).items() if name not in _OF_THE_PROCESS}


def script_of(flags_class: type) -> str:
    """Name of the script that defines the flags, e.g. crl_jax."""
    return Path(inspect.getfile(flags_class)).stem


def command_of(flags_class: type, flag: str, value: Path) -> str:
    """What to type, in this directory, to start the script that defines the flags as it was started, with this one."""
    return shlex.join([sys.orig_argv[0], os.path.relpath(inspect.getfile(flags_class)), flag, str(value)])


def _parse(default: T) -> T:
    """`tyro.cli`, with the groups of `--help` taken from the comments between the fields of the class."""
    flags_class = type(default)
    fields = {field.name: field for field in dataclasses.fields(flags_class)}
    groups: dict[str, list] = {}
    title = "flags"
    for line in "".join(map(inspect.getsource, flags_class.__mro__[:-1])).splitlines():
        if comment := re.fullmatch(r"    # ([a-z ]+)", line):
            title = comment[1].replace(" ", "_")
        # A field that a subclass redefines is no longer among them where its base has it.
        elif (flag := re.fullmatch(r"    (\w+): .*?(?:  # (.*))?", line)) and flag[1] in fields:
            field = fields.pop(flag[1])
            kind = Annotated[field.type, tyro.conf.arg(help=flag[2])]
            group = groups.setdefault(title, [])
            group.append((field.name, kind, dataclasses.field(default=getattr(default, field.name))))
    parts = {title: dataclasses.make_dataclass(title, group) for title, group in groups.items()}
    nested = dataclasses.make_dataclass(
        "Flags", [(title, part, dataclasses.field(default_factory=part)) for title, part in parts.items()]
    )
    description = (inspect.getdoc(sys.modules[flags_class.__module__]) or "").partition("\n")[0]
    with contextlib.redirect_stderr(io.StringIO()) as complaint:
        try:
            parsed = tyro.cli(nested, description=description, config=(tyro.conf.OmitArgPrefixes,))
        except SystemExit as ended:
            if ended.code:
                plain = re.sub("\x1b\\[[0-9;]*m", "", complaint.getvalue())
                lines = (line.strip("╭╮╰╯│─ ") for line in plain.splitlines())  # of a box, or between rules of dashes
                _, *lines = (line for line in lines if line.strip("-"))  # the first is a title
                text = " ".join(lines)
                raise ValueError(re.split(" Argument helptext| For full helptext", text)[0]) from None
            raise
    return flags_class(**{name: value for part in vars(parsed).values() for name, value in vars(part).items()})


def _flags_of_run(directory: str, flags_class: type[T]) -> T:
    """The flags with which a run was started."""
    try:
        stored = json.loads((Path(directory) / "args.json").read_text())
        script, flags = stored["script"], stored["flags"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{directory} is not the directory of a run: no readable args.json in it") from error
    if script != script_of(flags_class):
        raise ValueError(f"{directory} is a run of {script}.py: go on with that script")
    if flags.keys() != flags_of(flags_class()).keys():
        raise ValueError(f"{directory} is a run of another version of {script}.py, which had other flags")
    return flags_class(**{name: tuple(x) if isinstance(x, list) else x for name, x in flags.items()})


def parse_args(flags_class: type[T]) -> T:
    """Reads the command line; a mistake ends the process with one line and exit code 2.

    With `--resume RUN_DIR` the flags are those of that run; `capture_video` and `track` can be given anew. With
    `--evaluate RUN_DIR` too, but `seed` and `num_eval_envs` are not, and what is about evaluation can be given anew.
    """
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # which a shell script's jobs in the background ignore
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the process at once, until a run asks for more
    with mistakes_in_one_line():
        default = flags_class()
        given = _parse(default)
        if given.compilation_cache and not jax.config.jax_compilation_cache_dir:  # JAX's own setting goes first
            jax.config.update("jax_compilation_cache_dir", os.path.expanduser(given.compilation_cache))
        if "" in (given.resume, given.evaluate):  # a shell's variable that was never set
            raise ValueError("--resume and --evaluate need the directory of a run")
        if given.resume and given.evaluate:
            raise ValueError("--resume goes on with a run and --evaluate ends one: choose")
        if not (given.resume or given.evaluate):
            return given
        run = _flags_of_run(given.resume or given.evaluate, flags_class)
        if given.evaluate:
            run = dataclasses.replace(run, seed=default.seed, num_eval_envs=default.num_eval_envs)
        free = _OF_THE_PROCESS | (_OF_EVALUATION if given.evaluate else OF_THE_MACHINE)
        given = _parse(run)
        for name, value in vars(given).items():
            if name not in free and value != getattr(run, name):
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} {value}: the run has {getattr(run, name)}, and that stays; leave it out")
        return given


@contextlib.contextmanager
def mistakes_in_one_line():
    """What a user can mend, raised as ValueError or OSError, ends the process with one line and exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
