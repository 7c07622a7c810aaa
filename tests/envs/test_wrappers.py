"""A batch that resets itself, step by step against plain Python: whatever the sizes, whenever episodes end."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import envs

TIME = 14
SHAPES = [(1, 1), (1, 4), (3, 2), (4, 6)]  # environments, episode length: each is compiled once
NOTHING, ENDS, BREAKS, BOTH = (0, 0), (1, 0), (0, 1), (1, 1)  # actions: the task ends the episode, physics breaks


class Scripted(envs.GoalEnv):
    """A task without a model. The state is (start, steps), start and goal are random, and actions say what happens."""

    state_dim, goal_indices, goal_reach_thresh = 2, (0,), 0.5
    dense_reward, sys = False, SimpleNamespace(act_size=lambda: 2, q_size=lambda: 2, qd_size=lambda: 2)

    def __init__(self):
        pass

    def start(self, key):
        return jax.random.uniform(key, (2,)), jnp.zeros(2)

    def pipeline_init(self, q, qd):
        return {"place": q, "steps": qd[0], "ended": qd[1]}

    def pipeline_step(self, physics, control):
        physics = {"place": physics["place"], "steps": physics["steps"] + 1, "ended": control[0]}
        return jax.tree.map(lambda x: jnp.where(control[1] > 0, jnp.nan, x), physics)

    def get_state(self, physics, control):
        return jnp.stack([physics["place"][0], physics["steps"]])

    def get_goal(self, physics):
        return physics["place"][1:]

    def terminated(self, physics):
        return physics["ended"] > 0


@functools.cache
def program(num_envs, episode_length):
    """Actions (time, num_envs, 2) to what is seen at the start and after each step."""
    env = envs.wrap(Scripted(), num_envs, episode_length)

    def seen(state):
        names = ("steps", "truncation", "unstable_resets", "traj_id", "next_obs")
        info = {name: state.info[name] for name in names}
        return info | {"obs": state.obs, "done": state.done, "reward": state.reward}

    def step(state, action):
        state = env.step(state, action)
        return state, seen(state)

    @jax.jit
    def run(actions):
        state = env.reset(jax.random.key(0))
        return seen(state), jax.lax.scan(step, state, actions)[1]

    return run


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_step_is_that_of_a_plain_loop(data):
    num_envs, episode_length = data.draw(st.sampled_from(SHAPES))
    events = st.sampled_from([NOTHING] * 5 + [ENDS, BREAKS, BOTH])
    events = data.draw(st.lists(events, min_size=TIME * num_envs, max_size=TIME * num_envs))
    actions = np.array(events, np.float32).reshape(TIME, num_envs, 2)
    first, after = jax.tree.map(np.array, program(num_envs, episode_length)(actions))
    draws = set()  # starts and goals, of all episodes of all environments
    for env in range(num_envs):
        obs, steps, episodes, breaks = first["obs"][env], 0, 0, 0
        assert first["steps"][env] == first["traj_id"][env] == first["unstable_resets"][env] == 0
        assert obs[1] == 0
        draws |= {obs[0], obs[2]}
        for t in range(TIME):
            now = {name: x[t, env] for name, x in after.items()}
            ends, broke = actions[t, env] > 0
            steps += 1
            terminated = ends and not broke  # a step that breaks does not take place
            truncated = broke or (steps == episode_length and not terminated)
            breaks += broke
            expected = obs if broke else obs + np.float32([0, 1, 0])
            np.testing.assert_array_equal(now["next_obs"], expected)
            assert (now["done"], now["truncation"]) == (terminated or truncated, truncated)
            assert now["reward"] == (abs(expected[0] - expected[2]) < 0.5)  # of where it is, also where it stayed
            obs = now["obs"]
            if terminated or truncated:
                steps, episodes = 0, episodes + 1
                assert obs[1] == 0 and np.isfinite(obs).all()
                draws |= {obs[0], obs[2]}
            else:
                np.testing.assert_array_equal(obs, expected)
            assert (now["steps"], now["traj_id"], now["unstable_resets"]) == (steps, episodes, breaks)
    num_episodes = num_envs + after["traj_id"][-1].sum()
    assert len(draws) == 2 * num_episodes  # all fresh


def test_physics_that_breaks_in_the_first_step_after_a_reset_truncates():
    _, after = program(1, 4)(np.tile(np.float32(BREAKS), (TIME, 1, 1)))
    np.testing.assert_array_equal(after["done"], 1)
    np.testing.assert_array_equal(after["truncation"], 1)
