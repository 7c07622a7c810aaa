"""Bare native stepping under the jitted scan against `mujoco.rollout` alone in a Python loop, on the same batch.

    python benchmark/stepping.py --num-envs 64 256 1024

Both take random actions and all substeps of a control step in one call; they alternate, and ratios are of neighbours.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import jax
import mujoco
import numpy as np
from mujoco import rollout

sys.path.insert(0, str(Path(__file__).parent.parent))
import envs


def python_loop(env, num_envs, length):
    """Steps `mujoco.rollout` only; returns environment steps a second."""
    spec, n_frames = env.build("mujoco")  # without the sensors that our pipeline adds
    model = spec.compile()
    data = [mujoco.MjData(model) for _ in range(os.cpu_count())]
    state = np.zeros((num_envs, mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS)))
    state[:, 1 : 1 + model.nq] = model.qpos0
    random = np.random.default_rng(0)
    with rollout.Rollout(nthread=len(data)) as pool:
        start = time.perf_counter()
        for _ in range(length):
            actions = random.uniform(-1, 1, (num_envs, 1, model.nu))
            states, _ = pool.rollout(model, data, state, np.repeat(actions, n_frames, axis=1))
            state = states[:, -1]
        return num_envs * length / (time.perf_counter() - start)


def make_scan(env, num_envs, length):
    """The wrapped environment: observation, reward, success, episode length and resets included."""
    env = envs.wrap(env, num_envs, env.episode_length)

    @jax.jit
    def run(key):
        def step(state, key):
            action = jax.random.uniform(key, (num_envs, env.action_size), minval=-1, maxval=1)
            return env.step(state, action), None

        return jax.lax.scan(step, env.reset(key), jax.random.split(key, length))[0]

    def timed():
        start = time.perf_counter()
        jax.block_until_ready(run(jax.random.key(0)))
        return num_envs * length / (time.perf_counter() - start)

    timed()  # compiles
    return timed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="reacher")
    parser.add_argument("--num-envs", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--length", type=int, default=500, help="control steps of one measurement")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    env = envs.make(args.env_id, backend="mujoco")
    print(f"{args.env_id}, {os.cpu_count()} cores; environment steps a second, median of {args.repeats}")
    print(f"{'envs':>6} {'rollout alone':>14} {'under scan':>11} {'ratio: median (min to max)':>28}")
    for num_envs in args.num_envs:
        scan = make_scan(env, num_envs, args.length)
        python_loop(env, num_envs, 20)
        rows = [(python_loop(env, num_envs, args.length), scan()) for _ in range(args.repeats)]
        alone, under_scan = (statistics.median(column) for column in zip(*rows, strict=True))
        ratios = sorted(b / a for a, b in rows)
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"{num_envs:>6} {alone:>14,.0f} {under_scan:>11,.0f} {spread:>28}")


if __name__ == "__main__":
    main()
