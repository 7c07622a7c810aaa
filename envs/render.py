"""Pictures and films of the tasks, without a display.

python -m envs.render --env-id ant_u_maze --film ant_u_maze.gif   # an episode of random actions
python -m envs.render --env-id ant_u_maze --picture ant_u_maze.png
python -m envs.render --gallery gallery.png                       # all tasks
"""

import argparse
import ctypes.util
import math
import os
import platform
import sys

import jax
import mujoco
import numpy as np
from PIL import Image, ImageDraw

import envs

_TITLE_HEIGHT = 24  # pixels


def _make_renderer(model: mujoco.MjModel, width: int, height: int) -> mujoco.Renderer:
    if platform.system() == "Linux" and "MUJOCO_GL" not in os.environ:
        # MuJoCo decides when it is imported, and then for a display.
        from mujoco.rendering.classic import gl_context

        if ctypes.util.find_library("EGL"):
            from mujoco.egl import GLContext
        elif ctypes.util.find_library("OSMesa"):
            from mujoco.osmesa import GLContext
        else:
            raise RuntimeError("pictures need EGL or OSMesa: apt install libegl1 libgl1, or libosmesa6")
        gl_context.GLContext = GLContext
    return mujoco.Renderer(model, height, width)


def _make_camera(env: envs.GoalEnv, model: mujoco.MjModel, data: mujoco.MjData, q: np.ndarray) -> mujoco.MjvCamera:
    """A camera at rest that sees agent, goal and walls in all of the joint positions `q`."""
    solid = np.flatnonzero(model.geom_type != mujoco.mjtGeom.mjGEOM_PLANE)
    radius = model.geom_rbound[solid][:, None]
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for data.qpos[:] in q:
        mujoco.mj_kinematics(model, data)
        low = np.minimum(low, (data.geom_xpos[solid] - radius).min(0))
        high = np.maximum(high, (data.geom_xpos[solid] + radius).max(0))
    camera = mujoco.MjvCamera()
    camera.lookat, (camera.azimuth, camera.elevation) = (low + high) / 2, env.view
    camera.distance = 0.42 * np.linalg.norm(high - low) / math.tan(math.radians(model.vis.global_.fovy / 2))
    return camera


def draw(env: envs.GoalEnv, q: np.ndarray, width: int = 480, height: int = 360) -> np.ndarray:
    """Pictures of a rollout: (time, height, width, 3) uint8, of joint positions `state.pipeline_state.q`, (time, nq).

    Raises:
      RuntimeError: there is neither EGL nor OSMesa.
    """
    model = env.sys.mj_model
    data = mujoco.MjData(model)
    q = np.asarray(q)
    with _make_renderer(model, width, height) as renderer:
        camera = _make_camera(env, model, data, q)
        pictures = []
        for data.qpos[:] in q:
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, camera)
            pictures.append(renderer.render())
    return np.stack(pictures)


def save_film(path: str, pictures: np.ndarray, frames_per_second: float):
    """Writes pictures, (time, height, width, 3), as an animated GIF."""
    first, *rest = (Image.fromarray(picture) for picture in pictures)
    first.save(path, save_all=True, append_images=rest, duration=1000 / frames_per_second, loop=0)


def random_rollout(env: envs.GoalEnv, key: jax.Array, length: int) -> np.ndarray:
    """Joint positions under random actions, (length, nq)."""

    def step(state, key):
        action = jax.random.uniform(key, (env.action_size,), minval=-1, maxval=1)
        return env.step(state, action), state.pipeline_state.q

    keys = jax.random.split(key, length)
    return np.array(jax.jit(lambda: jax.lax.scan(step, env.reset(key), keys)[1])())


def gallery(columns: int = 6, width: int = 280, height: int = 210) -> Image.Image:
    """One picture of the start of each task, with their names."""
    rows = math.ceil(len(envs.ENV_IDS) / columns)
    sheet = Image.new("RGB", (columns * width, rows * (height + _TITLE_HEIGHT)), "white")
    for i, env_id in enumerate(envs.ENV_IDS):
        env = envs.make(env_id, backend="mujoco")
        q = jax.jit(env.reset)(jax.random.key(1)).pipeline_state.q
        x, y = i % columns * width, i // columns * (height + _TITLE_HEIGHT)
        ImageDraw.Draw(sheet).text((x + 4, y + 3), env_id, "black", font_size=16)
        sheet.paste(Image.fromarray(draw(env, q[None], width, height)[0]), (x, y + _TITLE_HEIGHT))
    return sheet.quantize(256)  # a third of the size


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="reacher", help="task to show")
    parser.add_argument("--seed", type=int, default=0, help="of the start, the goal and the actions")
    parser.add_argument("--steps", type=int, default=200, help="length of the film, control steps")
    parser.add_argument("--film", metavar="GIF", help="write an episode of random actions")
    parser.add_argument("--picture", metavar="PNG", help="write a picture of the start")
    parser.add_argument("--gallery", metavar="PNG", help="write one picture of all tasks")
    args = parser.parse_args()
    if not (args.film or args.picture or args.gallery):
        parser.error("nothing to do: give --film, --picture or --gallery")
    try:
        if args.gallery:
            gallery().save(args.gallery)
        if args.film or args.picture:
            env = envs.make(args.env_id, backend="mujoco")
            q = random_rollout(env, jax.random.key(args.seed), args.steps if args.film else 1)
        if args.picture:
            Image.fromarray(draw(env, q[:1])[0]).save(args.picture)
        if args.film:
            save_film(args.film, draw(env, q), 1 / float(env.dt))
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
