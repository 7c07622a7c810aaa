"""PPO: advantages and losses against float64 numpy, and training."""

import dataclasses
import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

import envs
import envs.registry
from ppo_jax import (
    MLP,
    Args,
    Layer,
    Minibatch,
    Networks,
    Transition,
    action_distribution,
    advantages_of,
    log_prob_of,
    make_schedule,
    make_train,
    sample_u,
    total_loss,
)

TINY = Args(
    backend="mujoco", total_timesteps=160, num_envs=4, unroll_length=4, episode_length=10, num_evals=4,
    num_eval_envs=3, num_minibatches=2, update_epochs=2, width=8,
)  # fmt: skip


def numpy_advantages(reward, value, next_value, terminated, done, gamma, gae_lambda):
    """By the definition: a sum of the errors that follow, until the episode ends."""
    result = np.zeros(len(reward))
    for t in range(len(reward)):
        weight = 1.0
        for s in range(t, len(reward)):
            result[t] += weight * (reward[s] + gamma * (1 - terminated[s]) * next_value[s] - value[s])
            if done[s]:
                break
            weight *= gamma * gae_lambda
    return result


def test_advantages_with_ends_in_every_order():
    """All ways in which 5 steps can go on (0), be truncated (1) or terminate (2), each in an environment of its own."""
    ways = np.array(list(itertools.product(range(3), repeat=5))).T  # (time, env)
    rng = np.random.default_rng(0)
    reward, value, next_value = rng.standard_normal((3, *ways.shape))
    terminated, done = (ways == 2).astype(float), (ways > 0).astype(float)
    transitions = Transition(
        None, None, None, *map(jnp.float32, (reward,)), None, jnp.float32(terminated), jnp.float32(done)
    )
    got = advantages_of(transitions, jnp.float32(value), jnp.float32(next_value), 0.9, 0.8)
    for env in range(ways.shape[1]):
        columns = (x[:, env] for x in (reward, value, next_value, terminated, done))
        np.testing.assert_allclose(got[:, env], numpy_advantages(*columns, 0.9, 0.8), rtol=1e-4, atol=1e-5)


shares = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1, width=16))


@settings(max_examples=60, deadline=None)
@given(st.data(), shares, shares, st.integers(0, 99))
def test_advantages_of_any_size(data, gamma, gae_lambda, seed):
    shape = data.draw(st.sampled_from([(1, 1), (1, 3), (7, 2), (20, 1)]))  # time, environments
    ways = data.draw(st.lists(st.sampled_from([0, 0, 0, 1, 2]), min_size=math.prod(shape), max_size=math.prod(shape)))
    ways = np.reshape(ways, shape)  # go on, truncated, terminated
    reward, value, next_value = np.random.default_rng(seed).standard_normal((3, *shape)).astype(np.float32)
    terminated, done = np.float32(ways == 2), np.float32(ways > 0)
    transitions = Transition(None, None, None, reward, None, terminated, done)
    got = jax.jit(advantages_of)(transitions, value, next_value, gamma, gae_lambda)
    for env in range(shape[1]):
        columns = (np.float64(x[:, env]) for x in (reward, value, next_value, terminated, done))
        np.testing.assert_allclose(got[:, env], numpy_advantages(*columns, gamma, gae_lambda), rtol=1e-4, atol=1e-4)


def test_log_probability_and_entropy():
    actor_out = jnp.array([[0.3, -0.4], [1.5, 0.8]])  # one action dimension: mean and raw log-std
    for row in actor_out:
        mean, log_std = (float(x[0]) for x in action_distribution(row))
        grid = np.linspace(mean - 8 * np.exp(log_std), mean + 8 * np.exp(log_std), 2001)
        density = np.exp(log_prob_of(row, jnp.array(grid)[:, None])) * (1 - np.tanh(grid) ** 2)  # da = (1 - tanh²) du
        assert scipy.integrate.trapezoid(density, grid) == pytest.approx(1, abs=1e-3)
        u = np.array(sample_u(jnp.tile(row, (100_000, 1)), jax.random.normal(jax.random.key(0), (100_000, 1))))[:, 0]
        assert scipy.stats.kstest((u - mean) / np.exp(log_std), "norm").pvalue > 1e-3
        log_slope = 2 * (np.log(2) - np.logaddexp(u, -u))  # log(1 - tanh(u)²) = -2 log cosh(u)
        entropy = -np.mean(scipy.stats.norm.logpdf(u, mean, np.exp(log_std)) - log_slope)
        assert -jnp.mean(log_prob_of(row, jnp.array(u)[:, None])) == pytest.approx(entropy, rel=1e-3, abs=1e-3)


def numpy_mlp(params, x):
    for i in range(2):
        dense = params["params"][f"Layer_{i}"]["Dense_0"]
        x = np.maximum(x @ np.float64(dense["kernel"]) + np.float64(dense["bias"]), 0)
    return x @ np.float64(params["params"]["Dense_0"]["kernel"]) + np.float64(params["params"]["Dense_0"]["bias"])


def mlp(args, out_dim):
    return MLP(partial(Layer, args.width, args.activation, args.layer_norm), args.depth, args.residual, out_dim)


