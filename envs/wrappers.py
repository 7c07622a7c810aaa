"""Action chunks, and batches of environments that reset themselves."""

import jax
import jax.numpy as jnp
from brax.envs import State, Wrapper

from envs.base import GoalEnv, UsageError


def where_done(done, new, old):
    """The tree `new` where `done`, (num_envs,), else `old`; all leaves have a leading axis `num_envs`."""

    def where(new, old):
        return jnp.where(done.astype(bool).reshape((-1,) + (1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(where, new, old)


def chunk(env: GoalEnv, length: int) -> GoalEnv:
    """`env` with actions that are `length` of its own in a row; `env` itself if they are that already."""
    return env if length == env.action_chunk else ActionChunk(env, length)


class ActionChunk(Wrapper):
    """An action is a chunk of `length` actions in a row, (length * action_size,), carried out without looking.

    A step takes all of them, but stops where the episode ends. `reward` is the sum over its single steps, and each
    `success…` in `state.metrics` the share of them in which it held; everything else is as after the last one.
    """

    def __init__(self, env: GoalEnv, length: int):
        if env.action_chunk != 1:
            raise UsageError(f"the task takes chunks of {env.action_chunk} actions already, not of {length}")
        super().__init__(env)
        self.action_chunk = length

    @property
    def action_size(self) -> int:
        return self.action_chunk * self.env.action_size

    def reset(self, rng: jax.Array, goal: jax.Array | None = None) -> State:
        return self.env.reset(rng, goal)

    def step(self, state: State, action: jax.Array) -> State:
        def single_step(carry, action):
            state, running = carry
            new_state = self.env.step(state, action)
            state = jax.tree.map(lambda new, old: jnp.where(running, new, old), new_state, state)
            counted = {name: x for name, x in new_state.metrics.items() if name.startswith("success")}
            counted = jax.tree.map(lambda x: running * x, (new_state.reward, counted))
            ended = (new_state.done > 0) | (new_state.metrics["unstable"] > 0)
            return (state, running & ~ended), counted

        actions = action.reshape(self.action_chunk, self.env.action_size)
        (state, _), (rewards, successes) = jax.lax.scan(single_step, (state, jnp.bool_(True)), actions)
        metrics = state.metrics | jax.tree.map(jnp.mean, successes)
        return state.replace(reward=rewards.sum(), metrics=metrics)


class FixedGoal(Wrapper):
    """Every episode has the same goal, (len(goal_indices),)."""

    def __init__(self, env: GoalEnv, goal: jax.Array):
        super().__init__(env)
        self.goal = goal

    def reset(self, rng: jax.Array, goal: jax.Array | None = None) -> State:
        return self.env.reset(rng, self.goal if goal is None else goal)


def wrap(env: GoalEnv, num_envs: int, episode_length: int) -> "BatchedEnv":
    """`num_envs` copies of `env` that reset themselves when they terminate, or after `episode_length` single steps,
    rounded up to whole chunks."""
    return BatchedEnv(env, num_envs, episode_length)


class BatchedEnv(Wrapper):
    """`num_envs` environments that step together; one that ends starts anew with a fresh start and a fresh goal.

    `state.info`, each with leading axis `num_envs`:
      steps: int, single steps taken in this episode; all of a chunk's count.
      truncation: float, 1 where the episode was ended by its length or by unstable physics alone; `done` is 1 too.
      unstable_resets: int, episodes of this environment that unstable physics has ended.
      traj_id: int, number of the episode in this environment; changes at every reset.
      next_obs: the observation that the last action led to, also where `obs` already belongs to the next episode.
      reset_key: the key of the environment's next reset.
      episode_return, episode_near: float, sums of `reward` and of `metrics["success"]` in this episode so far.
      ended: dict of sums over the episodes that have ended, see `train_metrics`.
    """

    def __init__(self, env: GoalEnv, num_envs: int, episode_length: int):
        super().__init__(env)
        self.num_envs = num_envs
        self.episode_length = episode_length

    def _reset(self, keys: jax.Array) -> tuple[State, jax.Array]:
        """Starts one episode for each key, (num_envs,); returns the states and the keys of the resets after these."""
        start_keys, reset_keys = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
        return jax.vmap(self.env.reset)(start_keys), reset_keys

    def reset(self, rng: jax.Array) -> State:
        state, reset_keys = self._reset(jax.random.split(rng, self.num_envs))
        zeros = jnp.zeros(self.num_envs)
        info = {
            "steps": jnp.zeros(self.num_envs, jnp.int32),
            "truncation": zeros,
            "unstable_resets": jnp.zeros(self.num_envs, jnp.int32),
            "traj_id": jnp.zeros(self.num_envs, jnp.int32),
            "next_obs": state.obs,
            "reset_key": reset_keys,
            "episode_return": zeros,
            "episode_near": zeros,
            "ended": {"episodes": zeros, "success_rate": zeros, "episode_length": zeros, "episode_return": zeros},
        }
        return state.replace(info=state.info | info)

    def step(self, state: State, action: jax.Array) -> State:
        state = jax.vmap(self.env.step)(state, action)
        info = dict(state.info)
        info["steps"] += self.env.action_chunk
        info["next_obs"] = state.obs
        unstable = state.metrics["unstable"] > 0
        info["unstable_resets"] += unstable
        info["truncation"] = jnp.where((info["steps"] >= self.episode_length) | unstable, 1.0 - state.done, 0.0)
        info["episode_return"] += state.reward
        info["episode_near"] += state.metrics["success"]
        state = state.replace(done=jnp.maximum(state.done, info["truncation"]), info=info)
        # The batch is reset only in a step in which some episode ends: where episodes run their full length, most steps
        # pay nothing for it. (Under a vmap over seeds, which turns the branch into a selection, all do.)
        return jax.lax.cond(state.done.any(), self._restart, lambda state: state, state)

    def _restart(self, state: State) -> State:
        """Replaces the environments that are done; reward, done and metrics stay those of the step just taken."""
        fresh, reset_keys = self._reset(state.info["reset_key"])
        info = state.info
        zeros = jnp.zeros(self.num_envs)
        episode = {
            "episodes": zeros + 1,
            "success_rate": info["episode_near"] > 0,
            "episode_length": info["steps"],
            "episode_return": info["episode_return"],
        }
        ended = {name: info["ended"][name] + state.done * x for name, x in episode.items()}
        new = {"steps": jnp.zeros_like(info["steps"]), "traj_id": info["traj_id"] + 1, "reset_key": reset_keys}
        new |= {"episode_return": zeros, "episode_near": zeros}
        old = {name: info[name] for name in new}
        physics, obs, new = where_done(
            state.done, (fresh.pipeline_state, fresh.obs, new), (state.pipeline_state, state.obs, old)
        )
        return state.replace(pipeline_state=physics, obs=obs, info=info | new | {"ended": ended})


def action_noise(env: BatchedEnv, key: jax.Array, num_actions: int, correlation: float) -> jax.Array:
    """Standard normal noise for actions in a row, (num_actions, num_envs, action_size), each environment's its own.

    From one single step to the next it is an AR(1) process with `correlation`, across chunks too. A call begins anew.
    """
    white = jax.random.normal(key, (num_actions * env.action_chunk, env.num_envs, env.action_size // env.action_chunk))

    def step(before, fresh):
        now = correlation * before + jnp.sqrt(1 - correlation**2) * fresh
        return now, now

    noise = jnp.concatenate([white[:1], jax.lax.scan(step, white[0], white[1:])[1]])
    return jnp.concatenate([noise[i :: env.action_chunk] for i in range(env.action_chunk)], axis=-1)


def pursued_goals(goals: jax.Array, steps: jax.Array, goal_steps: int) -> jax.Array:
    """The goals that a batch pursues in training, (num_envs, goal_dim), given their own and their `steps`, (num_envs,).

    After every `goal_steps` single steps of its episode an environment takes the goal that its next neighbour has, and
    sets out again from where it arrived, or got stuck. Where the neighbour's episode ends, its new goal counts. 0: it
    pursues its own to the end.
    """
    if goal_steps == 0:
        return goals
    return goals[(jnp.arange(len(goals)) + steps // goal_steps) % len(goals)]


def train_metrics(state: State, axes: tuple[str, ...] = ()) -> tuple[dict[str, jax.Array], State]:
    """Means over the episodes of a batch that have ended since the last call, and the batch with its counts at zero.

    Args:
      axes: names of mapped axes, such as that of the devices over which the batch is split, to sum over as well.

    Returns:
      scalars: `train/episodes`, how many that are; where none has ended the means are 0: `train/success_rate`,
      `train/episode_length` in single steps, of whole chunks, `train/episode_return`. And `train/unstable_resets` of
      the whole training.
    """
    totals = {**state.info["ended"], "unstable_resets": state.info["unstable_resets"]}
    totals = jax.lax.psum(jax.tree.map(jnp.sum, totals), axes)
    unstable_resets, episodes = totals.pop("unstable_resets"), totals.pop("episodes")
    metrics = {f"train/{name}": total / jnp.maximum(episodes, 1) for name, total in totals.items()}
    metrics |= {"train/episodes": episodes, "train/unstable_resets": unstable_resets}
    zeros = jax.tree.map(jnp.zeros_like, state.info["ended"])
    return metrics, state.replace(info=state.info | {"ended": zeros})
