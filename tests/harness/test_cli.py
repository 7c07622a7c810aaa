"""The script as its users start it, in a process of its own."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parent.parent
SMALL = shlex.split(
    "--env-id reacher --total-timesteps 640 --num-envs 4 --unroll-length 8 --learning-starts 16 --buffer-size 64"
    " --episode-length 20 --num-evals 3 --num-eval-envs 2 --env-steps-per-update 8 --batch-size 8 --width 8"
)


def start(*flags, cwd, script="crl_jax.py"):
    return subprocess.Popen(
        [sys.executable, ROOT / script, *flags],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(*flags, cwd, script="crl_jax.py"):
    process = start(*flags, cwd=cwd, script=script)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def scalars(run_dir):
    events = EventAccumulator(str(run_dir))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_run_directory_and_tags(tmp_path):
    code, out, err = run(*SMALL, "--seed", "3", "--exp-name", "mine", cwd=tmp_path)
    assert code == 0, err
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert run_dir.name.startswith("reacher__mine__3__")
    assert json.loads((run_dir / "args.json").read_text())["flags"]["backend"] == "mujoco"  # for other machines
    assert "mujoco physics" in out and "704 environment steps" in out
    logged = scalars(run_dir)
    assert {
        "eval/success_rate", "eval/time_near_goal", "eval/final_dist", "eval/episode_return", "charts/SPS",
        "charts/updates_per_second", "losses/critic", "losses/actor", "losses/categorical_accuracy",
        "losses/logits_pos", "losses/logits_neg", "losses/logsumexp", "losses/entropy", "losses/alpha",
    } <= logged.keys()  # fmt: skip
    assert all([step for step, _ in values] == [256, 480, 704] for values in logged.values())
    assert [line.split()[0] for line in out.splitlines()[4:]] == ["1/3", "2/3", "3/3", "checkpoint", "evaluate"]
    assert "\x1b" not in out and "\r" not in out  # readable in a file


@pytest.mark.parametrize("script", ["sac_her_jax", "ppo_jax"])
def test_the_other_scripts_run_alike(script, tmp_path):
    flags = "--env-id reacher --dense-reward --total-timesteps 64 --num-envs 4 --unroll-length 8 --num-evals 2"
    flags += " --num-eval-envs 2 --episode-length 20 --width 8"
    if script == "ppo_jax":
        flags += " --num-minibatches 2"
    else:
        flags += " --learning-starts 8 --buffer-size 64 --env-steps-per-update 8 --batch-size 8"
    code, out, err = run(*shlex.split(flags), cwd=tmp_path, script=f"{script}.py")
    assert code == 0, err
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert run_dir.name.startswith(f"reacher__{script}__1__")
    logged = scalars(run_dir)
    assert {"eval/success_rate", "eval/time_near_goal", "charts/SPS", "losses/critic", "losses/actor"} <= logged.keys()
    assert all([step for step, _ in values] == [32, 64] for values in logged.values())
    assert [line.split()[0] for line in out.splitlines()[4:]] == ["1/2", "2/2", "checkpoint", "evaluate"]
    code, out, err = run("--env-id", "ant_maze", cwd=tmp_path, script=f"{script}.py")
    assert code == 2 and err.startswith("error: unknown env id 'ant_maze'; did you mean ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--env-id", "reachr"], "error: unknown env id 'reachr'; did you mean reacher or "),
        (["--backend", "warp"], "error: reacher does not run on backend 'warp'; choose one of"),
        (["--contrastive-loss", "nce"], "error: --contrastive-loss nce: choose one of fwd_infonce"),
        (["--unroll-length", "7", "--num-envs", "5"], "error: --unroll-length 7: "),
        (["--buffer-size", "2147483647"], "error: --buffer-size 2147483647: less than 2**30"),
    ],
)
def test_mistakes_get_one_line(flags, message, tmp_path):
    began = time.time()
    code, out, err = run(*flags, cwd=tmp_path)
    assert code == 2 and out == "" and err.startswith(message) and err.count("\n") == 1
    assert time.time() - began < 30  # before anything compiles
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("epochs_before", [0, 1])
def test_ctrl_c_ends_the_run_and_keeps_its_log(epochs_before, tmp_path):
    """While XLA compiles, and in the middle of training."""
    flags = [*SMALL, "--total-timesteps", "10000000", "--num-evals", "1000"]
    if epochs_before == 0:
        flags += ["--compilation-cache", "", "--depth", "12"]
    process = start(*flags, cwd=tmp_path)
    for _ in range(4 + epochs_before):
        assert process.stdout.readline()
    time.sleep(0.5)
    began = time.time()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert time.time() - began < 5
    assert process.returncode == 130 and "ended by SIGINT" in err and "Traceback" not in err
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert str(run_dir.relative_to(tmp_path)) in err
    lines = epochs_before + len(out.splitlines())
    logged = scalars(run_dir)
    # The last tag of an epoch; one epoch may be logged and not yet printed.
    assert epochs_before <= lines <= len(logged.get("charts/updates_per_second", [])) <= lines + 1


def test_compilation_cache(tmp_path):
    """Written where the flag says, unless JAX's own environment variable says otherwise."""
    cache = tmp_path / "cache"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    command = [sys.executable, ROOT / "crl_jax.py", *SMALL, "--compilation-cache", cache]
    subprocess.run(command, cwd=tmp_path, check=True, env=environment, stdout=subprocess.DEVNULL)
    programs = {path.name for path in cache.glob("jit_train-*-cache")}
    assert len(programs) == 1  # the whole training, native physics and logging included, can be cached
    subprocess.run(command, cwd=tmp_path, check=True, env=environment, stdout=subprocess.DEVNULL)
    assert {path.name for path in cache.glob("jit_train-*-cache")} == programs  # and was found again
    elsewhere = tmp_path / "elsewhere"
    subprocess.run(
        command, cwd=tmp_path, check=True, env=environment | {"JAX_COMPILATION_CACHE_DIR": str(elsewhere)},
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    assert any(elsewhere.glob("jit_train-*-cache"))
