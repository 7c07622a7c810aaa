"""The environments as their users see them: ids, observations, goals, rewards, resets."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax import envs as brax_envs

import envs
from envs.reacher import Reacher

keys = jax.random.split(jax.random.key(0), 2000)


@pytest.fixture(scope="module")
def reacher():
    return envs.make("reacher", backend="mujoco")


@pytest.fixture(scope="module")
def starts(reacher):
    """2,000 fresh episodes."""
    return jax.jit(jax.vmap(reacher.reset))(keys)


def test_unknown_id_names_the_nearest():
    with pytest.raises(ValueError, match=r"'raecher'; did you mean reacher"):
        envs.make("raecher")


def test_unknown_backend_names_those_that_do():
    with pytest.raises(ValueError, match="generalized, positional, spring, mjx, mujoco"):
        envs.make("reacher", backend="bullet")


def test_default_backend_on_a_cpu_is_native_but_for_ants():
    ids = ("reacher", "ant", "ant_u_maze", "ant_ball_u_maze", "ant_push", "humanoid_u_maze")
    assert [envs.make(env_id).backend for env_id in ids] == ["mujoco", "spring", "spring", "spring", "mujoco", "mujoco"]


@pytest.mark.parametrize("env_id", envs.ENV_IDS)
def test_contract(env_id):
    env = envs.make(env_id, backend="mujoco")
    state = jax.jit(env.reset)(keys[0])
    assert isinstance(env, brax_envs.Env)
    assert state.obs.shape == (env.observation_size,) == (env.state_dim + len(env.goal_indices),)
    assert all(0 <= i < env.state_dim for i in env.goal_indices)
    assert env.goal_reach_thresh > 0 and env.episode_length > 0
    assert {"success", "dist"} <= state.metrics.keys()


def test_reacher_starts_and_goals(reacher, starts):
    assert reacher.state_dim == 10 and reacher.goal_indices == (4, 5, 6) and reacher.action_size == 2
    q, qd = starts.pipeline_state.q, starts.pipeline_state.qd
    assert np.abs(q[:, :2]).max() <= 0.1 and np.abs(q[:, :2]).max() > 0.095
    assert np.abs(qd[:, :2]).max() <= 0.005 and (qd[:, 2:] == 0).all()
    goal = np.array(starts.obs[:, 10:])
    radius, angle = np.linalg.norm(goal[:, :2], axis=1), np.arctan2(goal[:, 1], goal[:, 0])
    np.testing.assert_allclose(goal[:, 2], 0.01, atol=1e-6)
    # Uniform in radius up to 0.2 and in angle: sorted, they lie along a line.
    np.testing.assert_allclose(np.sort(radius), np.linspace(0, 0.2, len(radius)), atol=0.01)
    np.testing.assert_allclose(np.sort(angle), np.linspace(-np.pi, np.pi, len(angle)), atol=0.3)
    assert abs(np.corrcoef(radius, angle)[0, 1]) < 0.1


def test_reacher_state(starts):
    """The finger tip by the arm's geometry: two links, 0.1 and 0.11 long."""
    first, second = np.array(starts.pipeline_state.q[:, :2]).T
    tip = np.stack(
        [
            0.1 * np.cos(first) + 0.11 * np.cos(first + second),
            0.1 * np.sin(first) + 0.11 * np.sin(first + second),
            0 * first + 0.01,
        ],
        axis=1,
    )
    expected = np.concatenate([np.cos([first, second]).T, np.sin([first, second]).T, tip], axis=1)
    np.testing.assert_allclose(starts.obs[:, :7], expected, atol=1e-5)
    dist = np.linalg.norm(tip - starts.obs[:, 10:], axis=1)
    np.testing.assert_allclose(starts.metrics["dist"], dist, atol=1e-5)
    np.testing.assert_array_equal(starts.metrics["success"], dist < 0.05)


@pytest.mark.parametrize("backend", envs.BACKENDS)
def test_reacher_on_every_pipeline(backend):
    """Finite and inside the arm's reach; the tip's velocity is the derivative of its position."""
    env = envs.make("reacher", backend=backend)
    strength = 10 / float(env.sys.actuator.gear[0])  # a torque of up to 10: faster, and differences say little

    @jax.jit
    def trajectory(key):
        def step(state, key):
            state = env.step(state, jax.random.uniform(key, (2,), minval=-strength, maxval=strength))
            return state, state.obs

        return jax.lax.scan(step, env.reset(key), jax.random.split(key, 60))[1]

    obs = np.array(trajectory(keys[0]))
    assert env.backend == backend and float(env.dt) == pytest.approx(0.02)
    assert np.isfinite(obs).all() and np.linalg.norm(obs[:, 4:6], axis=1).max() < 0.22
    velocity = (obs[2:, 4:7] - obs[:-2, 4:7]) / 0.04
    # Positions may belong to the start of the last substep, half a control step off: compare over two steps.
    assert np.abs(velocity).max() > 0.05
    assert np.abs(velocity - obs[1:-1, 7:10]).mean() < 0.12 * np.abs(velocity).mean() + 0.005


def test_sparse_and_dense_reward():
    for dense_reward in (False, True):
        env = envs.make("reacher", backend="mujoco", dense_reward=dense_reward)
        states = jax.jit(jax.vmap(lambda key, env=env: env.step(env.reset(key), jnp.zeros(2))))(keys)
        dist = states.metrics["dist"]
        np.testing.assert_array_equal(states.reward, -dist if dense_reward else dist < 0.05)


