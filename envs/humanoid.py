"""A humanoid walks to a place, on open ground or in a maze."""

import jax
import jax.numpy as jnp
import mujoco
from brax import actuator, base

from envs.base import SPRINGS, GoalEnv, add_target, load_robot, on_circle, set_pace, set_solver
from envs.maze import MazeEnv

_STRENGTH = 0.4  # the actuators' range
_TARGET_Z = 1.25  # about the height of the torso of a humanoid that stands upright, metres


class Humanoid(GoalEnv):
    """State (268): q (26) and qd (25), the target's included; of each of 12 links inertia and mass (10) and velocity
    (6); torques of the actuators (25). Goal: xyz of the torso, 1 to 5 m from the start."""

    state_dim = 268
    goal_indices = (0, 1, 2)
    goal_reach_thresh = 0.5
    goal_reach_easy = 2.0
    benchmark_backend = "spring"

    def build(self, backend: str) -> tuple[mujoco.MjSpec, int]:
        spec = load_robot("humanoid")
        for geom in spec.geoms:
            if geom.name != "floor":
                geom.contype = 1  # the whole body can touch floor and walls, but never itself
        self.add_things(spec)
        set_solver(spec, backend, iterations=1, ls_iterations=4)
        return spec, set_pace(spec, backend, 5, springs=(0.0015, 10), gear=(350.0,) * 11 + (100.0,) * 6)

    def add_things(self, spec: mujoco.MjSpec):
        """Adds what is not the humanoid; the target comes last."""
        add_target(spec, z=_TARGET_Z)

    def start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        distance_key, angle_key = jax.random.split(key)
        target = on_circle(angle_key, jax.random.uniform(distance_key, minval=1.0, maxval=5.0))
        return self.sys.init_q.at[-2:].set(target), jnp.zeros(self.sys.qd_size())

    def get_control(self, physics: base.State, action: jax.Array) -> jax.Array:
        return _STRENGTH * action

    def get_state(self, physics: base.State, control: jax.Array) -> jax.Array:
        inertia = self.sys.link.inertia
        mass = inertia.mass[:, None]  # (12, 1)
        if self.backend in SPRINGS:
            inertia = inertia.replace(i=jnp.broadcast_to(jnp.eye(3), inertia.i.shape))  # as these pipelines have it
        centres = physics.x.vmap().do(inertia.transform)  # of mass, of each link
        centre = jnp.sum(mass * centres.pos, axis=0) / jnp.sum(mass)  # of the whole model
        about_centre = centres.replace(pos=centres.pos - centre).vmap().do(inertia).i.reshape(-1, 9)
        velocity = base.Transform.create(pos=centres.pos - physics.x.pos).vmap().do(physics.xd)
        return jnp.concatenate(
            [
                physics.q,
                physics.qd,
                jnp.hstack([about_centre, mass]).ravel(),
                jnp.hstack([velocity.vel * mass / jnp.sum(mass), velocity.ang]).ravel(),
                actuator.to_tau(self.sys, control, physics.q, physics.qd),
            ]
        )

    def get_goal(self, physics: base.State) -> jax.Array:
        return jnp.append(physics.q[-2:], _TARGET_Z)

    def shaped_reward(self, state: jax.Array, action: jax.Array, next_state: jax.Array, goal: jax.Array) -> jax.Array:
        return super().shaped_reward(state, action, next_state, goal) + 5 - 0.1 * jnp.sum((_STRENGTH * action) ** 2)

    def terminated(self, physics: base.State) -> jax.Array:
        return (physics.q[2] < 1.0) | (physics.q[2] > 2.0)


class HumanoidMaze(MazeEnv, Humanoid):
    """The humanoid in a maze; the goal is in one of its `g` cells."""

    cell_side = 2.0

    def add_things(self, spec: mujoco.MjSpec):
        self.add_walls(spec)
        add_target(spec, z=_TARGET_Z, reach=100)

    def start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        start_key, target_key = jax.random.split(key)
        q = self.sys.init_q.at[:2].set(self.draw_cell(start_key, "r")).at[-2:].set(self.draw_cell(target_key, "g"))
        return q, jnp.zeros(self.sys.qd_size())
