"""The benchmark's task ids, each with its class and that class's arguments."""

import difflib
import importlib.util
import sys

import jax
import mujoco.mjx.warp

from envs.ant import Ant, AntBall, AntBallMaze, AntMaze, AntPush, AntRandomStart
from envs.arm import ArmBinpick, ArmBinpickHand, ArmBinpickHard, ArmGrasp, ArmPush, ArmPushHard, ArmReach
from envs.base import GoalEnv, UsageError
from envs.cheetah import Cheetah
from envs.humanoid import Humanoid, HumanoidMaze
from envs.maze import MazeEnv
from envs.point import PointMaze
from envs.pusher import Pusher, Pusher2, PusherHard, PusherReacher
from envs.reacher import Reacher
from envs.wrappers import chunk

_MAZES = ("u_maze", "big_maze", "hardest_maze", "u_maze_eval", "big_maze_eval")
TASKS = {
    "reacher": (Reacher, {}),
    "cheetah": (Cheetah, {}),
    "pusher_easy": (Pusher, {}),
    "pusher_hard": (PusherHard, {}),
    "pusher_reacher": (PusherReacher, {}),
    "pusher2": (Pusher2, {}),
    "ant": (Ant, {}),
    "ant_random_start": (AntRandomStart, {}),
    **{f"ant_{maze}": (AntMaze, {"layout": maze}) for maze in _MAZES},
    "ant_ball": (AntBall, {}),
    "ant_ball_u_maze": (AntBallMaze, {"layout": "ball_u_maze"}),
    "ant_ball_big_maze": (AntBallMaze, {"layout": "ball_big_maze"}),
    "ant_push": (AntPush, {}),
    "humanoid": (Humanoid, {}),
    **{f"humanoid_{maze}": (HumanoidMaze, {"layout": maze}) for maze in _MAZES},
    **{f"simple_{maze}": (PointMaze, {"layout": maze}) for maze in _MAZES},
    "arm_reach": (ArmReach, {}),
    "arm_grasp": (ArmGrasp, {}),
    "arm_push_easy": (ArmPush, {}),
    "arm_push_hard": (ArmPushHard, {}),
    "arm_binpick_easy": (ArmBinpick, {}),
    "arm_binpick_hard": (ArmBinpickHard, {}),
    "arm_binpick_easy_eef": (ArmBinpickHand, {}),
}


def _find(env_id: str) -> tuple[type[GoalEnv], dict]:
    """Class and arguments of an id, or of a class of one's own, `module:Class`."""
    module, colon, name = env_id.partition(":")
    if colon:
        if "" not in sys.path:
            sys.path.append("")  # the working directory
        if not module or importlib.util.find_spec(module.partition(".")[0]) is None:
            raise UsageError(f"env id {env_id!r}: there is no module {module!r} here")
        task = getattr(importlib.import_module(module), name, None)
        if not (isinstance(task, type) and issubclass(task, GoalEnv)):
            raise UsageError(f"env id {env_id!r}: {module} has no GoalEnv {name!r}")
        return task, {}
    if env_id not in TASKS:
        nearest = difflib.get_close_matches(env_id, TASKS, n=3, cutoff=0.5)
        advice = f"did you mean {' or '.join(nearest)}?" if nearest else f"choose one of {', '.join(TASKS)}"
        raise UsageError(f"unknown env id {env_id!r}; {advice}")
    return TASKS[env_id]


def make(
    env_id: str, backend: str | None = None, dense_reward: bool = False, layout: str | None = None, **kwargs
) -> GoalEnv:
    """Builds one task.

    Args:
      env_id: one of `envs.ENV_IDS`, or `module:Class` for a `GoalEnv` of one's own.
      backend: physics pipeline, one of the task's `backends`. None takes native MuJoCo (`mujoco`) on a CPU, but springs
        for ants where they have them. On an accelerator it takes the pipeline that the benchmark uses for this task, so
        that results compare with published ones, but native MuJoCo instead of `generalized`, which crawls there.
      dense_reward: the task's shaped reward instead of 1 within the goal's threshold and 0 elsewhere.
      layout: of a maze, see `MazeEnv`; None is the task's own.
      **kwargs: other arguments of the task's class.

    Raises:
      UsageError: unknown id, a pipeline that the task does not run on or that is not installed, or a layout for what
        is no maze.
    """
    task, options = _find(env_id)
    if backend is None:
        backend = task.cpu_backend if jax.default_backend() == "cpu" else task.benchmark_backend
        if backend == "generalized":  # reacher trained 15 times as fast on the cores beside an H100 as on it
            backend = "mujoco"
    if backend not in task.backends:
        raise UsageError(f"{env_id} does not run on backend {backend!r}; choose one of {', '.join(task.backends)}")
    if backend == "warp" and not mujoco.mjx.warp.WARP_INSTALLED:
        raise UsageError('backend warp is MuJoCo Warp: pip install "mujoco-mjx[warp]"')
    if layout is not None:
        if not issubclass(task, MazeEnv):
            raise UsageError(f"{env_id} is no maze: it has no layout")
        options = options | {"layout": layout}
    return task(backend, dense_reward, **options | kwargs)


def make_eval(env: GoalEnv, env_id: str | None) -> GoalEnv:
    """The task `env_id` for policies that were trained on `env`; None is `env` itself.

    Raises:
      UsageError: unknown id, or its states, goals or actions are others than those of `env`, or it has not its physics.
    """
    if env_id is None:
        return env
    other = chunk(make(env_id, env.backend, env.dense_reward), env.action_chunk)
    for name in ("state_dim", "goal_indices", "action_size"):
        ours, theirs = getattr(env, name), getattr(other, name)
        if ours != theirs:
            raise UsageError(f"a policy of this task cannot act in {env_id}: {name} is {ours} here and {theirs} there")
    return other
