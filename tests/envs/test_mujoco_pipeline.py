"""Native MuJoCo: the same physics as mjx, pure, batched, loud about instability."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

import envs
from envs.mujoco_pipeline import MujocoPipeline, add_body_sensors


@pytest.fixture(scope="module")
def native():
    return envs.make("reacher", backend="mujoco")


def rollout(env, key, length=100):
    """Physics states of random actions, (length, ...)."""

    def step(state, key):
        state = env.step(state, jax.random.uniform(key, (env.action_size,), minval=-1, maxval=1))
        return state, state.pipeline_state

    state = env.reset(key)
    return state.pipeline_state, jax.lax.scan(step, state, jax.random.split(key, length))[1]


def fields(physics):
    return {"q": physics.q, "qd": physics.qd, "x": physics.x, "xd": physics.xd}


def test_any_nesting_of_vmaps_is_the_same_batch(native):
    keys = jax.random.split(jax.random.key(1), 6)
    flat = jax.jit(jax.vmap(lambda key: fields(rollout(native, key, 5)[1])))(keys)
    nested = jax.jit(jax.vmap(jax.vmap(lambda key: fields(rollout(native, key, 5)[1]))))(keys.reshape(2, 3))
    single = jax.jit(lambda key: fields(rollout(native, key, 5)[1]))(keys[4])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.reshape(b.shape), b), nested, flat)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[4], b, atol=1e-6), flat, single)


def test_the_batch_reaches_the_host_whole(native, monkeypatch):
    shapes = []
    original = MujocoPipeline._host_rollout
    monkeypatch.setattr(
        MujocoPipeline, "_host_rollout", lambda self, x, n: shapes.append((x.shape, n)) or original(self, x, n)
    )
    env = envs.make("reacher", backend="mujoco")
    state = jax.jit(jax.vmap(jax.vmap(env.reset)))(jax.random.split(jax.random.key(0), (2, 3)))
    jax.block_until_ready(jax.jit(jax.vmap(jax.vmap(env.step)))(state, jnp.zeros((2, 3, 2))))
    assert shapes == [((2, 3, 10), 1), ((2, 3, 10), 2)]  # one call each, all substeps of a step in one


def test_pure(native):
    """The same state and action give the same bits, whatever was simulated in between, on however many threads."""
    _, physics = jax.jit(jax.vmap(lambda key: rollout(native, key, 5)))(jax.random.split(jax.random.key(2), 9))
    last = jax.tree.map(lambda x: x[:, -1], physics)
    last = last.replace(q=last.q.at[:, 1].set(3.05))  # beyond the joint's limit: the constraint solver has work to do
    actions = jnp.full((9, 2), 0.3)
    step = jax.jit(jax.vmap(native.pipeline_step))
    first = step(last, actions)
    step(jax.tree.map(lambda x: x[::-1], last), -actions)
    one_thread = MujocoPipeline(native.sys.mj_model, 2)
    one_thread._data = one_thread._data[:1]
    one_thread._pool = mujoco.rollout.Rollout(nthread=1)
    inputs = np.concatenate([last.q, last.qd, actions], axis=1)
    expected = one_thread._host_rollout(inputs, 2)
    for result in (step(last, actions), first):
        np.testing.assert_array_equal(np.concatenate([result.q, result.qd], axis=1), expected[:, :8])


def test_reset_positions_do_not_lag(native):
    state = jax.jit(native.reset)(jax.random.key(3))
    model = native.sys.mj_model
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = state.pipeline_state.q, state.pipeline_state.qd
    mujoco.mj_forward(model, data)
    np.testing.assert_allclose(state.pipeline_state.x.pos, data.xpos[1:], atol=1e-6)
    np.testing.assert_allclose(state.pipeline_state.x.rot, data.xquat[1:], atol=1e-6)


CART = """<mujoco><worldbody>
    <body name="cart" pos="1 2 3"><joint name="rail" type="slide"/><geom size=".1"/></body></worldbody>
    <actuator>{}</actuator><sensor><jointpos joint="rail"/></sensor></mujoco>"""


def test_a_task_may_have_sensors_of_its_own():
    pipeline = MujocoPipeline(add_body_sensors(mujoco.MjSpec.from_string(CART.format('<motor joint="rail"/>'))), 1)
    physics = jax.jit(lambda: pipeline.init(None, jnp.array([0.25]), jnp.array([0.5])))()
    np.testing.assert_allclose(physics.x.pos, [[1, 2, 3.25]], atol=1e-6)
    np.testing.assert_allclose(physics.x.rot, [[1, 0, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(physics.xd.vel, [[0, 0, 0.5]], atol=1e-6)


def test_actuators_with_a_state_are_refused():
    model = add_body_sensors(mujoco.MjSpec.from_string(CART.format('<general joint="rail" dyntype="filter"/>')))
    with pytest.raises(ValueError, match="dyntype"):
        MujocoPipeline(model, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e12])
def test_unstable_simulation_is_not_a_number(native, bad):
    """In its own environment, and nowhere else."""
    state = jax.jit(jax.vmap(native.reset))(jax.random.split(jax.random.key(4), 3))
    physics = state.pipeline_state
    broken = physics.replace(qd=physics.qd.at[1, 0].set(bad))
    step = jax.jit(jax.vmap(native.pipeline_step))
    after, fine = step(broken, jnp.zeros((3, 2))), step(physics, jnp.zeros((3, 2)))
    for one, other in zip(jax.tree.leaves(after), jax.tree.leaves(fine), strict=True):
        assert np.isfinite(other).all() and np.isnan(one[1]).all()
        np.testing.assert_array_equal(one[::2], other[::2])


@pytest.mark.parametrize("n_frames", [1, 2])
def test_a_control_that_is_not_a_number_makes_the_state_none(native, n_frames):
    pipeline = MujocoPipeline(native.sys.mj_model, n_frames)
    physics = jax.jit(native.reset)(jax.random.key(5)).pipeline_state
    assert np.isnan(jax.jit(pipeline.step)(physics, jnp.array([0.0, jnp.nan])).q).all()
