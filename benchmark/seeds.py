"""Trains one script for five seeds, one after the other, and prints the README's table.

    python benchmark/seeds.py crl_jax.py
    python benchmark/seeds.py ppo_jax.py -- --dense-reward --total-timesteps 2000000

Seconds are counted from the start of the process, compiling included. The first run starts with an empty compilation
cache, the others find what it left.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(command, cwd, environment):
    """Rows (seconds since the start of the process, steps, success rate, time near goal), and the whole time taken."""
    start = time.time()
    rows = []
    with subprocess.Popen(command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE) as process:
        for line in process.stdout:
            fields = line.replace(",", "").split()
            if len(fields) == 8 and "/" in fields[0]:
                rows.append((time.time() - start, int(fields[1]), float(fields[3]), float(fields[4])))
    if process.returncode:
        sys.exit(f"{command} failed")
    return rows, time.time() - start


def first(rows, column, threshold):
    """Seconds until the first evaluation that reaches the threshold; infinite if none does."""
    return next((row[0] for row in rows if row[column] >= threshold), float("inf"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("flags", nargs="*", help="flags for the script, after --")
    args = parser.parse_args()
    table = []
    print(
        "| seed | first evaluation, s | success rate 0.95, s | time near goal 0.7, s | at the end, s | success | near |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
        for seed in args.seeds:
            command = [sys.executable, ROOT / args.script, "--seed", str(seed), *args.flags]
            rows, seconds = run(command, folder, environment)
            row = [rows[0][0], first(rows, 2, 0.95), first(rows, 3, 0.7), seconds, *rows[-1][2:]]
            table.append(row)
            print(
                f"| {seed} | " + " | ".join(f"{x:.0f}" for x in row[:4]) + f" | {row[4]:.3f} | {row[5]:.3f} |",
                flush=True,
            )
    medians = [statistics.median(column) for column in zip(*table, strict=True)]
    print("| median | " + " | ".join(f"{x:.0f}" for x in medians[:4]) + f" | {medians[4]:.3f} | {medians[5]:.3f} |")


if __name__ == "__main__":
    main()
