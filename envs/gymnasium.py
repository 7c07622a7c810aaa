"""The benchmark's tasks as gymnasium environments, one at a time or as a batch.

    env = gymnasium.make("envs.gymnasium:gcrl/reacher-v0")
    batch = gymnasium.make_vec("envs.gymnasium:gcrl/reacher-v0", num_envs=64)

They follow the goal convention of Gymnasium-Robotics. An observation is a dict of float32 arrays: `observation`, the
state, (state_dim,); `achieved_goal`, the part of it that goals speak of, (goal_dim,); `desired_goal`, the goal,
(goal_dim,). Rewards can be computed for other goals, as hindsight experience replay does. Actions lie in [-1, 1].

The `info` of a step has `is_success`, whether it ended within the goal's threshold; `dist`, in the goal's units;
`terminated`; and `unstable`, whether the physics failed, which truncates the episode. With `dense_reward` it also has
`state`, `action` and `next_state`, of which shaped rewards are made.
"""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from brax.envs import State
from gymnasium.spaces import Box, Dict
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from envs.base import GoalEnv, UsageError
from envs.registry import TASKS, make
from envs.render import draw
from envs.wrappers import where_done


def _make_keys(seeds) -> jax.Array:
    """A key for each seed, (...,)."""
    seeds = np.asarray(seeds) % 2**32  # as many as JAX tells apart
    return jnp.vectorize(jax.random.key)(seeds.astype(np.uint32))


def _gather(info, name: str):
    """The entry `name` of one `info`, or those of several, stacked."""
    return info[name] if isinstance(info, dict) else np.stack([one[name] for one in info])


class _GoalConvention:
    """What one environment and a batch share: spaces, observations, a step, and rewards for any goal."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  (gymnasium's name; it makes "human" of this)

    def __init__(self, env_id: str | GoalEnv, render_mode: str | None = None, **kwargs):
        """`env_id`: one of `envs.ENV_IDS`, or a task; `kwargs`: `backend`, `dense_reward` and others of `envs.make`."""
        self.task = task = make(env_id, **kwargs) if isinstance(env_id, str) else env_id
        self.render_mode = render_mode
        self.metadata = self.metadata | {"render_fps": round(1 / float(task.dt))}
        state, goal = (Box(-np.inf, np.inf, (size,)) for size in (task.state_dim, len(task.goal_indices)))
        self.observation_space = Dict(observation=state, achieved_goal=goal, desired_goal=goal)
        self.action_space = Box(-1.0, 1.0, (task.action_size,))

        def reward(state, action, next_state, achieved, goal):
            next_state = next_state.at[np.array(task.goal_indices)].set(achieved)
            return task.get_reward(state, action, next_state, goal)

        self._reward = jax.jit(jnp.vectorize(reward, signature="(s),(a),(s),(g),(g)->()"))
        self._state = None

    def _start_episode(self, key: jax.Array, goal: jax.Array | None = None) -> tuple[State, jax.Array]:
        """The start of an episode, and the key of the next."""
        start_key, key = jax.random.split(key)
        return self.task.reset(start_key, goal), key

    def _act(self, state: State, action: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        """The next state, and the step's `info`."""
        new_state = self.task.step(state, action)
        metrics = new_state.metrics
        info = {"is_success": metrics["success"] > 0, "dist": metrics["dist"]}
        info |= {"terminated": new_state.done > 0, "unstable": metrics["unstable"] > 0}
        if self.task.dense_reward:
            states = {"state": state.obs, "next_state": new_state.obs}
            info |= {name: obs[: self.task.state_dim] for name, obs in states.items()}
            info["action"] = jnp.clip(action, -1.0, 1.0)
        return new_state, info

    def _observe(self, obs: jax.Array) -> dict[str, np.ndarray]:
        """The dict of observations (..., observation_size)."""
        state, goal = np.split(np.array(obs), [self.task.state_dim], axis=-1)
        return {"observation": state, "achieved_goal": state[..., self.task.goal_indices], "desired_goal": goal}

    def compute_reward(self, achieved_goal, desired_goal, info):
        """Rewards (...,) of steps to achieved_goal if the goal had been desired_goal, (..., goal_dim) each.

        `info`: of these steps, a dict or a sequence of dicts; only shaped rewards look at it.
        """
        if self.task.dense_reward:
            step = [_gather(info, name) for name in ("state", "action", "next_state")]
        else:
            step = [np.zeros(n, np.float32) for n in (self.task.state_dim, self.task.action_size, self.task.state_dim)]
        return np.array(self._reward(*step, achieved_goal, desired_goal))[()]  # of a single step a number

    def compute_terminated(self, achieved_goal, desired_goal, info):
        """Whether these steps ended the episode, bool (...,). `info` knows it, and it is so for every goal."""
        return _gather(info, "terminated")

    def compute_truncated(self, achieved_goal, desired_goal, info):
        """Whether the physics failed in these steps, bool (...,). The time limit is not known here."""
        return _gather(info, "unstable")


