"""Pictures and films of tasks, where they can be drawn; a clear message where they cannot."""

import ctypes.util
import os
import runpy
import subprocess
import sys

import jax
import mujoco
import numpy as np
import pytest
from PIL import Image

import envs
from envs import render


@pytest.fixture(scope="module")
def pictures():
    """Of two starts of an episode and one picture more of the second, further away."""
    try:
        render.check_opengl()
    except envs.UsageError as error:
        pytest.skip(str(error))
    env = envs.make("simple_u_maze", backend="mujoco")
    q = np.array(jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 2)).pipeline_state.q)
    return render.draw(env, np.stack([q[0], q[1], q[1] + 1]), width=120, height=80)


def test_pictures_show_agent_and_goal(pictures):
    assert pictures.shape == (3, 80, 120, 3) and pictures.dtype == np.uint8
    red, green, blue = np.moveaxis(pictures[0].astype(int), -1, 0)
    assert ((green > red + 40) & (green > blue + 40)).any()  # the goal
    assert ((red > blue + 60) & (red > green + 20)).any()  # the agent
    assert (pictures[1] != pictures[2]).any()


def test_film(pictures, tmp_path):
    render.save_film(tmp_path / "film.gif", pictures)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.size == (120, 80) and film.n_frames == 3 and film.info["duration"] == 50


def test_gallery(pictures, monkeypatch, tmp_path):
    monkeypatch.setattr(render, "TASKS", ("reacher", "simple_u_maze", "cheetah"))
    monkeypatch.setattr(sys, "argv", ["envs", str(tmp_path / "gallery.png")])
    runpy.run_module("envs", run_name="__main__")
    with Image.open(tmp_path / "gallery.png") as sheet:
        columns = np.split(np.array(sheet.convert("RGB"))[:, : 4 * 280], 4, axis=1)
    drawn = [len(np.unique(column.reshape(-1, 3), axis=0)) > 20 for column in columns]
    assert drawn == [True, True, True, False]


@pytest.mark.quick
def test_the_gallery_asks_where_to(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["envs"])
    with pytest.raises(SystemExit, match=r"python -m envs docs/gallery\.png"):
        runpy.run_module("envs", run_name="__main__")


@pytest.mark.quick
def test_without_opengl_it_says_what_to_install(monkeypatch):
    def no_driver(*_):
        raise AttributeError("'NoneType' object has no attribute 'eglQueryString'")

    monkeypatch.setattr(mujoco, "Renderer", no_driver)
    with pytest.raises(envs.UsageError, match=r"apt install libegl1 libgl1.* or MUJOCO_GL: 'NoneType'"):
        render.check_opengl()


@pytest.mark.skipif(ctypes.util.find_library("OSMesa") is not None, reason="it is there")
def test_what_mujoco_draws_with_is_missing():
    """Without OSMesa, who asks for it trains all the same; who wants pictures is told."""
    code = "import envs\nfrom envs import render\nprint(envs.make('reacher').dt)\nrender.check_opengl()"
    asked_for = os.environ | {"MUJOCO_GL": "osmesa"}
    ended = subprocess.run([sys.executable, "-c", code], env=asked_for, capture_output=True, text=True)
    assert float(ended.stdout) > 0 and "UsageError: pictures need a working EGL" in ended.stderr
