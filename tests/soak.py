"""Hard use: a run that is killed again and again and must end with the bits of an undisturbed one, and a run of many
epochs whose memory must not grow.

    python benchmark/soak.py --kills 50
    python benchmark/soak.py --epochs 2000
"""

import argparse
import hashlib
import json
import random
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
SMALL = shlex.split(
    "--num-envs 8 --unroll-length 8 --env-steps-per-update 2 --batch-size 32 --width 16 --buffer-size 400"
    " --episode-length 100 --num-eval-envs 4"
)
LONGEST = 20  # seconds until a run is killed: half of that is importing and compiling
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)


def start(*flags, cwd):
    command = [sys.executable, ROOT / "crl_jax.py", *flags]
    return subprocess.Popen(
        command,
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # also under nohup
    )


def end(process, number):
    """Signals until the process ends; returns what it wrote to stderr."""
    for _ in range(3):
        process.send_signal(number)
        try:
            return process.communicate(timeout=20)[1]
        except subprocess.TimeoutExpired:  # while importing, a callback of JAX's can swallow Ctrl-C
            print(f"{number.name} once more", flush=True)
    raise RuntimeError(f"{number.name} does not end it")


def only_run(folder):
    (directory,) = Path(folder, "runs").iterdir()
    return directory


def digest(directory):
    """Of all arrays and metrics of the last checkpoint, but for speeds, which the clock decides."""
    sys.path.insert(0, str(ROOT))
    import jax

    import crl_jax
    from envs import checkpoint

    args = crl_jax.Args(**json.loads((directory / "args.json").read_text())["flags"])
    init, _ = crl_jax.make_train(args)
    path, info = checkpoint.newest(directory / "checkpoints")
    state = checkpoint.restore(path, jax.eval_shape(init, jax.random.key(0)))
    parts = [jax.random.key_data(x) if x.dtype == state.key.dtype else x for x in jax.tree.leaves(state)]
    means = {name: value for name, value in info["means"].items() if not name.startswith("charts/")}
    return hashlib.sha256(b"".join(x.tobytes() for x in parts) + json.dumps(means).encode()).hexdigest()[:16]


def kills(count):
    """Kills a run `count` times, at random moments, by random signals."""
    flags = [*SMALL, "--total-timesteps", "2000000", "--num-evals", "1000", "--checkpoint-every", "10"]
    random.seed(0)
    with tempfile.TemporaryDirectory() as undisturbed, tempfile.TemporaryDirectory() as disturbed:
        began = time.time()
        whole = start(*flags, cwd=undisturbed)
        whole.communicate()
        assert whole.returncode == 0
        seconds = time.time() - began
        expected = digest(only_run(undisturbed))
        print(f"undisturbed: {seconds:.0f} s, {expected}", flush=True)
        done, command = 0, flags
        while done < count:
            process = start(*command, cwd=disturbed)
            try:
                process.wait(timeout=random.uniform(0, LONGEST))
                break  # it came to its end before
            except subprocess.TimeoutExpired:
                number = random.choice(SIGNALS)
                err = end(process, number)
                done += 1
            directory = next(Path(disturbed).glob("runs/*"), None)
            epochs = [int(path.name[-6:]) for path in directory.glob("checkpoints/epoch_*[0-9]")] if directory else []
            if epochs:
                command = ["--resume", directory]
            else:  # nothing to go on from yet
                subprocess.run(["rm", "-rf", f"{disturbed}/runs"], check=True)
                command = flags
            print(f"{done}: {number.name}, exit {process.returncode}, checkpoint {epochs}", flush=True)
            assert "Traceback" not in err or (number == signal.SIGINT and "KeyboardInterrupt" in err), err
        process = start(*command, cwd=disturbed)
        process.communicate()
        result = digest(only_run(disturbed))
        print(f"after {done} kills: {result}, {'the same' if result == expected else 'ANOTHER'}")
        sys.exit(result != expected)


def epochs(count):
    """Resident memory and time per epoch, over a run of `count` epochs."""
    steps = str(count * 64 + 64 * 6)  # six iterations only fill the buffer
    with tempfile.TemporaryDirectory() as folder:
        process = start(
            *SMALL, "--total-timesteps", steps, "--num-evals", str(count), "--checkpoint-every", "100", cwd=folder
        )
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
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it; the runs must not
    if args.epochs:
        epochs(args.epochs)
    if args.kills:
        kills(args.kills)


if __name__ == "__main__":
    main()
