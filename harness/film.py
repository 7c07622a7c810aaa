"""Films of a policy."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from envs import GoalEnv, render
from envs.wrappers import where_done

_COLUMNS = 3
_REACHED = (40, 170, 70)  # frame around an episode from its first success on


def film_policy(
    env: GoalEnv,
    policy: Callable[[jax.Array, jax.Array], jax.Array],
    key: jax.Array,
    episode_length: int,
    noise: float = 1.0,
    num_episodes: int = 6,
    num_pictures: int = 120,
    width: int = 320,
    height: int = 240,
) -> np.ndarray:
    """Episodes side by side, 3 in a row, as a film of at most `num_pictures` pictures, (time, height, width, 3) uint8.

    An episode that the task or unstable physics ends stands still from then on. The film ends soon after the last
    episode that came near its goal or ended, or with the episodes.

    Args:
      policy: observations (num_episodes, observation_size), standard normal noise (num_episodes, action_size) ->
        actions.
      noise: its standard deviation.
    """
    single = jax.vmap(env.unwrapped.step)  # a film shows each step of a chunk

    def step(carry, action):
        state, reached = carry
        reached = jnp.maximum(reached, state.metrics["success"])
        ended = jnp.maximum(state.done, state.metrics["unstable"])
        new_state = where_done(ended, state, single(state, action))
        return (new_state, reached), (state.pipeline_state.q, reached, ended)

    def take_action(carry, key):
        actions = policy(carry[0].obs, noise * jax.random.normal(key, (num_episodes, env.action_size)))
        actions = actions.reshape(num_episodes, env.action_chunk, -1)
        return jax.lax.scan(step, carry, actions.swapaxes(0, 1))

    @jax.jit
    def rollout(key):
        reset_key, noise_key = jax.random.split(key)
        state = jax.vmap(env.reset)(jax.random.split(reset_key, num_episodes))
        noise_keys = jax.random.split(noise_key, math.ceil(episode_length / env.action_chunk))
        history = jax.lax.scan(take_action, (state, jnp.zeros(num_episodes)), noise_keys)[1]
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), history)  # chunks one after the other

    q, reached, ended = map(np.asarray, rollout(key))
    over = np.maximum(reached, ended).all(1)
    if over[-1]:  # the rest shows nothing new
        q, reached = (x[: over.argmax() * 3 // 2 + 20] for x in (q, reached))
    stride = math.ceil(len(q) / num_pictures)
    q, reached = q[::stride], reached[::stride]
    pictures = np.stack([render.draw(env, episode, width, height) for episode in q.swapaxes(0, 1)], axis=1)
    inside = pictures[:, :, 6:-6, 6:-6].copy()
    pictures[reached > 0] = _REACHED
    pictures[:, :, 6:-6, 6:-6] = inside
    rows = pictures.reshape(len(q), -1, _COLUMNS, height, width, 3).swapaxes(2, 3)
    return rows.reshape(len(q), -1, _COLUMNS * width, 3)
