"""What the end of an episode means to evaluation and to learning, on tasks without a model."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Line

import crl_jax
import envs
import ppo_jax
import sac_her_jax
import td3_her_jax


def test_evaluation_ends_with_the_episode():
    """Against a plain loop: some episodes come to the goal, some start past it, some end early."""
    env, key, episodes, length = Line(), jax.random.key(0), 40, 6

    def policy(obs, noise):
        return jnp.ones_like(noise)

    metrics = jax.jit(lambda key: envs.evaluate(env, policy, key, episodes, length))(key)
    starts = np.array(jax.vmap(env.reset)(jax.random.split(jax.random.split(key)[0], episodes)).obs[:, 0])
    near, last = np.zeros(episodes), np.zeros(episodes)
    for i, x in enumerate(starts):
        for _ in range(length):
            x += 1
            near[i] += abs(x) < 1
            last[i] = abs(x)
            if x > 3:
                break
    assert len(set(starts)) == 8 and {0, 1, 2} == set(near)  # all cases are there
    expected = {
        "eval/success_rate": (near > 0).mean(),
        "eval/time_near_goal": near.mean() / length,
        "eval/final_dist": last.mean(),
        "eval/episode_return": near.mean(),
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6, err_msg=name)


def test_evaluation_with_noise():
    """Fresh standard normal noise, times `eval_noise`, for each episode and step: a random walk of that variance."""
    env, key, episodes, length = Line(), jax.random.key(0), 4000, 3
    run = jax.jit(lambda *scale: envs.evaluate(env, lambda obs, noise: noise, key, episodes, length, *scale))
    for eval_noise in (0.0, 0.1, 0.2):
        metrics = run(eval_noise)
        starts = jax.vmap(env.reset)(jax.random.split(jax.random.split(key)[0], episodes)).obs[:, 0]
        walk = eval_noise * np.random.default_rng(0).normal(size=(episodes, length)).cumsum(1) + starts[:, None]
        near = np.abs(walk) < 1
        np.testing.assert_allclose(metrics["eval/success_rate"], near.any(1).mean(), atol=0.02 if eval_noise else 1e-6)
        np.testing.assert_allclose(metrics["eval/time_near_goal"], near.mean(), atol=0.02 if eval_noise else 1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), run(), run(1.0))


class Treadmill(Line):
    """Stays at its goal, with a reward of 1 in each step, after which the task ends the episode or does not."""

    episode_length = 1

    def __init__(self, ends):
        self.ends = ends

    def start(self, key):
        return jnp.zeros(1), jnp.zeros(0)

    def pipeline_step(self, physics, control):
        return {"x": physics["x"], "ended": jnp.bool_(self.ends)}


SMALL = dict(num_envs=4, num_eval_envs=1, num_evals=1, width=8, depth=1)


@pytest.mark.parametrize("module", [crl_jax, sac_her_jax, td3_her_jax, ppo_jax])
def test_another_task_is_evaluated_for_its_own_length(module, monkeypatch):
    class Longer(Treadmill):
        episode_length = 5

    evaluated = set()

    def evaluate(env, policy, key, num_episodes, episode_length, eval_noise):
        evaluated.add((type(env), episode_length))
        return {}

    monkeypatch.setattr(envs, "evaluate", evaluate)
    sizes = dict(num_minibatches=2) if module is ppo_jax else dict(batch_size=4)
    args = module.Args(unroll_length=8, total_timesteps=320, **sizes, **SMALL)
    init, train = module.make_train(args, Treadmill(ends=False), Longer(ends=False))
    jax.eval_shape(lambda key: train(init(key), 1), jax.random.key(0))
    assert evaluated == {(Longer, 5)}


@pytest.mark.parametrize("module", [crl_jax, sac_her_jax, td3_her_jax])
def test_act_is_what_training_acts_by(module, monkeypatch):
    """A fork that changes it changes what comes into the buffer."""
    monkeypatch.setattr(module, "act", lambda networks, runner, obs, noise: jnp.full_like(noise, 0.25))
    args = module.Args(unroll_length=4, total_timesteps=64, learning_starts=16, buffer_size=16, **SMALL)
    init, _ = module.make_train(args, Treadmill(ends=False))
    np.testing.assert_array_equal(jax.jit(init)(jax.random.key(0)).buffer.data.action[:4], 0.25)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (dict(state_dim=2), r"Wrong: the shape of the state is \(1,\), not \(2,\)"),
        (dict(goal_indices=(0, 0)), r"Wrong: the shape of the goal is \(1,\), not \(2,\)"),
        (dict(goal_indices=(1,)), r"Wrong: goal_indices \(1,\) in a state of 1"),
        (dict(start=lambda self, key: (jnp.zeros(2), jnp.zeros(0))), r"of the start's positions is \(2,\), not \(1,\)"),
        (
            dict(start=lambda self, key: (jnp.zeros(1), jnp.zeros(1))),
            r"of the start's velocities is \(1,\), not \(0,\)",
        ),
    ],
)
def test_a_task_with_wrong_sizes_is_refused(mistake, message):
    """JAX would clamp an index and broadcast a shape, and the training would be of something else."""
    with pytest.raises(envs.UsageError, match=message):
        type("Wrong", (Line,), mistake)().reset(jax.random.key(0))


class Broken(Treadmill):
    """At its goal, with physics that answer with a NaN."""

    def pipeline_step(self, physics, control):
        return super().pipeline_step({"x": physics["x"] * jnp.nan}, control)


def test_evaluation_ends_where_physics_fails():
    metrics = envs.evaluate(Broken(ends=False), lambda obs, noise: noise, jax.random.key(0), 4, 10)
    np.testing.assert_allclose(metrics["eval/time_near_goal"], 0.1)  # the step that did not take place


def test_evaluation_of_whole_chunks():
    """An episode of 5 steps is rounded up to 3 chunks of 2 actions, each step near the goal and with a reward of 1."""
    env = envs.chunk(Treadmill(ends=False), 2)
    metrics = envs.evaluate(env, lambda obs, noise: noise, jax.random.key(0), 4, 5)
    assert metrics["eval/episode_return"] == 6 and metrics["eval/time_near_goal"] == 1


@pytest.mark.parametrize(("ends", "action_chunk", "value"), [(True, 1, 1), (False, 1, 2), (False, 2, 2 / (1 - 0.5**2))])
def test_value_of_what_follows_a_truncation_but_not_a_termination(ends, action_chunk, value):
    """A reward of 1 in each step is worth 1 + γ + γ² + … where only the length cuts episodes, and 1 where they end.

    From one chunk to the next γ is as much as over all its steps.
    """
    args = ppo_jax.Args(
        num_envs=4, unroll_length=8, num_minibatches=2, total_timesteps=32 * 200, num_evals=2, num_eval_envs=1,
        gamma=0.5, learning_rate=1e-2, width=8, depth=1, action_chunk=action_chunk,
    )  # fmt: skip
    init, train = ppo_jax.make_train(args, Treadmill(ends))
    _, metrics = jax.jit(lambda key: train(init(key), 2))(jax.random.key(0))
    np.testing.assert_allclose(metrics["losses/value"][-1], value, rtol=0.05)


@pytest.mark.parametrize("module", [sac_her_jax, td3_her_jax])
@pytest.mark.parametrize("ends", [True, False])
def test_the_buffer_remembers_which_steps_terminated(module, ends):
    args = module.Args(unroll_length=4, total_timesteps=64, learning_starts=16, buffer_size=8, **SMALL)
    init, _ = module.make_train(args, Treadmill(ends))
    data = jax.jit(init)(jax.random.key(0)).buffer.data
    np.testing.assert_array_equal(data.terminated[:4], ends)
