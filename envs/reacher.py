"""A two-joint planar arm moves its finger tip to a target."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from brax import base, math

from envs.base import GREEN, SPHERE, GoalEnv, load_robot, on_circle, set_pace

_TIP = np.array([0.11, 0.0, 0.0], np.float32)  # the finger tip in the forearm's frame, metres


class Reacher(GoalEnv):
    """State (10): cos and sin of both joint angles, finger tip's position and velocity. Goal: the tip's position."""

    state_dim = 10
    goal_indices = (4, 5, 6)
    goal_reach_thresh = 0.05
    benchmark_backend = "generalized"
    view = (90, -75)

    def build(self, backend: str) -> tuple[mujoco.MjSpec, int]:
        spec = load_robot("reacher")
        size = [self.goal_reach_thresh, 0, 0]  # shows what counts as near, and weighs nothing
        spec.body("target").add_geom(type=SPHERE, size=size, mass=0, contype=0, conaffinity=0, rgba=GREEN)
        return spec, set_pace(spec, backend, 2, springs=(0.005, 4), gear=25.0)

    def start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        q_key, qd_key, radius_key, target_key = jax.random.split(key, 4)
        q = self.sys.init_q + jax.random.uniform(q_key, (4,), minval=-0.1, maxval=0.1)
        qd = jax.random.uniform(qd_key, (4,), minval=-0.005, maxval=0.005)
        target = on_circle(target_key, 0.2 * jax.random.uniform(radius_key))
        return q.at[2:].set(target), qd.at[2:].set(0.0)

    def get_state(self, physics: base.State, control: jax.Array) -> jax.Array:
        angles = physics.q[:2]
        forearm, motion = physics.x.take(1), physics.xd.take(1)
        offset = math.rotate(_TIP, forearm.rot)
        tip_velocity = motion.vel + jnp.cross(motion.ang, offset)
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles), forearm.pos + offset, tip_velocity])

    def get_goal(self, physics: base.State) -> jax.Array:
        return physics.x.pos[2]
