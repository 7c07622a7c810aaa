"""Trains one script for several seeds, one after the other, and prints a table of them.

    python benchmark/seeds.py crl_jax.py
    python benchmark/seeds.py ppo_jax.py -- --dense-reward --total-timesteps 2000000

Seconds are counted from the start of the process, compiling included. The first run of each call starts with an empty
compilation cache, the others find what it left. The runs stay in `runs/`. `--csv FILE` keeps all evaluations, for
`plot.py`; seeds that FILE has already are not run again.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
TITLES = (
    "seed", "first evaluation, s", "success rate ≥ 0.95, s", "time near goal ≥ 0.7, s", "last evaluation, s",
    "success rate at the end", "time near goal at the end", "peak memory, MB",
)  # fmt: skip
COLUMNS = ("command", "seed", "steps", "seconds", "success_rate", "time_near_goal", "final_dist", "mb")


def watch(command, **options):
    """Runs a command, with options for `Popen`. Returns its exit code, its output as pairs (seconds since the start,
    line), and the largest memory in MB."""
    start = time.time()
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, **options)
    lines = [(time.time() - start, line) for line in process.stdout]
    _, process.returncode, usage = os.wait4(process.pid, 0)
    return process.returncode, lines, usage.ru_maxrss / 1000


def run(command, environment):
    """A row for each evaluation: steps, seconds since the start of the process, success rate, time near goal, final
    distance, and the largest memory of the whole run in MB."""
    code, lines, memory = watch(command, cwd=ROOT, env=environment)
    if code:
        sys.exit(f"{command} failed")
    rows = []
    for time_of_line, line in lines:
        fields = line.replace(",", "").split()
        if len(fields) == 8 and "/" in fields[0]:
            rows.append((int(fields[1]), time_of_line, *map(float, fields[3:6]), memory))
    return rows


def load(path, name):
    """The rows of `run` by seed, all of the command `name`."""
    rows_of = defaultdict(list)
    if path and path.exists():
        with path.open() as file:
            for command, seed, steps, *row in list(csv.reader(file))[1:]:
                if command != name:
                    sys.exit(f"{path} holds runs of another command, {command}: delete it, or choose another file")
                rows_of[int(seed)].append((int(steps), *map(float, row)))
    return dict(rows_of)


def save(path, name, rows_of):
    """Writes what `load` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for seed, rows in rows_of.items():
            writer.writerows((name, seed, row[0], f"{row[1]:.1f}", *row[2:5], f"{row[5]:.0f}") for row in rows)


def first(rows, column, threshold):
    """Seconds until the first evaluation that reaches the threshold; infinite if none does."""
    return next((row[1] for row in rows if row[column] >= threshold), float("inf"))


def line_of(name, row):
    cells = [str(name), *(f"{x:.0f}" for x in row[:4]), *(f"{x:.3f}" for x in row[4:6]), f"{row[6]:.0f}"]
    return f"| {' | '.join(cells)} |"


def split_flags(words):
    """The words before `--`, and those after it."""
    end = words.index("--") if "--" in words else len(words)
    return words[:end], words[end + 1 :]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--csv", type=Path, help="file of all evaluations, to which missing seeds are added")
    parser.epilog = "What follows -- are flags for the script."
    own, flags = split_flags(sys.argv[1:])
    args = parser.parse_args(own)
    name = " ".join((args.script, *flags))
    rows_of, table = load(args.csv, name), []
    print(f"| {' | '.join(TITLES)} |\n|{' --- |' * len(TITLES)}")
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
        for seed in args.seeds:
            if seed not in rows_of:
                rows_of[seed] = run([sys.executable, ROOT / args.script, "--seed", str(seed), *flags], environment)
                if args.csv:
                    save(args.csv, name, rows_of)
            rows = rows_of[seed]
            table.append(
                [rows[0][1], first(rows, 2, 0.95), first(rows, 3, 0.7), rows[-1][1], *rows[-1][2:4], rows[-1][5]]
            )
            print(line_of(seed, table[-1]), flush=True)
    print(line_of("median", [statistics.median(column) for column in zip(*table, strict=True)]))


if __name__ == "__main__":
    main()
