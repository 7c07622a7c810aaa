"""What becomes of an ant under random actions, on each pipeline: it may neither fall nor jump higher than a metre.

python benchmark/lives.py --backend mujoco mjx spring
"""

import argparse
import sys
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
import envs

EPISODES, LENGTH = 256, 300


def lives(env):
    """Whether each episode ended, and its torso's height then, (LENGTH, EPISODES) each."""

    def step(state, key):
        action = jax.random.uniform(key, (EPISODES, env.action_size), minval=-1, maxval=1)
        state = jax.vmap(env.step)(state, action)
        return state, (state.done, state.obs[:, 2])

    def run(key):
        state = jax.vmap(env.reset)(jax.random.split(key, EPISODES))
        return jax.lax.scan(step, state, jax.random.split(key, LENGTH))[1]

    return map(np.array, jax.jit(run)(jax.random.key(0)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="ant")
    parser.add_argument("--backend", nargs="+", choices=envs.BACKENDS, default=["mujoco", "mjx", "spring"])
    args = parser.parse_args()
    print(f"| pipeline | alive after {LENGTH} steps | jumped too high | fell |\n| --- | --- | --- | --- |")
    for backend in args.backend:
        done, height = lives(envs.make(args.env_id, backend))
        ended = done.any(0)
        high = ended & (height[done.argmax(0), np.arange(EPISODES)] > 0.6)
        print(f"| {backend} | {np.mean(~ended):.0%} | {high.mean():.0%} | {(ended & ~high).mean():.0%} |", flush=True)


if __name__ == "__main__":
    main()
