"""TD3 + HER: losses and a whole round of updates against float64 numpy, exploration, and training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import envs
from envs import running_statistics
from td3_her_jax import (
    Args,
    RunnerState,
    Transition,
    act,
    actor_loss,
    critic_loss,
    make_networks,
    make_schedule,
    make_train,
    noisy_action,
    sample_transitions,
)

TINY = Args(
    backend="mujoco", total_timesteps=160, num_envs=4, unroll_length=4, learning_starts=12, buffer_size=32,
    episode_length=10, num_evals=4, num_eval_envs=3, env_steps_per_update=8, batch_size=16, width=8,
)  # fmt: skip


# ---- float64 numpy ---------------------------------------------------------------------------------------------------


def forward(params, *inputs):
    """Output of an `MLP` with relu, and the inputs of its layers."""
    layers = params["params"]
    x = [np.concatenate(inputs, axis=-1).astype(np.float64)]
    for i in range(len(layers) - 1):
        dense = layers[f"Layer_{i}"]["Dense_0"]
        x.append(np.maximum(x[-1] @ np.float64(dense["kernel"]) + np.float64(dense["bias"]), 0))
    return x[-1] @ np.float64(layers["Dense_0"]["kernel"]) + np.float64(layers["Dense_0"]["bias"]), x


def backward(params, x, d_out):
    """Gradients with respect to the parameters and to the input, of what has the gradient `d_out` at the output."""
    layers, grads = params["params"], {"Dense_0": {"kernel": x[-1].T @ d_out, "bias": d_out.sum(0)}}
    d_x = d_out @ np.float64(layers["Dense_0"]["kernel"]).T
    for i in reversed(range(len(layers) - 1)):
        d_x = d_x * (x[i + 1] > 0)
        grads[f"Layer_{i}"] = {"Dense_0": {"kernel": x[i].T @ d_x, "bias": d_x.sum(0)}}
        d_x = d_x @ np.float64(layers[f"Layer_{i}"]["Dense_0"]["kernel"]).T
    return {"params": grads}, d_x


class Adam:
    def __init__(self, params, lr):
        self.m = self.v = jax.tree.map(np.zeros_like, params)
        self.lr, self.count = lr, 0

    def step(self, params, grads):
        self.count += 1
        self.m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, self.m, grads)
        self.v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, self.v, grads)
        m_scale, v_scale = 1 - 0.9**self.count, 1 - 0.999**self.count
        return jax.tree.map(
            lambda p, m, v: p - self.lr * (m / m_scale) / (np.sqrt(v / v_scale) + 1e-8), params, self.m, self.v
        )


def target_of(target_params, batch, reward, noise, args):
    """y, (batch,), as the script's docstring has it."""
    noise = np.clip(args.smoothing_noise * np.float64(noise), -args.smoothing_clip, args.smoothing_clip)
    next_action = np.clip(np.tanh(forward(target_params["actor"], batch.next_state, batch.goal)[0]) + noise, -1, 1)
    q = [forward(c, batch.next_state, next_action, batch.goal)[0][:, 0] for c in target_params["critics"]]
    return reward + args.gamma**args.action_chunk * (1 - batch.terminated) * np.minimum(*q)


