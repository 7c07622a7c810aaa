"""What every task shares: observation, reward, success, reset and step."""

import warnings
from pathlib import Path

import brax
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from brax import base
from brax.envs import PipelineEnv, State
from brax.io import mjcf

from envs.mujoco_pipeline import MujocoPipeline, add_body_sensors
from envs.warp_pipeline import WarpPipeline


class UsageError(Exception):
    """What the user of a program can mend, in a sentence that says how; shown without a traceback."""


MUJOCO = ("mjx", "mujoco", "warp")  # one physics, three programs
_OWN = {"mujoco": MujocoPipeline, "warp": WarpPipeline}  # pipelines that are not brax's
SPRINGS = ("spring", "positional")  # they take shorter steps, and most tasks give them other motors
SLIDE = mujoco.mjtJoint.mjJNT_SLIDE
_TARGETS = {"target": 0, "marker": 0, "goal": 0, "goal2": 3}  # bodies that show a goal; where in it their place begins
SPHERE, BOX, CAPSULE = mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CAPSULE
ORANGE = (0.95, 0.5, 0.1, 1.0)  # of robots
GREEN = (0.2, 0.8, 0.3, 0.5)  # of goals


def load_robot(name: str) -> mujoco.MjSpec:
    """One of brax's installed models, ready to be edited. Bodies without joints become part of their parents."""
    spec = mujoco.MjSpec.from_file(str(Path(brax.__file__).parent / "envs" / "assets" / f"{name}.xml"))
    spec.compiler.fusestatic = True
    pose = spec.numeric("init_qpos")
    if pose is not None:  # brax asks for a value of each coordinate, and mjx finds no number that a vector precedes
        spec.delete(pose)
    for geom in spec.geoms:
        if geom.rgba[0] == np.float32(0.4):  # brax's brown is hard to see against walls and shadows
            geom.rgba, geom.material = ORANGE, ""
    for texture in spec.textures:
        if texture.name == "texplane":  # brax's black and white squares flicker in small pictures
            texture.rgb1, texture.rgb2 = (0.18, 0.2, 0.24), (0.28, 0.31, 0.36)
    return spec


def add_slides(body: mujoco.MjsBody, axes: str, reach: float | None, armature: float = 0.0):
    """Lets `body` slide by up to `reach` metres, or without limit, along `axes`, e.g. "xy"."""
    for axis in axes:
        body.add_joint(
            name=f"{body.name}_{axis}",
            type=SLIDE,
            axis=[axis == "x", axis == "y", axis == "z"],
            limited=reach is not None,
            range=[-(reach or 0), reach or 0],
            armature=armature,
            damping=[0, 0, 0],
            stiffness=[0, 0, 0],
        )


def add_target(spec: mujoco.MjSpec, axes: str = "xy", z: float = 0.01, radius: float = 0.5, reach: float = 20.0):
    """Marks the goal with a sphere that touches nothing, moved by its joints. Most thresholds are 0.5."""
    target = spec.worldbody.add_body(name="target", pos=[0, 0, z])
    target.add_geom(type=SPHERE, size=[radius, 0, 0], mass=1, contype=0, conaffinity=0, rgba=GREEN)
    add_slides(target, axes, reach)


def set_solver(spec: mujoco.MjSpec, backend: str, iterations: int, ls_iterations: int):
    """Newton: on mjx with as few iterations as the benchmark takes, on native MuJoCo and warp until it converges, which
    rarely takes many. All without implicit joint damping."""
    if backend not in MUJOCO:
        return
    spec.option.solver = mujoco.mjtSolver.mjSOL_NEWTON
    spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_EULERDAMP
    spec.option.iterations, spec.option.ls_iterations = (iterations, ls_iterations) if backend == "mjx" else (100, 50)


def set_pace(spec: mujoco.MjSpec, backend: str, n_frames: int, springs: tuple[float, int], gear=None) -> int:
    """How many physics steps an environment step has: `n_frames` or, on springs, `springs[1]` of `springs[0]` seconds.
    There the motors have another `gear`, one for all or one for each; None leaves it."""
    if backend not in SPRINGS:
        return n_frames
    if gear is not None:
        for motor, value in zip(spec.actuators, np.broadcast_to(gear, len(spec.actuators)), strict=True):
            motor.gear[0] = value
    spec.option.timestep, n_frames = springs
    return n_frames


def on_circle(key: jax.Array, radius) -> jax.Array:
    """A point at `radius` from the origin, in any direction, (2,)."""
    angle = 2 * jnp.pi * jax.random.uniform(key)
    return radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)])


