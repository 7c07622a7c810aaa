"""What every task shares: observation, reward, success, reset and step."""

import contextlib
import io
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco

with contextlib.redirect_stdout(io.StringIO()):  # mjx prints that it lacks warp, which nothing here needs
    import brax
    from brax import base
    from brax.envs import PipelineEnv, State
    from brax.io import mjcf

from envs.mujoco_pipeline import MujocoPipeline, add_body_sensors

BACKENDS = ("generalized", "positional", "spring", "mjx", "mujoco")


def load_robot(name: str) -> mujoco.MjSpec:
    """One of brax's installed models, ready to be edited. Bodies without joints become part of their parents."""
    spec = mujoco.MjSpec.from_file(str(Path(brax.__file__).parent / "envs" / "assets" / f"{name}.xml"))
    spec.compiler.fusestatic = True
    return spec


class GoalEnv(PipelineEnv):
    """A goal-conditioned task: reach a state whose `goal_indices` are near the goal.

    An observation is `[state, goal]`, `observation_size == state_dim + len(goal_indices)`. The reward is 1 in every
    step that ends with `dist < goal_reach_thresh` and 0 elsewhere, or the task's shaped one. `state.metrics` has
    `success` (0 or 1, of this step) and `dist` (Euclidean, in the goal's units).

    A task is a subclass: the attributes below, and `build`, `start`, `get_state`, `get_goal`, `shaped_reward` and, if
    it can end early, `terminated`.
    """

    state_dim: int
    goal_indices: tuple[int, ...]
    goal_reach_thresh: float
    episode_length: int = 1000  # recommended, in steps
    benchmark_backend: str  # the pipeline of the published results
    backends: tuple[str, ...] = BACKENDS

    def __init__(self, backend: str, dense_reward: bool = False):
        self.dense_reward = dense_reward
        spec, n_frames = self.build(backend)
        native = backend == "mujoco"
        model = add_body_sensors(spec) if native else spec.compile()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Brax System, piplines")  # an advertisement for MJX, at every load
            sys = mjcf.load_model(model)
        super().__init__(sys, backend="mjx" if native else backend, n_frames=n_frames)
        if native:
            self._backend, self._pipeline = backend, MujocoPipeline(model, n_frames)

    # ---- what a task says -------------------------------------------------------------------------------------------

    def build(self, backend: str) -> tuple[mujoco.MjSpec, int]:
        """The model for this pipeline, and its physics steps for each environment step."""
        raise NotImplementedError

    def start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draws joint positions and velocities `(q, qd)` of a new episode, its goal's included."""
        raise NotImplementedError

    def get_state(self, physics: base.State) -> jax.Array:
        """The agent's part of the observation, (state_dim,)."""
        raise NotImplementedError

    def get_goal(self, physics: base.State) -> jax.Array:
        """The goal, (len(goal_indices),), in the coordinates of `state[goal_indices]`."""
        raise NotImplementedError

    def shaped_reward(self, before: base.State, after: base.State, action: jax.Array, dist: jax.Array) -> jax.Array:
        """The dense reward of one step."""
        raise NotImplementedError

    def terminated(self, physics: base.State) -> jax.Array:
        """Whether the episode ends here, (), bool."""
        return jnp.zeros((), bool)

    # ---- what all tasks share ---------------------------------------------------------------------------------------

    @property
    def observation_size(self) -> int:
        return self.state_dim + len(self.goal_indices)

    def _observe(self, physics: base.State) -> tuple[jax.Array, dict[str, jax.Array]]:
        state, goal = self.get_state(physics), self.get_goal(physics)
        dist = jnp.linalg.norm(state[jnp.array(self.goal_indices)] - goal)
        success = (dist < self.goal_reach_thresh).astype(jnp.float32)
        return jnp.concatenate([state, goal]), {"success": success, "dist": dist}

    def reset(self, rng: jax.Array) -> State:
        physics = self.pipeline_init(*self.start(rng))
        obs, metrics = self._observe(physics)
        return State(physics, obs, jnp.zeros(()), jnp.zeros(()), metrics)

    def step(self, state: State, action: jax.Array) -> State:
        action = jnp.clip(action, -1.0, 1.0)
        physics = self.pipeline_step(state.pipeline_state, action)
        obs, metrics = self._observe(physics)
        if self.dense_reward:
            reward = self.shaped_reward(state.pipeline_state, physics, action, metrics["dist"])
        else:
            reward = metrics["success"]
        done = self.terminated(physics).astype(jnp.float32)
        return state.replace(pipeline_state=physics, obs=obs, reward=reward, done=done, metrics=state.metrics | metrics)

    def pipeline_step(self, pipeline_state: base.State, action: jax.Array) -> base.State:
        if self.backend == "mujoco":  # all `n_frames` substeps in one call
            return self._pipeline.step(pipeline_state, action)
        return super().pipeline_step(pipeline_state, action)