def update_by_hand(params, target_params, batches, rewards, noise, args):
    """All of an iteration's updates, their batches (rounds, policy_delay, batch, ...), as the paper has them. Also the
    losses of the last batch after them."""
    params, target_params = jax.tree.map(np.float64, (params, target_params))
    actor_adam = Adam(params["actor"], args.actor_lr)
    critic_adams = [Adam(critic, args.critic_lr) for critic in params["critics"]]
    for i in range(rewards.shape[0]):
        for j in range(rewards.shape[1]):
            batch, reward = jax.tree.map(lambda x: x[i, j], (batches, rewards))
            y = target_of(target_params, batch, reward, noise[i, j], args)
            critics = []
            for critic, adam in zip(params["critics"], critic_adams, strict=True):
                out, x = forward(critic, batch.state, batch.action, batch.goal)
                grads, _ = backward(critic, x, 2 * (out - y[:, None]) / len(y))
                critics.append(adam.step(critic, grads))
            params = params | {"critics": tuple(critics)}
        u, actor_x = forward(params["actor"], batch.state, batch.goal)
        action = np.tanh(u)
        out, x = forward(params["critics"][0], batch.state, action, batch.goal)
        _, d_input = backward(params["critics"][0], x, np.full_like(out, -1 / len(y)))
        d_action = d_input[:, batch.state.shape[-1] : -batch.goal.shape[-1]]
        d_u = d_action * (1 - action**2) + 2 * args.preactivation_penalty * u / len(y)
        grads, _ = backward(params["actor"], actor_x, d_u)
        params = params | {"actor": actor_adam.step(params["actor"], grads)}
        target_params = jax.tree.map(lambda target, x: target + args.tau * (x - target), target_params, params)
    y = target_of(target_params, batch, reward, noise[-1, -1], args)
    q = np.array([forward(critic, batch.state, batch.action, batch.goal)[0][:, 0] for critic in params["critics"]])
    u, _ = forward(params["actor"], batch.state, batch.goal)
    reached, _ = forward(params["critics"][0], batch.state, np.tanh(u), batch.goal)
    losses = {"critic": np.mean(((q - y) ** 2).sum(0)), "q": np.mean(q), "reward": np.mean(reward)}
    losses["actor"] = np.mean(args.preactivation_penalty * (u**2).sum(-1) - reached[:, 0])
    return params, target_params, losses


# ---- tests -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def example():
    """Parameters, target parameters, a batch of 5, its rewards and noise, and networks."""
    args = dataclasses.replace(TINY, exploration_noise=0.3)
    networks = make_networks(args, envs.make("reacher", backend="mujoco"))
    rng = np.random.default_rng(0)
    state, next_state = rng.standard_normal((2, 5, 10)).astype(np.float32)
    goal = rng.standard_normal((5, 3)).astype(np.float32)
    action, noise = rng.standard_normal((2, 5, 2)).astype(np.float32)
    terminated, reward = np.array([0, 1, 0, 0, 1], np.float32), np.array([1, 0, 0, 1, 1], np.float32)

    def params(seed):
        keys = jax.random.split(jax.random.key(seed), 3)
        critics = tuple(networks.critic.init(key, state, action, goal) for key in keys[:2])
        return {"actor": networks.actor.init(keys[2], state, goal), "critics": critics}

    return params(0), params(1), Transition(state, action, goal, next_state, terminated), reward, noise, networks


@pytest.mark.parametrize("action_chunk", [1, 3])
def test_critic_loss(example, action_chunk):
    params, target_params, batch, reward, noise, networks = example
    args = dataclasses.replace(TINY, gamma=0.9, smoothing_noise=0.6, smoothing_clip=0.4, action_chunk=action_chunk)
    assert np.any(np.abs(0.6 * noise) > 0.4) and np.any(np.abs(0.6 * noise) < 0.4)
    loss, metrics = critic_loss(params["critics"], target_params, batch, reward, noise, networks, args)
    y = target_of(target_params, batch, reward, noise, args)
    q = [forward(critic, batch.state, batch.action, batch.goal)[0][:, 0] for critic in params["critics"]]
    assert loss == pytest.approx(np.mean((q[0] - y) ** 2 + (q[1] - y) ** 2), rel=1e-5)
    assert metrics["critic"] == loss and metrics["reward"] == pytest.approx(reward.mean())
    assert metrics["q"] == pytest.approx(np.mean(q), rel=1e-5)


def test_target_actions_stay_in_range(example):
    """However large the noise: with a wide clip it takes them to -1 or 1 and no further."""
    params, target_params, batch, reward, _, networks = example
    args = dataclasses.replace(TINY, smoothing_noise=10.0, smoothing_clip=5.0)
    noise = np.where(np.arange(10).reshape(5, 2) % 2, 1.0, -1.0)
    loss, _ = critic_loss(params["critics"], target_params, batch, reward, noise, networks, args)
    q = [forward(c, batch.next_state, noise, batch.goal)[0][:, 0] for c in target_params["critics"]]
    y = reward + 0.95 * (1 - batch.terminated) * np.minimum(*q)
    q = np.array([forward(c, batch.state, batch.action, batch.goal)[0][:, 0] for c in params["critics"]])
    assert loss == pytest.approx(np.mean(((q - y) ** 2).sum(0)), rel=1e-5)


