"""A four-legged robot walks to a place, on open ground or in a maze, or pushes a ball or a box."""

import jax
import jax.numpy as jnp
import mujoco
from brax import base

from envs.base import BOX, MUJOCO, SPHERE, GoalEnv, add_slides, add_target, load_robot, on_circle, set_pace, set_solver
from envs.maze import MazeEnv

_NQ, _NV = 15, 14  # the ant's own coordinates and velocities
_FEET = ("left_foot_geom", "right_foot_geom", "third_foot_geom", "fourth_foot_geom")
_INNER_LEGS = ("aux_1_geom", "aux_2_geom", "aux_3_geom", "aux_4_geom")


class Ant(GoalEnv):
    """State (29): the ant's `qpos` and `qvel`. Goal: xy of its torso, on a circle of 10 m around the origin."""

    state_dim = _NQ + _NV
    goal_indices = (0, 1)
    goal_reach_thresh = 0.5
    goal_reach_easy = 2.0
    benchmark_backend = "spring"
    cpu_backend = "spring"  # on MuJoCo's physics random ants soon jump higher than is healthy
    solver_iterations = (1, 4)  # on mjx: of the solver, and of its line search
    touching: tuple[str, ...] = ()  # geoms that can touch more than the floor
    random_start = False
    pose = (0, 0, 0.55, 1, 0, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1)  # at the start, but for noise

    def build(self, backend: str) -> tuple[mujoco.MjSpec, int]:
        spec = load_robot("ant")
        for name in self.touching:
            spec.geom(name).conaffinity = 1
        self.add_things(spec)
        set_solver(spec, backend, *self.solver_iterations)
        return spec, set_pace(spec, backend, 5, springs=(0.005, 10), gear=200.0 if backend == "positional" else None)

    def add_things(self, spec: mujoco.MjSpec):
        """Adds what is not the ant; the target comes last."""
        add_target(spec)

    def start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        pose_key, target_key, start_key = jax.random.split(key, 3)
        q, qd = self.start_pose(pose_key)
        target = on_circle(target_key, 10.0)
        if self.random_start:
            q = q.at[:2].set(target + on_circle(start_key, 10.0))
        return q.at[-2:].set(target), qd

    def start_pose(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The ant's pose with noise; the rest as the model has it, at rest."""
        q_key, qd_key = jax.random.split(key)
        q = jnp.array(self.pose) + jax.random.uniform(q_key, (_NQ,), minval=-0.1, maxval=0.1)
        qd = jnp.zeros(self.sys.qd_size()).at[:_NV].set(0.1 * jax.random.normal(qd_key, (_NV,)))
        return self.sys.init_q.at[:_NQ].set(q), qd

    def get_state(self, physics: base.State, control: jax.Array) -> jax.Array:
        return jnp.concatenate([physics.q[:_NQ], physics.qd[:_NV]])

    def get_goal(self, physics: base.State) -> jax.Array:
        return physics.q[-2:]

    def shaped_reward(self, state: jax.Array, action: jax.Array, next_state: jax.Array, goal: jax.Array) -> jax.Array:
        before, after = (self.goal_metrics(self.achieved(s), goal)["dist"] for s in (state, next_state))
        return 10 * (before - after) / self.dt + 1 - 0.5 * jnp.sum(action**2)

    def terminated(self, physics: base.State) -> jax.Array:
        return (physics.q[2] < 0.2) | (physics.q[2] > 1.0)


class AntRandomStart(Ant):
    """Starts at a point of a circle of 10 m around the goal, instead of the origin."""

    random_start = True


class AntMaze(MazeEnv, Ant):
    """The ant in a maze; the goal is in one of its `g` cells."""

    touching = ("torso_geom", *_FEET, *_INNER_LEGS)

    def add_things(self, spec: mujoco.MjSpec):
        self.add_walls(spec)
        add_target(spec, reach=100)

    def start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        pose_key, start_key, target_key = jax.random.split(key, 3)
        q, qd = self.start_pose(pose_key)
        return q.at[:2].set(self.draw_cell(start_key, "r")).at[-2:].set(self.draw_cell(target_key, "g")), qd


class AntBall(Ant):
    """The ant pushes a ball. State (31): `qpos` and `qvel` of the ant, xy of the ball. Goal: xy of the ball."""

    state_dim = _NQ + _NV + 2
    goal_indices = (29, 30)
    touching = ("torso_geom", *_FEET)

    def add_things(self, spec: mujoco.MjSpec):
        ball = spec.worldbody.add_body(name="ball", pos=[0, 0, 0.5])
        ball.add_geom(type=SPHERE, size=[0.5, 0, 0], mass=0.576, contype=1, conaffinity=0, rgba=[0.9, 0.9, 0.9, 1])
        add_slides(ball, "xy", reach=100, armature=1)
        add_target(spec, reach=100)

    def start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        pose_key, target_key, ball_key = jax.random.split(key, 3)
        q, qd = self.start_pose(pose_key)
        target = on_circle(target_key, 5.0)
        return q.at[-4:-2].set(0.2 * target + on_circle(ball_key, 1.0)).at[-2:].set(target), qd

    def get_state(self, physics: base.State, control: jax.Array) -> jax.Array:
        return jnp.concatenate([physics.q[:_NQ], physics.qd[:_NV], physics.q[-4:-2]])


class AntBallMaze(MazeEnv, AntBall):
    """The ant pushes a ball through a maze; the ball starts in one of its `b` cells."""

    marks = "rgb"

    def add_things(self, spec: mujoco.MjSpec):
        super().add_things(spec)
        self.add_walls(spec)

    def start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        pose_key, *keys = jax.random.split(key, 4)
        q, qd = self.start_pose(pose_key)
        start, ball, target = (self.draw_cell(key, mark) for key, mark in zip(keys, "rbg", strict=True))
        return q.at[:2].set(start).at[-4:-2].set(ball).at[-2:].set(target), qd


class AntPush(Ant):
    """The ant must push a box out of its way. State (31): `qpos` and `qvel` of the ant, xy of the box."""

    state_dim = _NQ + _NV + 2
    backends = MUJOCO
    benchmark_backend = "mjx"
    cpu_backend = "mujoco"
    solver_iterations = (4, 8)
    pose = (0, 0, 0.75, *Ant.pose[3:])
    view = (90, -75)

    # Where the box stands, and the blocks around it: x, y of the centre, half sides along x and y, metres.
    box = (8.0, 8.0)
    blocks = (
        (-4, 20, 8, 8),
        (8, 24, 4, 4),
        (20, 20, 8, 8),
        (-8, 4, 4, 8),
        (24, 8, 4, 4),
        (20, -4, 8, 8),
        (0, -8, 12, 4),
    )

    def add_things(self, spec: mujoco.MjSpec):
        spec.geom("torso_geom").contype = 1
        for x, y, half_x, half_y in self.blocks:
            spec.worldbody.add_geom(
                type=BOX, pos=[x, y, 2], size=[half_x, half_y, 2], conaffinity=1, rgba=[0.4, 0.4, 0.4, 1]
            )
        box = spec.worldbody.add_body(name="box", pos=[*self.box, 2])
        box.add_geom(type=BOX, size=[3.6, 3.6, 1.8], mass=0.0002, contype=1, conaffinity=1, rgba=[0.9, 0.1, 0.1, 1])
        add_slides(box, "xyz", reach=None)
        add_target(spec)
        for geom in spec.geoms:
            geom.density, geom.solimp[:3] = 40, [0.995, 0.995, 0.01]

    def start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        pose_key, box_key, target_key, noise_key = jax.random.split(key, 4)
        q, qd = self.start_pose(pose_key)
        box = jax.random.uniform(box_key, (3,), minval=-0.1, maxval=0.1)
        target = jax.random.permutation(target_key, jnp.array([16.0, 8.0])) + 2 * jax.random.uniform(noise_key, (2,))
        return q.at[-5:-2].set(box).at[-2:].set(target), qd

    def get_state(self, physics: base.State, control: jax.Array) -> jax.Array:
        return jnp.concatenate([physics.q[:_NQ], physics.qd[:_NV], physics.q[-5:-3] + jnp.array(self.box)])
