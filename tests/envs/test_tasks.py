"""Every task against the facts of the benchmark: sizes, starts, goals, thresholds, contacts."""

import copy
import functools

import brax.contact
import brax.kinematics
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from brax.envs.wrappers import training

import envs
import envs.maze
from envs import registry, wrappers

NUM_STARTS = 512
NUM_STEPS, NUM_ENVS = 500, 4  # of random actions
ANT_QPOS = np.array([0, 0, 0.55, 1, 0, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1])
MAZES = ("u_maze", "big_maze", "hardest_maze", "u_maze_eval", "big_maze_eval")
# id: state, goal indices, threshold, actions, benchmark's pipeline, its timestep × substeps, episode length
FACTS = {
    "reacher": (10, (4, 5, 6), 0.05, 2, "generalized", (0.01, 2), 1000),
    "cheetah": (18, (0,), 0.5, 6, "mjx", (0.01, 5), 1000),
    "pusher_easy": (20, (10, 11, 12), 0.1, 7, "generalized", (0.01, 5), 1000),
    "pusher_hard": (20, (10, 11, 12), 0.1, 7, "generalized", (0.01, 5), 1000),
    "pusher_reacher": (17, (14, 15, 16), 0.1, 7, "generalized", (0.01, 5), 1000),
    "pusher2": (23, (10, 11, 12, 13, 14, 15), 0.1, 7, "generalized", (0.01, 5), 1000),
    "ant": (29, (0, 1), 0.5, 8, "spring", (0.005, 10), 1000),
    "ant_random_start": (29, (0, 1), 0.5, 8, "spring", (0.005, 10), 1000),
    **{f"ant_{maze}": (29, (0, 1), 0.5, 8, "spring", (0.005, 10), 1000) for maze in MAZES},
    "ant_ball": (31, (29, 30), 0.5, 8, "spring", (0.005, 10), 1000),
    "ant_ball_u_maze": (31, (29, 30), 0.5, 8, "spring", (0.005, 10), 1000),
    "ant_ball_big_maze": (31, (29, 30), 0.5, 8, "spring", (0.005, 10), 1000),
    "ant_push": (31, (0, 1), 0.5, 8, "mjx", (0.01, 5), 1000),
    "humanoid": (268, (0, 1, 2), 0.5, 17, "spring", (0.0015, 10), 1000),
    **{f"humanoid_{maze}": (268, (0, 1, 2), 0.5, 17, "spring", (0.0015, 10), 1000) for maze in MAZES},
    **{f"simple_{maze}": (4, (0, 1), 0.5, 2, "spring", (0.005, 10), 1000) for maze in MAZES},
    "arm_reach": (13, (7, 8, 9), 0.1, 4, "mjx", (0.002, 25), 100),
    "arm_grasp": (24, (16, 17, 18, 19, 20, 21, 22), 0.05, 5, "mjx", (0.002, 25), 100),
    "arm_push_easy": (18, (0, 1, 2), 0.1, 5, "mjx", (0.002, 25), 150),
    "arm_push_hard": (18, (0, 1, 2), 0.1, 5, "mjx", (0.002, 25), 150),
    "arm_binpick_easy": (18, (0, 1, 2), 0.1, 5, "mjx", (0.002, 25), 150),
    "arm_binpick_hard": (18, (0, 1, 2), 0.1, 5, "mjx", (0.002, 25), 150),
    "arm_binpick_easy_eef": (11, (0, 1, 2), 0.1, 4, "mjx", (0.002, 25), 150),
}
LAYOUTS = {
    "u_maze": ["#####", "#rgg#", "###g#", "#ggg#", "#####"],
    "u_maze_eval": ["#####", "#r..#", "###.#", "#ggg#", "#####"],
    "big_maze": ["########", "#rg##gg#", "#gg#ggg#", "##ggg###", "#gg#ggg#", "#g#gg#g#", "#ggg#gg#", "########"],
    "big_maze_eval": ["########", "#r.##gg#", "#..#.gg#", "##...###", "#..#...#", "#.#g.#g#", "#.gg#gg#", "########"],
    "hardest_maze": ["############", "#rggg#ggggg#", "#g##g#g#g#g#", "#gggggg#ggg#", "#g####g###g#",
                     "#gg#g#ggggg#", "##g#g#g#g###", "#gg#ggg#ggg#", "############"],
    "ball_u_maze": ["#####", "#rgb#", "###g#", "#ggg#", "#####"],
    "ball_big_maze": ["########", "#r.##gg#", "#..#ggg#", "##bgb###", "#gg#ggg#", "#g#gg#g#", "#ggg#gg#", "########"],
}  # fmt: skip


@functools.cache
def native(env_id):
    return envs.make(env_id, backend="mujoco")


@functools.cache
def starts(env_id):
    """Fresh episodes, as numpy arrays with leading axis NUM_STARTS."""
    keys = jax.random.split(jax.random.key(0), NUM_STARTS)
    return jax.tree.map(np.array, jax.jit(jax.vmap(native(env_id).reset))(keys))