@pytest.mark.parametrize("normalized", [True, False])
def test_losses(normalized):
    args = dataclasses.replace(TINY, clip_eps=0.2, entropy_coef=0.1, normalize_advantage=normalized)
    networks = Networks(mlp(args, 4), mlp(args, 1))
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((6, 3)).astype(np.float32)
    params = {
        "actor": networks.actor.init(jax.random.key(0), obs),
        "critic": networks.critic.init(jax.random.key(1), obs),
    }
    mean, log_std = map(np.float64, action_distribution(numpy_mlp(params["actor"], np.float64(obs))))

    def density(u):
        return (scipy.stats.norm.logpdf(u, mean, np.exp(log_std)) - np.log(1 - np.tanh(u) ** 2)).sum(-1)

    u = mean + np.exp(log_std) * rng.standard_normal(mean.shape)
    log_prob = density(u) + 0.3 * rng.standard_normal(6)
    advantage, target = 3 * rng.standard_normal((2, 6))
    batch = Minibatch(obs, *map(jnp.float32, (u, log_prob, advantage, target)))
    noise = rng.standard_normal(mean.shape).astype(np.float32)
    total, metrics = total_loss(params, batch, noise, networks, args)

    ratio = np.exp(density(u) - log_prob)
    gain = (advantage - advantage.mean()) / advantage.std() if normalized else advantage
    assert ((ratio > 1.2) | (ratio < 0.8)).any() and ((ratio < 1.2) & (ratio > 0.8)).any()
    actor_loss = -np.mean(np.minimum(ratio * gain, np.clip(ratio, 0.8, 1.2) * gain))
    critic_loss = np.mean((numpy_mlp(params["critic"], np.float64(obs))[:, 0] - target) ** 2)
    fresh = mean + np.exp(log_std) * noise
    entropy = -density(fresh).mean()
    assert metrics["actor"] == pytest.approx(actor_loss - 0.1 * entropy, rel=1e-3)
    assert metrics["critic"] == pytest.approx(critic_loss, rel=1e-4)
    assert metrics["entropy"] == pytest.approx(entropy, rel=1e-3)
    assert total == pytest.approx(actor_loss + critic_loss - 0.1 * entropy, rel=1e-3)
    assert metrics["clip_fraction"] == pytest.approx(np.mean(np.abs(ratio - 1) > 0.2))
    assert metrics["approx_kl"] == pytest.approx(np.mean(ratio - 1 - np.log(ratio)), rel=1e-3)
    assert metrics["value"] == pytest.approx(numpy_mlp(params["critic"], np.float64(obs)).mean(), rel=1e-4)


def train(args, seed=0):
    init, train_ = make_train(args)
    num_epochs = make_schedule(args).num_epochs
    return jax.jit(lambda key: train_(init(key), num_epochs))(jax.random.key(seed))


def test_contract_and_determinism():
    runner, metrics = train(TINY)
    again, _ = train(dataclasses.replace(TINY, num_eval_envs=7))
    jax.tree.map(np.testing.assert_array_equal, runner.params, again.params)
    assert all(np.isfinite(value).all() and value.shape == (4,) for value in metrics.values())
    schedule = make_schedule(TINY)
    assert runner.statistics.count.lo == schedule.num_epochs * schedule.iterations_per_epoch * 16 >= 160


def test_every_step_is_accounted_for():
    """The last epoch is filled up."""
    args = dataclasses.replace(TINY, action_chunk=2, total_timesteps=16 * 101 - 1, num_evals=50)
    assert make_schedule(args) == (2, 16, 4, 0, 3, 34, 101 * 4)


@pytest.mark.parametrize("num_minibatches", [1, 3, 5, 16])
def test_an_unroll_is_rounded_up_to_whole_minibatches(num_minibatches):
    schedule = make_schedule(dataclasses.replace(TINY, num_minibatches=num_minibatches, action_chunk=3))
    assert schedule.steps_per_iteration == 4 * 3 * schedule.unroll_length
    assert (4 * schedule.unroll_length) % num_minibatches == 0
    assert schedule.updates_per_iteration == 2 * num_minibatches and schedule.warmup_iterations == 0


def test_each_network_s_gradient_is_clipped_by_itself():
    """However large the errors of the values are, the policy learns as if they were small."""

    def change_of_the_actor(reward_scale):
        class Scaled(envs.registry.Reacher):
            def get_reward(self, *args):
                return reward_scale * super().get_reward(*args)

        args = dataclasses.replace(TINY, total_timesteps=16, num_evals=1, update_epochs=1)
        init, train_ = make_train(args, Scaled("mujoco", dense_reward=True))
        before = jax.jit(init)(jax.random.key(0))
        after, _ = jax.jit(lambda runner: train_(runner, 1))(before)
        both = before.params["actor"], after.params["actor"]
        return np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(*map(jax.tree.leaves, both), strict=True)))

    assert change_of_the_actor(1e8) == pytest.approx(change_of_the_actor(1.0), rel=0.1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (dict(max_grad_norm=0.0), "--clip-eps and --max-grad-norm must be positive"),
        (dict(gae_lambda=1.1), "--gae-lambda must lie between 0 and 1"),
        (dict(clip_eps=0.0), "--clip-eps and --max-grad-norm must be positive"),
        (dict(update_epochs=0), "--update-epochs 0: must be at least 1"),
    ],
)
def test_nonsense_is_refused(flags, message):
    with pytest.raises(envs.UsageError, match=message):
        dataclasses.replace(TINY, **flags)
