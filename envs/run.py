"""A run as its user sees it: its directory, its log on the terminal and in TensorBoard, and Ctrl-C."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax
from tensorboardX import SummaryWriter

_START = time.time()
_COLUMNS = {  # on the terminal: title, width, precision
    "eval/success_rate": ("success rate", 13, ".3f"),
    "eval/time_near_goal": ("time near goal", 15, ".3f"),
    "eval/final_dist": ("final dist", 11, ".3f"),
}


class Run:
    """One training: makes its directory and says so, logs each epoch, and ends within seconds of a Ctrl-C.

    Args:
      args: the script's flags, of which `runs_dir`, `env_id`, `exp_name` and `seed` name the directory.
      env: the task.
      schedule: of the training, with `num_epochs`, `steps_per_iteration` and so on.
    """

    def __init__(self, args, env, schedule):
        self.args, self.schedule = args, schedule
        name = f"{args.env_id}__{args.exp_name}__{args.seed}__{int(_START)}"
        self.directory = os.path.join(args.runs_dir, name)
        self._writer = SummaryWriter(self.directory, flush_secs=1)
        self._last_time, self._last_steps = _START, 0
        flags = vars(args) | {"backend": env.backend}
        self._writer.add_text("hyperparameters", "\n".join(f"    {name}: {value}" for name, value in flags.items()))
        print(
            f"{args.env_id} on {env.backend} physics, learning on {jax.devices()[0]}\n"
            f"{schedule.total_timesteps:,} environment steps, {schedule.updates_per_iteration} updates after each "
            f"{schedule.steps_per_iteration:,}, {schedule.num_epochs} evaluations; logs in {self.directory}\n"
            f"{'steps':>13} {'seconds':>8} {'steps/s':>8}"
            + "".join(f" {title:>{width}}" for title, width, _ in _COLUMNS.values()),
            flush=True,
        )

    def log(self, metrics):
        """At the end of an epoch, while the training goes on: `num_steps` of each environment, and what to log."""
        now, steps = time.time(), int(metrics.pop("num_steps")) * self.args.num_envs
        updates = self.schedule.iterations_per_epoch * self.schedule.updates_per_iteration
        seconds = now - self._last_time
        metrics["charts/SPS"] = (steps - self._last_steps) / seconds
        metrics["charts/updates_per_second"] = updates / seconds
        self._last_time, self._last_steps = now, steps
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, steps)
        print(
            f"{steps:>13,} {now - _START:>8.1f} {metrics['charts/SPS']:>8,.0f}"
            + "".join(f" {metrics[name]:>{width}{precision}}" for name, (_, width, precision) in _COLUMNS.items()),
            flush=True,
        )

    def execute(self, function, *inputs):
        """Calls the jitted `function`; ends the process with exit code 130 on Ctrl-C, 1 if the computation fails."""
        # In a thread of its own, so that Ctrl-C is heard while XLA compiles or computes.
        future = ThreadPoolExecutor().submit(lambda: jax.block_until_ready(function(*inputs)))
        problem, code = "", 0
        try:
            future.result()
        except KeyboardInterrupt:
            problem, code = f"interrupted; what was logged so far is in {self.directory}", 130
        except jax.errors.JaxRuntimeError as error:
            problem, code = f"error: {error}", 1
        self._writer.close()
        if problem:
            print(problem, file=sys.stderr)
            os._exit(code)  # the thread may compute on for hours
