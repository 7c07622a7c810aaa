"""A point mass slides through a maze: the `simple_*_maze` tasks."""

import jax
import jax.numpy as jnp
import mujoco
from brax import base

from envs.base import ORANGE, SPHERE, add_slides, add_target, load_robot, set_pace, set_solver
from envs.maze import MazeEnv


class PointMaze(MazeEnv):
    """State (4): position and velocity, xy. Goal: a position, in one of the maze's `g` cells."""

    state_dim = 4
    goal_indices = (0, 1)
    goal_reach_thresh = 0.5
    goal_reach_easy = 2.0
    benchmark_backend = "spring"

    def build(self, backend: str) -> tuple[mujoco.MjSpec, int]:
        spec = load_robot("ant")  # its floor and its physics, but not its body
        for part in (*spec.actuators, spec.body("torso")):
            spec.delete(part)
        point = spec.worldbody.add_body(name="point", pos=[0, 0, 0.75])
        point.add_geom(type=SPHERE, size=[0.25, 0, 0], contype=1, conaffinity=1, rgba=ORANGE)
        add_slides(point, "xy", reach=100, armature=1)
        for joint in point.joints:
            motor = spec.add_actuator(target=joint.name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
            motor.set_to_motor()
            motor.gear[0] = 5.0
        self.add_walls(spec)
        add_target(spec, reach=100)
        set_solver(spec, backend, iterations=1, ls_iterations=4)
        return spec, set_pace(spec, backend, 5, springs=(0.005, 10), gear=200.0 if backend == "positional" else None)

    def start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        start_key, target_key, qd_key = jax.random.split(key, 3)
        q = jnp.concatenate([self.draw_cell(start_key, "r"), self.draw_cell(target_key, "g")])
        return q, jnp.zeros(4).at[:2].set(0.1 * jax.random.normal(qd_key, (2,)))

    def get_state(self, physics: base.State, control: jax.Array) -> jax.Array:
        return jnp.concatenate([physics.q[:2], physics.qd[:2]])

    def get_goal(self, physics: base.State) -> jax.Array:
        return physics.q[-2:]

    def shaped_reward(self, state: jax.Array, action: jax.Array, next_state: jax.Array, goal: jax.Array) -> jax.Array:
        return super().shaped_reward(state, action, next_state, goal) + 1 - 0.5 * jnp.sum(action**2)
