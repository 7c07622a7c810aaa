"""The ring buffer and the sampling of pairs: exact distributions, and never a goal from somewhere else."""

from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from crl_jax import buffer_add, buffer_init, sample_pairs

pytestmark = pytest.mark.quick


class Transition(NamedTuple):
    """Of these tests: the pair (environment, time), twice. The buffer holds any tree of arrays."""

    state: np.ndarray
    achieved: np.ndarray
    terminated: np.ndarray


add = jax.jit(buffer_add)
sample = jax.jit(sample_pairs, static_argnums=(2, 3))


def fill(ids, capacity, unroll, terminated=None):
    """A buffer after the trajectory ids and ends (time, num_envs) were written `unroll` steps at a time."""
    num_steps, num_envs = ids.shape
    terminated = np.zeros(ids.shape) if terminated is None else terminated
    buffer = buffer_init(Transition(*jnp.zeros((2, 2), jnp.int32), jnp.zeros(())), capacity, num_envs)
    for start in range(0, num_steps, unroll):
        steps = np.arange(start, start + unroll)
        data = np.stack(np.broadcast_arrays(np.arange(num_envs)[None], steps[:, None]), axis=-1).astype(np.int32)
        now = slice(start, start + unroll)
        buffer = add(buffer, Transition(data, data, np.float32(terminated[now])), ids[now].astype(np.int32))
    return jax.tree.map(np.array, buffer)  # numpy's indexing compiles nothing


def pairs(buffer, count, gamma=0.9, seed=0):
    """What is drawn, and what its goal is of, (count, 2) each."""
    now, future, _ = sample(buffer, jax.random.key(seed), (count,), gamma)
    return np.array(now.state), np.array(future)


def ids_of(*lengths):
    """Trajectory ids of one environment, (sum of lengths,)."""
    return np.repeat(np.arange(len(lengths)), lengths)


def test_pairs_of_one_long_trajectory_follow_the_truncated_geometric_distribution():
    gamma, length = 0.8, 12
    buffer = fill(ids_of(length)[:, None], capacity=16, unroll=4)
    now, future = pairs(buffer, 60_000, gamma)
    p_values = []
    for t in range(length):
        # The goal is that of the next state: k - 1 transitions later is k steps ahead.
        k = (future[:, 1] - now[:, 1] + 1)[now[:, 1] == t]
        left = length - t
        weights = gamma ** np.arange(1, left + 1)
        counts = np.bincount(k, minlength=left + 1)[1:]
        assert counts.sum() == len(k) and len(counts) == left  # no k below 1 or beyond the end
        p_values.append(scipy.stats.chisquare(counts, len(k) * weights / weights.sum()).pvalue if left > 1 else 1.0)
    assert min(p_values) > 0.01 / length


@pytest.mark.parametrize("gamma", [0.01, 0.99, 0.9999])
def test_mean_of_k_at_extreme_discounts(gamma):
    length = 1000
    buffer = fill(np.zeros((length, 1), int), capacity=length, unroll=length)
    now, future = pairs(buffer, 100_000, gamma)
    k = future[:, 1] - now[:, 1] + 1
    n = length - now[:, 1]
    expected = 1 / (1 - gamma) - n * gamma**n / (1 - gamma**n)  # mean of the truncated geometric distribution
    assert k.min() >= 1 and (k <= n).all()
    assert np.mean(k) == pytest.approx(np.mean(expected), rel=0.02)


def test_first_of_a_pair_is_uniform_over_what_the_buffer_holds():
    capacity, num_envs = 8, 3
    buffer = fill(np.zeros((20, num_envs), int), capacity, unroll=4)
    now, _ = pairs(buffer, 48_000)
    counts = Counter(map(tuple, now))
    assert counts.keys() == {(env, t) for env in range(num_envs) for t in range(12, 20)}
    assert scipy.stats.chisquare(list(counts.values())).pvalue > 0.001


def test_hand_made_trajectories():
    """Ends by length, by termination in one step, and at the newest step written; the ring has wrapped around."""
    ids = np.stack([ids_of(5, 5, 5, 5), ids_of(1, 1, 7, 11), ids_of(19, 1)], axis=1)
    buffer = fill(ids, capacity=12, unroll=4)
    now, future = pairs(buffer, 20_000, gamma=0.99)
    seen = {(e, t, u) for (e, t), (_, u) in zip(map(tuple, now), map(tuple, future), strict=True)}
    possible = {
        (env, t, u) for env in range(3) for t in range(8, 20) for u in range(t, 20) if ids[t, env] == ids[u, env]
    }
    assert seen == possible


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_goal_never_comes_from_elsewhere(data):
    """And the ring holds the newest steps, whatever its size."""
    unroll, capacity, num_envs = data.draw(st.sampled_from([(1, 1, 1), (2, 6, 1), (5, 5, 3), (5, 15, 2)]))
    num_unrolls = data.draw(st.integers(1, 8))
    ends = np.array(data.draw(st.lists(st.booleans(), min_size=40 * num_envs, max_size=40 * num_envs)))
    ids = np.cumsum(ends.reshape(40, num_envs), axis=0)[: unroll * num_unrolls]
    buffer = fill(ids, capacity, unroll)
    newest, oldest = len(ids) - 1, max(0, len(ids) - capacity)
    kept = np.arange(oldest, newest + 1)
    np.testing.assert_array_equal(buffer.data.state[kept % capacity, :, 1], np.tile(kept[:, None], num_envs))
    np.testing.assert_array_equal(buffer.traj_id[kept % capacity], ids[kept])
    now, future = pairs(buffer, 512)
    (env, t), (future_env, u) = now.T, future.T
    assert (env == future_env).all()
    assert (oldest <= t).all() and (t <= u).all() and (u <= newest).all()
    assert (ids[t, env] == ids[u, env]).all()


def test_what_would_come_after_the_end_reaches_nothing():
    """m is 1 - γ^n, n steps before the task itself ends a trajectory, and 1 where one is cut off or goes on."""
    gamma, ids = 0.9, np.stack([ids_of(3, 6, 7), ids_of(5, 9, 2)], axis=1)
    terminated = np.zeros(ids.shape)
    terminated[8, 0] = terminated[4, 1] = terminated[13, 1] = 1  # the others end by their length, or have not ended
    buffer = fill(ids, capacity=12, unroll=4, terminated=terminated)
    now, _, log_mass = sample(buffer, jax.random.key(0), (2000,), gamma)
    expected = np.ones(ids.shape)
    for env, first, last in ((0, 3, 8), (1, 0, 4), (1, 5, 13)):
        expected[first : last + 1, env] = 1 - gamma ** np.arange(last - first + 1, 0, -1)
    env, t = np.array(now.state).T
    assert {*zip(env, t, strict=True)} == {(e, t) for e in (0, 1) for t in range(4, 16)}
    np.testing.assert_allclose(np.exp(log_mass), expected[t, env], rtol=1e-5)


def test_writing_leaves_the_rest_of_the_ring_alone():
    buffer = fill(np.zeros((20, 2), int), capacity=12, unroll=4)
    np.testing.assert_array_equal(buffer.data.state[:, 0, 1], [12, 13, 14, 15, 16, 17, 18, 19, 8, 9, 10, 11])
    assert int(buffer.num_steps) == 20
