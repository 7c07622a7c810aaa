"""What a run is: flags, log, checkpoints, resume, evaluation, film.

A script's `main` ends like this:

    @harness.errors_in_one_line()
    def main():
        args = harness.parse_args(Args)
        ...
        harness.run(args, env, eval_env, make_schedule(args), init, train, policy)

What `run` asks of its arguments, and nothing else:

  args: an instance of a frozen dataclass that extends `harness.RunArgs`. Each field is a flag; those that all scripts
    have are listed in docs/flags-and-metrics.md. A `__post_init__` of its own first calls `super().__post_init__()`;
    `harness.check(condition, message)` refuses values for which the condition is false; a whole number below 1 and
    another below 0 are refused anyway, unless the default is as low. It must have the fields `env_id`, and
    `eval_env_id`, `episode_length` (None is the task's own), `num_eval_envs` and `eval_noise`, which `--evaluate` and
    films read, and may have the task's `layout` and `backend`. If it has `total_timesteps`, `--resume` can go on to
    more of them, but not with an `anneal_lr` that is true. Devices must divide `num_envs`, `batch_size` and
    `num_eval_envs`.
  env, eval_env: `envs.GoalEnv`s, trained and evaluated on.
  schedule: has `steps_per_iteration` and `updates_per_iteration`, environment steps and updates between two returns to
    the buffer or rollout; `warmup_iterations`, those that `init` makes, `iterations_per_epoch`, and `num_epochs`. The
    steps printed and logged are steps_per_iteration · (warmup_iterations + epochs · iterations_per_epoch).
  init: `init(key)`, the state of a whole training, any pytree of arrays, keys included: the runner.
  train: `train(runner, num_epochs)`, with a static `num_epochs`: the next runner, and a dict of metrics, arrays
    (num_epochs,). An epoch has `iterations_per_epoch` and ends with the script's own evaluation. Of the metrics,
    `eval/success_rate`, `eval/time_near_goal` and `eval/final_dist` are printed, all are logged. One that is not finite
    ends the run. The memory of the old runner is used for the new one.
  policy: `policy(runner, obs, noise)`, actions (batch, action_size) for observations (batch, observation_size) and
    standard normal noise like the actions, which films and `--evaluate` multiply by `eval_noise`. It is exported for a
    batch of any size.

`init`, `train` and `policy` are compiled, and with `--num-seeds` vmapped. With `--num-devices` each device calls `init`
and `train`, with the same key, under the mapped axis that `args.axes` names, () with one device: a script folds the
device's index into the keys of what differs between devices, and averages over the axis what does not. One that cannot
share a training checks `num_devices == 1`.

A mistake that the user can mend is an `envs.UsageError`; every other exception keeps its traceback. Ctrl-C ends the
process at once, without `finally`, as XLA would let Python hear it only at the end of an epoch. A script that wants to
hear it then sets a handler of its own before `run`.
"""

from harness.cli import RunArgs, check, errors_in_one_line, parse_args
from harness.run import run

__all__ = ["RunArgs", "check", "errors_in_one_line", "parse_args", "run"]