def test_actor_loss(example):
    params, _, batch, _, _, networks = example
    args = dataclasses.replace(TINY, preactivation_penalty=0.7)
    loss = actor_loss(params["actor"], params["critics"], batch.state, batch.goal, networks, args)
    u, _ = forward(params["actor"], batch.state, batch.goal)
    q, _ = forward(params["critics"][0], batch.state, np.tanh(u), batch.goal)
    assert loss == pytest.approx(np.mean(0.7 * (u**2).sum(-1) - q[:, 0]), rel=1e-5)


def test_without_noise_the_policy_is_the_actor_s_tanh(example):
    """And with noise it is as much off it as `exploration_noise` says, but never out of range."""
    params, _, batch, _, noise, networks = example
    statistics = running_statistics.init_state([batch.state[0], batch.goal[0]])
    runner = RunnerState(params, None, None, statistics, None, None, None, None)
    obs = np.concatenate([batch.state, batch.goal], axis=-1)
    policy = np.tanh(forward(params["actor"], batch.state, batch.goal)[0])
    np.testing.assert_allclose(act(networks, runner, obs, np.zeros((5, 2))), policy, rtol=1e-5)
    np.testing.assert_allclose(act(networks, runner, obs, noise), np.clip(policy + 0.3 * noise, -1, 1), rtol=1e-5)
    np.testing.assert_array_equal(act(networks, runner, obs, 1000 * noise), np.sign(noise))
    np.testing.assert_array_equal(noisy_action(jnp.array([30.0, -30.0]), 0.0), [1, -1])


@pytest.mark.parametrize("exploration_noise", [0.0, 0.2])
def test_training_explores_with_this_much_noise(exploration_noise):
    flags = dict(num_envs=64, learning_starts=36, normalize_observations=False)
    args = dataclasses.replace(TINY, exploration_noise=exploration_noise, **flags)
    init, _ = make_train(args)
    runner = jax.jit(init)(jax.random.key(0))
    data = jax.tree.map(lambda x: np.array(x[: runner.buffer.num_steps]), runner.buffer.data)
    assert len(data.action) == 32
    noise = data.action - np.tanh(forward(runner.params["actor"], data.state, data.goal)[0])
    assert noise.std() == pytest.approx(exploration_noise, rel=0.05, abs=1e-5)
    assert np.abs(data.action).max() <= 1


@pytest.mark.parametrize("policy_delay", [1, 3])
def test_an_iteration_s_updates(policy_delay):
    """Its critics, its actor, and all targets, which follow as often as the actor is updated."""
    args = dataclasses.replace(
        TINY, policy_delay=policy_delay, unroll_length=24, learning_starts=24, total_timesteps=96, num_evals=1,
        gamma=0.9, tau=0.3, smoothing_noise=0.6, smoothing_clip=0.4, preactivation_penalty=0.2,
        actor_lr=2e-3, critic_lr=3e-3, her_ratio=0.5, exploration_noise=1.0,
    )  # fmt: skip
    schedule, env = make_schedule(args), envs.make(args.env_id, args.backend)
    assert schedule.updates_per_iteration == 12 and schedule.warmup_iterations == 0
    assert schedule.iterations_per_epoch == schedule.num_epochs == 1
    init, train = make_train(args, env)
    before = jax.jit(init)(jax.random.key(0))
    after, metrics = jax.jit(lambda runner: train(runner, 1))(before)
    jax.tree.map(np.testing.assert_array_equal, before.target_params, before.params)

    key, _ = jax.random.split(before.key)  # of the unroll
    _, batch_key, noise_key = jax.random.split(key, 3)
    shape = (12 // policy_delay, policy_delay, args.batch_size)
    batches = sample_transitions(after.buffer, batch_key, shape, 0.5, "future", env.achieved)
    rewards = np.linalg.norm(env.achieved(batches.next_state) - batches.goal, axis=-1) < env.goal_reach_thresh
    assert 0.1 < rewards.mean() < 0.9
    (state_mean, goal_mean), (state_std, goal_std) = after.statistics.mean, after.statistics.std
    batches = batches._replace(
        state=(batches.state - state_mean) / state_std,
        goal=(batches.goal - goal_mean) / goal_std,
        next_state=(batches.next_state - state_mean) / state_std,
    )
    noise = jax.random.normal(noise_key, (*shape, 2))
    batches = jax.tree.map(np.array, batches)
    params, target_params, losses = update_by_hand(
        before.params, before.target_params, batches, np.float32(rewards), np.array(noise), args
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), after.params, params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), after.target_params, target_params)
    for name, loss in losses.items():
        assert metrics[f"losses/{name}"][0] == pytest.approx(loss, rel=1e-4), name