@functools.cache
def random_steps(env_id):
    """Transitions of random actions, as numpy arrays (NUM_STEPS, NUM_ENVS, ...); what ends starts anew."""
    env = native(env_id)
    fresh = jax.tree.map(lambda x: x.reshape(-1, NUM_ENVS, *x.shape[1:]), starts(env_id))

    def step(state, inputs):
        key, number = inputs
        action = jax.random.uniform(key, (NUM_ENVS, env.action_size), minval=-1, maxval=1)
        after = jax.vmap(env.step)(state, action)
        seen = {
            "obs": state.obs, "action": action, "next_obs": after.obs, "reward": after.reward, "done": after.done,
            "metrics": state.metrics, "next_metrics": after.metrics, "pos": after.pipeline_state.x.pos,
        }  # fmt: skip
        start = jax.tree.map(lambda x: jnp.asarray(x)[number], fresh)
        over = (after.done > 0) | (after.metrics["unstable"] > 0)
        return wrappers.where_done(over, start, after), seen

    first = jax.tree.map(lambda x: x[0], fresh)
    keys = jax.random.split(jax.random.key(1), NUM_STEPS)
    numbers = np.arange(NUM_STEPS) % (NUM_STARTS // NUM_ENVS)
    return jax.tree.map(np.array, jax.jit(lambda: jax.lax.scan(step, first, (keys, numbers))[1])())


@functools.cache
def stepper(env_id):
    return jax.jit(native(env_id).step)


def assert_uniform(x, low, high):
    x = np.asarray(x, np.float64)
    assert low - 1e-5 <= x.min() and x.max() <= high + 1e-5
    assert scipy.stats.kstest(x, "uniform", (low, high - low)).pvalue > 1e-4


def assert_cells(xy, layout, mark, side):
    """Every place is the centre of a cell of this kind, and all such cells occur about equally often."""
    cells = {(side * i, side * j) for i, row in enumerate(layout) for j, c in enumerate(row) if c == mark}
    found, counts = np.unique(np.round(xy, 4), axis=0, return_counts=True)
    assert {tuple(cell) for cell in found.tolist()} == cells
    assert len(cells) == 1 or scipy.stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.quick
def test_all_ids_and_their_default_pipelines(monkeypatch):
    """The benchmark's on an accelerator; on a CPU native MuJoCo, but springs for ants where they have them."""
    assert set(envs.ENV_IDS) == FACTS.keys()
    monkeypatch.setattr(
        envs.GoalEnv, "__init__", lambda self, backend, dense_reward=False: vars(self).update(b=backend)
    )
    for env_id, (*_, benchmark, _, _) in FACTS.items():
        assert registry.make(env_id).b == ("spring" if env_id.startswith("ant") and env_id != "ant_push" else "mujoco")
        with monkeypatch.context() as patch:
            patch.setattr(jax, "default_backend", lambda: "gpu")
            assert registry.make(env_id).b == ("mujoco" if benchmark == "generalized" else benchmark)


@pytest.mark.parametrize("env_id", FACTS)
def test_facts(env_id):
    state_dim, goal_indices, thresh, action_size, backend, (timestep, n_frames), length = FACTS[env_id]
    env, state = native(env_id), starts(env_id)
    assert (env.state_dim, env.goal_indices, env.goal_reach_thresh) == (state_dim, goal_indices, thresh)
    assert (env.action_size, env.benchmark_backend, env.episode_length) == (action_size, backend, length)
    assert state.obs.shape == (NUM_STARTS, state_dim + len(goal_indices))
    assert np.isfinite(state.obs).all() and (state.done == 0).all()
    spec, frames = env.build(backend)
    assert (spec.option.timestep, frames) == (timestep, n_frames)
    others = {
        "success_easy": any(name in env_id for name in ("ant", "cheetah", "humanoid", "maze", "arm", "pusher2")),
        "success_hard": "arm" in env_id or env_id in ("pusher_easy", "pusher_hard", "pusher_reacher"),
    }
    assert state.metrics.keys() == {"dist", "success", "unstable"} | {name for name, there in others.items() if there}


@pytest.mark.parametrize("env_id", [env_id for env_id in FACTS if "grasp" not in env_id and env_id != "pusher2"])
def test_dist_and_success_are_those_of_the_observation(env_id):
    env, state = native(env_id), starts(env_id)
    achieved, goal = state.obs[:, list(env.goal_indices)], state.obs[:, env.state_dim :]
    dist = np.linalg.norm(achieved - goal, axis=1)
    np.testing.assert_allclose(state.metrics["dist"], dist, rtol=1e-5, atol=1e-6)
    easy = 0.3 if "arm" in env_id else 2.0
    hard = 0.03 if "arm" in env_id else 0.05
    limits = {"success": env.goal_reach_thresh, "success_easy": easy, "success_hard": hard}
    for name in state.metrics.keys() - {"dist", "unstable"}:
        np.testing.assert_array_equal(state.metrics[name], state.metrics["dist"] < limits[name])


@pytest.mark.parametrize("env_id", FACTS)
def test_random_steps(env_id):
    """Nothing blows up, and nobody is inside a wall, below the floor or over the fence."""
    seen = random_steps(env_id)
    obs, done = seen["next_obs"].reshape(-1, native(env_id).observation_size), seen["done"].ravel() == 1
    assert np.isfinite(obs).all() and (seen["next_metrics"]["unstable"] == 0).all()
    if env_id.startswith("ant"):
        np.testing.assert_array_equal((obs[:, 2] < 0.2) | (obs[:, 2] > 1.0), done)
        assert obs[:, 2].min() > -0.1
    elif env_id.startswith("humanoid"):
        np.testing.assert_array_equal((obs[:, 2] < 1) | (obs[:, 2] > 2), done)
        assert obs[:, 2].min() > 0.7
    else:
        assert not done.any()
    if env_id == "cheetah":
        assert obs[:, 1].min() > -0.7
    if env_id.startswith("arm") and env_id != "arm_reach":
        assert obs[:, 2].min() > 0
    if env_id == "arm_binpick_easy_eef":
        assert np.abs(obs[:, 0]).max() < 0.4 and obs[:, 1].min() > 0.35 and obs[:, 1].max() < 0.85
    if "maze" in env_id:
        robot, _, name = env_id.partition("_")
        layout, side = np.array([list(row) for row in LAYOUTS[name]]), 2.0 if robot == "humanoid" else 4.0
        places = [obs[:, :2], obs[:, 29:31]] if "ball" in env_id else [obs[:, :2]]
        for place in places:
            i, j = np.round(place / side).astype(int).T
            assert (layout[i, j] != "#").all()


@pytest.mark.parametrize("env_id", FACTS)
def test_rewards(env_id):
    """Of random steps. Sparse: success of the state after the step. Dense: as the benchmark has it."""
    seen, env = random_steps(env_id), native(env_id)
    np.testing.assert_array_equal(seen["reward"], seen["next_metrics"]["success"])
    dense = copy.copy(env)
    dense.dense_reward = True
    state, next_state = seen["obs"][..., : env.state_dim], seen["next_obs"][..., : env.state_dim]
    goal = seen["next_obs"][..., env.state_dim :]
    got = jax.jit(jax.vmap(jax.vmap(dense.get_reward)))(state, seen["action"], next_state, goal)
    before, dist = seen["metrics"]["dist"], seen["next_metrics"]["dist"]
    effort, pos = np.sum(seen["action"] ** 2, axis=-1), seen["pos"]
    if "ant" in env_id:
        expected = 10 * (before - dist) / float(env.dt) + 1 - 0.5 * effort
    elif "humanoid" in env_id:
        expected = -dist + 5 - 0.1 * 0.4**2 * effort
    elif "simple" in env_id:
        expected = -dist + 1 - 0.5 * effort
    elif env_id == "cheetah":
        expected = -dist - 0.1 * effort
    elif env_id in ("pusher_easy", "pusher_hard", "pusher2"):
        tip = pos[..., env.link("r_wrist_flex_link"), :]
        numbers = ("", "2") if env_id == "pusher2" else ("",)
        things = [pos[..., env.link(f"object{n}"), :] for n in numbers]
        goals = [pos[..., env.link(f"goal{n}"), :] for n in numbers]
        expected = -sum(np.linalg.norm(a - b, axis=-1) for a, b in zip(things, goals, strict=True)) - 0.1 * effort
        expected -= 0.5 * np.mean([np.linalg.norm(thing - tip, axis=-1) for thing in things], axis=0)
    else:
        expected = -dist
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=2e-3)


