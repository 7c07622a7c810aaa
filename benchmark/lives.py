"""What becomes of ants, on each pipeline: they may neither fall nor jump higher than a metre.

python benchmark/lives.py --backend mujoco mjx spring     # under random actions
python benchmark/lives.py --backend spring --policy runs/ant__crl_jax__1__… --length 1000
"""

import argparse
import sys
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from envs.checkpoint import load_policy

import envs

EPISODES = 256


def lives(env, policy, length, noise):
    """Whether each episode ended, its torso's height then, and whether it was at its goal: (length, EPISODES) each."""

    def step(state, key):
        shape = EPISODES, env.action_size
        if policy:
            action = policy(state.obs, noise * jax.random.normal(key, shape))
        else:
            action = jax.random.uniform(key, shape, minval=-1)
        state = jax.vmap(env.step)(state, action)
        return state, (state.done, state.obs[:, 2], state.metrics["success"])

    def run(key):
        reset_key, action_key = jax.random.split(key)
        state = jax.vmap(env.reset)(jax.random.split(reset_key, EPISODES))
        return jax.lax.scan(step, state, jax.random.split(action_key, length))[1]

    return map(np.array, jax.jit(run)(jax.random.key(0)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="ant")
    parser.add_argument("--backend", nargs="+", choices=envs.BACKENDS, default=["mujoco", "mjx", "spring"])
    parser.add_argument("--policy", type=Path, help="directory of a run, whose policy acts instead of chance")
    parser.add_argument("--noise", type=float, default=0, help="of its actions, in its standard deviations")
    parser.add_argument("--length", type=int, default=300, help="steps of an episode")
    args = parser.parse_args()
    policy = args.policy and load_policy(args.policy / "policy.jax")
    print(f"| pipeline | reached its goal | else: alive after {args.length} steps | jumped too high | fell |")
    print("|" + " --- |" * 5)
    for backend in args.backend:
        done, height, success = lives(envs.make(args.env_id, backend), policy, args.length, args.noise)
        end = np.where(done.any(0), done.argmax(0), args.length)
        reached = (success * (np.arange(args.length)[:, None] <= end)).any(0)
        alive = end == args.length
        high = height[np.minimum(end, args.length - 1), np.arange(EPISODES)] > 0.6
        ends = (reached, ~reached & alive, ~reached & ~alive & high, ~reached & ~alive & ~high)
        print(f"| {backend} | {' | '.join(f'{x.mean():.0%}' for x in ends)} |", flush=True)


if __name__ == "__main__":
    main()