class Countdown(brax_envs.Env):
    """Ends by itself after as many steps as were drawn at its reset; the observation is (steps left, draw)."""

    action_size, backend, observation_size = 1, "none", 2

    def reset(self, rng):
        left = jax.random.randint(rng, (), 1, 9).astype(jnp.float32)
        obs = jnp.stack([left, jax.random.uniform(rng)])
        return brax_envs.State(obs, obs, jnp.zeros(()), jnp.zeros(()), {"left": left, "unstable": jnp.zeros(())})

    def step(self, state, action):
        obs = state.obs - jnp.array([1.0, 0.0])
        done = (obs[0] == 0).astype(jnp.float32)
        return state.replace(
            pipeline_state=obs, obs=obs, reward=obs[0], done=done, metrics=state.metrics | {"left": obs[0]}
        )


@pytest.fixture(scope="module")
def countdown():
    """60 steps of 32 environments with episodes of at most 5 steps, as numpy arrays (time, num_envs, ...)."""
    env = envs.wrap(Countdown(), 32, 5)

    def step(state, _):
        new = env.step(state, jnp.zeros((32, 1)))
        return new, tuple(
            s.replace(info={**s.info, "reset_key": jax.random.key_data(s.info["reset_key"])}) for s in (state, new)
        )

    return jax.tree.map(np.array, jax.jit(lambda key: jax.lax.scan(step, env.reset(key), length=60)[1])(keys[0]))


def test_episodes_end_by_termination_or_length(countdown):
    before, after = countdown
    terminated = before.obs[:, :, 0] == 1
    truncated = (before.info["steps"] == 4) & ~terminated
    assert terminated.any() and truncated.any()
    np.testing.assert_array_equal(after.done, terminated | truncated)
    np.testing.assert_array_equal(after.info["truncation"], truncated)
    np.testing.assert_array_equal(after.info["steps"], np.where(after.done, 0, before.info["steps"] + 1))


def test_reset_gives_a_new_start_and_keeps_what_came_before(countdown):
    before, after = countdown
    done = after.done.astype(bool)
    expected = before.obs - np.array([1.0, 0.0], np.float32)
    np.testing.assert_array_equal(after.info["next_obs"], expected)
    np.testing.assert_array_equal(after.reward, expected[:, :, 0])  # of the step taken, also where a reset followed
    np.testing.assert_array_equal(after.metrics["left"], expected[:, :, 0])
    np.testing.assert_array_equal(after.obs[~done], expected[~done])
    draws = np.concatenate([before.obs[0, :, 1], after.obs[done][:, 1]])
    assert len(np.unique(draws)) == len(draws) > 300  # no two episodes of the batch start alike


def test_trajectory_ids(countdown):
    before, after = countdown
    np.testing.assert_array_equal(after.info["traj_id"], before.info["traj_id"] + after.done.astype(int))
    np.testing.assert_array_equal(before.info["traj_id"][0], 0)


def test_every_reset_draws_a_new_goal(reacher):
    env = envs.wrap(reacher, 8, 3)

    def step(state, _):
        state = env.step(state, jnp.zeros((8, 2)))
        return state, state.obs[:, 10:]

    goals = np.array(jax.jit(lambda key: jax.lax.scan(step, env.reset(key), length=30)[1])(keys[0]))
    goals = goals.reshape(10, 3, 8, 3)  # (episode, step, env, xyz); a reset shows in the last step of each three
    np.testing.assert_allclose(goals[1:, 0], goals[:-1, 2], atol=1e-6)
    assert len(np.unique(goals[:, 2, :, 0])) == 80


class Fragile(Reacher):
    """Reacher whose physics breaks when its first motor is turned up."""

    def pipeline_step(self, pipeline_state, action):
        physics = super().pipeline_step(pipeline_state, action)
        return jax.tree.map(lambda x: jnp.where(action[0] > 0.5, jnp.nan, x), physics)


def test_unstable_physics_ends_its_own_episode_only():
    env, sound = envs.wrap(Fragile("mujoco"), 4, 50), envs.wrap(Reacher("mujoco"), 4, 50)
    before = jax.jit(env.reset)(keys[0])
    actions = jnp.zeros((4, 2)).at[2, 0].set(1.0)
    after, expected = jax.jit(env.step)(before, actions), jax.jit(sound.step)(before, actions)
    np.testing.assert_array_equal(after.info["unstable_resets"], [0, 0, 1, 0])
    np.testing.assert_array_equal(after.info["truncation"], [0, 0, 1, 0])
    np.testing.assert_array_equal(after.done, [0, 0, 1, 0])
    np.testing.assert_array_equal(after.info["traj_id"], [0, 0, 1, 0])
    np.testing.assert_array_equal(after.info["next_obs"][2], before.obs[2])  # the step did not take place
    assert np.isfinite(after.obs).all() and not np.array_equal(after.obs[2, -3:], before.obs[2, -3:])
    others = np.array([0, 1, 3])
    np.testing.assert_array_equal(after.obs[others], expected.obs[others])
    assert expected.info["unstable_resets"].sum() == 0


@pytest.mark.parametrize("script", ["crl_jax", "sac_her_jax", "ppo_jax"])
def test_unstable_physics_never_reaches_the_learner(script):
    module = importlib.import_module(script)
    sizes = dict(num_envs=8, unroll_length=4, num_evals=1, num_eval_envs=4, episode_length=10, width=8)
    more = dict(learning_starts=4, batch_size=8, buffer_size=32) if script != "ppo_jax" else {}
    args = module.Args(total_timesteps=256, **sizes, **more)
    init, train = module.make_train(args, env=Fragile("mujoco"))
    runner, metrics = jax.jit(lambda key: train(init(key), 1))(keys[0])
    assert metrics["charts/unstable_resets"] > 0
    for name in set(runner._fields) - {"key", "eval_key", "env_state"}:
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(getattr(runner, name))), name
    assert np.isfinite(runner.env_state.obs).all() and all(np.isfinite(x).all() for x in metrics.values())
