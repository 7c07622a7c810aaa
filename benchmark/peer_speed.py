"""Training speed of the peer, jaxgcrl 0.2.8, at the settings of `equal_settings.py`. Runs in an environment of its own:

    python3.11 -m venv .venv-peer
    .venv-peer/bin/pip install --no-deps jaxgcrl==0.2.8
    .venv-peer/bin/pip install jax==0.4.25 jaxlib==0.4.25 "flax<0.9" brax==0.12.1 matplotlib==3.8.4 mujoco==3.2.7 \\
        mujoco-mjx==3.2.7 "numpy<2" "scipy<1.14" tyro==0.9.17 wandb wandb-osh
    WANDB_MODE=disabled .venv-peer/bin/python benchmark/peer_speed.py crl    # or sac, ppo
"""

import importlib
import sys

from jaxgcrl.utils.config import RunConfig
from jaxgcrl.utils.env import create_env

ALGORITHM = sys.argv[1] if len(sys.argv) > 1 else "crl"
NUM_ENVS, EPOCHS = 64, 3
UNROLL, PREFILL, ITERATIONS = {"crl": (62, 1000, 8), "sac": (50, 1000, 8), "ppo": (80, 0, 30)}[ALGORITHM]


class NoEvaluator:
    """Its own asks reacher for a metric that reacher lacks; speed is measured without evaluation anyway."""

    def __init__(self, *args, **kwargs):
        pass

    def run_evaluation(self, policy_params, training_metrics, *args, **kwargs):
        return training_metrics


def progress(step, metrics, *args, **kwargs):
    if "training/sps" in metrics:
        print(f"{step:,} steps: {metrics['training/sps']:.0f} environment steps a second", flush=True)


module = importlib.import_module(f"jaxgcrl.agents.{ALGORITHM}.{ALGORITHM}")
setattr(module, "ActorEvaluator" if ALGORITHM == "crl" else "Evaluator", NoEvaluator)
agent = {
    "crl": lambda: module.CRL(),
    "sac": lambda: module.SAC(use_her=True, min_replay_size=PREFILL),
    "ppo": lambda: module.PPO(),
}[ALGORITHM]()
prefill = PREFILL // UNROLL + 1 if PREFILL else 0
config = RunConfig(
    env="reacher",
    num_envs=NUM_ENVS,
    num_evals=EPOCHS if ALGORITHM == "crl" else EPOCHS + 1,
    total_env_steps=(prefill + EPOCHS * ITERATIONS) * NUM_ENVS * UNROLL,
    log_wandb=False,
)
env = create_env("reacher")
print("the first epoch's speed includes compiling")
try:
    agent.train_fn(config=config, train_env=env, eval_env=env, progress_fn=progress)
except (AssertionError, UnboundLocalError) as error:  # how it ends
    print(f"ended in {type(error).__name__}")
