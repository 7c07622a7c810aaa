"""Training speed at the settings at which the peer, jaxgcrl 0.2.8, is measured by `peer_speed.py`: 64 environments and
episodes of 1,001 steps (the peer's SAC: 1,000), the peer's own defaults, or more work where they cannot be had.

    python benchmark/equal_settings.py crl --env-id reacher    # or sac, ppo
"""

import argparse
import dataclasses
import importlib
import sys
import time
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parent.parent))

# The peer's figure leaves evaluation out; ours includes one episode an epoch.
COMMON = dict(episode_length=1001, num_eval_envs=1)
SETTINGS = {  # script, flags, iterations an epoch
    # Batch 256, two layers of 256, an update for each 16 steps; the peer's losses, activation and learning rates too.
    "crl": ("crl_jax", dict(
        batch_size=256, width=256, depth=2, env_steps_per_update=16, unroll_length=50, learning_starts=1000,
        activation="swish", contrastive_loss="fwd_infonce", actor_lr=3e-4, critic_lr=3e-4, alpha_lr=3e-4,
    ), 25),
    # Hindsight for all of a batch, `final`. The peer updates once for each 12.8 steps, we for each 12.
    "sac": ("sac_her_jax", dict(
        batch_size=256, width=256, depth=2, env_steps_per_update=12, unroll_length=51, learning_starts=1000,
        her_ratio=1.0, her_strategy="final", gamma=0.9, actor_lr=1e-4, critic_lr=1e-4, alpha_lr=3e-4,
    ), 25),
    # 5,120 steps, 16 minibatches of 320, twice. These are the sizes of the value function; see `small_policy`.
    "ppo": ("ppo_jax", dict(
        unroll_length=80, num_minibatches=16, update_epochs=2, width=256, depth=5, activation="swish", gamma=0.9,
        clip_eps=0.3, entropy_coef=1e-4, learning_rate=1e-4, normalize_observations=False,
    ), 40),
}  # fmt: skip
EPOCHS = 4


def small_policy(module):
    """Gives PPO's policy the peer's 4 layers of 32 units."""
    make_networks = module.make_networks

    def replacement(args, env):
        small = dataclasses.replace(args, width=32, depth=4)
        return make_networks(args, env)._replace(actor=make_networks(small, env).actor)

    module.make_networks = replacement


def make_args(algorithm, env_id, num_envs, iterations, epochs):
    """The script's module, and flags for `epochs` epochs of `iterations` iterations."""
    script, flags, _ = SETTINGS[algorithm]
    module = importlib.import_module(script)
    if algorithm == "ppo":
        small_policy(module)
    args = module.Args(env_id=env_id, num_envs=num_envs, **COMMON, **flags)
    schedule = module.make_schedule(args)
    iterations = schedule.warmup_iterations + epochs * iterations
    return module, dataclasses.replace(
        args, total_timesteps=iterations * schedule.steps_per_iteration, num_evals=epochs
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("algorithm", choices=SETTINGS)
    parser.add_argument("--env-id", default="reacher")
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--backend", help="physics; by default the one that the task has on this machine")
    given = parser.parse_args()
    iterations = SETTINGS[given.algorithm][2]
    module, args = make_args(given.algorithm, given.env_id, given.num_envs, iterations, EPOCHS)
    args = dataclasses.replace(args, backend=given.backend)
    ends, steps = [], iterations * module.make_schedule(args).steps_per_iteration

    def log(metrics):
        ends.append(time.perf_counter())
        speed = steps / (ends[-1] - ends[-2]) if len(ends) > 1 else 0  # the first epoch's would include compiling
        print(f"{speed:.0f} environment steps a second", flush=True)

    init, train = module.make_train(args, log=log)
    jax.block_until_ready(jax.jit(lambda key: train(init(key), EPOCHS))(jax.random.key(0)))


if __name__ == "__main__":
    main()
