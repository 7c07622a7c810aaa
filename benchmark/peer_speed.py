"""Training speed of the peer, jaxgcrl 0.2.8, at the settings of `equal_settings.py`. `peer.py` sets up the environment
that this needs, and runs it:

    .venv-peer/bin/python benchmark/peer_speed.py crl --env-id reacher    # or sac, ppo
"""

import argparse
import importlib
import sys
from unittest import mock

try:
    import brax.v1.envs  # noqa: F401
except ImportError:  # a brax that fits the jax of new GPUs lacks it; the peer needs it for tasks of its kind alone
    sys.modules |= {"brax.v1": mock.MagicMock(), "brax.v1.envs": mock.MagicMock()}

import cost
import numpy as np
from jaxgcrl.utils.config import RunConfig
from jaxgcrl.utils.env import create_env

parser = argparse.ArgumentParser()
parser.add_argument("algorithm", choices=("crl", "sac", "ppo"))
parser.add_argument("--env-id", default="reacher")
parser.add_argument("--num-envs", type=int, default=64)
parser.add_argument("--cost", action="store_true", help="print what cost.py prints, of the peer's CRL")
args = parser.parse_args()
if args.cost and args.algorithm != "crl":
    parser.error("--cost is for crl")
EPOCHS = 3
UNROLL, PREFILL, ITERATIONS = {"crl": (62, 1000, 4), "sac": (50, 1000, 8), "ppo": (80, 0, 30)}[args.algorithm]
if args.cost:
    ITERATIONS = cost.ITERATIONS


class NoEvaluator:
    """Its own asks reacher for a metric that reacher lacks; speed is measured without evaluation anyway."""

    def __init__(self, *args, **kwargs):
        pass

    def run_evaluation(self, policy_params, training_metrics, *args, **kwargs):
        return training_metrics


def progress(step, metrics, *args, **kwargs):
    if "training/sps" in metrics:
        print(f"{metrics['training/sps']:.0f} environment steps a second", flush=True)


module = importlib.import_module(f"jaxgcrl.agents.{args.algorithm}.{args.algorithm}")
setattr(module, "ActorEvaluator" if args.algorithm == "crl" else "Evaluator", NoEvaluator)
agent = {
    "crl": lambda: module.CRL(),
    "sac": lambda: module.SAC(use_her=True, min_replay_size=PREFILL),
    "ppo": lambda: module.PPO(),
}[args.algorithm]()
prefill = PREFILL // UNROLL + 1 if PREFILL else 0
config = RunConfig(
    env=args.env_id,
    num_envs=args.num_envs,
    episode_length=1000 if args.algorithm == "sac" else 1001,  # its buffers want other multiples of the batch size
    num_evals=EPOCHS if args.algorithm == "crl" else EPOCHS + 1,
    total_env_steps=(prefill + EPOCHS * ITERATIONS) * args.num_envs * UNROLL,
    log_wandb=False,
)
env = create_env(args.env_id)
env.goal_indices = np.asarray(env.goal_indices)  # a newer jax lets no array of its own be a static argument's part


def train():
    agent.train_fn(config=config, train_env=env, eval_env=env, progress_fn=progress)


if args.cost:
    # Each environment gives a window of an episode's length, less one step, to the batches.
    updates = args.num_envs * (config.episode_length - 1) // agent.batch_size
    cost.report("jaxgcrl", train, args.num_envs, UNROLL, updates)
    sys.exit()
try:
    train()
except (AssertionError, UnboundLocalError) as error:  # how it ends
    print(f"ended in {type(error).__name__}")
