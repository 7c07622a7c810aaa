"""Share of episodes in which random actions move the pusher's object by 1 cm, against how slowly they change.

python benchmark/noise.py --env-id pusher_easy
"""

import argparse
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).parent.parent))
import envs
from sac_her_jax import Args, correlate

EPISODES = 512


def share_of_moved(env, correlation, length):
    """Over fresh episodes, of actions tanh(u) with u standard normal."""

    def object_of(state):
        return state.obs[:, jnp.array(env.goal_indices)]

    @jax.jit
    def run(key):
        reset_key, noise_key = jax.random.split(key)
        start = jax.vmap(env.reset)(jax.random.split(reset_key, EPISODES))
        shape = Args.unroll_length, EPISODES, env.action_size  # with each unroll the noise starts afresh
        keys = jax.random.split(noise_key, math.ceil(length / Args.unroll_length))
        noise = jax.vmap(lambda key: correlate(jax.random.normal(key, shape), correlation))(keys)
        noise = noise.reshape(-1, *shape[1:])[:length]
        end, _ = jax.lax.scan(lambda state, u: (jax.vmap(env.step)(state, jnp.tanh(u)), None), start, noise)
        return jnp.linalg.norm(object_of(end) - object_of(start), axis=1) > 0.01

    moved = run(jax.random.key(0)).mean().item()
    return moved, 1.96 * math.sqrt(moved * (1 - moved) / EPISODES)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="pusher_easy")
    parser.add_argument("--length", type=int, default=200)
    args = parser.parse_args()
    env = envs.make(args.env_id)
    print(f"| correlation from step to step | episodes of {args.length} steps that move the object |\n| --- | --- |")
    for correlation in (0.0, 0.8, 0.95, 0.99):
        share, interval = share_of_moved(env, correlation, args.length)
        print(f"| {correlation} | {share:.1%} ± {interval:.1%} |", flush=True)


if __name__ == "__main__":
    main()
