"""SAC + HER: relabelling, losses against float64 numpy, and training."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

import envs
from sac_her_jax import (
    MLP,
    Args,
    Layer,
    Networks,
    Transition,
    buffer_add,
    buffer_init,
    make_schedule,
    make_train,
    sample_transitions,
    total_loss,
)

TINY = Args(
    backend="mujoco", total_timesteps=160, num_envs=4, unroll_length=4, learning_starts=12, buffer_size=32,
    episode_length=10, num_evals=4, num_eval_envs=3, env_steps_per_update=8, batch_size=16, width=8,
)  # fmt: skip


def fill(ids, capacity, unroll):
    """A buffer whose states say (environment, time), next states (environment, time + 1), actions time, goals -1."""
    num_steps, num_envs = ids.shape
    empty = Transition(jnp.zeros(2), jnp.zeros(1), jnp.zeros(2), jnp.zeros(2), jnp.zeros(()))
    buffer = buffer_init(empty, capacity, num_envs)
    for start in range(0, num_steps, unroll):
        steps = np.arange(start, start + unroll)
        state = np.stack(np.broadcast_arrays(np.arange(num_envs)[None], steps[:, None]), axis=-1).astype(np.float32)
        next_state = state + np.array([0, 1], np.float32)
        transitions = Transition(state, state[..., 1:], 0 * state - 1, next_state, state[..., 1] % 2)
        buffer = buffer_add(buffer, transitions, jnp.array(ids[start : start + unroll], jnp.int32))
    return buffer


def draw(buffer, count, her_ratio, strategy, seed=0):
    batch = sample_transitions(buffer, jax.random.key(seed), (count,), her_ratio, strategy, lambda state: state)
    return jax.tree.map(np.array, batch)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_share_of_relabelled_rows(ratio):
    batch = draw(fill(np.zeros((20, 3), int), 20, 5), 20_000, ratio, "future")
    relabelled = batch.goal[:, 0] >= 0
    assert relabelled.mean() == pytest.approx(ratio, abs=0.02)
    np.testing.assert_array_equal(batch.goal[~relabelled], -1)


def test_future_goals_are_uniform_over_what_follows():
    batch = draw(fill(np.zeros((12, 1), int), 12, 4), 60_000, 1.0, "future")
    for t in range(11):
        times = batch.goal[batch.state[:, 1] == t, 1].astype(int)
        counts = np.bincount(times, minlength=13)
        assert counts[: t + 1].sum() == 0  # of the state after the action, at the earliest
        assert scipy.stats.chisquare(counts[t + 1 :]).pvalue > 0.01 / 11


def test_final_goals_are_the_trajectory_s_last_state():
    ids = np.repeat([0, 1, 2], [5, 4, 7])[:, None]
    batch = draw(fill(ids, 12, 4), 5_000, 1.0, "final")  # the ring has overwritten the first four steps
    last = {4: 5, **{t: 9 for t in range(5, 9)}, **{t: 16 for t in range(9, 16)}}
    assert {(int(t), int(g)) for t, g in zip(batch.state[:, 1], batch.goal[:, 1], strict=True)} == set(last.items())


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_goal_is_of_the_same_trajectory_and_later(data):
    """Its last state for `final`; and the rest of a row belongs together."""
    unroll, capacity, num_envs = data.draw(st.sampled_from([(1, 1, 1), (2, 6, 1), (5, 5, 3), (5, 15, 2)]))
    ends = np.array(data.draw(st.lists(st.booleans(), min_size=40 * num_envs, max_size=40 * num_envs)))
    ids = np.cumsum(ends.reshape(40, num_envs), axis=0)[: unroll * data.draw(st.integers(1, 8))]
    strategy = data.draw(st.sampled_from(["future", "final"]))
    batch = draw(fill(ids, capacity, unroll), 512, 1.0, strategy)
    (env, t), (goal_env, reached) = batch.state.astype(int).T, batch.goal.astype(int).T
    assert set(env) == set(range(num_envs)) and (t >= len(ids) - capacity).all()
    assert (env == goal_env).all() and (t < reached).all()
    assert (ids[t, env] == ids[reached - 1, env]).all()  # the step that led there belongs to the trajectory
    if strategy == "final":
        assert all(r == len(ids) or ids[r, e] != ids[r - 1, e] for e, r in zip(env, reached, strict=True))
    np.testing.assert_array_equal(batch.next_state - batch.state, np.tile([0, 1], (512, 1)))
    np.testing.assert_array_equal(batch.action[:, 0], t)
    np.testing.assert_array_equal(batch.terminated, t % 2)


def test_relabelled_reward_is_that_of_the_state_after_the_action():
    """With what it led to as its goal a transition is a success, with where it came from it need not be."""
    env = envs.make("reacher", backend="mujoco")
    state = jnp.zeros(10)
    next_state = state.at[4].set(0.2)
    assert env.get_reward(state, jnp.zeros(2), next_state, next_state[4:7]) == 1
    assert env.get_reward(state, jnp.zeros(2), next_state, state[4:7]) == 0


def test_goals_that_move_are_stored_as_they_are_after_the_action():
    """As the environment rewards them: arm_grasp's goal is at the cube."""
    init, _ = make_train(dataclasses.replace(TINY, env_id="arm_grasp", learning_starts=40, buffer_size=40))
    data = jax.jit(init)(jax.random.key(0)).buffer.data
    cube = data.next_state[:36, :, :3]  # of the steps written before learning starts
    assert jnp.any(cube != data.state[:36, :, :3])
    np.testing.assert_allclose((data.goal[:36, :, :3] + data.goal[:36, :, 3:6]) / 2, cube, atol=1e-6)