def test_pusher2_counts_its_objects():
    env = native("pusher2")
    goal = jnp.arange(6.0)
    for moved, easy, success, dist in (([0, 0], 2, 1, 0.0), ([0.2, 0], 1, 0, 0.2), ([0.3, 0.2], 0, 0, 0.3)):
        offset = jnp.array([moved[0], 0, 0, 0, moved[1], 0])
        metrics = env.goal_metrics(goal + offset, goal)
        assert (metrics["success_easy"], metrics["success"]) == (easy, success)
        assert metrics["dist"] == pytest.approx(dist, abs=1e-6)


def test_grasp_wants_fingertips_at_the_cube_and_closed():
    env = native("arm_grasp")
    goal = jnp.array([0.0375, 0.6, 0.03, -0.0375, 0.6, 0.03, 0.075])
    cases = (  # midpoint's offset, finger distance's: easy, success, hard
        (0.0, 0.0, (1, 1, 1)),
        (0.03, 0.0, (1, 1, 0)),
        (0.0, 0.01, (1, 1, 0)),
        (0.06, 0.0, (1, 0, 0)),
        (0.0, 0.03, (1, 0, 0)),
        (0.16, 0.0, (0, 0, 0)),
        (0.0, 0.06, (0, 0, 0)),
    )
    for aside, wider, expected in cases:
        achieved = goal + jnp.array([0, aside, 0, 0, aside, 0, wider])
        metrics = env.goal_metrics(achieved, goal)
        assert tuple(metrics[name] for name in ("success_easy", "success", "success_hard")) == expected
        assert metrics["dist"] == pytest.approx(aside, abs=1e-6)


def test_grasp_goal_moves_with_the_cube():
    obs = starts("arm_grasp").obs
    cube, goal, aside = obs[:, :3], obs[:, 24:], np.array([0.0375, 0, 0])
    expected = np.concatenate([cube + aside, cube - aside, np.full((len(cube), 1), 0.075)], axis=1)
    np.testing.assert_allclose(goal, expected, atol=1e-6)
    assert_uniform(cube[:, 0], -0.3, 0.3)
    assert_uniform(cube[:, 1], 0.3, 0.9)


