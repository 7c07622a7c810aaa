"""A planar two-legged cheetah runs to a place five metres ahead."""

import jax
import jax.numpy as jnp
import mujoco
from brax import base

from envs.base import GoalEnv, add_target, load_robot, set_pace

_TARGET_X = 5.0


class Cheetah(GoalEnv):
    """State (18): `qpos` (9) and `qvel` (9) of the cheetah. Goal: x of its root."""

    state_dim = 18
    goal_indices = (0,)
    goal_reach_thresh = 0.5
    goal_reach_easy = 2.0
    benchmark_backend = "mjx"

    def build(self, backend: str) -> tuple[mujoco.MjSpec, int]:
        spec = load_robot("half_cheetah")
        damping = spec.numeric("constraint_ang_damping")  # a value of each body
        damping.size, damping.data = damping.size + 1, [*damping.data, 1.0]
        # The model asks for a total mass of 14. So that the cheetah has it to itself, its density is scaled instead.
        total, spec.compiler.settotalmass = spec.compiler.settotalmass, -1
        scale = total / spec.compile().body_mass.sum()
        for geom in spec.geoms:
            geom.density *= scale
        add_target(spec, "x")
        return spec, set_pace(spec, backend, 5, springs=(0.003125, 16), gear=(120, 90, 60, 120, 100, 100))

    def start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        q_key, qd_key = jax.random.split(key)
        q = self.sys.init_q + jax.random.uniform(q_key, (10,), minval=-0.1, maxval=0.1)
        qd = 0.1 * jax.random.normal(qd_key, (10,))
        return q.at[9].set(_TARGET_X), qd.at[9].set(0.0)

    def get_state(self, physics: base.State, control: jax.Array) -> jax.Array:
        return jnp.concatenate([physics.q[:9], physics.qd[:9]])

    def get_goal(self, physics: base.State) -> jax.Array:
        return physics.q[9:]

    def shaped_reward(self, state: jax.Array, action: jax.Array, next_state: jax.Array, goal: jax.Array) -> jax.Array:
        return super().shaped_reward(state, action, next_state, goal) - 0.1 * jnp.sum(action**2)
