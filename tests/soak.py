"""Hard use: a run that is killed again and again and must end with the bits of an undisturbed one, and a run of many
epochs whose memory must not grow.

    python -m tests.soak --kills 50
    python -m tests.soak --epochs 2000
    python -m tests.soak --processes 2
"""

import argparse
import collections
import os
import random
import shlex
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import jax

from tests.harness_runs import assert_same_end, saved, start

SIZES = shlex.split(
    "--num-envs 8 --unroll-length 8 --env-steps-per-update 2 --batch-size 32 --width 16 --buffer-size 400"
    " --episode-length 100 --num-eval-envs 4"
)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)


def heed():
    """Signals have their default effect, also under nohup and in the background of a shell."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def end(process, number):
    """Signals until the process ends; returns what it wrote to stderr."""
    for _ in range(3):
        process.send_signal(number)
        try:
            return process.communicate(timeout=20)[1]
        except subprocess.TimeoutExpired:  # while importing, a callback of JAX's can swallow Ctrl-C
            print(f"{number.name} once more", flush=True)
    raise RuntimeError(f"{number.name} does not end it")


def kills(count):
    """Kills runs, by random signals at moments drawn from the time that an undisturbed one takes; the same command goes
    on with each, until it has ended."""
    steps = "--total-timesteps 12000 --num-evals 40 --checkpoint-every 4 --run-dir mine"
    line = [*SIZES, *shlex.split(steps)]
    random.seed(0)
    signals = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cold", "whole"):  # the second finds its programs in the cache
            whole = Path(folder, name)
            whole.mkdir()
            began = time.time()
            process = start("crl_jax", *line, cwd=whole)
            _, err = process.communicate()
            assert process.returncode == 0, err
            longest = time.time() - began
        print(f"undisturbed: {longest:.0f} s", flush=True)
        while signals.total() < count:
            disturbed = Path(tempfile.mkdtemp(dir=folder))
            before = signals.total()
            while True:
                process = start("crl_jax", *line, cwd=disturbed, preexec_fn=heed)
                try:
                    err = process.communicate(timeout=random.uniform(0, longest))[1]
                    break  # it came to its end before
                except subprocess.TimeoutExpired:
                    number = random.choice(SIGNALS)
                    err = end(process, number)
                if process.returncode == 0:
                    break  # it came to its end just then
                signals[number.name] += 1
                epochs = saved(disturbed / "mine")
                print(f"{signals.total()}: {number.name}, exit {process.returncode}, checkpoints {epochs}", flush=True)
                # Ctrl-C becomes another exception where it meets a call of ctypes, in an import of mujoco.
                interrupted = number == signal.SIGINT and "KeyboardInterrupt" in err
                assert interrupted or (process.returncode == -number and "Traceback" not in err), err
            assert process.returncode == 0, err
            assert_same_end("crl_jax", whole / "mine", disturbed / "mine")
            print(f"ended after {signals.total() - before} kills: the same parameters, buffer, keys, curves and policy")
    print(dict(signals))


def processes(count):
    """Processes of two devices each train together. Killed and started again, they end with the bits of an undisturbed
    run; where one dies alone, the others end too."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    more = f"--total-timesteps 4000 --num-evals 12 --checkpoint-every 3 --num-devices {2 * count} --distributed"
    more += " --env-steps-per-update 16"  # each update waits for all processes several times
    more += f" --coordinator 127.0.0.1:{port} --num-processes {count} --run-dir mine --process-id"

    def start_all(folder):
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
        return [start("crl_jax", *SIZES, *shlex.split(more), i, cwd=folder, env=environment) for i in range(count)]

    def until_checkpoint(runs):
        assert any("checkpoint;" in line for line in runs[0].stdout), runs[0].stderr.read()

    with tempfile.TemporaryDirectory() as undisturbed, tempfile.TemporaryDirectory() as disturbed:
        assert [(run.communicate(), run.returncode)[1] for run in start_all(undisturbed)] == [0] * count
        runs = start_all(disturbed)
        until_checkpoint(runs)
        for run in runs:
            run.kill()
            run.communicate()
        epochs = saved(Path(disturbed, "mine"))
        assert [(run.communicate(), run.returncode)[1] for run in start_all(disturbed)] == [0] * count
        jax.config.update("jax_num_cpu_devices", 2 * count)
        assert_same_end("crl_jax", Path(undisturbed, "mine"), Path(disturbed, "mine"))
        print(f"killed after epoch {epochs[-1]}: the same bits", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        runs = start_all(folder)
        until_checkpoint(runs)
        began = time.time()
        runs[-1].kill()
        codes = [(run.communicate(timeout=120), run.returncode)[1] for run in runs[:-1]]
        print(f"one killed: the others ended with {codes} after {time.time() - began:.0f} s")
        assert 0 not in codes


def epochs(count):
    """Resident memory and time per epoch, over a run of `count` epochs."""
    steps = str(count * 64 + 64 * 6)  # six iterations only fill the buffer
    more = ["--total-timesteps", steps, "--num-evals", str(count), "--checkpoint-every", "100"]
    with tempfile.TemporaryDirectory() as folder:
        process = start("crl_jax", *SIZES, *more, cwd=folder)
        rows = []
        for line in process.stdout:
            if "/" in (line.split() or [""])[0]:
                status = Path(f"/proc/{process.pid}/status").read_text()
                memory = int(status.split("VmRSS:")[1].split()[0]) / 1e3
                rows.append((time.time(), memory))
        assert process.wait() == 0
    part = len(rows) // 10
    print("| epochs | ms an epoch, median | resident memory, MB |\n| --- | --- | --- |")
    for i in range(0, len(rows) - part, part):
        milliseconds = [1e3 * (rows[j + 1][0] - rows[j][0]) for j in range(i, i + part)]
        print(f"| {i + 1} to {i + part} | {statistics.median(milliseconds):.1f} | {rows[i + part][1]:.0f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--processes", type=int, default=0)
    args = parser.parse_args()
    if args.epochs:
        epochs(args.epochs)
    if args.processes:
        processes(args.processes)
    if args.kills:
        kills(args.kills)


if __name__ == "__main__":
    main()
