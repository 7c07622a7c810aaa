"""The tasks as gymnasium environments: its checkers, the goal convention, one against many."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers import Line

import envs

gymnasium = pytest.importorskip("gymnasium")
from gymnasium.utils.env_checker import check_env, data_equivalence  # noqa: E402
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics  # noqa: E402

from envs.gymnasium import TaskEnv, TaskVectorEnv  # noqa: E402
from envs.render import check_opengl  # noqa: E402

ACTION = np.array([0.3, -1.0], np.float32)


def make(env_id, **kwargs):
    return gymnasium.make(f"envs.gymnasium:gcrl/{env_id}-v0", backend="mujoco", **kwargs)


@pytest.fixture(scope="module")
def reacher():
    return make("reacher").unwrapped


@pytest.fixture(scope="module")
def dense():
    """Its reward knows distances, actions and the state besides the goal."""
    return make("pusher_easy", dense_reward=True).unwrapped


class Walk(Line):
    """Walks from -4.5 … 2.5; beyond 3 the episode ends, as it does after six steps."""

    dt = 0.1


def walk(env, action):
    """Steps of an episode with one action: [(reward, terminated, truncated, info)]."""
    steps = []
    while not steps or not (steps[-1][1] or steps[-1][2]):
        steps.append(env.step(np.full(1, action))[1:])
    return steps


# ---- what gymnasium asks ---------------------------------------------------------------------------------------------


@pytest.mark.quick
def test_envs_do_not_import_gymnasium():
    for path in Path(envs.__file__).parent.glob("*.py"):
        imports = re.search(r"^ *(import|from) .*gymnasium", path.read_text(), re.MULTILINE)
        assert bool(imports) == (path.name == "gymnasium.py"), path


def test_all_tasks_are_registered():
    for env_id in envs.ENV_IDS:
        env = make(env_id)
        task = env.unwrapped.task
        assert type(task) is envs.TASKS[env_id][0] and env.spec.max_episode_steps == task.episode_length
        shapes = {name: space.shape for name, space in env.observation_space.items()}
        goal = (len(task.goal_indices),)
        assert shapes == {"observation": (task.state_dim,), "achieved_goal": goal, "desired_goal": goal}
        assert env.action_space == gymnasium.spaces.Box(-1.0, 1.0, (task.action_size,), np.float32)


@pytest.mark.parametrize("env_id", ["reacher", "arm_reach"])
def test_checker(env_id):
    drawn = env_id == "reacher"
    try:
        check_opengl()
    except envs.UsageError:
        drawn = False
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", ".*infinity")  # states have no limits
        env = make(env_id, render_mode="rgb_array" if drawn else None)
        check_env(env.unwrapped, skip_render_check=not drawn)


# ---- goals -----------------------------------------------------------------------------------------------------------


def test_goal_convention(reacher):
    obs, info = reacher.reset(seed=0)
    steps = [reacher.step(ACTION) for _ in range(3)]
    assert info == {} and len({np.array(obs["observation"]).tobytes() for obs, *_ in steps}) == 3
    for obs, reward, terminated, truncated, info in steps:
        assert all(x.dtype == np.float32 and x.flags.writeable for x in obs.values())
        assert (obs["achieved_goal"] == obs["observation"][[4, 5, 6]]).all()
        goals = obs["achieved_goal"], obs["desired_goal"]
        assert np.isclose(info["dist"], np.linalg.norm(goals[0] - goals[1]), atol=1e-6)
        assert info["is_success"] == reward == (info["dist"] < reacher.task.goal_reach_thresh)
        assert reward == reacher.compute_reward(*goals, info)
        assert terminated is reacher.compute_terminated(*goals, info) is False
        assert truncated is reacher.compute_truncated(*goals, info) is False


def test_sparse_reward_of_any_goals(reacher):
    """As a hindsight buffer asks for it: a batch, with infos that it has not kept."""
    achieved = np.random.default_rng(0).uniform(-0.05, 0.05, (50, 3)).astype(np.float32)
    rewards = reacher.compute_reward(achieved, achieved[::-1].copy(), [{}] * 50)
    near = np.linalg.norm(achieved - achieved[::-1], axis=-1) < 0.05
    assert rewards.dtype == np.float32 and rewards.flags.writeable and (rewards == near).all() and 0 < near.sum() < 50
    assert reacher.compute_reward(achieved[0], achieved[0], {}) == 1.0
    grid = np.broadcast_to(achieved, (2, 50, 3))
    assert (reacher.compute_reward(grid, grid[:, ::-1], {}) == near).all()


def test_shaped_reward_of_any_goals(dense):
    dense.reset(seed=0)
    state = dense._state
    steps = [dense.step(2 * dense.action_space.sample()) for _ in range(3)]  # actions are clipped
    for obs, reward, _, _, info in steps:
        assert np.isclose(reward, dense.compute_reward(obs["achieved_goal"], obs["desired_goal"], info), atol=1e-5)
    goals = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 3)).astype(np.float32)
    infos = [info for *_, info in steps]
    rewards = dense.compute_reward(np.stack([obs["achieved_goal"] for obs, *_ in steps]), goals, infos)
    step = (state.obs[:20], infos[0]["action"], steps[0][0]["observation"], goals[0])
    assert np.isclose(rewards[0], dense.task.get_reward(*step), atol=1e-5)
    assert rewards.shape == (3,) and len(set(rewards)) == 3
    assert dense.compute_terminated(goals, goals, infos).tolist() == [False] * 3


@pytest.mark.parametrize("env_id", ["reacher", "pusher2", "ant_ball", "arm_push_easy"])
def test_reset_to_a_goal(env_id):
    """One that another episode has had; start and all that follows are those of the seed."""
    env = make(env_id).unwrapped
    goal = env.reset(seed=1)[0]["desired_goal"]
    drawn = env.reset(seed=2)[0]
    given = env.reset(seed=2, options={"goal": goal.tolist()})[0]
    assert np.allclose(given["desired_goal"], goal, atol=1e-6) and not np.allclose(drawn["desired_goal"], goal)
    assert np.allclose(given["observation"], drawn["observation"], atol=1e-6)
    for _ in range(3):
        obs, *_, info = env.step(env.action_space.high)
    assert np.allclose(obs["desired_goal"], goal, atol=1e-6)
    dist = env.task.goal_metrics(obs["achieved_goal"], goal)["dist"]
    assert np.isclose(info["dist"], dist, atol=1e-5)
    following = env.reset()[0]["desired_goal"]
    env.reset(seed=2)
    assert (env.reset()[0]["desired_goal"] == following).all()


def test_goals_that_no_target_can_take(reacher):
    for goal, nearest in (([0.1, 0.3, 0.01], r"0\.27"), ([0.1, 0.1, 0.2], r"0\.01")):
        with pytest.raises(envs.UsageError, match=f"does not come to the goal .* the nearest is .*{nearest}"):
            reacher.reset(options={"goal": goal})
    with pytest.raises(envs.UsageError, match="reset options goals: there is only goal"):
        reacher.reset(options={"goals": 0})
    with pytest.raises(ValueError, match="reshape"):
        reacher.reset(options={"goal": [0.1, 0.1]})


# ---- ends of episodes ------------------------------------------------------------------------------------------------


def test_termination_and_truncation():
    env = gymnasium.wrappers.TimeLimit(TaskEnv(Walk()), 6)
    lengths = set()
    for seed in range(5):
        env.reset(seed=seed)
        reward, terminated, truncated, info = walk(env, 1.0)[-1]  # to the end of the line
        assert terminated and not env.unwrapped.compute_truncated(None, None, info)
        assert env.unwrapped.compute_terminated(None, None, info)
        env.reset(seed=seed)
        steps = walk(env, 0.0)
        reward, terminated, truncated, info = steps[-1]
        assert (terminated, truncated, len(steps)) == (False, True, 6)
        lengths.add(reward)
    assert lengths == {0.0, 1.0}


def test_unstable_physics_truncates():
    class Unstable(Walk):
        def get_state(self, physics, control):
            return physics["x"] / (control != 1.0)

    env = TaskEnv(Unstable())
    start = env.reset(seed=0)[0]
    assert env.step(np.zeros(1))[2:4] == (False, False)
    obs, _, terminated, truncated, info = env.step(np.ones(1))
    assert (terminated, truncated) == (False, True) and env.compute_truncated(None, None, info)
    assert (obs["observation"] == start["observation"]).all()


# ---- many at once ----------------------------------------------------------------------------------------------------


def test_batch_is_many_singles(reacher):
    """With seeds, over the ends of episodes, to the same numbers."""
    batch = gymnasium.make_vec("envs.gymnasium:gcrl/reacher-v0", num_envs=3, max_episode_steps=4, backend="mujoco")
    assert batch.metadata["autoreset_mode"] is gymnasium.vector.AutoresetMode.SAME_STEP
    actions = np.random.default_rng(0).uniform(-1, 1, (10, 3, 2)).astype(np.float32)
    start = batch.reset(seed=5)[0]
    steps = [batch.step(action) for action in actions]
    restart = batch.reset()[0]
    assert all(obs in batch.observation_space for obs in (start, steps[0][0], steps[3][0], restart))

    def equal(obs, batch_obs, i):
        return data_equivalence(obs, {name: x[i] for name, x in batch_obs.items()})

    single = gymnasium.wrappers.TimeLimit(reacher, 4)
    for i in range(3):
        assert equal(single.reset(seed=5 + i)[0], start, i)
        for action, (batch_obs, rewards, terminations, truncations, infos) in zip(actions[:, i], steps, strict=True):
            obs, reward, terminated, truncated, info = single.step(action)
            assert (reward, terminated, truncated) == (rewards[i], terminations[i], truncations[i])
            assert infos["_dist"][i] == infos["_is_success"][i] == (not truncated)
            if truncated:
                assert infos["_final_obs"][i] and data_equivalence(infos["final_obs"][i], obs)
                infos = infos["final_info"]
                obs = single.reset()[0]
            assert infos["_dist"][i] and np.isclose(infos["dist"][i], info["dist"], atol=1e-5)
            assert equal(obs, batch_obs, i)
        assert equal(single.reset()[0], restart, i)  # a reset without a seed goes on where the last one was
    with pytest.raises(envs.UsageError, match="a batch has none"):
        batch.reset(options={"goal": np.zeros(3)})


def test_batch_counts_each_episode():
    batch = DictInfoToList(RecordEpisodeStatistics(TaskVectorEnv(Walk(), num_envs=4)))
    obs, _ = batch.reset(seed=0)
    returns, steps, ends = np.zeros(4), np.zeros(4, int), 0
    for t in range(20):
        position = obs["observation"][:, 0]
        obs, reward, terminated, truncated, infos = batch.step(np.full((4, 1), t % 3 != 2))
        returns, steps = returns + reward, steps + 1
        position = position + (t % 3 != 2)
        assert (terminated == (position > 3)).all() and (truncated == ((steps == 6) & ~terminated)).all()
        for i, info in enumerate(infos):
            done = terminated[i] or truncated[i]
            assert ("final_obs" in info) == ("final_info" in info) == ("episode" in info) == done
            if terminated[i] or truncated[i]:
                assert info["final_obs"]["observation"] == position[i]
                assert info["final_info"]["terminated"] == terminated[i]
                assert (info["episode"]["r"], info["episode"]["l"]) == (returns[i], steps[i])
                returns[i], steps[i], ends = 0, 0, ends + 1
            else:
                assert "is_success" in info and obs["observation"][i] == position[i]
    assert ends > 8


def test_seeds():
    def start(seed):
        return TaskVectorEnv(Walk(), num_envs=12).reset(seed=seed)[0]["observation"].ravel().tolist()

    assert start(2**40) == start(2**40) != start(None) != start(None)


def test_pictures(reacher):
    try:
        check_opengl()
    except envs.UsageError as error:
        pytest.skip(str(error))
    batch = TaskVectorEnv(reacher.task, num_envs=2, render_mode="rgb_array")
    batch.reset(seed=0)
    first, second = batch.render()
    assert first.shape == (360, 480, 3) and first.dtype == np.uint8 and (first != second).any()


def test_stable_baselines_trains_it():
    """The script of docs/gymnasium.md, for less time."""
    pytest.importorskip("stable_baselines3")
    page = (Path(envs.__file__).parents[1] / "docs" / "gymnasium.md").read_text()
    (script,) = re.findall(r"```python\n([^`]*HerReplayBuffer[^`]*)```", page)
    names = {}
    exec(script.replace("30_000", "1_200"), names)
    assert names["model"].num_timesteps == 1_200 and names["info"]["final_info"]["is_success"].shape == (64,)
