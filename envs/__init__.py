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

# MuJoCo chooses how it draws when it is imported, takes a display where nothing is said, and fails without its library.
if sys.platform == "linux" and "DISPLAY" not in os.environ and ctypes.util.find_library("EGL"):
    os.environ.setdefault("MUJOCO_GL", "egl")
_library = {"egl": "EGL", "osmesa": "OSMesa"}.get(os.environ.get("MUJOCO_GL", "").lower())
if _library and not ctypes.util.find_library(_library):
    os.environ["MUJOCO_GL"] = "disable"  # who wants pictures is told so then
import mujoco

with contextlib.redirect_stdout(io.StringIO()):  # mjx says that it finds no warp, which only `--backend warp` needs
    import mujoco.mjx  # noqa: F401
from brax.training.acme import running_statistics  # for the scripts; here, as brax imports MuJoCo

from envs.base import GoalEnv, UsageError
from envs.evaluate import evaluate
from envs.registry import TASKS, make, make_eval
from envs.wrappers import action_noise, chunk, pursued_goals, train_metrics, wrap

ENV_IDS = tuple(TASKS)

__all__ = [
    "ENV_IDS", "GoalEnv", "UsageError", "action_noise", "chunk", "evaluate", "make", "make_eval",
    "pursued_goals", "running_statistics", "train_metrics", "wrap",
]  # fmt: skip
