"""Goal-conditioned environments of the JaxGCRL benchmark (arXiv 2408.11052).

`make` builds one task, `wrap` a batch of it that resets itself, `ENV_IDS` lists them all, `stream` hands numbers
from compiled code to Python, and `Run` logs them.
"""

import difflib

import jax

from envs.base import BACKENDS, GoalEnv
from envs.host_call import stream
from envs.reacher import Reacher
from envs.run import Run
from envs.wrappers import BatchedEnv

_TASKS = {"reacher": Reacher}

ENV_IDS = tuple(_TASKS)


def make(env_id: str, backend: str | None = None, dense_reward: bool = False, **kwargs) -> GoalEnv:
    """Builds one task.

    Args:
      env_id: one of `ENV_IDS`.
      backend: physics pipeline, one of the task's `backends`. None takes native MuJoCo (`mujoco`) on a CPU, and on an
        accelerator the pipeline that the benchmark uses for this task, so that results compare with published ones.
      dense_reward: the task's shaped reward instead of 1 within the goal's threshold and 0 elsewhere.
      **kwargs: the task's own arguments.

    Raises:
      ValueError: unknown id, or a pipeline that the task does not run on.
    """
    if env_id not in _TASKS:
        nearest = difflib.get_close_matches(env_id, ENV_IDS, n=3, cutoff=0.3) or ENV_IDS
        raise ValueError(f"unknown env id {env_id!r}; did you mean {' or '.join(nearest)}?")
    task = _TASKS[env_id]
    if backend is None:
        backend = "mujoco" if jax.default_backend() == "cpu" else task.benchmark_backend
    if backend not in task.backends:
        raise ValueError(f"{env_id} does not run on backend {backend!r}; choose one of {', '.join(task.backends)}")
    return task(backend, dense_reward, **kwargs)


def wrap(env: GoalEnv, num_envs: int, episode_length: int) -> BatchedEnv:
    """`num_envs` copies of `env` that reset themselves after `episode_length` steps or when they terminate."""
    return BatchedEnv(env, num_envs, episode_length)


__all__ = ["BACKENDS", "ENV_IDS", "Run", "make", "stream", "wrap"]