@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 9), st.integers(1, 4), st.integers(1, 60))
def test_whole_actor_updates(policy_delay, env_steps_per_update, num_envs, action_chunk, unroll_length):
    """The unroll is rounded up to the next length that has them."""
    args = Args(
        policy_delay=policy_delay, env_steps_per_update=env_steps_per_update, num_envs=num_envs,
        action_chunk=action_chunk, unroll_length=unroll_length,
    )  # fmt: skip
    schedule = make_schedule(args)
    assert schedule.updates_per_iteration % policy_delay == 0
    assert schedule.updates_per_iteration * env_steps_per_update == schedule.steps_per_iteration
    assert schedule.steps_per_iteration == schedule.unroll_length * num_envs * action_chunk
    shorter = range(schedule.unroll_length - 1, 0, -1)
    whole = [n for n in shorter if n * num_envs * action_chunk % (policy_delay * env_steps_per_update) == 0]
    assert (
        all(n * action_chunk < unroll_length for n in whole) and schedule.unroll_length * action_chunk >= unroll_length
    )


def test_every_step_is_accounted_for():
    """Iterations without updates come first, at least one with them follows, and the last epoch is filled up."""
    args = dataclasses.replace(TINY, action_chunk=2, learning_starts=10, num_evals=50)
    assert make_schedule(dataclasses.replace(args, total_timesteps=16 * 103 - 1)) == (2, 16, 2, 2, 3, 34, 101 * 2)
    assert make_schedule(dataclasses.replace(args, total_timesteps=1)) == (2, 16, 2, 2, 1, 1, 2)


def train(args, seed=0, optimise=0):
    init, train_ = make_train(args)
    options = {"xla_backend_optimization_level": optimise}  # little is worth it (conftest.py)
    num_epochs = make_schedule(args).num_epochs
    return jax.jit(lambda key: train_(init(key), num_epochs), compiler_options=options)(jax.random.key(seed))


def test_same_seed_same_bits_and_evaluation_changes_nothing():
    runner, _ = train(TINY)
    other, metrics = train(dataclasses.replace(TINY, num_eval_envs=7, eval_noise=1.0))
    jax.tree.map(np.testing.assert_array_equal, runner.params, other.params)
    assert all(
        np.isfinite(value).all() and value.shape == (4,) for name, value in metrics.items() if "train/" not in name
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (dict(noise_correlation=1.0), "--noise-correlation must be less than 1"),
        (dict(her_ratio=1.5), "--her-ratio must lie between 0 and 1"),
        (dict(tau=0.0), "--tau must lie between 0"),
        (dict(gamma=1.0), "--gamma must lie between 0 and 1"),
        (dict(policy_delay=0), "--policy-delay 0: must be at least 1"),
        (dict(smoothing_noise=-0.1), "--smoothing-noise -0.1: must be at least 0"),
        (dict(smoothing_clip=-0.1), "--smoothing-clip -0.1: must be at least 0"),
        (dict(exploration_noise=-0.1), "--exploration-noise -0.1: must be at least 0"),
        (dict(preactivation_penalty=-0.1), "--preactivation-penalty -0.1: must be at least 0"),
    ],
)
def test_nonsense_is_refused(flags, message):
    with pytest.raises(envs.UsageError, match=message):
        dataclasses.replace(TINY, **flags)
