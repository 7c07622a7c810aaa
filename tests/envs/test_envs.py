"""The environments as their users see them: ids, observations, goals, rewards, resets."""

import ast
import importlib
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from envs.reacher import Reacher

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.stem for path in ROOT.glob("*_jax.py"))
keys = jax.random.split(jax.random.key(0), 2000)


@pytest.mark.quick
def test_envs_know_nothing_of_runs():
    """Neither modules of ours that come later, nor what only those need."""
    for path in (ROOT / "envs").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] not in ("harness", "tyro", "orbax", "tensorboard"), path
                assert not (ROOT / f"{name}.py").exists(), path  # a script
    program = "import sys, envs; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert not {"harness", "tyro", "orbax", "tensorboard", "wandb"} & set(loaded.split())


@pytest.fixture(scope="module")
def reacher():
    return envs.make("reacher", backend="mujoco")


@pytest.fixture(scope="module")
def starts(reacher):
    """2,000 fresh episodes."""
    return jax.jit(jax.vmap(reacher.reset))(keys)


@pytest.mark.quick
def test_unknown_id_names_the_nearest():
    with pytest.raises(envs.UsageError, match=r"'raecher'; did you mean reacher"):
        envs.make("raecher")


@pytest.mark.quick
def test_a_task_to_evaluate_on():
    """It has the same observations, actions and physics; others are refused."""
    maze = envs.make("simple_u_maze", backend="mujoco")
    assert envs.make_eval(maze, None) is maze
    other = envs.make_eval(envs.chunk(maze, 3), "simple_big_maze_eval")
    assert (other.backend, other.action_chunk, other.unwrapped.cells("r").tolist()) == ("mujoco", 3, [[4, 4]])
    with pytest.raises(envs.UsageError, match="cannot act in ant: state_dim is 4 here and 29 there"):
        envs.make_eval(maze, "ant")
    with pytest.raises(envs.UsageError, match="does not run on backend 'spring'"):
        envs.make_eval(envs.make("simple_u_maze", backend="spring"), "arm_reach")
    with pytest.raises(envs.UsageError, match="did you mean simple_u_maze"):
        envs.make_eval(maze, "simple_u_mze")


@pytest.mark.quick
def test_a_task_of_ones_own(tmp_path, monkeypatch):
    """By its module and class, to train on and to evaluate on."""
    (tmp_path / "my_maze.py").write_text(
        "from envs.point import PointMaze\nclass Wide(PointMaze):\n    cell_side = 8.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    wide = envs.make("my_maze:Wide", backend="mujoco", layout="##### #r.g# #####")
    assert wide.cells("g").tolist() == [[8, 24]]
    other = envs.make_eval(envs.make("simple_u_maze", backend="mujoco"), "my_maze:Wide")
    assert type(other) is type(wide) and other.cells("r").tolist() == [[8, 8]]


@pytest.mark.quick
def test_unknown_backend_names_those_that_do():
    with pytest.raises(envs.UsageError, match="generalized, positional, spring, mjx, mujoco, warp"):
        envs.make("reacher", backend="bullet")


def test_warp_is_asked_for_by_name(monkeypatch):
    monkeypatch.setattr("mujoco.mjx.warp.WARP_INSTALLED", False)
    with pytest.raises(envs.UsageError, match=r'pip install "mujoco-mjx\[warp\]"'):
        envs.make("reacher", backend="warp")


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


@pytest.fixture(scope="module")
def trajectories():
    """Two episodes of random actions on every pipeline: observations, and the first and all later physics states."""

    def trajectory(env, key):
        strength = 10 / np.asarray(env.sys.actuator.gear)[0]  # a torque of up to 10: faster, and differences say little

        def step(state, key):
            state = env.step(state, jax.random.uniform(key, (2,), minval=-strength, maxval=strength))
            return state, (state.obs, seen(state.pipeline_state))

        state = env.reset(key)
        obs, physics = jax.lax.scan(step, state, jax.random.split(key, 60))[1]
        return obs, seen(state.pipeline_state), physics

    def seen(physics):
        return {"q": physics.q, "qd": physics.qd, "x": physics.x, "xd": physics.xd}

    backends = set(Reacher.backends) - {"warp"}  # tests/envs/test_warp_pipeline.py
    made = {backend: envs.make("reacher", backend=backend) for backend in sorted(backends)}
    assert all(env.backend == backend and float(env.dt) == pytest.approx(0.02) for backend, env in made.items())
    return {name: jax.jit(jax.vmap(partial(trajectory, env)))(keys[:2]) for name, env in made.items()}


@pytest.mark.xdist_group("reacher")
def test_reacher_on_every_pipeline(trajectories):
    """Finite and inside the arm's reach; the tip's velocity is the derivative of its position."""
    for backend, (obs, *_) in trajectories.items():
        obs = np.array(obs[0])
        assert np.isfinite(obs).all() and np.linalg.norm(obs[:, 4:6], axis=1).max() < 0.22, backend
        velocity = (obs[2:, 4:7] - obs[:-2, 4:7]) / 0.04
        # Positions may belong to the start of the last substep, half a control step off: compare over two steps.
        assert np.abs(velocity).max() > 0.05, backend
        assert np.abs(velocity - obs[1:-1, 7:10]).mean() < 0.12 * np.abs(velocity).mean() + 0.005, backend


@pytest.mark.xdist_group("reacher")
def test_native_reacher_agrees_with_mjx(trajectories):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), trajectories["mujoco"], trajectories["mjx"])


def test_sparse_and_dense_reward():
    for dense_reward in (False, True):
        env = envs.make("reacher", backend="mujoco", dense_reward=dense_reward)
        states = jax.jit(jax.vmap(lambda key, env=env: env.step(env.reset(key), jnp.zeros(2))))(keys)
        dist = states.metrics["dist"]
        np.testing.assert_array_equal(states.reward, -dist if dense_reward else dist < 0.05)


class Fragile(Reacher):
    """Reacher whose physics breaks when its first motor is turned up."""

    def pipeline_step(self, pipeline_state, action):
        physics = super().pipeline_step(pipeline_state, action)
        return jax.tree.map(lambda x: jnp.where(action[0] > 0.5, jnp.nan, x), physics)


@pytest.mark.parametrize("script", SCRIPTS)
def test_unstable_physics_never_reaches_the_learner(script):
    module = importlib.import_module(script)
    sizes = dict(num_envs=8, unroll_length=4, num_evals=1, num_eval_envs=4, episode_length=10, width=8)
    more = dict(learning_starts=4, batch_size=8, buffer_size=32) if script != "ppo_jax" else {}
    args = module.Args(total_timesteps=256, **sizes, **more)
    init, train = module.make_train(args, env=Fragile("mujoco"))
    runner, metrics = jax.jit(lambda key: train(init(key), 1))(keys[0])
    assert metrics["train/unstable_resets"] > 0
    for name in set(runner._fields) - {"key", "eval_key", "env_state"}:
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(getattr(runner, name))), name
    assert np.isfinite(runner.env_state.obs).all() and all(np.isfinite(x).all() for x in metrics.values())
