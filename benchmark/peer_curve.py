"""A learning curve of the peer's CRL, jaxgcrl 0.2.8, with its own default flags but for the number of environments,
steps and evaluations. Prints rows like those of this project's scripts, for `seeds.py`; `peer.py` makes the environment
that it runs in:

    .venv-peer/bin/python benchmark/seeds.py benchmark/peer_curve.py --seeds 1 2 3 -- --env-id reacher
"""

import argparse

import jax
import jaxgcrl.agents.crl.crl as crl
import numpy as np
from jaxgcrl.utils.config import RunConfig
from jaxgcrl.utils.env import create_env
from jaxgcrl.utils.evaluator import ActorEvaluator

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--env-id", default="reacher")
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--num-envs", type=int, default=64)
parser.add_argument("--total-timesteps", type=int, default=500_000)
parser.add_argument("--num-evals", type=int, default=10)
args = parser.parse_args()
EPISODE_LENGTH = 1001


class Evaluator(ActorEvaluator):
    """The same evaluation, but of `success` alone: reacher lacks another metric that the peer's own asks for."""

    def run_evaluation(self, training_state, training_metrics):
        self._key, key = jax.random.split(self._key)
        steps_near = self._generate_eval_unroll(training_state, key).info["eval_metrics"].episode_metrics["success"]
        near = {"success_rate": np.mean(steps_near > 0), "time_near_goal": np.mean(steps_near) / EPISODE_LENGTH}
        return training_metrics | near


def progress(step, metrics, *args_, **kwargs):
    progress.epoch += 1
    cells = f"{progress.epoch}/{args.num_evals} {step} {metrics['training/sps']:.0f}"
    cells += f" {metrics['success_rate']:.3f} {metrics['time_near_goal']:.3f} nan - -"
    print(cells, flush=True)


progress.epoch = 0
crl.ActorEvaluator = Evaluator
env = create_env(args.env_id)
config = RunConfig(
    env=args.env_id,
    seed=args.seed,
    num_envs=args.num_envs,
    episode_length=EPISODE_LENGTH,
    num_evals=args.num_evals,
    total_env_steps=args.total_timesteps,
    log_wandb=False,
)
try:
    crl.CRL().train_fn(config=config, train_env=env, eval_env=env, progress_fn=progress)
except (AssertionError, UnboundLocalError):  # how it ends: whole epochs fall short, or nothing was saved
    if progress.epoch < args.num_evals:
        raise