# ---- starts and goals ------------------------------------------------------------------------------------------------


def test_cheetah_starts():
    physics = starts("cheetah").pipeline_state
    for i in range(9):
        assert_uniform(physics.q[:, i], -0.1, 0.1)
        assert scipy.stats.kstest(physics.qd[:, i] / 0.1, "norm").pvalue > 1e-4
    assert (physics.q[:, 9] == 5).all() and (physics.qd[:, 9] == 0).all()
    mass = native("cheetah").sys.mj_model.body_mass
    assert mass[1:-1].sum() == pytest.approx(14) and mass[-1] == 1


@pytest.mark.parametrize("env_id", ["pusher_easy", "pusher_hard", "pusher_reacher"])
def test_pusher_starts(env_id):
    physics = starts(env_id).pipeline_state
    np.testing.assert_array_equal(physics.q[:, :7], 0)
    assert_uniform(physics.qd[:, 0], -0.005, 0.005)
    thing, goal = physics.q[:, 7:9], physics.q[:, 9:11]
    regions = {
        "pusher_easy": ((-0.55, -0.25), (-0.2, 0.2)),
        "pusher_hard": ((-0.65, 0.35), (-0.55, 0.45)),
        "pusher_reacher": ((-0.3, 0), (-0.2, 0.2)),
    }[env_id]
    for i, region in enumerate(regions):
        assert_uniform(goal[:, i], *region)
    world = np.stack([0.45 + goal[:, 1], -0.05 + goal[:, 0], np.full(len(goal), -0.323)], axis=1)
    np.testing.assert_allclose(starts(env_id).obs[:, -3:], world, atol=1e-5)
    if env_id == "pusher_reacher":
        np.testing.assert_array_equal(thing, 1)
        return
    world = np.stack([0.45 + thing[:, 1], -0.05 + thing[:, 0], np.full(len(goal), -0.275)], axis=1)
    np.testing.assert_allclose(starts(env_id).obs[:, 10:13], world, atol=1e-5)
    assert starts(env_id).metrics["dist"].min() >= 0.048 - 1e-5
    unscaled = (thing[:, 0] > -0.3) & (thing[:, 0] < 0) & (np.abs(thing[:, 1]) < 0.2)
    assert unscaled.mean() > 0.9


def test_pusher2_starts():
    state = starts("pusher2")
    q = state.pipeline_state.q[:, 7:]
    regions = {2: (-0.7, 0.3), 3: (-0.15, 0.375), 6: (-0.7, 0.3), 7: (0.375, 0.9)}
    for i, region in regions.items():
        assert_uniform(q[:, i], *region)
    assert abs(np.corrcoef(q[:, 2], q[:, 6])[0, 1]) < 0.2  # the goals are drawn independently
    for first, region in ((0, (0.25, 0.45)), (4, (0.45, 0.65))):
        near = np.mean((q[:, first] >= -0.35) & (q[:, first] <= -0.05) & (q[:, first + 1] >= region[0]))
        assert near > 0.9
    zeros = np.zeros(len(q))
    world = [np.stack([q[:, i + 1], q[:, i], zeros + z], axis=1) for i, z in ((0, -0.275), (4, -0.275))]
    np.testing.assert_allclose(state.obs[:, 10:16], np.concatenate(world, axis=1), atol=1e-5)
    world = [np.stack([q[:, i + 1], q[:, i], zeros - 0.323], axis=1) for i in (2, 6)]
    np.testing.assert_allclose(state.obs[:, 23:], np.concatenate(world, axis=1), atol=1e-5)


