"""Trains what `runs.txt` lists and `results/` lacks, one training after the other; each leaves its curve as a CSV.

    python -m benchmark.learning --core 0
    python -m benchmark.learning --core 1          # beside it: takes what the first has not begun
    python -m benchmark.learning --list ant        # what is missing of this task; of a method: '*__crl'

A line of `runs.txt` has a task, a method, seeds and a command. The curves of its seeds are `results/task__method.csv`,
a row for each evaluation. Seconds count from the start of the process, compiling included; the time between an
interruption and the next start is left out. `mb` is the process's peak of memory, empty while a training is under way.
One that was interrupted goes on from its checkpoint in `runs/`. To train anew, delete the CSV.
"""

import argparse
import contextlib
import csv
import fcntl
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
MEASURES = ("success_rate", "time_near_goal", "final_dist")
COLUMNS = ("command", "seed", "steps", "seconds", *MEASURES, "mb")
EPOCH = re.compile(r" *\d+/\d+ ")  # how a run's line of an epoch begins


class Training(NamedTuple):
    name: str  # task__method
    seed: int
    command: str  # what Python is given, but for the seed


def read_csv(path):
    """Rows, dicts of strings; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@contextlib.contextmanager
def lock(path, wait=False):
    """Yields the locked file, or None if another process has it. The system unlocks it when the last process ends that
    has the file open, however it ends."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = file
        except BlockingIOError:
            held = None
        yield held


def listed(folder, patterns):
    """The trainings of `runs.txt`, in its order, whose names fit one of the patterns."""
    for line in (folder / "runs.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            task, method, seeds, command = line.split(maxsplit=3)
            first, _, last = seeds.partition("-")
            if any(fnmatch(f"{task}__{method}", pattern) or task == pattern for pattern in patterns):
                for seed in range(int(first), int(last or first) + 1):
                    yield Training(f"{task}__{method}", seed, command)


def rows_of(training, folder):
    """The CSV's rows of this training, as far as it has come."""
    path = folder / "results" / f"{training.name}.csv"
    rows = read_csv(path)
    others = {row["command"] for row in rows} - {training.command}
    if others:
        sys.exit(f"{path} holds curves of {others.pop()!r}, not of {training.command!r}: delete it to train anew")
    return [row for row in rows if row["seed"] == str(training.seed)]


def finished(training, folder):
    return any(row["mb"] for row in rows_of(training, folder))


def save(training, folder, curve, memory=None):
    """Puts the curve into the CSV, in place of what it has of this seed."""
    path = folder / "results" / f"{training.name}.csv"
    path.parent.mkdir(exist_ok=True)
    with lock(folder / "runs" / f"{training.name}.lock", wait=True):  # another core may train another seed
        rows = [row for row in read_csv(path) if row["seed"] != str(training.seed)]
        fixed = {"command": training.command, "seed": training.seed, "mb": "" if memory is None else f"{memory:.0f}"}
        rows += [row | fixed for row in curve]
        rows.sort(key=lambda row: (int(row["seed"]), int(row["steps"])))
        partial = path.with_suffix(".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        partial.rename(path)


def curve_of(directory, seconds, before):
    """A dict for each epoch in the run's `metrics.csv`, the last of which was written after so many seconds.

    A run's own clock starts a little after its process, when that has imported JAX. `before` has, if the run was
    interrupted, what this function returned then.
    """
    epochs = read_csv(directory / "metrics.csv")
    first, last = float(epochs[0]["seconds"]), float(epochs[-1]["seconds"])
    late = float(before[0]["seconds"]) - first if before else max(seconds - last, 0)
    return [
        {"steps": epoch["steps"], "seconds": f"{float(epoch['seconds']) + late:.1f}"}
        | {name: f"{float(epoch[f'eval/{name}']):.4g}" for name in MEASURES}
        for epoch in epochs
    ]


def train(command, directory, before=(), progress=lambda curve: None, **options):
    """Runs a command with `--run-dir directory`; `progress` is called after each epoch; options are those of `Popen`.

    Returns its exit code, its curve, and its peak of memory in MB.
    """
    start, curve = time.time(), []
    command = [sys.executable, *command, "--run-dir", directory]
    process = subprocess.Popen(command, cwd=HERE.parent, text=True, stdout=subprocess.PIPE, **options)
    for line in process.stdout:
        print(line, end="", flush=True)
        if EPOCH.match(line):
            curve = curve_of(directory, time.time() - start, before or curve)
            progress(curve)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode == 0 and not curve:  # all epochs had been trained before
        curve = curve_of(directory, time.time() - start, before)
    return process.returncode, curve, usage.ru_maxrss / 1000


def train_listed(training, folder):
    """Trains, unless another process does, or has. Returns whether it failed."""
    directory = folder / "runs" / f"{training.name}__{training.seed}"
    with lock(directory.with_suffix(".lock")) as held:
        if not held or finished(training, folder):
            return False
        print(f"\n{training.name}, seed {training.seed}: {training.command}", flush=True)
        goes_on = any(directory.glob("checkpoints/epoch_*"))
        if not goes_on:
            shutil.rmtree(directory, ignore_errors=True)  # of an earlier training, whose CSV was deleted
        code, curve, memory = train(
            [*shlex.split(training.command), "--seed", str(training.seed)],
            directory.absolute(),
            before=rows_of(training, folder) if goes_on else (),
            progress=lambda curve: save(training, folder, curve),
            pass_fds=[held.fileno()],  # locked as long as either process lives
        )
        if code == 0:
            save(training, folder, curve, memory)
            shutil.rmtree(directory / "checkpoints", ignore_errors=True)  # gigabytes; the policy stays
        else:
            print(f"{training.name}, seed {training.seed}: exit code {code}", file=sys.stderr, flush=True)
        return code != 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["*"], metavar="NAME", help="task, or pattern of task__method")
    parser.add_argument("--core", type=int, nargs="+", help="cores to train on; all by default")
    parser.add_argument("--list", action="store_true", help="print what is missing, and train nothing")
    parser.add_argument("--folder", type=Path, default=HERE, help="of runs.txt, results/ and runs/")
    args = parser.parse_args()
    if args.core:
        os.sched_setaffinity(0, args.core)
    tried, failed = set(), 0
    while True:  # what is listed meanwhile is trained too
        missing = [x for x in listed(args.folder, args.names) if not finished(x, args.folder) and x not in tried]
        if args.list:
            return print(*(f"{x.name} {x.seed} {x.command}" for x in missing), sep="\n")
        if not missing:
            sys.exit(f"{failed} trainings failed" if failed else 0)
        tried.add(missing[0])
        failed += train_listed(missing[0], args.folder)


if __name__ == "__main__":
    main()
