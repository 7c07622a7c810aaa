"""Pictures and films of tasks and policies, without a display."""

import base64
import copy
import ctypes.util
import html
import math
import os
import platform
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from PIL import Image, ImageDraw

import envs
from envs.base import GoalEnv
from envs.wrappers import where_done

_TITLE_HEIGHT = 24  # pixels
_FILM_COLUMNS = 3
_REACHED = (40, 170, 70)  # frame around an episode from its first success on
_PAGE = """<!doctype html>
<meta charset="utf-8">
<title>{title}</title>
<style>
  body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
  img {{ width: 100% }}
  td {{ padding: 0 1.5rem 0 0 }}
  .reached {{ color: rgb{reached} }}
</style>
<h1>{title}</h1>
<p>Episodes of the learned policy, each with its own start and goal;
<b class="reached">framed</b> from the first time that it is within the goal's threshold.</p>
<img src="data:image/gif;base64,{gif}" alt="{title}">
<table>{rows}</table>
"""


def _make_renderer(model: mujoco.MjModel, width: int, height: int) -> mujoco.Renderer:
    if platform.system() == "Linux" and "MUJOCO_GL" not in os.environ:
        # MuJoCo decides when it is imported, and then for a display.
        from mujoco.rendering.classic import gl_context

        if ctypes.util.find_library("EGL"):
            from mujoco.egl import GLContext
        elif ctypes.util.find_library("OSMesa"):
            from mujoco.osmesa import GLContext
        else:
            raise OSError("pictures need EGL or OSMesa: apt install libegl1 libgl1, or libosmesa6")
        gl_context.GLContext = GLContext
    return mujoco.Renderer(model, height, width)


def _make_camera(env: GoalEnv, model: mujoco.MjModel, data: mujoco.MjData, q: np.ndarray) -> mujoco.MjvCamera:
    """A camera at rest that sees agent, goal and walls in all of the joint positions `q`."""
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
    camera.distance = 0.42 * np.linalg.norm(high - low) / math.tan(math.radians(model.vis.global_.fovy / 2))
    return camera


def draw(env: GoalEnv, q: np.ndarray, width: int = 480, height: int = 360) -> np.ndarray:
    """Pictures of a rollout: (time, height, width, 3) uint8, of joint positions `state.pipeline_state.q`, (time, nq).

    Raises:
      OSError: there is neither EGL nor OSMesa.
    """
    model = copy.copy(env.sys.mj_model)
    model.vis.quality.offsamples, model.vis.quality.shadowsize = 2, 1024  # in half the time, and nobody sees it
    data = mujoco.MjData(model)
    q = np.asarray(q)
    with _make_renderer(model, width, height) as renderer:
        camera = _make_camera(env, model, data, q)
        pictures = []
        for qpos in q:
            data.qpos[:] = qpos
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, camera)
            pictures.append(renderer.render())
    return np.stack(pictures)


def check_opengl():
    """Raises OSError, which says what to install, if pictures cannot be drawn here."""
    try:
        _make_renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 8, 8).close()
    except OSError:
        raise
    except Exception as error:  # whatever the driver's bindings raise
        raise OSError(f"pictures need a working EGL or OSMesa, see MUJOCO_GL: {error}") from error


def save_film(path: str, pictures: np.ndarray, frames_per_second: float):
    """Writes pictures, (time, height, width, 3), as an animated GIF.

    Its clock ticks in hundredths of a second, and browsers slow down what shows a picture for less than two of them.
    """
    first, *rest = (Image.fromarray(picture) for picture in pictures)
    duration = 10 * max(2, round(100 / frames_per_second))  # ms
    first.save(path, save_all=True, append_images=rest, duration=duration, loop=0)