def test_pusher_scales_objects_near_their_goals():
    from envs.pusher import _scale_near

    near = _scale_near(jnp.array([0.1, 0.0]), jnp.array([0.1, 0.085]))
    np.testing.assert_allclose(near, [0.2, 0.0], atol=1e-6)
    far = _scale_near(jnp.array([0.1, 0.0]), jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(far, [0.1, 0.0])


@pytest.mark.parametrize("env_id", [env_id for env_id in FACTS if env_id.startswith("ant")])
def test_ant_starts(env_id):
    physics = starts(env_id).pipeline_state
    pose = ANT_QPOS.copy()
    pose[2] = 0.75 if env_id == "ant_push" else 0.55
    noisy = range(2, 15) if "maze" in env_id or env_id == "ant_random_start" else range(15)
    for i in noisy:
        assert_uniform(physics.q[:, i] - pose[i], -0.1, 0.1)
    for i in range(14):
        assert scipy.stats.kstest(physics.qd[:, i] / 0.1, "norm").pvalue > 1e-4
    np.testing.assert_array_equal(physics.qd[:, 14:], 0)
    state = starts(env_id).obs
    np.testing.assert_array_equal(state[:, :29], np.concatenate([physics.q[:, :15], physics.qd[:, :14]], axis=1))
    goal = state[:, -2:]
    if env_id in ("ant", "ant_random_start", "ant_ball"):
        np.testing.assert_allclose(np.linalg.norm(goal, axis=1), 5 if env_id == "ant_ball" else 10, rtol=1e-5)
        assert_uniform(np.arctan2(goal[:, 1], goal[:, 0]), -np.pi, np.pi)
    if env_id == "ant_random_start":
        offset = physics.q[:, :2] - goal
        np.testing.assert_allclose(np.linalg.norm(offset, axis=1), 10, rtol=1e-5)
        assert_uniform(np.arctan2(offset[:, 1], offset[:, 0]), -np.pi, np.pi)
    if env_id == "ant_ball":
        offset = state[:, 29:31] - 0.2 * goal
        np.testing.assert_allclose(np.linalg.norm(offset, axis=1), 1, rtol=1e-5)
        assert_uniform(np.arctan2(offset[:, 1], offset[:, 0]), -np.pi, np.pi)
    if env_id == "ant_push":
        for i in range(2):
            assert_uniform(state[:, 29 + i], 7.9, 8.1)
            low = goal[:, i] < 12
            assert 0.4 < low.mean() < 0.6
            assert_uniform(goal[low, i], 8, 10)
            assert_uniform(goal[~low, i], 16, 18)
        assert ((goal[:, 0] < 12) != (goal[:, 1] < 12)).all()


@pytest.mark.parametrize("env_id", [env_id for env_id in FACTS if "maze" in env_id])
def test_maze_starts(env_id):
    robot, _, name = env_id.partition("_")
    layout, side = LAYOUTS[name], 2.0 if robot == "humanoid" else 4.0
    state = starts(env_id)
    assert_cells(state.pipeline_state.q[:, :2], layout, "r", side)
    goal = state.obs[:, native(env_id).state_dim :]
    assert_cells(goal[:, :2], layout, "g", side)
    if "ball" in env_id:
        assert_cells(state.obs[:, 29:31], layout, "b", side)
        if name == "ball_big_maze":
            assert abs(np.corrcoef(goal[:, 0], state.obs[:, 30])[0, 1]) < 0.2  # drawn independently
    model = native(env_id).sys.mj_model
    walls = np.flatnonzero((model.geom_type == mujoco.mjtGeom.mjGEOM_BOX) & (model.geom_bodyid == 0))
    cells = {(side * i, side * j) for i, row in enumerate(layout) for j, c in enumerate(row) if c == "#"}
    assert {tuple(xy) for xy in model.geom_pos[walls, :2].tolist()} == cells
    np.testing.assert_array_equal(model.geom_size[walls], [[side / 2, side / 2, side / 4]] * len(cells))


def test_humanoid_starts():
    state = starts("humanoid")
    q = np.array(native("humanoid").sys.init_q)
    assert q[2] == np.float32(1.4)
    np.testing.assert_array_equal(state.pipeline_state.q[:, :24], np.tile(q[:24], (NUM_STARTS, 1)))
    np.testing.assert_array_equal(state.pipeline_state.qd, 0)
    goal = state.obs[:, 268:]
    assert_uniform(np.linalg.norm(goal[:, :2], axis=1), 1, 5)
    assert_uniform(np.arctan2(goal[:, 1], goal[:, 0]), -np.pi, np.pi)
    np.testing.assert_array_equal(goal[:, 2], 1.25)


def test_humanoid_state():
    """Inertias, velocities and torques of a moving humanoid against MuJoCo's own."""
    env = native("humanoid")
    state = jax.tree.map(lambda x: x[0], starts("humanoid"))
    action = np.linspace(-1, 1, 17, dtype=np.float32)
    for _ in range(5):
        state = stepper("humanoid")(state, action)
    q, qd, inertia, velocity, torques = np.split(state.obs[:268], [26, 51, 171, 243])
    np.testing.assert_array_equal(q, state.pipeline_state.q)
    np.testing.assert_array_equal(qd, state.pipeline_state.qd)
    model = env.sys.mj_model
    gear = np.zeros(25)
    for i in range(17):
        gear[model.jnt_dofadr[model.actuator_trnid[i, 0]]] = model.actuator_gear[i, 0] * 0.4 * action[i]
    np.testing.assert_allclose(torques, gear, rtol=1e-5)
    inertia, velocity = inertia.reshape(12, 10), velocity.reshape(12, 6)
    np.testing.assert_allclose(inertia[:, 9], model.body_mass[1:], rtol=1e-5)
    pos, rot = np.array(state.pipeline_state.x.pos), np.array(state.pipeline_state.x.rot)
    vel, ang = np.array(state.pipeline_state.xd.vel), np.array(state.pipeline_state.xd.ang)
    mass = model.body_mass[1:]

    def matrix(quat):
        result = np.zeros(9)
        mujoco.mju_quat2Mat(result, quat.astype(np.float64))
        return result.reshape(3, 3)

    offset = np.stack([matrix(rot[i]) @ model.body_ipos[i + 1] for i in range(12)])
    centre = np.average(pos + offset, axis=0, weights=mass)
    for i in range(12):
        turn = matrix(rot[i]) @ matrix(model.body_iquat[i + 1])
        d = pos[i] + offset[i] - centre
        about_centre = turn @ np.diag(model.body_inertia[i + 1]) @ turn.T
        about_centre += mass[i] * (d @ d * np.eye(3) - np.outer(d, d))
        np.testing.assert_allclose(inertia[i, :9].reshape(3, 3), about_centre, rtol=1e-3, atol=2e-3)
        np.testing.assert_allclose(velocity[i, 3:], ang[i], atol=1e-5)
        linear = (vel[i] + np.cross(ang[i], offset[i])) * mass[i] / mass.sum()
        np.testing.assert_allclose(velocity[i, :3], linear, atol=1e-4)


@pytest.mark.parametrize(
    ("env_id", "cube", "cube_noise", "goal", "goal_noise"),
    [
        ("arm_reach", None, None, (0, 0.5, 0.3), (0.2, 0.2, 0.2)),
        ("arm_push_easy", (-0.1, 0.6), 0.1, (0.1, 0.6, 0.03), (0.1, 0.1, 0)),
        ("arm_push_hard", (-0.25, 0.65), 0.25, (0.25, 0.65, 0.03), (0.25, 0.25, 0)),
        ("arm_binpick_easy", (-0.15, 0.6), 0.07, (0.17, 0.6, 0.03), (0.005, 0.005, 0)),
        ("arm_binpick_hard", (-0.3, 0.6), 0.15, (0.3, 0.6, 0.03), (0.15, 0.15, 0)),
        ("arm_binpick_easy_eef", (-0.15, 0.6), 0.07, (0.17, 0.6, 0.03), (0.005, 0.005, 0)),
    ],
)
def test_arm_starts(env_id, cube, cube_noise, goal, goal_noise):
    state = starts(env_id)
    goals = state.obs[:, native(env_id).state_dim :]
    for i in range(3):
        if goal_noise[i]:
            assert_uniform(goals[:, i], goal[i] - goal_noise[i], goal[i] + goal_noise[i])
        else:
            np.testing.assert_allclose(goals[:, i], goal[i], rtol=1e-6)
    if cube is not None:
        for i in range(2):
            assert_uniform(state.obs[:, i], cube[i] - cube_noise, cube[i] + cube_noise)
        np.testing.assert_allclose(state.obs[:, 2], 0.07, rtol=1e-6)
    np.testing.assert_array_equal(state.pipeline_state.qd, 0)
    pose = (0, 0.6, 0.2) if env_id.endswith("eef") else (1.571, 0.742, 0, -1.571, 0, 3.054, 1.449)
    pose = pose if env_id == "arm_reach" else (*pose, 0.04, 0.04)
    np.testing.assert_allclose(state.pipeline_state.q[:, -len(pose) :], np.tile(pose, (NUM_STARTS, 1)), rtol=1e-6)


# ---- contacts and motion ---------------------------------------------------------------------------------------------


def with_physics(env, state, q=None, qd=None):
    """The state with some joint positions and velocities, given as dicts of index to value, changed."""
    physics = state.pipeline_state
    new_q, new_qd = np.array(physics.q), np.array(physics.qd)
    for changes, x in ((q, new_q), (qd, new_qd)):
        for i, value in (changes or {}).items():
            x[i] = value
    return state.replace(pipeline_state=jax.jit(env.pipeline_init)(new_q, new_qd))


def first_start(env_id):
    return jax.tree.map(lambda x: x[0], starts(env_id))


@pytest.mark.parametrize(
    ("env_id", "speed", "touch"),  # an ant touches the wall with its legs
    [("simple_u_maze", 5.0, 1.7), ("ant_u_maze", 8.0, 0.8)],
)
@pytest.mark.parametrize(("axis", "sign"), [(0, -1), (0, 1), (1, -1)])
def test_walls_stop_the_agent(env_id, speed, touch, axis, sign):
    """From the start of the u maze, where three sides are walls: thrown at them, then pushed by random actions."""
    env = native(env_id)
    state = with_physics(env, first_start(env_id), qd={axis: sign * speed})
    rng = np.random.default_rng(0)
    reached = 0.0
    for _ in range(40):
        action = rng.uniform(-1, 1, env.action_size)
        if env_id == "simple_u_maze":
            action[axis] = sign
        state = stepper(env_id)(state, action.astype(np.float32))
        reached = max(reached, sign * (float(state.obs[axis]) - 4))
    assert touch < reached < 2 - 0.25 + 0.05  # the wall's face is 2 m from the cell's centre, the radius is 0.25 m


@pytest.mark.parametrize("env_id", ["ant_u_maze", "humanoid_u_maze"])
def test_no_contact_is_left_out(env_id, monkeypatch):
    """Among walls only the nearest pairs of geoms are looked at; all that touch must be among them."""
    env = envs.make(env_id, backend="spring")
    with monkeypatch.context() as patch:
        patch.setattr(envs.maze.MazeEnv, "near_walls", 10_000)
        every_pair = envs.make(env_id, backend="spring")
    rng = np.random.default_rng(0)
    number = 256
    cells = np.concatenate([env.cells(mark) for mark in "rgb"])
    q = np.tile(env.sys.init_q, (number, 1))
    if env_id == "ant_u_maze":
        q[:, :15] = ANT_QPOS
    q[:, :2] = cells[rng.integers(len(cells), size=number)] + rng.uniform(-0.5, 0.5, (number, 2)) * env.cell_side
    yaw = rng.uniform(0, 2 * np.pi, number)
    q[:, 3:7] = np.stack([np.cos(yaw / 2), np.zeros(number), np.zeros(number), np.sin(yaw / 2)], axis=1)

    def distances(env):
        def of_contacts(q):
            x, _ = brax.kinematics.forward(env.sys, q, jnp.zeros(env.sys.qd_size()))
            return brax.contact.get(env.sys, x).dist

        return np.asarray(jax.jit(jax.vmap(of_contacts))(q))

    limited, every = distances(env), distances(every_pair)
    assert limited.shape[1] < every.shape[1] / 3
    assert (every < 0).sum(axis=1).max() > 2
    for one, other in zip(limited, every, strict=True):
        np.testing.assert_allclose(np.sort(one[one < 0]), np.sort(other[other < 0]), atol=1e-5)


@pytest.mark.parametrize("env_id", ["ant_ball", "ant_ball_u_maze"])
def test_the_ball_can_be_pushed(env_id):
    env = native(env_id)
    state = first_start(env_id)
    x, y = state.pipeline_state.q[:2]
    state = with_physics(env, state, q={15: x, 16: y + 1.3}, qd={1: 6.0})
    for _ in range(20):
        state = stepper(env_id)(state, np.zeros(8, np.float32))
    assert state.obs[30] > y + 1.5
    assert np.isfinite(state.obs).all()


def test_the_box_can_be_pushed():
    env = native("ant_push")
    state = with_physics(env, first_start("ant_push"), q={0: 8 - 3.6 - 0.9, 1: 8, 2: 0.6}, qd={0: 4.0})
    before = float(state.pipeline_state.q[15])
    for _ in range(20):
        state = stepper("ant_push")(state, np.zeros(8, np.float32))
    assert state.pipeline_state.q[15] > before + 0.1


def reach(env, target, downwards):
    """Commanded angles of joints 1, 2, 4, 6 at which the flange, or downward fingertips, are at `target`."""
    model = env.sys.mj_model
    data = mujoco.MjData(model)
    low, high = np.array([0.3491, 0, -3.0718, 2.3562]), np.array([2.7925, 1.48353, -0.0698, 3.7525])
    flange = model.body("link7").id

    def miss(angles):
        data.qpos[-9 if downwards else -7 :][:7] = [angles[0], angles[1], 0, angles[2], 0, angles[3], 1.4487]
        mujoco.mj_kinematics(model, data)
        if not downwards:
            return data.xpos[flange] - target
        rotation = data.xmat[flange].reshape(3, 3)
        fingertips = data.xpos[flange] + rotation @ [0, 0, 0.107 + 0.0584 + 0.07]
        return np.concatenate([fingertips - target, 0.1 * (rotation[:2, 2])])

    fits = [
        scipy.optimize.least_squares(miss, low + (high - low) * u, bounds=(low, high))
        for u in np.random.default_rng(0).uniform(0.2, 0.8, (3, 4))
    ]
    best = min(fits, key=lambda fit: fit.cost)
    return 2 * (best.x - low) / (high - low) - 1


def test_the_hand_reaches_every_corner():
    env = native("arm_reach")
    for corner in np.stack(np.meshgrid((-0.2, 0.2), (0.3, 0.7), (0.1, 0.5)), axis=-1).reshape(-1, 3):
        action = reach(env, corner, downwards=False).astype(np.float32)
        state = with_physics(env, first_start("arm_reach"), q=dict(enumerate(corner)))
        for _ in range(30):
            state = stepper("arm_reach")(state, action)
        assert state.metrics["success"] == 1, f"corner {corner}: {state.metrics['dist']:.2f} m away"


def test_a_script_carries_the_cube_to_the_other_bin():
    env = native("arm_binpick_easy")
    state = first_start("arm_binpick_easy")
    cube, goal = np.array(state.obs[:2]), np.array(state.obs[18:20])
    script = (  # fingertips, whether the fingers are closed, control steps
        ((*cube, 0.2), -1, 15), ((*cube, 0.02), -1, 15), ((*cube, 0.02), 1, 10), ((*cube, 0.25), 1, 15),
        ((*goal, 0.25), 1, 20), ((*goal, 0.06), 1, 15), ((*goal, 0.06), -1, 10),
    )  # fmt: skip
    highest = 0.0
    for target, closed, steps in script:
        action = np.append(reach(env, np.array(target), downwards=True), closed).astype(np.float32)
        for _ in range(steps):
            state = stepper("arm_binpick_easy")(state, action)
            highest = max(highest, float(state.obs[2]))
    assert highest > 0.15  # lifted above the walls
    assert state.metrics["success"] == 1 and state.metrics["success_easy"] == 1


def test_the_hand_carries_the_cube_to_the_other_bin():
    state = first_start("arm_binpick_easy_eef")
    cube, goal = np.array(state.obs[:2]), np.array(state.obs[11:13])
    tips = np.array([0, 0, 0.0584 + 0.07])  # fingertips are so far below the hand
    script = (
        ((*cube, 0.15), -1, 20), ((*cube, 0.02), -1, 20), ((*cube, 0.02), 1, 10), ((*cube, 0.17), 1, 20),
        ((*goal, 0.17), 1, 40), ((*goal, 0.05), 1, 20), ((*goal, 0.05), -1, 10),
    )  # fmt: skip
    highest = 0.0
    for target, closed, steps in script:
        for _ in range(steps):
            move = (np.array(target) + tips - state.obs[3:6]) / 0.2
            state = stepper("arm_binpick_easy_eef")(state, np.append(move.clip(-1, 1), closed).astype(np.float32))
            highest = max(highest, float(state.obs[2]))
    assert highest > 0.12
    assert state.metrics["success"] == 1


def test_fingers_weigh_where_their_joints_are():
    """The published inertia is about the origin of a finger's frame."""
    model = native("arm_push_easy").sys.mj_model
    for name in ("left_finger", "right_finger"):
        body = model.body(name)
        np.testing.assert_array_equal(body.ipos, 0)
        np.testing.assert_allclose([body.mass[0], *body.inertia], [0.015, 2.375e-6, 2.375e-6, 7.5e-7])


def test_the_hand_does_not_sink():
    """Its servos hold it where it is, since nothing but the fingers weighs on them."""
    state = first_start("arm_binpick_easy_eef")
    height = float(state.obs[5])
    for _ in range(50):
        state = stepper("arm_binpick_easy_eef")(state, np.array([0, 0, 0, -1], np.float32))
    assert abs(state.obs[5] - height) < 0.02


# ---- pipelines -------------------------------------------------------------------------------------------------------

BRAX = ("generalized", "positional", "spring")


@pytest.mark.quick
@pytest.mark.parametrize("env_id", [env_id for env_id in FACTS if env_id.startswith("arm") or env_id == "ant_push"])
def test_some_tasks_need_mujoco(env_id):
    for backend in BRAX:
        with pytest.raises(
            envs.UsageError, match=f"{env_id} does not run on backend '{backend}'; choose one of mjx, m"
        ):
            envs.make(env_id, backend=backend)


@pytest.mark.parametrize(
    ("env_id", "backends"),  # of each family those on which no other test takes steps
    [(env_id, BRAX) for env_id in ("cheetah", "pusher2", "ant_ball_u_maze", "humanoid_u_maze", "simple_u_maze")]
    + [
        (env_id, ["mjx"])
        for env_id in ("cheetah", "pusher2", "humanoid_u_maze", "ant_push", "arm_grasp", "arm_binpick_easy_eef")
    ],
)
def test_other_pipelines(env_id, backends):
    """Each pipeline gives observations of the same shape, and states that a scan can carry."""
    for backend in backends:
        env = envs.make(env_id, backend=backend)
        state = jax.eval_shape(env.reset, jax.random.key(0))
        assert state.obs.shape == (native(env_id).observation_size,)
        after = jax.eval_shape(env.step, state, jax.ShapeDtypeStruct((env.action_size,), jnp.float32))
        before, after = ([(x.shape, x.dtype) for x in jax.tree.leaves(tree)] for tree in (state, after))
        assert before == after


@pytest.mark.parametrize("env_id", ["ant", "simple_u_maze"])  # test_envs.py has the reacher
def test_native_agrees_with_mjx(env_id):
    """20 random actions. The solver of mjx gets as many iterations as it needs."""
    trajectories = []
    for backend in ("mujoco", "mjx"):
        env = envs.make(env_id, backend=backend)
        env.sys = env.sys.tree_replace({"opt.iterations": 30, "opt.ls_iterations": 30})

        def rollout(key, env=env):
            def step(state, key):
                action = jax.random.uniform(key, (env.action_size,), minval=-1, maxval=1)
                state = env.step(state, action)
                return state, (state.pipeline_state.q, state.obs)

            return jax.lax.scan(step, env.reset(key), jax.random.split(key, 20))[1]

        trajectories.append(jax.jit(jax.vmap(rollout))(jax.random.split(jax.random.key(0), 2)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), *trajectories)


# ---- for other people's code -----------------------------------------------------------------------------------------


def test_a_maze_of_ones_own():
    env = envs.make("simple_u_maze", backend="mujoco", layout="##### #r.g# #####")
    state = jax.jit(env.reset)(jax.random.key(0))
    np.testing.assert_array_equal(state.obs[jnp.array([0, 1, 4, 5])], [4, 4, 4, 12])
    opened = "##.## #r.g# #####", "##### .r.g# #####", "##### #r.g. #####", "##### #r.g# #.###"
    for layout in ("#####\n#r.g", "##### #r.x# #####", "#r.g#", "nowhere", "", *opened):
        with pytest.raises(envs.UsageError, match=r"rows of equal length made of .* with walls all around"):
            envs.make("simple_u_maze", backend="mujoco", layout=layout)
    for layout in ("##### #r..# #####", "##### #..g# #####"):
        with pytest.raises(envs.UsageError, match="needs at least one"):
            envs.make("simple_u_maze", backend="mujoco", layout=layout)


def test_wrappers_of_brax_take_our_envs():
    """Those around which brax's own algorithms train and evaluate."""
    env = training.EvalWrapper(training.wrap(native("reacher"), episode_length=4))

    @jax.jit
    def rollout(keys):
        return jax.lax.scan(
            lambda state, _: (env.step(state, jnp.zeros((3, 2))), state.done), env.reset(keys), length=8
        )

    state, done = rollout(jax.random.split(jax.random.PRNGKey(0), 3))  # keys of the old kind
    np.testing.assert_array_equal(done[:, 0], [0, 0, 0, 0, 1, 0, 0, 0])
    metrics = state.info["eval_metrics"].episode_metrics
    assert {"reward", "success", "dist"} <= metrics.keys() and np.isfinite(metrics["dist"]).all()
