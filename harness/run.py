"""A run from its start to its end: training, log, checkpoints, film; and the evaluation of one."""

import contextlib
import importlib.util
import json
import math
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from scipy.stats import binomtest

import envs
from envs import GoalEnv, UsageError, render
from envs.wrappers import FixedGoal
from harness.checkpoint import Checkpoints, export_policy, load_policy
from harness.cli import OF_PROCESSES, RunArgs, check, directory_of, flags_of, script_of
from harness.devices import runner_of, shapes_of, spread
from harness.film import film_policy
from harness.log import Log, write_whole

_START = time.time()
_COLUMNS = {  # on the terminal: title, width
    "eval/success_rate": ("success rate", 13),
    "eval/time_near_goal": ("time near goal", 15),
    "eval/final_dist": ("final dist", 11),
}


def run(
    args: RunArgs, env: GoalEnv, eval_env: GoalEnv, schedule: Any, init: Callable, train: Callable, policy: Callable
):
    """Trains, or with `--evaluate` evaluates. The docstring of this package says what it asks of its arguments.

    The run's directory has `args.json`, `metrics.csv`, TensorBoard's file, `policy.jax`, `checkpoints/` and, with
    `--capture-video`, `film.gif`. With several seeds each has a folder `seed_N` in it, with its curves and its policy;
    the curves of the run itself are then means over seeds.
    """
    if args.evaluate:
        return evaluate(args, eval_env)
    # Of several processes the first alone prints, logs and films; a checkpoint they write together.
    with contextlib.redirect_stdout(None) if jax.process_index() else contextlib.nullcontext(), _ctrl_c_at_once():
        _train(args, env, eval_env, schedule, init, train, policy)


@contextlib.contextmanager
def _ctrl_c_at_once():
    """Python would hear Ctrl-C only at the end of an epoch. What is lost is what came after the last checkpoint."""
    before = signal.getsignal(signal.SIGINT)
    by_hand = hasattr(sys, "ps1")  # an interpreter or a notebook, which is to live on
    ours = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if by_hand or not ours:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _train(args, env, eval_env, schedule, init, train, policy):
    """The training of `run`."""
    if args.capture_video:
        render.check_opengl()
    check(not args.track or importlib.util.find_spec("wandb"), "--track wants Weights & Biases: pip install wandb")
    key, init, train = spread(args, init, train)
    shapes = shapes_of(init, key)
    _check_memory(shapes)
    directory = directory_of(args.resume) if args.resume else _make_directory(args)
    checkpoints = Checkpoints(directory / "checkpoints", args.keep_checkpoints)
    steps = schedule.warmup_iterations * schedule.steps_per_iteration
    runner, progress = None, {"epoch": 0, "steps": steps, "seconds": 0.0}
    if args.resume:
        runner, progress = checkpoints.restore(shapes)
    first, steps = progress["epoch"], progress["steps"]
    zero = _START - progress["seconds"]  # when a run that was never interrupted would have started
    iterations = schedule.warmup_iterations + schedule.num_epochs * schedule.iterations_per_epoch
    steps_per_epoch = schedule.iterations_per_epoch * schedule.steps_per_iteration
    last = first + max(math.ceil((iterations * schedule.steps_per_iteration - steps) / steps_per_epoch), 0)
    epochs = range(first + 1, last + 1)
    _announce(args, env, schedule, shapes, directory, steps + len(epochs) * steps_per_epoch, epochs)
    logs = _open_logs(args, env, directory, first, steps) if jax.process_index() == 0 else []

    if runner is None:
        runner = jax.jit(init)(key)
    if epochs:
        train_epoch = jax.jit(lambda runner: train(runner, 1), donate_argnums=0)
        if not jax.config.jax_debug_nans:  # which runs a program again that gave a NaN, operation by operation
            train_epoch = train_epoch.lower(shapes).compile()
    before = time.time()
    for epoch in epochs:
        runner, metrics = train_epoch(runner)
        metrics = {name: value[..., 0] for name, value in jax.device_get(metrics).items()}
        now, steps = time.time(), steps + steps_per_epoch
        speed = args.num_seeds * steps_per_epoch / (now - before)
        updates = speed * schedule.updates_per_iteration / schedule.steps_per_iteration
        _check_finite(args, epoch, metrics)
        means = {name: float(np.mean(value)) for name, value in metrics.items()}
        means |= {"charts/SPS": speed, "charts/updates_per_second": updates}
        of_seeds = [{name: float(value[i]) for name, value in metrics.items()} for i in range(len(logs) - 1)]
        for log, scalars in zip(logs, [means, *of_seeds], strict=False):
            log.add(epoch, steps, now - zero, scalars)
        line = f"{epoch:>3}/{last:<3} {steps:>13,} {speed:>8,.0f}"
        line += "".join(f" {means[name]:>{width}.3f}" for name, (_, width) in _COLUMNS.items())
        print(f"{line} {_clock(now - zero):>8} {_clock((last - epoch) * (now - before)):>8}", flush=True)
        if args.checkpoint_every and (epoch % args.checkpoint_every == 0 or epoch == last):
            for log in logs:
                log.flush()  # curves reach as far as the checkpoint, whatever ends the process
            folder = checkpoints.save(runner, {"epoch": epoch, "steps": steps, "seconds": now - zero})
            _write_policies(args, env, policy, runner, folder, directory)
            print(f"{'':>7} checkpoint; to go on from it: {_command(args, '--resume', directory)}", flush=True)
        before = now
    _write_policies(args, env, policy, runner, directory)  # also where no checkpoints are wanted
    if args.capture_video and logs:
        _film(args, eval_env, partial(policy, runner_of(args, runner, 0)), directory / "film.gif")
        logs[0].add_film(directory / "film.gif", steps)
    for log in logs:
        log.close()
    folder = directory / f"seed_{args.seed}" if args.num_seeds > 1 else directory
    print(f"evaluate it: {_command(args, '--evaluate', folder)}")