class TaskEnv(_GoalConvention, gymnasium.Env):
    """One task. It has no time limit of its own: `gymnasium.make` adds one of the task's `episode_length`."""

    def __init__(self, env_id: str | GoalEnv, render_mode: str | None = None, **kwargs):
        super().__init__(env_id, render_mode, **kwargs)
        self._reset, self._step = jax.jit(self._start_episode), jax.jit(self._act)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Starts an episode. `options={"goal": goal}` gives it this goal, (goal_dim,), instead of one drawn.

        Raises:
          UsageError: other options, or a goal that the task's target cannot take; the message has the nearest.
        """
        super().reset(seed=seed)
        if set(options or {}) - {"goal"}:
            raise UsageError(f"reset options {', '.join(options)}: there is only goal")
        if seed is not None or self._state is None:
            self._key = _make_keys(self.np_random.integers(2**32) if seed is None else seed)
        goal = (options or {}).get("goal")
        if goal is not None:
            goal = np.reshape(goal, self.observation_space["desired_goal"].shape).astype(np.float32)
        self._state, self._key = self._reset(self._key, goal)
        if goal is not None:
            self.task.check_goal(goal, self._state.obs)
        return self._observe(self._state.obs), {}

    def step(self, action):
        """Takes one action, (action_size,)."""
        action = np.reshape(action, self.action_space.shape).astype(np.float32)
        self._state, info = self._step(self._state, action)
        info = {name: x.item() if x.ndim == 0 else np.array(x) for name, x in info.items()}
        reward, obs = self._state.reward.item(), self._observe(self._state.obs)
        return obs, reward, info["terminated"], info["unstable"], info

    def render(self) -> np.ndarray | None:
        """A picture, (height, width, 3) uint8."""
        return draw(self.task, self._state.pipeline_state.q[None])[0] if self.render_mode else None


class TaskVectorEnv(_GoalConvention, VectorEnv):
    """`num_envs` copies of a task that step in one compiled program.

    One that ends starts anew in the same step: `info["final_obs"]` and `info["final_info"]` have what the step led to.
    A batch that is reset with a seed starts as single environments do with seed, seed + 1, …
    """

    metadata = _GoalConvention.metadata | {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, env_id: str | GoalEnv, num_envs: int = 1, max_episode_steps: int | None = None, **kwargs):
        """`max_episode_steps`: the time limit, None for the task's `episode_length`; `kwargs`: see `TaskEnv`."""
        super().__init__(env_id, **kwargs)
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = self.observation_space, self.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        limit = self.task.episode_length if max_episode_steps is None else max_episode_steps
        self._max_steps = np.inf if limit == -1 else limit  # as `gymnasium.make` has it
        self._reset, self._step = jax.jit(jax.vmap(self._start_episode)), jax.jit(jax.vmap(self._act))

        def restart(state, keys, done):
            return where_done(done, jax.vmap(self._start_episode)(keys), (state, keys))

        self._restart = jax.jit(restart)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Starts all episodes. Raises UsageError for any options: goals are drawn."""
        super().reset(seed=seed)
        if options:
            raise UsageError(f"reset options {', '.join(options)}: a batch has none")
        if seed is not None:
            self._keys = _make_keys(seed + np.arange(self.num_envs))
        elif self._state is None:
            self._keys = _make_keys(self.np_random.integers(2**32, size=self.num_envs))
        self._state, self._keys = self._reset(self._keys)
        self._steps = np.zeros(self.num_envs, int)
        return self._observe(self._state.obs), {}

    def step(self, actions):
        """Takes one action in each, (num_envs, action_size)."""
        actions = np.reshape(actions, self.action_space.shape).astype(np.float32)
        self._state, info = self._step(self._state, actions)
        info = {name: np.array(x) for name, x in info.items()}
        reward, obs = np.array(self._state.reward), self._observe(self._state.obs)
        self._steps += 1
        truncated = ((self._steps >= self._max_steps) | info["unstable"]) & ~info["terminated"]
        done = info["terminated"] | truncated
        infos = info | {f"_{name}": ~done for name in info}
        if done.any():
            final_obs = np.full(self.num_envs, None)
            final_obs[done] = [{name: x[i] for name, x in obs.items()} for i in np.flatnonzero(done)]
            final_info = info | {f"_{name}": done for name in info}
            infos |= {"final_obs": final_obs, "_final_obs": done, "final_info": final_info, "_final_info": done}
            self._state, self._keys = self._restart(self._state, self._keys, done)
            self._steps[done] = 0
            obs = self._observe(self._state.obs)
        return obs, reward, info["terminated"], truncated, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """A picture of each, (height, width, 3) uint8."""
        return tuple(draw(self.task, self._state.pipeline_state.q)) if self.render_mode else None


for _env_id, (_task, _) in TASKS.items():
    gymnasium.register(
        f"gcrl/{_env_id}-v0",
        entry_point="envs.gymnasium:TaskEnv",
        vector_entry_point="envs.gymnasium:TaskVectorEnv",
        max_episode_steps=_task.episode_length,
        kwargs={"env_id": _env_id},
    )
