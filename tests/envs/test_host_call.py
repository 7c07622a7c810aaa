"""Calls from compiled code to Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.host_call import host_call, stream


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


def test_stream_speaks_while_the_scan_runs():
    heard = []

    def program(x):
        def body(x, _):
            stream(heard.append, {"x": x, "square": x * x})
            return x + 1, None

        return jax.lax.scan(body, x, length=3)[0]

    jax.block_until_ready(jax.jit(program)(jnp.int32(1)))
    assert heard == [{"x": 1, "square": 1}, {"x": 2, "square": 4}, {"x": 3, "square": 9}]
    heard.clear()
    jax.block_until_ready(jax.jit(jax.vmap(program))(jnp.arange(2)))
    assert [values["square"].tolist() for values in heard] == [[0, 1], [1, 4], [4, 9]]


def test_stream_keeps_nothing_of_the_trace():
    with jax.checking_leaks():
        jax.block_until_ready(jax.jit(lambda x: (x, stream(print, {"x": x}))[0])(jnp.float32(1)))


def test_on_an_accelerator_stream_hands_over_all_seeds_at_once(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # the path that it takes there works on a CPU too
    heard = []

    def program(x):
        return jax.lax.scan(lambda x, _: (x + 1, stream(heard.append, {"x": x, "square": x * x})), x, length=2)[0]

    jax.block_until_ready(jax.jit(jax.vmap(jax.vmap(program)))(jnp.arange(6.0).reshape(2, 3)))
    jax.effects_barrier()
    first = np.arange(6.0).reshape(2, 3)
    assert len(heard) == 2
    for step, values in enumerate(heard):
        np.testing.assert_array_equal(values["x"], first + step)
        np.testing.assert_array_equal(values["square"], (first + step) ** 2)
    jax.block_until_ready(jax.jit(program)(jnp.float32(3)))
    jax.effects_barrier()
    assert len(heard) == 4 and heard[-1] == {"x": 4, "square": 16}
