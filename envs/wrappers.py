"""Batching, episode length and automatic reset, as one wrapper around a single environment."""

import jax
import jax.numpy as jnp
from brax.envs import State, Wrapper

from envs.base import GoalEnv


def where_done(done, new, old):
    """The tree `new` where `done`, (num_envs,), else `old`; all leaves have a leading axis `num_envs`."""

    def where(new, old):
        return jnp.where(done.astype(bool).reshape((-1,) + (1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(where, new, old)


class BatchedEnv(Wrapper):
    """`num_envs` environments that step together; one that ends starts anew with a fresh start and a fresh goal.

    `state.info`, each with leading axis `num_envs`:
      steps: int, steps taken in this episode.
      truncation: float, 1 where the episode was ended by its length or by unstable physics alone; `done` is 1 too.
      unstable_resets: int, episodes of this environment that unstable physics has ended.
      traj_id: int, number of the episode in this environment; changes at every reset.
      next_obs: the observation that the last action led to, also where `obs` already belongs to the next episode.
      reset_key: the key of the environment's next reset.
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
        info = {
            "steps": jnp.zeros(self.num_envs, jnp.int32),
            "truncation": jnp.zeros(self.num_envs),
            "unstable_resets": jnp.zeros(self.num_envs, jnp.int32),
            "traj_id": jnp.zeros(self.num_envs, jnp.int32),
            "next_obs": state.obs,
            "reset_key": reset_keys,
        }
        return state.replace(info=state.info | info)

    def step(self, state: State, action: jax.Array) -> State:
        state = jax.vmap(self.env.step)(state, action)
        info = dict(state.info)
        info["steps"] += 1
        info["next_obs"] = state.obs
        unstable = state.metrics["unstable"] > 0
        info["unstable_resets"] += unstable
        info["truncation"] = jnp.where((info["steps"] >= self.episode_length) | unstable, 1.0 - state.done, 0.0)
        state = state.replace(done=jnp.maximum(state.done, info["truncation"]), info=info)
        # The batch is reset only in a step in which some episode ends: where episodes run their full length, most steps
        # pay nothing for it. (Under a vmap over seeds, which turns the branch into a selection, all do.)
        return jax.lax.cond(state.done.any(), self._restart, lambda state: state, state)

    def _restart(self, state: State) -> State:
        """Replaces the environments that are done; reward, done and metrics stay those of the step just taken."""
        fresh, reset_keys = self._reset(state.info["reset_key"])
        info = state.info
        physics, obs, steps, traj_id, reset_key = where_done(
            state.done,
            (fresh.pipeline_state, fresh.obs, jnp.zeros_like(info["steps"]), info["traj_id"] + 1, reset_keys),
            (state.pipeline_state, state.obs, info["steps"], info["traj_id"], info["reset_key"]),
        )
        info = info | {"steps": steps, "traj_id": traj_id, "reset_key": reset_key}
        return state.replace(pipeline_state=physics, obs=obs, info=info)