def film_policy(
    env: GoalEnv,
    policy: Callable[[jax.Array, jax.Array], jax.Array],
    key: jax.Array,
    episode_length: int,
    eval_noise: float,
    num_episodes: int = 6,
    num_pictures: int = 120,
    width: int = 320,
    height: int = 240,
) -> np.ndarray:
    """Episodes side by side, 3 in a row, as a film of at most `num_pictures` pictures, (time, height, width, 3) uint8.

    An episode that the task ends stands still from then on. The film ends soon after the last episode that came near
    its goal or ended, or with the episodes.

    Args:
      policy: observations (num_episodes, observation_size), noise (num_episodes, action_size) -> actions.
      eval_noise: standard deviation of the noise.
    """

    def step(carry, key):
        state, reached = carry
        reached = jnp.maximum(reached, state.metrics["success"])
        noise = eval_noise * jax.random.normal(key, (num_episodes, env.action_size))
        new_state = where_done(state.done, state, jax.vmap(env.step)(state, policy(state.obs, noise)))
        return (new_state, reached), (state.pipeline_state.q, reached, state.done)

    @jax.jit
    def rollout(key):
        state = jax.vmap(env.reset)(jax.random.split(key, num_episodes))
        noise_keys = jax.random.split(jax.random.fold_in(key, num_episodes), episode_length)
        return jax.lax.scan(step, (state, jnp.zeros(num_episodes)), noise_keys)[1]

    q, reached, ended = map(np.asarray, rollout(key))
    over = np.maximum(reached, ended).all(1)
    if over[-1]:  # the rest shows nothing new
        q, reached = (x[: over.argmax() * 3 // 2 + 20] for x in (q, reached))
    stride = math.ceil(len(q) / num_pictures)
    q, reached = q[::stride], reached[::stride]
    pictures = np.stack([draw(env, episode, width, height) for episode in q.swapaxes(0, 1)], axis=1)
    frame = np.ones((height, width), bool)
    frame[6:-6, 6:-6] = False
    framed = (reached[..., None, None] > 0) & frame
    pictures = np.where(framed[..., None], np.array(_REACHED, np.uint8), pictures)
    rows = pictures.reshape(len(q), -1, _FILM_COLUMNS, height, width, 3).swapaxes(2, 3)
    return rows.reshape(len(q), -1, _FILM_COLUMNS * width, 3)


def save_page(path: str, film: str, title: str, facts: dict):
    """Writes a web page with the film in it, which needs nothing else, and `facts` as a table."""
    texts = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in facts.items()}
    rows = "".join(f"<tr><td>{html.escape(name)}<td>{html.escape(text)}" for name, text in texts.items())
    gif = base64.b64encode(Path(film).read_bytes()).decode()
    Path(path).write_text(_PAGE.format(title=html.escape(title), gif=gif, rows=rows, reached=_REACHED))


def random_rollout(env: GoalEnv, key: jax.Array, length: int) -> np.ndarray:
    """Joint positions under random actions, (length, nq)."""

    def step(state, key):
        action = jax.random.uniform(key, (env.action_size,), minval=-1, maxval=1)
        return env.step(state, action), state.pipeline_state.q

    reset_key, action_key = jax.random.split(key)
    keys = jax.random.split(action_key, length)
    return np.array(jax.jit(lambda: jax.lax.scan(step, env.reset(reset_key), keys)[1])())


def gallery(columns: int = 6, width: int = 280, height: int = 210) -> Image.Image:
    """One picture of the start of each task, with their names."""
    rows = math.ceil(len(envs.ENV_IDS) / columns)
    sheet = Image.new("RGB", (columns * width, rows * (height + _TITLE_HEIGHT)), "white")
    for i, env_id in enumerate(envs.ENV_IDS):
        env = envs.make(env_id, backend="mujoco")
        q = jax.jit(env.reset)(jax.random.key(4)).pipeline_state.q
        x, y = i % columns * width, i // columns * (height + _TITLE_HEIGHT)
        ImageDraw.Draw(sheet).text((x + 4, y + 3), env_id, "black", font_size=16)
        sheet.paste(Image.fromarray(draw(env, q[None], width, height)[0]), (x, y + _TITLE_HEIGHT))
    return sheet.quantize(256)  # a third of the size
