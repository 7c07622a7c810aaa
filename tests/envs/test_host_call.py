"""Calls from compiled code to Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.host_call import host_call

pytestmark = pytest.mark.quick


def double(x):
    return jax.jit(lambda x: host_call("test_double", lambda x: 2 * x, x.shape, x))(x)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 0)])
def test_shapes(shape):
    x = jnp.arange(np.prod(shape, dtype=int), dtype=jnp.float32).reshape(shape)
    np.testing.assert_array_equal(double(x), 2 * x)


def test_a_vmap_hands_over_its_whole_batch():
    shapes = []

    def on_host(x):
        shapes.append(x.shape)
        return x.sum(-1)

    x = jnp.ones((4, 5, 3))
    result = jax.jit(jax.vmap(jax.vmap(lambda x: host_call("test_sum", on_host, (), x))))(x)
    np.testing.assert_array_equal(result, np.full((4, 5), 3.0))
    assert shapes == [(4, 5, 3)]


def test_an_exception_reaches_the_caller_and_later_calls_work():
    def on_host(x):
        if x > 1:
            raise FloatingPointError("x is too large")
        return x

    program = jax.jit(lambda x: host_call("test_error", on_host, (), x))
    with pytest.raises(jax.errors.JaxRuntimeError, match="FloatingPointError: x is too large"):
        program(jnp.float32(2)).block_until_ready()
    assert program(jnp.float32(1)) == 1


def test_other_types_are_refused():
    with pytest.raises(jax.errors.JaxRuntimeError, match="expected one float32 array"):
        double(jnp.arange(3)).block_until_ready()


def test_another_version_of_xla_falls_back_to_the_callback_of_jax(monkeypatch):
    monkeypatch.setattr("envs.host_call._VERSIONS", ((0, 0),))
    with pytest.warns(UserWarning, match=r"compile anew at each start: .*version \d+\.\d+ of XLA's interface"):
        program = jax.jit(jax.vmap(lambda x: host_call("test_unknown_version", np.square, (3,), x)))
        lowered = program.lower(jnp.ones((2, 3)))
    assert "test_unknown_version" not in lowered.as_text() and "callback" in lowered.as_text()
    np.testing.assert_array_equal(program(2 * jnp.ones((2, 3))), np.full((2, 3), 4.0))  # and warns no second time
