"""Native MuJoCo and mjx from the same starts under the same random actions: for how long do they agree?

    python benchmark/agreement.py

One id of each model. In contacts, small differences grow: of rounding, mjx has single precision, and of collision
functions. So mjx gets as many solver iterations here as it needs, where the benchmark gives it few; the last column has
the benchmark's.
"""

import argparse
import sys
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
import envs

ENV_IDS = (
    "reacher", "cheetah", "pusher_easy", "pusher_reacher", "pusher2", "ant", "ant_u_maze", "ant_ball",
    "ant_ball_u_maze", "ant_push", "humanoid", "humanoid_u_maze", "simple_u_maze", "arm_reach", "arm_grasp",
    "arm_push_easy", "arm_binpick_easy", "arm_binpick_easy_eef",
)  # fmt: skip
STARTS, STEPS = 4, 20


def rollouts(env):
    """Joint positions, (starts, time, nq)."""

    def rollout(key):
        def step(state, key):
            state = env.step(state, jax.random.uniform(key, (env.action_size,), minval=-1, maxval=1))
            return state, state.pipeline_state.q

        return jax.lax.scan(step, env.reset(key), jax.random.split(key, STEPS))[1]

    return np.array(jax.jit(jax.vmap(rollout))(jax.random.split(jax.random.key(0), STARTS)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env_ids", nargs="*", default=ENV_IDS)
    print("| id | after 5 actions | after 20 | starts of 4 within 1e-3 throughout | benchmark's solver, after 20 |")
    print("| --- | --- | --- | --- | --- |")
    for env_id in parser.parse_args().env_ids:
        native = rollouts(envs.make(env_id, "mujoco"))
        mjx = envs.make(env_id, "mjx")
        with_few = np.abs(native - rollouts(mjx)).max()
        mjx.sys = mjx.sys.tree_replace({"opt.iterations": 30, "opt.ls_iterations": 30})
        difference = np.abs(native - rollouts(mjx)).max(-1)
        within = (difference.max(-1) < 1e-3).sum()
        after_5 = difference[:, :5].max()
        print(f"| `{env_id}` | {after_5:.0e} | {difference.max():.0e} | {within} | {with_few:.0e} |", flush=True)


if __name__ == "__main__":
    main()
