"""A run as its user sees it: directory, terminal, TensorBoard, checkpoints, film, and what ends it."""

import contextlib
import fcntl
import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from scipy.stats import binomtest
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer import event_file_writer

from envs import checkpoint, render
from envs.base import GoalEnv
from envs.cli import OF_THE_MACHINE, command_of, flags_of, mistakes_in_one_line, script_of

_START = time.time()
_COLUMNS = {  # on the terminal: title, width, precision
    "eval/success_rate": ("success rate", 13, ".3f"),
    "eval/time_near_goal": ("time near goal", 15, ".3f"),
    "eval/final_dist": ("final dist", 11, ".3f"),
}
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _size(num_bytes: float) -> str:
    power = min(int(math.log10(max(num_bytes, 1)) // 3), 3)
    return f"{num_bytes / 1000**power:.3g} {('B', 'kB', 'MB', 'GB')[power]}"


def _num_bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _say(text: str):
    """Prints, for as long as somebody listens: a closed pipe or terminal is no reason to stop training."""
    try:
        print(text, flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, it stays open until the end of the process


def _make_directory(args) -> Path:
    """A folder of this run's own, also if another of the same name starts in the same second."""
    name = f"{args.env_id}__{args.exp_name or script_of(type(args))}__{args.seed}__{int(_START)}"
    for suffix in ("", *(f"_{i}" for i in range(2, 100))):
        with contextlib.suppress(FileExistsError):
            path = Path(args.runs_dir, name + suffix)
            path.mkdir(parents=True)
            return path
    raise ValueError(f"--runs-dir {args.runs_dir}: all names like {name} are taken")


def _check_memory(args, schedule, shapes: Any):
    """Raises ValueError if a training on this machine's CPU does not fit into its memory: its state, and the batches of
    an iteration, which scripts with a buffer draw at once, or the observations of its unroll, two for each step."""
    if jax.default_backend() != "cpu" or not hasattr(os, "sysconf"):
        return
    need, there = _num_bytes(shapes), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        there = min(there, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    buffer = _num_bytes(shapes.buffer) if hasattr(shapes, "buffer") else 0
    if buffer:
        rows = schedule.updates_per_iteration * args.batch_size
        need += rows * buffer // (args.buffer_size * args.num_envs)
    else:
        need += 2 * args.unroll_length * _num_bytes(shapes.env_state.obs)
    if need > 0.8 * there:
        flags, fix = f"--num-envs {args.num_envs}", ""
        if args.num_seeds > 1:
            flags = f"--num-seeds {args.num_seeds} {flags}"
        if buffer:
            flags += f" --buffer-size {args.buffer_size}"
            flags += f" --batch-size {args.batch_size} --env-steps-per-update {args.env_steps_per_update}"
            room = int(args.buffer_size * (0.8 * there - (need - buffer)) / buffer)
            room -= room % args.unroll_length  # as the buffer holds whole unrolls
            fix = f"; --buffer-size {room} would do" if room >= args.learning_starts else ""
        else:
            flags += f" --unroll-length {args.unroll_length}"
        raise ValueError(f"{flags}: the training needs {_size(need)} of memory, this machine has {_size(there)}{fix}")


def _scalars(values: dict[str, float]) -> Summary:
    return Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])


class Run:
    """One training: logs each epoch, writes checkpoints, goes on where an interrupted run stopped.

    Its directory has `args.json`, TensorBoard's files, `checkpoints/`, `policy.jax` (`checkpoint.export_policy`) and,
    with `--capture-video`, `film.gif` and `film.html`. With several seeds each has a folder `seed_N` in it, with its
    curves and its policy; the curves of the run itself are then means over seeds.

    Args:
      args: the script's flags.
      env, eval_env: the tasks that are trained on and evaluated.
      schedule: of the training, with `num_epochs`, `steps_per_iteration` and so on.
    """

    def __init__(self, args, env: GoalEnv, eval_env: GoalEnv, schedule):
        self.args, self.env, self.eval_env, self.schedule = args, env, eval_env, schedule
        self._flags = flags_of(args) | {"backend": env.backend}  # whatever the default may be where the run goes on
        self._writers: list[event_file_writer.EventFileWriter] = []
        self._saving = threading.Lock()
        self._epoch, self._means = 0, {}
        self._steps = schedule.warmup_iterations * schedule.steps_per_iteration
        self._zero = _START  # when a run that was never interrupted would have started
        self._problem = None  # what the training stopped for, an exception with words for its user
        self._signal = 0  # the first that came

    # ---- the training -----------------------------------------------------------------------------------------------

    def execute(self, init: Callable, train: Callable, act: Callable):
        """Trains, and ends the process within seconds of a signal.

        Args:
          init, train: from `make_train`.
          act: `act(runner_state, obs, noise)`, the policy.
        """
        key = jax.random.key(self.args.seed)
        if self.args.num_seeds > 1:
            key = jax.vmap(jax.random.key)(self.args.seed + jnp.arange(self.args.num_seeds))
            init, train = jax.vmap(init), jax.vmap(train, in_axes=(0, None))
        shapes = jax.eval_shape(init, key)
        with mistakes_in_one_line():
            _check_memory(self.args, self.schedule, shapes)
            runner = self._restore(shapes) if self.args.resume else None
            self._open(shapes)
        heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores SIGHUP
        before = {number: signal.signal(number, self._on_signal) for number in heard}
        # In a thread of its own, so that signals are heard while XLA compiles or computes.
        future = ThreadPoolExecutor().submit(self._train, init, train, act, key, runner)
        while not (self._signal or future.done()):
            wait([future], timeout=0.1)  # if another thread of the process gets the signal, nothing wakes this one
        for number, handler in before.items():
            signal.signal(number, handler)  # from now on, and a second signal does not wait
        problem, code, error = "", 0, None
        if self._signal:
            problem, code = f"ended by {signal.Signals(self._signal).name}", 128 + self._signal
        elif error := self._problem or future.exception():  # XLA makes another exception of what a callback raises
            if not isinstance(error, (OSError, FloatingPointError)):
                traceback.print_exception(error)
            problem, code = f"error: {error}", 1
        if problem:
            with self._saving:
                for writer in self._writers:
                    writer.close()
                saved = checkpoint.finished(self.directory / "checkpoints")
                rest = f"to go on: {command_of(type(self.args), '--resume', self.directory)}"
                if not saved or isinstance(error, FloatingPointError):  # to go on would come to the same numbers
                    rest = f"logs{' and a checkpoint' if saved else ', but no checkpoint yet,'} in {self.directory}"
                with contextlib.suppress(OSError):  # of a pipe or terminal that is closed
                    sys.stderr.flush()
                    stderr = os.dup(2)
                    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # whatever libraries still have to complain of
                    os.write(stderr, f"\n{problem}; {rest}\n".encode())  # what they or ^C began to write ends first
                os._exit(code)  # the thread may compute on for hours

    def _on_signal(self, number, frame):
        self._signal = self._signal or number

    def _train(self, init, train, act, key, runner):
        if runner is None:
            runner = jax.jit(init)(key)
        else:
            self._export(runner, act)  # the process may have been killed between checkpoint and policy
        # The scan over epochs pauses for checkpoints only, after equally many each time: one program does for all.
        num_epochs, every = self.schedule.num_epochs, self.args.checkpoint_every
        length = max(n for n in range(1, min(every, num_epochs) + 1) if num_epochs % n == 0)
        if self._epoch < num_epochs:
            train = jax.jit(train, static_argnums=1, donate_argnums=0).lower(runner, length).compile()
        self._last_time = time.time()
        for _ in range(self._epoch, num_epochs, length):
            runner, _ = jax.block_until_ready(train(runner))
            jax.effects_barrier()
            with self._saving:
                self._save(runner, act)
        self._finish()

    # ---- disk -------------------------------------------------------------------------------------------------------

    def _restore(self, shapes):
        self.directory = Path(self.args.resume)
        folder, whole = self.directory / "checkpoints", self.directory.resolve().parent
        if not folder.is_dir() and (whole / "args.json").is_file():
            raise ValueError(f"{self.directory} is one seed of a run: go on with all, --resume {whole}")
        self._lock()
        path, info = checkpoint.newest(folder)
        flags = json.loads(json.dumps(flags_of(self.args)))  # as args.json has them
        for name, value in info["flags"].items():
            if value != flags[name] and name not in OF_THE_MACHINE:
                wrong = f"{self.directory}/args.json has {name} {flags[name]}"
                raise ValueError(f"{wrong}, but its checkpoint was written with {value}: put that back")
        self._epoch, self._steps, self._means = info["epoch"], info["steps"], info["means"]
        self._zero = _START - info["seconds"]
        return checkpoint.restore(path, shapes)

    def _lock(self):
        """Keeps others from the directory until the end of this process: they would delete each other's checkpoints."""
        self._args_file = (self.directory / "args.json").open()
        try:
            fcntl.flock(self._args_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process trains in {self.directory}: end it first") from None
        except OSError:  # a file system without locks
            pass

    def _open(self, shapes):
        """Makes the directory, or opens it again, and says what is going to happen."""
        args, schedule = self.args, self.schedule
        if args.capture_video:
            render.check_opengl()
        if args.track:
            try:
                import wandb
            except ImportError as error:
                raise ValueError("--track: wandb is not installed; pip install wandb") from error
        if not args.resume:
            self.directory = _make_directory(args)
        if args.track:
            name = self.directory.resolve().name
            run = dict(id=name, name=name, dir=args.runs_dir, config=self._flags)
            try:
                wandb.init(**run, sync_tensorboard=True, resume="allow")
            except wandb.errors.Error as error:  # no login, no network
                if not args.resume:
                    self.directory.rmdir()
                raise ValueError(f"--track: {' '.join(str(error).split())}") from error
        seeds = range(args.seed, args.seed + args.num_seeds) if args.num_seeds > 1 else ()
        flags_in = {self.directory: self._flags}
        flags_in |= {self.directory / f"seed_{i}": self._flags | {"seed": i, "num_seeds": 1} for i in seeds}
        _, *self._seed_folders = flags_in
        for folder, flags in flags_in.items():
            folder.mkdir(exist_ok=True)
            if not args.resume:
                stored = {"script": script_of(type(args)), "flags": flags}
                (folder / "args.json").write_text(json.dumps(stored, indent=1))
            # By its full name, which is where wandb replaces it.
            writer = event_file_writer.EventFileWriter(str(folder), flush_secs=1)
            if args.resume:  # what was logged after the checkpoint is going to be logged again
                writer.add_event(Event(step=self._steps + 1, session_log=SessionLog(status=SessionLog.START)))
            self._writers.append(writer)
        if not args.resume:
            self._lock()
        rows = "\n".join(f"| {name} | {value} |" for name, value in self._flags.items())
        texts = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in self._flags.items()}
        self._add(hparams_pb(texts, trial_id=self.directory.resolve().name))
        self._add(text_pb("hyperparameters", f"| flag | value |\n| --- | --- |\n{rows}"))

        num_params = sum(x.size for x in jax.tree.leaves(shapes.params)) // args.num_seeds
        ratio = schedule.updates_per_iteration / schedule.steps_per_iteration
        buffer = f", {_size(_num_bytes(shapes.buffer))} of it for the buffer" if hasattr(shapes, "buffer") else ""
        lines = [
            f"{args.env_id} on {self.env.backend} physics, learning on {jax.devices()[0]}",
            f"{schedule.total_timesteps:,} environment steps in {schedule.num_epochs} epochs, "
            f"{ratio:.3g} updates a step of {num_params:,} parameters, {_size(_num_bytes(shapes))} of memory{buffer}",
            f"{'going on after epoch ' + str(self._epoch) + ' of' if args.resume else 'written to'} {self.directory}",
        ]
        if args.num_seeds > 1:
            lines.append(f"{args.num_seeds} seeds at once; below, their means")
        header = f"{'epoch':>7} {'steps':>13} {'steps/s':>8}"
        header += "".join(f" {title:>{width}}" for title, width, _ in _COLUMNS.values())
        _say("\n".join([*lines, f"{header} {'elapsed':>8} {'left':>8}"]))

    def _save(self, runner, act):
        for path, x in jax.tree_util.tree_leaves_with_path(runner.params):
            if not np.isfinite(x).all():
                name = jax.tree_util.keystr(path)
                self._stop(FloatingPointError(f"the parameters {name} are not finite after epoch {self._epoch}"))
        info = dict(epoch=self._epoch, steps=self._steps, seconds=time.time() - self._zero, means=self._means)
        info["flags"] = self._flags
        for writer in self._writers:
            writer.flush()  # curves reach as far as the checkpoint, whatever ends the process
        folder = self.directory / "checkpoints"
        try:
            size = checkpoint.save(folder, self._epoch, runner, info, self.args.keep_checkpoints)
        except Exception as error:  # a full disk, in the words of whichever library met it
            words = " ".join(str(error).split())[:200]
            self._stop(OSError(f"writing the checkpoint of epoch {self._epoch} failed: {words}"))
        self._export(runner, act)
        _say(f"{'':>7} checkpoint of epoch {self._epoch}: {_size(size)}")

    def _export(self, runner, act):
        # No policy looks at the largest parts.
        runner = runner._replace(**{name: None for name in ("env_state", "buffer") if hasattr(runner, name)})
        runners = {self.directory: runner}
        if self._seed_folders:
            runners = {folder: jax.tree.map(lambda x: x[i], runner) for i, folder in enumerate(self._seed_folders)}
        for folder, one in runners.items():
            checkpoint.export_policy(folder / "policy.jax", partial(act, one), self.env)

    # ---- log --------------------------------------------------------------------------------------------------------

    def log(self, metrics: dict[str, np.ndarray]):
        """At the end of an epoch, while the training goes on: `num_steps` of each environment, and what to log.

        With several seeds each value is an array, (num_seeds,).
        """
        args, schedule = self.args, self.schedule
        now, steps = time.time(), int(np.max(metrics.pop("num_steps"))) * args.num_envs
        updates = schedule.iterations_per_epoch * schedule.updates_per_iteration
        speed = args.num_seeds / (now - self._last_time)
        means = {name: float(np.mean(value)) for name, value in metrics.items()}
        means |= {"charts/SPS": speed * (steps - self._steps), "charts/updates_per_second": speed * updates}
        self._epoch += 1
        for name, value in means.items():
            if not math.isfinite(value):
                bad = [args.seed + i for i in range(len(self._seed_folders)) if not math.isfinite(metrics[name][i])]
                of_seeds = f" with seed {', '.join(map(str, bad))}" if bad else ""
                self._stop(FloatingPointError(f"{name} is {value} in epoch {self._epoch}{of_seeds}"))
        self._add(_scalars(means), steps)
        for i in range(len(self._seed_folders)):
            self._add(_scalars({name: value[i] for name, value in metrics.items()}), steps, i + 1)
        self._steps, self._means = steps, means
        left = (schedule.num_epochs - self._epoch) * (now - self._last_time)
        self._last_time = now
        line = f"{self._epoch:>3}/{schedule.num_epochs:<3} {steps:>13,} {means['charts/SPS']:>8,.0f}"
        line += "".join(f" {means[name]:>{width}{precision}}" for name, (_, width, precision) in _COLUMNS.items())
        _say(f"{line} {_clock(now - self._zero):>8} {_clock(left):>8}")

    def _add(self, summary: Summary, step: int = 0, writer: int = 0):
        """Hands a summary to TensorBoard, for the run itself or, from 1 on, for one of its seeds."""
        try:
            self._writers[writer].add_event(Event(wall_time=time.time(), step=step, summary=summary))
        except OSError as error:  # that TensorBoard's thread met while it wrote what came before
            self._stop(OSError(f"writing the log failed: {error}"))

    def _stop(self, problem: Exception):
        """Ends the training, from whichever thread notices that it makes no sense to go on."""
        self._problem = problem
        raise problem

    def _finish(self):
        """The film, and where everything is."""
        example = (self._seed_folders or [self.directory])[0]
        if self.args.capture_video:
            policy = checkpoint.load_policy(example / "policy.jax")
            results = {name: value for name, value in self._means.items() if name.startswith("eval/")}
            if self._seed_folders:  # these are means over the seeds, the film is of one
                results = {}
            gif = film(self.args, self.eval_env, policy, self.directory / "film", results)
            with Image.open(gif) as picture:
                width, height = picture.size
            image = Summary.Image(encoded_image_string=gif.read_bytes(), width=width, height=height, colorspace=3)
            self._add(Summary(value=[Summary.Value(tag="film", image=image)]), self._steps)  # TensorBoard plays it
        for writer in self._writers:
            writer.close()
        _say(f"evaluate it: {command_of(type(self.args), '--evaluate', example)}")


def film(args, env: GoalEnv, policy: Callable, path: Path, results: dict) -> Path:
    """Films the policy into `path`.gif, with a page around it, `path`.html; returns the film's path."""
    length = args.episode_length or env.episode_length
    pictures = render.film_policy(env, policy, jax.random.key(args.seed), length, args.eval_noise)
    gif, page = (path.with_name(path.name + suffix) for suffix in (".gif", ".html"))
    render.save_film(gif, pictures, frames_per_second=20)
    render.save_page(
        page, gif, f"{script_of(type(args))} on {args.eval_env_id or args.env_id}", results | flags_of(args)
    )
    _say(f"film: {gif} and {page}")
    return gif


def report(args, env: GoalEnv, evaluate: Callable):
    """`--evaluate`: success of a run's policy on fresh episodes of `env`, with its 95 % interval, and a film."""
    directory = Path(args.evaluate)
    with mistakes_in_one_line():
        if args.num_seeds > 1:
            raise ValueError(f"--evaluate {directory} has {args.num_seeds} seeds: choose the folder of one in it")
        policy = checkpoint.load_policy(directory / "policy.jax")
    num_episodes, length = args.num_eval_envs, args.episode_length or env.episode_length
    run = jax.jit(lambda key: evaluate(env, policy, key, num_episodes, length, args.eval_noise))
    results = run(jax.random.key(args.seed))
    results = {name: float(value) for name, value in results.items()}
    rate = results["eval/success_rate"]
    interval = binomtest(round(rate * num_episodes), num_episodes).proportion_ci(method="wilson")
    _say(f"{args.eval_env_id or args.env_id}, {num_episodes} episodes, seed {args.seed}")
    _say(f"eval/success_rate {rate:.3f}, between {interval.low:.3f} and {interval.high:.3f} (95 %, Wilson)")
    for name in ("eval/time_near_goal", "eval/final_dist", "eval/episode_return"):
        _say(f"{name} {results[name]:.3f}")
    try:
        render.check_opengl()
        name = f"film_{args.eval_env_id or args.env_id}_{args.seed}"
        name += f"_noise_{args.eval_noise:g}" if args.eval_noise != 1 else ""
        film(args, env, policy, directory / name, results)
    except OSError as error:
        print(f"no film: {error}", file=sys.stderr)
