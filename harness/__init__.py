"""What a run is: flags, log, checkpoints, resume, evaluation, film.

A script's `main` needs two names of this package, and ends like this:

    @harness.errors_in_one_line()
    def main():
        args = harness.parse_args(Args)
        ...
        harness.run(args, env, eval_env, make_schedule(args), init, train, policy)

What `run` asks of its arguments, and nothing else:

  args: an instance of a frozen dataclass that extends `harness.RunArgs`. Each field is a flag. `env_id` names the task;
    `eval_env_id`, `episode_length`, `num_eval_envs` and `eval_noise` are read by `--evaluate` and by films.
  env, eval_env: `envs.GoalEnv`s, trained and evaluated on.
  schedule: has `steps_per_iteration` and `updates_per_iteration`, environment steps and updates between two returns to
    the buffer or rollout; `warmup_iterations`, which `init` takes, `iterations_per_epoch`, and `num_epochs`.
  init: `init(key)`, the state of a whole training, any pytree of arrays: the runner.
  train: `train(runner, num_epochs)`, the next runner, and a dict of metrics, arrays (num_epochs,). Of these,
    `eval/success_rate`, `eval/time_near_goal` and `eval/final_dist` are printed, all are logged. One that is not finite
    ends the run.
  policy: `policy(runner, obs, noise)`, actions (batch, action_size) for observations (batch, observation_size) and
    standard normal noise like the actions.

`init`, `train` and `policy` are compiled, and with `--num-seeds` vmapped. With `--num-devices` each device calls `init`
and `train`, with the same key, under the mapped axis `args.axes`: a script folds the device's index into the keys of
what differs between devices, and averages over the axis what does not.

A mistake that the user can mend is an `envs.UsageError`; every other exception keeps its traceback.
"""

from harness.cli import RunArgs, check, errors_in_one_line, parse_args
from harness.run import run

__all__ = ["RunArgs", "check", "errors_in_one_line", "parse_args", "run"]
