"""Runs for tests: a script as its users start it, in a process of its own or in this one, and what it leaves."""

import contextlib
import csv
import importlib
import io
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from harness.checkpoint import Checkpoints
from harness.devices import shapes_of, spread

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path.stem for path in ROOT.glob("*_jax.py"))
SIZES = (
    "--env-id simple_u_maze --action-chunk 3 --num-envs 4 --unroll-length 24 --episode-length 60 --num-eval-envs 4"
    " --width 8 --num-evals 12"
)
OF_SCRIPT = {"crl_jax": "--repr-dim 4 --gamma 0.9", "ppo_jax": "--total-timesteps 1152 --num-minibatches 2"}
WITH_BUFFER = "--total-timesteps 1248 --buffer-size 192 --learning-starts 48 --env-steps-per-update 24 --batch-size 8"


def small(script, more=""):
    """Flags of a run of 12 epochs in seconds."""
    if script == "harness_fork":
        return shlex.split(more)
    buffer = "" if script == "ppo_jax" else WITH_BUFFER
    return shlex.split(f"{SIZES} {buffer} {OF_SCRIPT.get(script, '')} {more}")


def start(script, *flags, cwd, **more):
    """In a process of its own."""
    command = [sys.executable, str(ROOT / f"{script}.py"), *map(str, flags)]
    return subprocess.Popen(command, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)


def run(script, *flags, cwd):
    """In this process: its exceptions arrive, and nothing is imported anew. Returns what it printed."""
    module = importlib.import_module(script)
    if "--resume" in flags or "--run-dir" in flags:
        # TensorBoard reads a run's files by second, then by a count in the process as text, where 10 is before 9.
        time.sleep(1 - time.time() % 1)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [str(module.__file__), *map(str, flags)])
        module.main()
    return out.getvalue()


def refused(script, *flags, cwd):
    """What it says before it ends with exit code 2."""
    with pytest.raises(SystemExit) as ended, contextlib.redirect_stderr(io.StringIO()) as err:
        run(script, *flags, cwd=cwd)
    assert ended.value.code == 2
    return err.getvalue()


def only_run(folder):
    (directory,) = (folder / "runs").iterdir()
    return directory


def saved(directory):
    """Epochs of its checkpoints."""
    return sorted(int(path.name[6:]) for path in (directory / "checkpoints").glob("epoch_??????"))


def scalars(directory):
    """The curves in TensorBoard, but for speeds."""
    events = EventAccumulator(str(directory))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("charts/")]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def table(directory):
    """`metrics.csv`, a dict a row, but for clock and speeds."""
    with (directory / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k != "seconds" and not k.startswith("charts/")} for row in rows]


def args_of(script, directory):
    flags = json.loads((directory / "args.json").read_text())["flags"]
    flags = {name: tuple(x) if isinstance(x, list) else x for name, x in flags.items()}
    return importlib.import_module(script).Args(**flags)


def final_state(script, directory):
    """The runner of the last checkpoint, and its progress."""
    args = args_of(script, directory)
    key, init, _ = spread(args, *importlib.import_module(script).make_train(args))
    return Checkpoints(directory / "checkpoints", 1).restore(shapes_of(init, key))


def actions(file):
    """What a policy does for some observations: two files of one policy differ in the lines that wrote them."""
    policy = jax.export.deserialize(bytearray(file.read_bytes()))
    obs, noise = (np.random.default_rng(0).normal(size=(5, x.shape[1])).astype(x.dtype) for x in policy.in_avals)
    return policy.call(obs, noise)


def assert_same_end(script, one, other):
    """Two runs ended with the same bits, curves and policy."""
    states = [jax.tree.leaves(final_state(script, directory)[0]) for directory in (one, other)]
    for a, b in zip(*states, strict=True):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)
    assert table(one) == table(other)
    assert scalars(one) == scalars(other)
    np.testing.assert_array_equal(actions(one / "policy.jax"), actions(other / "policy.jax"))
