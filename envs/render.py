"""Pictures and films of tasks, without a display."""

import copy
import itertools
import math

import jax
import mujoco
import numpy as np
from PIL import Image, ImageDraw

from envs.base import GoalEnv, UsageError
from envs.registry import TASKS, make

_TITLE_HEIGHT = 24  # pixels


def _make_camera(
    env: GoalEnv, model: mujoco.MjModel, data: mujoco.MjData, q: np.ndarray, aspect: float
) -> mujoco.MjvCamera:
    """A camera at rest that sees agent, goal and walls in all of the joint positions `q`, and as near as it can be."""
    solid = np.flatnonzero(model.geom_type != mujoco.mjtGeom.mjGEOM_PLANE)
    middle, half = np.split(model.geom_aabb[solid], 2, axis=1)  # each geom's box, in its own frame
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for qpos in q:
        data.qpos[:] = qpos
        mujoco.mj_kinematics(model, data)
        rotation = data.geom_xmat[solid].reshape(-1, 3, 3)
        center = data.geom_xpos[solid] + np.einsum("nij,nj->ni", rotation, middle)
        reach = np.einsum("nij,nj->ni", np.abs(rotation), half)
        low = np.minimum(low, (center - reach).min(0))
        high = np.maximum(high, (center + reach).max(0))
    camera = mujoco.MjvCamera()
    camera.lookat, (camera.azimuth, camera.elevation) = (low + high) / 2, env.view
    (sin_a, sin_e), (cos_a, cos_e) = np.sin(np.radians(env.view)), np.cos(np.radians(env.view))
    right, up = (sin_a, -cos_a, 0), (-sin_e * cos_a, -sin_e * sin_a, cos_e)
    corners = np.array(list(itertools.product((-1, 1), repeat=3))) * (high - low) / 2
    slope = math.tan(math.radians(model.vis.global_.fovy / 2))
    needs = np.maximum(np.abs(corners @ up), np.abs(corners @ right) / aspect) / slope - corners @ np.cross(up, right)
    camera.distance = 1.05 * needs.max()
    return camera


def draw(env: GoalEnv, q: np.ndarray, width: int = 480, height: int = 360) -> np.ndarray:
    """Pictures of a rollout, (time, height, width, 3) uint8, from its `state.pipeline_state.q`, (time, nq)."""
    model = copy.copy(env.sys.mj_model)
    model.vis.quality.offsamples, model.vis.quality.shadowsize = 2, 1024  # in half the time, and nobody sees it
    data = mujoco.MjData(model)
    q = np.asarray(q)
    with mujoco.Renderer(model, height, width) as renderer:
        camera = _make_camera(env, model, data, q, width / height)
        pictures = []
        for qpos in q:
            data.qpos[:] = qpos
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, camera)
            pictures.append(renderer.render())
    return np.stack(pictures)


def check_opengl():
    """Raises UsageError, which says what to install, if pictures cannot be drawn here."""
    try:
        mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 8, 8).close()
    except Exception as error:  # whatever the driver's bindings raise
        raise UsageError(f"pictures need a working EGL (apt install libegl1 libgl1) or MUJOCO_GL: {error}") from error


def save_film(path: str, pictures: np.ndarray):
    """Writes pictures, (time, height, width, 3), as an animated GIF that shows 20 of them a second."""
    first, *rest = (Image.fromarray(picture) for picture in pictures)
    first.save(path, save_all=True, append_images=rest, duration=50, loop=0)


def gallery(columns: int = 6, width: int = 280, height: int = 210) -> Image.Image:
    """One picture of the start of each task, with their names."""
    rows = math.ceil(len(TASKS) / columns)
    sheet = Image.new("RGB", (columns * width, rows * (height + _TITLE_HEIGHT)), "white")
    for i, env_id in enumerate(TASKS):
        env = make(env_id, backend="mujoco")
        q = jax.jit(env.reset)(jax.random.key(4)).pipeline_state.q
        x, y = i % columns * width, i // columns * (height + _TITLE_HEIGHT)
        ImageDraw.Draw(sheet).text((x + 4, y + 3), env_id, "black", font_size=16)
        sheet.paste(Image.fromarray(draw(env, q[None], width, height)[0]), (x, y + _TITLE_HEIGHT))
    return sheet.quantize(256)  # a third of the size
