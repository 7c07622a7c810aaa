"""Goal-conditioned environments of the JaxGCRL benchmark (arXiv 2408.11052).

`make` builds one task, `make_eval` another that its policies can be evaluated on; `ENV_IDS` lists them all. `chunk`
lets an action be several in a row, `wrap` makes a batch that resets itself, `action_noise` and `pursued_goals` are
what explores in it, `train_metrics` reads what its episodes came to, and `evaluate` measures a policy.
"""

import contextlib
import ctypes.util
import io
import os
import sys

_asked_for = os.environ.get("MUJOCO_GL")
if sys.platform == "linux" and "DISPLAY" not in os.environ and ctypes.util.find_library("EGL"):
    os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo chooses how it draws when it is imported, and then for a display
try:
    import mujoco
except AttributeError:  # of OpenGL's bindings, without the library that they bind
    if not _asked_for:
        raise
    raise ImportError(f"MuJoCo cannot draw with MUJOCO_GL={_asked_for} here: unset it") from None
with contextlib.redirect_stdout(io.StringIO()):  # mjx says that it finds no warp, which only `--backend warp` needs
    import mujoco.mjx  # noqa: F401

from envs.base import GoalEnv, UsageError
from envs.evaluate import evaluate
from envs.registry import TASKS, make, make_eval
from envs.wrappers import action_noise, chunk, pursued_goals, train_metrics, wrap

ENV_IDS = tuple(TASKS)

__all__ = [
    "ENV_IDS", "GoalEnv", "UsageError", "action_noise", "chunk", "evaluate", "make", "make_eval",
    "pursued_goals", "train_metrics", "wrap",
]  # fmt: skip
