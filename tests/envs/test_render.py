"""Pictures and films, where EGL or OSMesa is there; a clear message where neither is."""

import ctypes.util
import runpy
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import envs
from envs import render


@pytest.fixture(scope="module")
def rollout():
    env = envs.make("simple_u_maze", backend="mujoco")
    return env, render.random_rollout(env, jax.random.key(0), 5)


@pytest.fixture(scope="module")
def pictures(rollout):
    try:
        return render.draw(*rollout, width=120, height=80)
    except OSError as error:
        pytest.skip(str(error))


def test_pictures_show_agent_and_goal(pictures):
    assert pictures.shape == (5, 80, 120, 3) and pictures.dtype == np.uint8
    red, green, blue = np.moveaxis(pictures[0].astype(int), -1, 0)
    assert ((green > red + 40) & (green > blue + 40)).any()  # the goal
    assert ((red > blue + 60) & (red > green + 20)).any()  # the agent


def test_film(pictures, tmp_path):
    render.save_film(tmp_path / "film.gif", pictures, frames_per_second=20)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.size == (120, 80) and film.is_animated and film.info["duration"] == 50


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have their own OpenGL")
def test_without_opengl_it_says_what_to_install(rollout, monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    with pytest.raises(OSError, match="apt install libegl1 libgl1, or libosmesa6"):
        render.draw(*rollout)


def test_film_and_picture_from_the_command_line(pictures, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    flags = ["--env-id", "simple_u_maze", "--film", "film.gif", "--picture", "start.png", "--steps", "5"]
    monkeypatch.setattr(sys, "argv", ["envs", *flags])
    runpy.run_module("envs", run_name="__main__")
    with Image.open("film.gif") as film, Image.open("start.png") as start:
        assert film.n_frames == 5 and film.info["duration"] == 50  # ms, a step of the environment
        assert film.size == start.size


def test_nothing_to_do_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["envs"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("envs", run_name="__main__")
    assert ended.value.code == 2 and "--gallery" in capsys.readouterr().err


def test_a_film_needs_steps(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["envs", "--film", "film.gif", "--steps", "0"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("envs", run_name="__main__")
    assert ended.value.code == 2 and "--steps must be at least 1" in capsys.readouterr().err


def test_film_of_a_policy(pictures):
    """Episodes side by side, framed from the first success on, over once all have reached their goals."""
    env = envs.make("simple_u_maze", backend="mujoco")
    still = render.film_policy(env, lambda obs, noise: 0 * noise, jax.random.key(0), 9, 0.0, 3, 5, 80, 60)
    assert still.shape == (5, 60, 240, 3) and still.dtype == np.uint8
    assert (still[:, 0, 0] != render._REACHED).any()  # nobody gets there by standing still
    env.goal_reach_thresh = 100.0
    reached = render.film_policy(env, lambda obs, noise: 0 * noise, jax.random.key(0), 200, 0.0, 3, 5, 80, 60)
    assert len(reached) <= 5 and (reached[-1, 0, :] == render._REACHED).all()


def test_film_stands_still_after_the_end(pictures):
    env = envs.make("simple_u_maze", backend="mujoco")

    def film():
        return render.film_policy(env, lambda obs, noise: 0 * noise + 1, jax.random.key(0), 9, 0.0, 3, 9, 80, 60)

    goes_on = film()
    env.terminated = lambda physics: jax.numpy.bool_(True)
    ends = film()
    assert (goes_on[8] != goes_on[1]).any()
    np.testing.assert_array_equal(ends[1], goes_on[1])
    assert len(ends) == 9 and (ends[1:] == ends[1]).all()