def numpy_mlp(params, *inputs):
    x = np.concatenate(inputs, axis=-1).astype(np.float64)
    layers = params["params"]
    for i in range(2):
        dense = layers[f"Layer_{i}"]["Dense_0"]
        x = np.maximum(x @ np.float64(dense["kernel"]) + np.float64(dense["bias"]), 0)
    return x @ np.float64(layers["Dense_0"]["kernel"]) + np.float64(layers["Dense_0"]["bias"])


def mlp(args, out_dim):
    return MLP(partial(Layer, args.width, args.activation, args.layer_norm), args.depth, args.residual, out_dim)


def test_losses():
    args = dataclasses.replace(TINY, gamma=0.9, action_chunk=3, target_entropy=-0.7)
    networks = Networks(mlp(args, 4), mlp(args, 1))
    rng = np.random.default_rng(0)
    state, next_state = rng.standard_normal((2, 5, 3)).astype(np.float32)
    goal, action = rng.standard_normal((2, 5, 2)).astype(np.float32)
    terminated, reward = np.array([0, 1, 0, 0, 1], np.float32), np.array([1, 0, 0, 1, 1], np.float32)
    keys = jax.random.split(jax.random.key(0), 5)
    critics = tuple(networks.critic.init(key, state, action, goal) for key in keys[:2])
    targets = tuple(networks.critic.init(key, state, action, goal) for key in keys[2:4])
    params = {"actor": networks.actor.init(keys[4], state, goal), "critics": critics, "log_alpha": jnp.log(0.3)}
    batch = Transition(state, action, goal, next_state, terminated)
    noise = rng.standard_normal((2, 5, 2)).astype(np.float32)
    total, metrics = total_loss(params, targets, batch, reward, noise, networks, args)

    def act(observed, noise):
        mean, raw = np.split(numpy_mlp(params["actor"], observed, goal), 2, axis=-1)
        log_std = -5 + 3.5 * (np.tanh(raw) + 1)
        u = mean + np.exp(log_std) * noise
        log_prob = scipy.stats.norm.logpdf(u, mean, np.exp(log_std)) - np.log(1 - np.tanh(u) ** 2)
        return np.tanh(u), log_prob.sum(-1)

    next_action, next_log_prob = act(next_state, noise[0])
    lowest = np.minimum(*(numpy_mlp(critic, next_state, next_action, goal)[:, 0] for critic in targets))
    y = reward + 0.9**3 * (1 - terminated) * (lowest - 0.3 * next_log_prob)
    q = [numpy_mlp(critic, state, action, goal)[:, 0] for critic in critics]
    critic_loss = np.mean((q[0] - y) ** 2 + (q[1] - y) ** 2)
    policy_action, log_prob = act(state, noise[1])
    policy_q = np.minimum(*(numpy_mlp(critic, state, policy_action, goal)[:, 0] for critic in critics))
    actor_loss = np.mean(0.3 * log_prob - policy_q)
    alpha_loss = 0.3 * (-log_prob.mean() + 0.7 * 2)
    assert metrics["critic"] == pytest.approx(critic_loss, rel=1e-4)
    assert metrics["actor"] == pytest.approx(actor_loss, rel=1e-4)
    assert metrics["alpha_loss"] == pytest.approx(alpha_loss, rel=1e-4)
    assert metrics["reward"] == pytest.approx(reward.mean())
    assert total == pytest.approx(critic_loss + actor_loss + alpha_loss, rel=1e-4)

    def gradient(part, of):
        return jax.grad(
            lambda p: total_loss({**params, of: p}, targets, batch, reward, noise, networks, args)[1][part]
        )(params[of])

    def is_zero(tree):
        return all(not np.any(x) for x in jax.tree.leaves(tree))

    assert is_zero(gradient("critic", "actor")) and is_zero(gradient("critic", "log_alpha"))
    assert is_zero(gradient("actor", "critics")) and is_zero(gradient("actor", "log_alpha"))
    assert is_zero(gradient("alpha_loss", "actor")) and not is_zero(gradient("alpha_loss", "log_alpha"))
    assert not is_zero(gradient("critic", "critics")) and not is_zero(gradient("actor", "actor"))


def train(args, seed=0):
    init, train_ = make_train(args)
    num_epochs = make_schedule(args).num_epochs
    return jax.jit(lambda key: train_(init(key), num_epochs))(jax.random.key(seed))


@pytest.fixture(scope="module")
def tiny():
    return train(TINY)


def test_target_critics_follow_slowly():
    """With tau = 1 they are the critics; with a small tau they stay near where they began."""
    runner, _ = train(dataclasses.replace(TINY, tau=1.0))
    jax.tree.map(np.testing.assert_array_equal, runner.target_critics, runner.params["critics"])
    init, _ = make_train(TINY)
    start = jax.jit(init)(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, start.target_critics, start.params["critics"])
    runner, _ = train(dataclasses.replace(TINY, tau=1e-6))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), runner.target_critics, start.target_critics)


def test_same_seed_same_bits_and_evaluation_changes_nothing(tiny):
    runner, metrics = train(dataclasses.replace(TINY, num_eval_envs=7))
    jax.tree.map(np.testing.assert_array_equal, runner.params, tiny[0].params)
    assert all(np.isfinite(value).all() and value.shape == (4,) for value in metrics.values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (dict(noise_correlation=1.0), "--noise-correlation must be less than 1"),
        (dict(her_ratio=1.5), "--her-ratio must lie between 0 and 1"),
        (dict(tau=0.0), "--tau must lie between 0"),
        (dict(gamma=1.0), "--gamma must lie between 0 and 1"),
        (dict(batch_size=0), "--batch-size 0: must be at least 1"),
    ],
)
def test_nonsense_is_refused(flags, message):
    with pytest.raises(envs.UsageError, match=message):
        dataclasses.replace(TINY, **flags)
