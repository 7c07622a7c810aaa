"""MuJoCo Warp on a CPU: the physics of native MuJoCo, for batches of any nesting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs

pytest.importorskip("warp")


@pytest.mark.parametrize("env_id", ["reacher", "cheetah"])  # without contacts, and with
def test_it_agrees_with_native_mujoco(env_id):
    """Over resets and steps, and where a batch is one of batches, as under seeds and environments."""
    keys = jax.random.split(jax.random.key(0), (2, 3))
    actions = jax.random.uniform(jax.random.key(1), (8, 2, 3, envs.make(env_id).action_size), minval=-1)

    def rollout(env):
        def step(state, action):
            state = jax.vmap(jax.vmap(env.step))(state, action)
            return state, (state.pipeline_state, state.obs)

        state = jax.vmap(jax.vmap(env.reset))(keys)
        return (state.pipeline_state, state.obs), jax.lax.scan(step, state, actions)[1]

    warp, native = (jax.jit(rollout, static_argnums=0)(envs.make(env_id, backend)) for backend in ("warp", "mujoco"))
    for ours, theirs, tolerance in zip(warp, native, (1e-5, 5e-3), strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance), ours, theirs)


def test_a_state_that_is_not_finite_is_left_alone():
    """As on every pipeline: the step does not take place, in this environment and in no other."""
    env = envs.make("reacher", "warp")
    reset, step = (jax.jit(jax.vmap(function)) for function in (env.reset, env.step))
    state = reset(jax.random.split(jax.random.key(0), 3))
    physics = state.pipeline_state
    broken = state.replace(pipeline_state=physics.replace(qd=physics.qd.at[1].set(jnp.nan)))
    after, sound = step(broken, jnp.zeros((3, 2))), step(state, jnp.zeros((3, 2)))
    assert after.metrics["unstable"].tolist() == [0, 1, 0]
    np.testing.assert_array_equal(after.obs[1], state.obs[1])
    np.testing.assert_allclose(after.obs[::2], sound.obs[::2], atol=1e-6)


def test_constraints_without_room_are_noticed(monkeypatch):
    """A cheetah on the floor has more of them than 4; with room for all nothing is unstable."""

    def unstable():
        env = envs.make("cheetah", "warp")
        step = jax.jit(jax.vmap(env.step))
        state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 2))
        for _ in range(8):
            state = step(state, jnp.zeros((2, 6)))
        return state.metrics["unstable"].tolist()

    assert unstable() == [0, 0]
    monkeypatch.setattr("envs.warp_pipeline.CONSTRAINTS", 4)
    assert unstable() == [1, 1]