def evaluate(args: RunArgs, env: GoalEnv):
    """`--evaluate`: success of a run's policy on fresh episodes of `env`, with its 95 % interval, also as a JSON file;
    perhaps a film."""
    writable = os.access(args.evaluate, os.W_OK)  # a run may be someone else's
    if args.capture_video:
        check(writable, f"{args.evaluate} cannot be written to, and --capture-video puts the film there")
        render.check_opengl()
    policy = load_policy(Path(args.evaluate, "policy.jax"))
    task, episodes, length = args.eval_env_id or args.env_id, args.num_eval_envs, args.episode_length
    if args.eval_goal is not None:
        goal, size = np.array(args.eval_goal, np.float32), len(env.goal_indices)
        check(goal.size == size, f"--eval-goal has {goal.size} numbers: a goal of {task} has {size}")
        env = FixedGoal(env, goal)
        env.check_goal(goal, jax.jit(env.reset)(jax.random.key(args.seed)).obs)
    program = jax.jit(
        lambda key: envs.evaluate(env, policy, key, episodes, length or env.episode_length, args.eval_noise)
    )
    results = {name: float(value) for name, value in program(jax.random.key(args.seed)).items()}
    rate = results.pop("eval/success_rate")
    interval = binomtest(round(rate * episodes), episodes).proportion_ci(method="wilson")
    print(f"{task}, {episodes} episodes, seed {args.seed}")
    print(f"eval/success_rate {rate:.3f}, between {interval.low:.3f} and {interval.high:.3f} (95 %, Wilson)")
    print(*(f"{name} {value:.3f}" for name, value in results.items()), sep="\n", flush=True)
    name = f"{task.replace(':', '.')}_{args.seed}_noise_{args.eval_noise:g}"
    if args.eval_goal is not None:
        name += "_goal_" + "_".join(f"{x:g}" for x in args.eval_goal)
    results |= {"eval/success_rate": rate, "interval": [interval.low, interval.high], "task": task}
    results |= {"goal": args.eval_goal, "flags": flags_of(args)}
    if writable:
        _write(Path(args.evaluate, f"evaluation_{name}.json"), json.dumps(results, indent=1).encode())
    if args.capture_video:
        _film(args, env, policy, Path(args.evaluate, f"film_{name}.gif"))


def _check_memory(shapes: Any):
    """Raises UsageError if the state of a training is larger than the memory of this machine, on a CPU."""
    if jax.default_backend() == "cpu":
        need, there = _num_bytes(shapes), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        advice = "take fewer --num-envs or --num-seeds, or a smaller --buffer-size"
        check(need < there, f"the training needs {need / 1e9:.0f} GB of memory of {there / 1e9:.0f}: {advice}")


def _check_finite(args: RunArgs, epoch: int, metrics: dict[str, np.ndarray]):
    """Raises UsageError for a metric that is NaN or infinite."""
    for name, value in metrics.items():
        if not np.isfinite(value).all():
            lost = args.seed + np.flatnonzero(~np.isfinite(value))
            kept = "checkpoints are of earlier epochs, if there are any; lower learning rates may help"
            raise UsageError(f"{name} is not finite in epoch {epoch} with seed {', '.join(map(str, lost))}; {kept}")


