"""Bare native stepping under the jitted scan against `mujoco.rollout` alone in a Python loop, on the same batch.

    python benchmark/stepping.py --env-id reacher --num-envs 64 256 1024
    python benchmark/stepping.py --env-id ant humanoid cheetah

Both take random actions and all substeps of a control step in one call; they alternate, and ratios are of neighbours.
"""

import argparse
import itertools
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

FAMILIES = (
    "reacher", "cheetah", "pusher_easy", "ant", "ant_u_maze", "ant_ball", "ant_push", "humanoid", "humanoid_u_maze",
    "simple_u_maze", "arm_reach", "arm_push_easy", "arm_binpick_easy",
)  # fmt: skip


def python_loop(env, num_envs, length):
    """Steps `mujoco.rollout` only; returns environment steps a second."""
    spec, n_frames = env.build("mujoco")  # without the sensors that our pipeline adds
    model = spec.compile()
    data = [mujoco.MjData(model) for _ in os.sched_getaffinity(0)]
    state = np.zeros((num_envs, mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS)))
    physics = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), num_envs)).pipeline_state
    state[:, 1:] = np.concatenate([physics.q, physics.qd], axis=1)
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
    parser.add_argument("--env-id", nargs="+", default=FAMILIES)
    parser.add_argument("--num-envs", type=int, nargs="+", default=[256])
    parser.add_argument("--length", type=int, default=200, help="control steps of one measurement")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    print(f"{len(os.sched_getaffinity(0))} cores; environment steps a second, median of {args.repeats}\n")
    print("| id | environments | `mujoco.rollout` alone | under the scan | ratio: median (min to max) |")
    print("| --- | --- | --- | --- | --- |")
    for env_id, num_envs in itertools.product(args.env_id, args.num_envs):
        env = envs.make(env_id, backend="mujoco")
        scan = make_scan(env, num_envs, args.length)
        python_loop(env, num_envs, 20)
        rows = [(python_loop(env, num_envs, args.length), scan()) for _ in range(args.repeats)]
        alone, under_scan = (statistics.median(column) for column in zip(*rows, strict=True))
        ratios = sorted(b / a for a, b in rows)
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"| `{env_id}` | {num_envs:,} | {alone:,.0f} | {under_scan:,.0f} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