class GoalEnv(PipelineEnv):
    """A goal-conditioned task: reach a state whose `goal_indices` are near the goal.

    An observation is `[state, goal]`, `observation_size == state_dim + len(goal_indices)`. The reward is 1 in every
    step that ends with `dist < goal_reach_thresh` and 0 elsewhere, or the task's shaped one. `state.metrics` has
    `success` (0 or 1, of this step), `dist` (in the goal's units) and, where the benchmark knows them, `success_easy`
    and `success_hard` with thresholds of their own. A step that the physics answers with a NaN or an infinity does not
    take place: the state stays, and `unstable` is 1.

    A task is a subclass: the attributes below, and `build`, `start`, `get_state`, `get_goal`, `shaped_reward` and, if
    it can end early, `terminated`.
    """

    state_dim: int
    goal_indices: tuple[int, ...]
    goal_reach_thresh: float
    goal_reach_easy: float | None = None
    goal_reach_hard: float | None = None
    episode_length: int = 1000  # recommended, in steps
    benchmark_backend: str = "mjx"  # the pipeline of the published results, for accelerators
    cpu_backend: str = "mujoco"  # the pipeline to take where there is no accelerator
    backends: tuple[str, ...] = ("generalized", "positional", "spring", *MUJOCO)
    action_chunk: int = 1  # single steps of an action, see `envs.chunk`
    view: tuple[float, float] = (90, -50)  # azimuth and elevation from which pictures show it, degrees

    def __init__(self, backend: str, dense_reward: bool = False):
        self.dense_reward = dense_reward
        spec, n_frames = self.build(backend)
        model = add_body_sensors(spec) if backend == "mujoco" else spec.compile()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Brax System, piplines")  # an advertisement for MJX, at every load
            sys = mjcf.load_model(model)
        super().__init__(sys, backend="mjx" if backend in _OWN else backend, n_frames=n_frames)
        if backend in _OWN:
            self._backend, self._pipeline = backend, _OWN[backend](model, n_frames)

    # ---- what a task says -------------------------------------------------------------------------------------------

    def build(self, backend: str) -> tuple[mujoco.MjSpec, int]:
        """The model for this pipeline, and its physics steps for each environment step."""
        raise NotImplementedError

    def start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draws joint positions and velocities `(q, qd)` of a new episode, its goal's included."""
        raise NotImplementedError

    def get_state(self, physics: base.State, control: jax.Array) -> jax.Array:
        """The agent's part of the observation, (state_dim,); `control` led to it, zeros at the start."""
        raise NotImplementedError

    def get_goal(self, physics: base.State) -> jax.Array:
        """The goal, (len(goal_indices),), in the coordinates of `state[goal_indices]`."""
        raise NotImplementedError

    def shaped_reward(self, state: jax.Array, action: jax.Array, next_state: jax.Array, goal: jax.Array) -> jax.Array:
        """The dense reward of one step from `state` to `next_state`, (state_dim,) each."""
        return -self.goal_metrics(self.achieved(next_state), goal)["dist"]

    def terminated(self, physics: base.State) -> jax.Array:
        """Whether the episode ends here, (), bool. It must not depend on the goal, which hindsight replaces."""
        return jnp.zeros((), bool)

    def get_control(self, physics: base.State, action: jax.Array) -> jax.Array:
        """What the actuators are told for an action in [-1, 1], (number of actuators,)."""
        return action

    def goal_metrics(self, achieved: jax.Array, goal: jax.Array) -> dict[str, jax.Array]:
        """`dist` and `success` of `achieved`, some `state[goal_indices]`, for `goal`: both (len(goal_indices),)."""
        dist = jnp.linalg.norm(achieved - goal)
        limits = {
            "success": self.goal_reach_thresh,
            "success_easy": self.goal_reach_easy,
            "success_hard": self.goal_reach_hard,
        }
        return {"dist": dist} | {
            name: (dist < limit).astype(float) for name, limit in limits.items() if limit is not None
        }

    # ---- what all tasks share ---------------------------------------------------------------------------------------

    @property
    def observation_size(self) -> int:
        return self.state_dim + len(self.goal_indices)

    def link(self, name: str) -> int:
        """Index of the body `name` in `physics.x` and `physics.xd`."""
        return self.sys.link_names.index(name)

    def achieved(self, state: jax.Array) -> jax.Array:
        """The part of a state that goals speak of, (..., len(goal_indices))."""
        return state[..., jnp.array(self.goal_indices)]

    def get_reward(self, state: jax.Array, action: jax.Array, next_state: jax.Array, goal: jax.Array) -> jax.Array:
        """The reward, (), of one step from `state` to `next_state` for any goal: hindsight may choose another."""
        if self.dense_reward:
            return self.shaped_reward(state, action, next_state, goal)
        return self.goal_metrics(self.achieved(next_state), goal)["success"]

    def reset(self, rng: jax.Array, goal: jax.Array | None = None) -> State:
        """The start of an episode, with this `goal`, (len(goal_indices),), or None for one drawn.

        All else is as for the goal that would have been drawn. The target moves as near to `goal` as its joints let it
        come: `check_goal` tells whether it came there.
        """
        q, qd = self.start(rng)
        self._check_size("the start's positions", q, self.sys.q_size())
        self._check_size("the start's velocities", qd, self.sys.qd_size())
        physics = self.pipeline_init(q, qd)
        if goal is not None:
            self._check_size("the goal", goal, len(self.goal_indices))
            physics = self.pipeline_init(self._move_target(physics, goal), qd)
        state, goal = self.get_state(physics, jnp.zeros(self.sys.act_size())), self.get_goal(physics)
        self._check_size("the state", state, self.state_dim)
        self._check_size("the goal", goal, len(self.goal_indices))
        if not all(0 <= i < self.state_dim for i in self.goal_indices):  # JAX would take the last entry
            raise UsageError(f"{type(self).__name__}: goal_indices {self.goal_indices} in a state of {self.state_dim}")
        metrics = self.goal_metrics(self.achieved(state), goal) | {"unstable": jnp.zeros(())}
        return State(physics, jnp.concatenate([state, goal]), jnp.zeros(()), jnp.zeros(()), metrics)

    def _move_target(self, physics: base.State, goal: jax.Array) -> jax.Array:
        """Positions like those of `physics`, with the target at `goal`."""
        model, q = self.sys.mj_model, physics.q
        way = jnp.pad(goal - self.get_goal(physics), (0, 3))  # a goal may have no z, or x alone
        for joint in map(model.joint, range(model.njnt)):
            first, address = _TARGETS.get(model.body(joint.bodyid[0]).name), joint.qposadr[0]
            if first is None:
                continue
            if joint.type[0] == mujoco.mjtJoint.mjJNT_FREE:
                q = q.at[address : address + 3].add(way[first : first + 3])
            else:
                limits = joint.range if joint.limited[0] else (None, None)
                q = q.at[address].set(jnp.clip(q[address] + joint.axis @ way[first : first + 3], *limits))
        return q

    def check_goal(self, goal: np.ndarray, obs: jax.Array):
        """Raises UsageError if the episode that starts with `obs` has another goal than `goal`."""
        nearest = np.asarray(obs[self.state_dim :])
        if not np.allclose(nearest, goal, atol=1e-4):
            raise UsageError(f"the target does not come to the goal {goal}; the nearest is {nearest}")

    def _check_size(self, what: str, vector: jax.Array, size: int):
        if vector.shape != (size,):
            raise UsageError(f"{type(self).__name__}: the shape of {what} is {vector.shape}, not {(size,)}")

    def step(self, state: State, action: jax.Array) -> State:
        action = jnp.clip(action, -1.0, 1.0)
        control = self.get_control(state.pipeline_state, action)
        physics = self.pipeline_step(state.pipeline_state, control)
        obs = jnp.concatenate([self.get_state(physics, control), self.get_goal(physics)])
        sound = jnp.isfinite(obs).all()  # what an unstable step leads to is of no use: it is not taken
        physics, obs = jax.tree.map(
            lambda new, old: jnp.where(sound, new, old), (physics, obs), (state.pipeline_state, state.obs)
        )
        next_state, goal = obs[: self.state_dim], obs[self.state_dim :]
        metrics = self.goal_metrics(self.achieved(next_state), goal) | {"unstable": 1.0 - sound}
        return state.replace(
            pipeline_state=physics,
            obs=obs,
            reward=self.get_reward(state.obs[: self.state_dim], action, next_state, goal),
            done=self.terminated(physics).astype(float),
            metrics=state.metrics | metrics,
        )

    def pipeline_step(self, pipeline_state: base.State, action: jax.Array) -> base.State:
        if self.backend in _OWN:  # all `n_frames` substeps in one call
            return self._pipeline.step(pipeline_state, action)
        return super().pipeline_step(pipeline_state, action)