def _make_directory(args: RunArgs) -> Path:
    started = multihost_utils.broadcast_one_to_all(int(time.time()))  # of the first process
    name = f"{args.env_id.replace(':', '.')}__{args.exp_name or script_of(type(args))}__{args.seed}__{started}"
    directory = Path(args.run_dir or Path(args.runs_dir, name))
    try:
        directory.mkdir(parents=True, exist_ok=bool(args.run_dir or args.distributed))
    except OSError as error:
        raise UsageError(f"{error}; --runs-dir or --run-dir puts it elsewhere") from error
    ours = (directory / "args.json").exists()  # of a run that had come to no checkpoint, whose curves are written anew
    found = [] if ours else [*directory.glob("metrics.csv"), *directory.glob("events.out.tfevents.*")]
    others = ", ".join(path.name for path in found)
    check(not others, f"{directory} holds curves of something else, {others}: take another --run-dir")
    return directory


def _announce(args: RunArgs, env: GoalEnv, schedule: Any, shapes: Any, directory: Path, steps: int, epochs: range):
    print(f"{args.env_id} on {env.backend} physics, learning on {jax.devices()[0]}")
    if env.backend == "warp":
        print("on a GPU warp rounds differently each time: a run that is resumed ends in other bits")
    ratio = schedule.steps_per_iteration / schedule.updates_per_iteration
    every = f"a checkpoint every {args.checkpoint_every}, " if args.checkpoint_every else ""
    whole = f"{steps:,} environment steps in {epochs.stop - 1} epoch{'s' * (epochs.stop != 2)}"
    print(f"{whole}, {every}an update every {ratio:.3g} steps, {_num_bytes(shapes) / 1e6:.0f} MB of state")
    end = "" if epochs else ", which is complete: nothing is left to train"
    print(f"{f'going on after epoch {epochs.start - 1} of' if args.resume else 'written to'} {directory}{end}")
    if args.num_seeds > 1:
        devices = len(jax.tree.leaves(shapes)[0].sharding.device_set)
        print(f"{args.num_seeds} seeds at once on {devices} device{'s' * (devices > 1)}; below, their means")
    if not epochs:
        return
    header = f"{'epoch':>7} {'steps':>13} {'steps/s':>8}"
    header += "".join(f" {title:>{width}}" for title, width in _COLUMNS.values())
    print(f"{header} {'elapsed':>8} {'left':>8}", flush=True)


def _open_logs(args: RunArgs, env: GoalEnv, directory: Path, epoch: int, steps: int) -> list[Log]:
    """The log of the run and, if there are several, of each seed; all with the flags, for those who come later."""
    flags = flags_of(args)
    if "backend" in flags:
        flags["backend"] = env.backend  # whatever the default may be where the run goes on
    if args.track:
        import wandb  # only who tracks needs it

        name = directory.resolve().name
        place = dict(project=args.wandb_project, entity=args.wandb_entity, group=args.wandb_group, dir=str(directory))
        wandb.init(id=name, name=name, **place, config=flags, sync_tensorboard=True, resume="allow")
    flags_in = {directory: flags}
    if args.num_seeds > 1:
        for seed in range(args.seed, args.seed + args.num_seeds):
            flags_in[directory / f"seed_{seed}"] = flags | {"seed": seed, "num_seeds": 1}
    for folder, its_flags in flags_in.items():
        stored = json.dumps({"script": script_of(type(args)), "flags": its_flags}, indent=1)
        _write(folder / "args.json", stored.encode())
    return [Log(folder, its_flags, epoch, steps) for folder, its_flags in flags_in.items()]


def _write_policies(args: RunArgs, env: GoalEnv, policy: Callable, runner: Any, *folders: Path):
    """Writes `policy.jax` or, of several seeds, `seed_N/policy.jax` in each of the folders."""
    for i in range(args.num_seeds):
        name = f"seed_{args.seed + i}/policy.jax" if args.num_seeds > 1 else "policy.jax"
        exported = export_policy(partial(policy, runner_of(args, runner, i)), env)
        for folder in folders:
            _write(folder / name, exported)


def _film(args: RunArgs, env: GoalEnv, policy: Callable, path: Path):
    length = args.episode_length or env.episode_length
    pictures = film_policy(env, policy, jax.random.key(args.seed), length, args.eval_noise)
    render.save_film(path, pictures)
    print(f"film: {path}", flush=True)


def _write(path: Path, content: bytes):
    """Writes a file; of several processes the first does."""
    if jax.process_index() == 0:
        path.parent.mkdir(exist_ok=True)
        write_whole(path, content)


def _num_bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _command(args: RunArgs, flag: str, value: Path) -> str:
    """What to type, in this directory, to start this script again with this flag."""
    words = [flag, str(value)]
    if args.distributed and flag == "--resume":
        words.append("--distributed")
        for name in OF_PROCESSES:
            if getattr(args, name) is not None:
                words += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    return shlex.join([sys.orig_argv[0], sys.argv[0], *words])
