"""The benchmark's measures of a policy."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from envs.base import GoalEnv


def evaluate(
    env: GoalEnv,
    policy: Callable[[jax.Array, jax.Array], jax.Array],
    key: jax.Array,
    num_episodes: int,
    episode_length: int,
    noise: float = 1.0,
) -> dict[str, jax.Array]:
    """Runs whole episodes, each with a fresh start and goal. What follows an early end counts as not near the goal.

    Args:
      policy: observations (num_episodes, observation_size) and standard normal noise (num_episodes, action_size) to
        actions like the noise.
      episode_length: in single steps, rounded up to whole action chunks.
      noise: its standard deviation; 0 evaluates the policy's mean, or a deterministic policy.

    Returns:
      scalars: `eval/success_rate`, the share of episodes that came within the goal's threshold at least once;
      `eval/time_near_goal`, the share of all steps within it; `eval/final_dist` and `eval/episode_return`, means.
    """

    def step(carry, key):
        env_state, running, near, episode_return, final_dist = carry
        actions = policy(env_state.obs, noise * jax.random.normal(key, (num_episodes, env.action_size)))
        env_state = jax.vmap(env.step)(env_state, actions)
        near += running * env_state.metrics["success"]
        episode_return += running * env_state.reward
        final_dist = jnp.where(running, env_state.metrics["dist"], final_dist)
        running *= (1 - env_state.done) * (1 - env_state.metrics["unstable"])
        return (env_state, running, near, episode_return, final_dist), None

    reset_key, noise_key = jax.random.split(key)
    num_actions = math.ceil(episode_length / env.action_chunk)
    env_state = jax.vmap(env.reset)(jax.random.split(reset_key, num_episodes))
    zeros = jnp.zeros(num_episodes)
    carry = (env_state, zeros + 1, zeros, zeros, zeros)
    carry, _ = jax.lax.scan(step, carry, jax.random.split(noise_key, num_actions))
    _, _, near, episode_return, final_dist = carry
    return {
        "eval/success_rate": jnp.mean(near > 0),
        "eval/time_near_goal": jnp.mean(near) / num_actions,
        "eval/final_dist": jnp.mean(final_dist),
        "eval/episode_return": jnp.mean(episode_return),
    }
