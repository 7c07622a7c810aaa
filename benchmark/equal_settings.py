"""Training speed at the settings at which the peer, jaxgcrl 0.2.8, was measured: 64 environments, batch 256, two layers
of 256, one update each 16 environment steps, episodes of 1,001 steps.

    python benchmark/equal_settings.py
"""

import dataclasses
import itertools
import sys
import time
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parent.parent))
from crl_jax import Args, make_schedule, make_train

# The peer's losses, activation and learning rates too. The peer's figure leaves evaluation out; ours includes one
# episode for every 80,000 steps.
ARGS = Args(
    num_envs=64, batch_size=256, width=256, depth=2, env_steps_per_update=16, episode_length=1001, unroll_length=50,
    learning_starts=1000, activation="swish", contrastive_loss="fwd_infonce", actor_lr=3e-4, critic_lr=3e-4,
    alpha_lr=3e-4, num_eval_envs=1,
)  # fmt: skip
EPOCHS, ITERATIONS = 4, 25


def main():
    warmup = make_schedule(ARGS).warmup_iterations
    iterations = warmup + EPOCHS * ITERATIONS
    steps = iterations * ARGS.num_envs * ARGS.unroll_length
    args = dataclasses.replace(ARGS, total_timesteps=steps, num_evals=EPOCHS)
    schedule = make_schedule(args)
    ends = []
    init, train = make_train(args, log=lambda metrics: ends.append(time.perf_counter()))
    jax.block_until_ready(jax.jit(lambda key: train(init(key), EPOCHS))(jax.random.key(0)))
    steps = schedule.iterations_per_epoch * schedule.steps_per_iteration
    speeds = sorted(steps / (after - before) for before, after in itertools.pairwise(ends))
    print(f"environment steps a second, {len(speeds)} epochs: {', '.join(f'{speed:,.0f}' for speed in speeds)}")
    print(f"updates a second: {', '.join(f'{speed / args.env_steps_per_update:,.0f}' for speed in speeds)}")


if __name__ == "__main__":
    main()
