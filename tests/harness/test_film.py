"""Films of a policy: episodes side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from envs import render
from harness import film
from harness.film import film_policy

SIZES = dict(noise=0.0, num_episodes=3, width=80, height=60)


@pytest.fixture(scope="module")
def maze():
    return envs.make("simple_u_maze", backend="mujoco")


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch):
    """A picture of one colour instead: the agent's x."""
    blank = np.ones((60, 80, 3), np.uint8)
    monkeypatch.setattr(render, "draw", lambda env, q, *_: np.stack([np.uint8(1e5 * x % 251) * blank for x in q[:, 0]]))


def test_a_film_ends_soon_after_the_last_success(maze):
    """Framed from the first success on."""
    still = film_policy(maze, lambda obs, noise: 0 * noise, jax.random.key(0), 9, num_pictures=5, **SIZES)
    assert still.shape == (5, 60, 240, 3) and still.dtype == np.uint8
    assert (still[:, 0, 0] != film._REACHED).any()  # nobody gets there by standing still
    easy = envs.make("simple_u_maze", backend="mujoco")
    easy.goal_reach_thresh = 100.0
    reached = film_policy(easy, lambda obs, noise: 0 * noise, jax.random.key(0), 200, num_pictures=120, **SIZES)
    assert len(reached) <= 25 and (reached[-1, 0, :] == film._REACHED).all()
    assert (reached[-1, 30, 40] != film._REACHED).any()


def test_an_episode_stands_still_after_its_end(maze):
    def pictures(env):
        return film_policy(env, lambda obs, noise: 0 * noise + 1, jax.random.key(0), 9, num_pictures=9, **SIZES)

    ending = envs.make("simple_u_maze", backend="mujoco")
    ending.terminated = lambda physics: jnp.bool_(True)
    goes_on, ends = pictures(maze), pictures(ending)
    assert (goes_on[8] != goes_on[1]).any()
    np.testing.assert_array_equal(ends[1], goes_on[1])
    assert len(ends) == 9 and (ends[1:] == ends[1]).all()


def test_an_episode_stands_still_when_its_physics_is_unstable():
    env = envs.make("simple_u_maze", backend="mujoco")
    sound = env.pipeline_step
    env.pipeline_step = lambda physics, control: jax.tree.map(
        lambda x: jnp.where(control[0] < 1, x, jnp.nan), sound(physics, control)
    )
    sizes = SIZES | dict(noise=1.0)
    pictures = film_policy(env, lambda obs, noise: noise, jax.random.key(0), 40, num_pictures=40, **sizes)
    moves = (np.diff(pictures[:, 30, 40::80].astype(int), axis=0) != 0).any(-1)  # (39, episodes)
    assert moves[0].any() and not moves[-1].any()
    assert (moves[1:] <= moves[:-1]).all()  # who stands still never moves again


def test_a_film_shows_each_step_of_a_chunk(maze):
    def policy(obs, noise):
        return jnp.ones_like(noise)

    single = film_policy(maze, policy, jax.random.key(0), 6, num_pictures=9, **SIZES)
    chunks = film_policy(envs.chunk(maze, 3), policy, jax.random.key(0), 5, num_pictures=9, **SIZES)
    np.testing.assert_array_equal(single, chunks)  # 5 steps are rounded up to two chunks
