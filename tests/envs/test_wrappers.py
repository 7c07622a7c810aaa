"""Action chunks and batches that reset themselves, step by step against plain Python: whatever the sizes, whenever
episodes end."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.envs import State
from hypothesis import given, settings
from hypothesis import strategies as st

import envs

pytestmark = pytest.mark.quick
TIME = 14  # actions of each environment
# Environments, episode length in single steps, chunk: each is compiled once. Not all lengths are whole chunks.
SHAPES = [(1, 1, 1), (3, 4, 1), (1, 3, 2), (4, 6, 3)]
NEAR, EASY = 0.5, 1.5  # thresholds
# Actions: how far the agent moves, whether the task then ends the episode, whether physics breaks.
STAYS, AWAY, BACK, ENDS, BREAKS, BOTH = (0, 0, 0), (1, 0, 0), (-1, 0, 0), (1, 1, 0), (1, 0, 1), (0, 1, 1)


class Scripted(envs.GoalEnv):
    """A task without a model. The state is (x, steps); start and goal are random, and actions say what happens."""

    state_dim, goal_indices, goal_reach_thresh, goal_reach_easy = 2, (0,), NEAR, EASY
    dense_reward, sys = False, SimpleNamespace(act_size=lambda: 3, q_size=lambda: 2, qd_size=lambda: 2)
    action_size = 3

    def __init__(self):
        pass

    def start(self, key):
        return jax.random.uniform(key, (2,)), jnp.zeros(2)

    def pipeline_init(self, q, qd):
        return {"x": q[0], "goal": q[1:], "steps": qd[0], "ended": qd[1]}

    def pipeline_step(self, physics, control):
        move, ends, breaks = control
        physics = physics | {"x": physics["x"] + move, "steps": physics["steps"] + 1, "ended": ends}
        return jax.tree.map(lambda x: jnp.where(breaks > 0, jnp.nan, x), physics)

    def get_state(self, physics, control):
        return jnp.stack([physics["x"], physics["steps"]])

    def get_goal(self, physics):
        return physics["goal"]

    def terminated(self, physics):
        return physics["ended"] > 0


def plain_chunk(obs, actions):
    """What actions (length, 3) in a row lead to, by a loop over single steps."""
    total, near, easy = 0, 0, 0
    for move, ends, breaks in actions:
        obs = obs if breaks else obs + np.float32([move, 1, 0])  # a step that breaks does not take place
        dist = abs(obs[0] - obs[2])
        near += dist < NEAR  # of where it is, also where it stayed
        easy += dist < EASY
        total += dist < NEAR
        if ends or breaks:
            break
    share = len(actions)
    return {
        "obs": obs,
        "reward": total,
        "dist": dist,
        "success": np.float32(near / share),
        "success_easy": np.float32(easy / share),
        "done": bool(ends and not breaks),
        "unstable": bool(breaks),
    }


def test_a_fixed_goal_in_chunks():
    goal = jnp.array([0.1, 0.05, 0.01])
    env = envs.chunk(envs.wrappers.FixedGoal(envs.make("reacher", "mujoco"), goal), 3)
    obs = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 2)).obs
    assert not np.allclose(obs[0, : env.state_dim], obs[1, : env.state_dim])
    np.testing.assert_allclose(obs[:, env.state_dim :], [goal, goal], atol=1e-6)


def draw_actions(data, *shape):
    """Mostly movements; many episodes end."""
    events = st.sampled_from([STAYS, AWAY, AWAY, BACK, BACK, BACK, ENDS, BREAKS, BOTH])
    number = int(np.prod(shape))
    return np.array(data.draw(st.lists(events, min_size=number, max_size=number)), np.float32).reshape(*shape, 3)


@functools.cache
def chunk_program(length):
    env = envs.chunk(Scripted(), length)
    assert env.action_size == 3 * length and env.action_chunk == length
    return jax.jit(env.reset), jax.jit(env.step)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_chunk_is_a_loop_over_its_actions(data):
    """It ends where the task ends the episode or physics breaks; success in its middle counts as a share."""
    length = data.draw(st.integers(1, 5))
    reset, step = chunk_program(length)
    state = reset(jax.random.key(data.draw(st.integers(0, 3))))
    for actions in draw_actions(data, 3, length):
        expected = plain_chunk(np.array(state.obs), actions)
        state = step(state, actions.ravel())
        got = state.metrics | {"obs": state.obs, "reward": state.reward, "done": state.done}
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(got[name], value, err_msg=name)
        if state.done:
            break


def test_chunks_of_one_action_and_of_chunks():
    env = Scripted()
    three = envs.chunk(env, 3)
    assert envs.chunk(env, 1) is env and envs.chunk(three, 3) is three and three.unwrapped is env
    with pytest.raises(envs.UsageError, match="takes chunks of 3 actions already, not of 2"):
        envs.chunk(three, 2)


@functools.cache
def program(num_envs, episode_length, chunk):
    """Actions (time, num_envs, chunk * 3) to what is seen at the start and after each, and metrics of two halves."""
    env = envs.wrap(envs.chunk(Scripted(), chunk), num_envs, episode_length)

    def seen(state):
        names = ("steps", "truncation", "unstable_resets", "traj_id", "next_obs")
        info = {name: state.info[name] for name in names}
        return info | state.metrics | {"obs": state.obs, "done": state.done, "reward": state.reward}

    def step(state, action):
        state = env.step(state, action)
        return state, seen(state)

    def half(state, actions):
        state, after = jax.lax.scan(step, state, actions)
        metrics, state = envs.train_metrics(state)
        return state, (after, metrics)

    @jax.jit
    def run(actions):
        state = env.reset(jax.random.key(0))
        _, (after, metrics) = jax.lax.scan(half, state, actions.reshape(2, TIME // 2, num_envs, 3 * chunk))
        return seen(state), jax.tree.map(lambda x: x.reshape(TIME, *x.shape[2:]), after), metrics

    return run


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_step_of_a_batch_is_that_of_a_plain_loop(data):
    num_envs, episode_length, chunk = data.draw(st.sampled_from(SHAPES))
    actions = draw_actions(data, TIME, num_envs, chunk)
    first, after, metrics = jax.tree.map(np.array, program(num_envs, episode_length, chunk)(actions))
    draws = set()  # starts and goals, of all episodes of all environments
    ended = [[], []]  # success, length and return of the episodes that ended in each half
    breaks_by_half = np.zeros(2)
    for env in range(num_envs):
        obs, steps, episodes, breaks, total, near = first["obs"][env], 0, 0, 0, 0, False
        assert first["steps"][env] == first["traj_id"][env] == first["unstable_resets"][env] == 0
        assert obs[1] == 0
        draws |= {obs[0], obs[2]}
        for t in range(TIME):
            now = {name: x[t, env] for name, x in after.items()}
            expected = plain_chunk(obs, actions[t, env])
            steps += chunk
            total += expected["reward"]
            near |= expected["success"] > 0
            breaks += expected["unstable"]
            truncated = expected["unstable"] or (steps >= episode_length and not expected["done"])
            over = expected["done"] or truncated
            np.testing.assert_array_equal(now["next_obs"], expected["obs"])
            assert (now["done"], now["truncation"]) == (over, truncated)
            for name in ("reward", "dist", "success", "success_easy", "unstable"):  # of the action just taken
                assert now[name] == expected[name], name
            obs = now["obs"]
            if over:
                ended[2 * t // TIME].append((near, steps, total))
                steps, episodes, total, near = 0, episodes + 1, 0, False
                assert obs[1] == 0 and np.isfinite(obs).all()
                draws |= {obs[0], obs[2]}
            else:
                np.testing.assert_array_equal(obs, expected["obs"])
            assert (now["steps"], now["traj_id"], now["unstable_resets"]) == (steps, episodes, breaks)
            breaks_by_half[2 * t // TIME :] += expected["unstable"]
    num_episodes = num_envs + after["traj_id"][-1].sum()
    assert len(draws) == 2 * num_episodes  # all fresh
    for half, results in enumerate(ended):
        means = np.mean(results, axis=0) if results else np.zeros(3)
        assert metrics["train/episodes"][half] == len(results)
        for name, mean in zip(("success_rate", "episode_length", "episode_return"), means, strict=True):
            np.testing.assert_allclose(metrics[f"train/{name}"][half], mean, rtol=1e-6, err_msg=name)
    np.testing.assert_array_equal(metrics["train/unstable_resets"], breaks_by_half)


def test_physics_that_breaks_in_the_first_step_after_a_reset_truncates():
    _, after, _ = program(3, 4, 1)(np.tile(np.float32(BREAKS), (TIME, 3, 1)))
    np.testing.assert_array_equal(after["done"], 1)
    np.testing.assert_array_equal(after["truncation"], 1)


@pytest.mark.parametrize("num_ended", [0, 1, 3])
def test_training_s_means_are_over_the_episodes_that_ended(num_ended):
    """Here all of the same success, length and return."""
    one = {"episodes": 1.0, "success_rate": 1.0, "episode_length": 7.0, "episode_return": -2.0}
    ended = {name: jnp.array([0.0, num_ended * x]) for name, x in one.items()}
    info = {"ended": ended, "unstable_resets": jnp.array([4, 1])}
    metrics, state = envs.train_metrics(State(None, None, None, None, {}, info))
    means = {f"train/{name}": x if num_ended else 0 for name, x in one.items()}
    assert metrics == means | {"train/episodes": num_ended, "train/unstable_resets": 5}
    assert not any(x.any() for x in jax.tree.leaves(state.info["ended"]))


def test_goals_that_are_pursued_go_round():
    goals, steps = jnp.array([[0.0], [1], [2], [3]]), jnp.array([4, 5, 9, 10])
    np.testing.assert_array_equal(envs.pursued_goals(goals, steps, 5)[:, 0], [0, 2, 3, 1])
    assert envs.pursued_goals(goals, steps, 0) is goals


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("chunk", [1, 3])
def test_noise_is_standard_normal_and_as_correlated_as_is_said(correlation, chunk):
    """From single step to single step, also from the last of a chunk to the first of the next."""
    env = SimpleNamespace(num_envs=40_000, action_chunk=chunk, action_size=2 * chunk)
    noise = envs.action_noise(env, jax.random.key(0), 12 // chunk, correlation)
    assert noise.shape == (12 // chunk, 40_000, 2 * chunk)
    single = np.float64(noise).reshape(12 // chunk, 40_000, chunk, 2).swapaxes(1, 2).reshape(12, 40_000, 2)
    np.testing.assert_allclose(single.mean(1), 0, atol=0.025)
    expected = correlation ** np.abs(np.subtract.outer(np.arange(12), np.arange(12)))
    for i in range(2):
        np.testing.assert_allclose(np.cov(single[:, :, i]), expected, atol=0.035)
    np.testing.assert_allclose((single[:, :, 0] * single[:, :, 1]).mean(), 0, atol=0.01)  # each of its own
