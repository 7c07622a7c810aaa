"""What a GPU is asked, most telling first, for at most 20 minutes. Everything is written as it is measured.

    python -m benchmark.gpu                                # all of it, into runs/gpu
    python -m benchmark.gpu peer graphs --minutes 8        # parts, where a machine is lent for less
    python -m benchmark.gpu --rehearse                     # on any machine: only that all of it runs

Parts:
  peer: CRL on ant beside jaxgcrl at equal settings, 256 environments, in turns. It needs the peer's environment,
    .venv-peer, with a jax that finds the GPU.
  environments: CRL on ant to 10 M steps, with more environments for the same updates; a folder each with curves.
  graphs: the same training under settings of XLA's command buffers, which launch many kernels at once.
  physics: CRL at the peer's settings on springs, mjx, warp and native MuJoCo on the host's cores, short epochs.
  long: ant_big_maze and humanoid, deeper, to as many steps as are left time for.

A speed is the median over the epochs after the first, without evaluation. `table.md` has a row for each measurement.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import envs
from benchmark.learning import MEASURES, read_csv
from benchmark.peer import PYTHON, ROOT, SPEED, peer_side

WHILE = "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL"  # an unroll has a branch: whether some episode ended
GRAPHS = {
    "as they are": "",
    "none": "--xla_gpu_enable_command_buffer=",
    "loops too": WHILE,
    "loops too, however small": f"{WHILE} --xla_gpu_graph_min_graph_size=1",
    "loops too, unrolled": f"{WHILE} --xla_gpu_command_buffer_unroll_loops=true",
}
# Environments, steps for each update, rows of a batch, chunks: as many rows for each step, and 4 and 16 times fewer.
GROWN = (
    (256, 16, 256, 3), (4096, 256, 4096, 3), (4096, 256, 4096, 1), (4096, 256, 1024, 3), (1024, 64, 1024, 3),
    (4096, 256, 256, 3),
)  # fmt: skip
PHYSICS = ("reacher", "arm_push_easy", "humanoid", "cheetah", "simple_u_maze")
DEEP = "--depth 8 --residual --layer-norm --activation swish --batch-size 512"


class Session:
    """Measures one thing after the other until the time is up."""

    def __init__(self, folder, minutes, rehearse):
        self.folder, self.end, self.rehearse = folder, time.time() + 60 * minutes, rehearse
        folder.mkdir(parents=True, exist_ok=True)

    def left(self, limit):
        """Seconds that something may take; 0 where that is too little for an answer."""
        left = self.end - time.time()
        return 0 if left < 20 else left if self.rehearse else min(limit, left)

    def write(self, part, what, result):
        with (self.folder / "table.md").open("a") as table:
            for file in (table, sys.stdout):
                print(f"| {part} | {what} | {result} |", file=file, flush=True)

    def speed(self, part, what, command, limit, flags=""):
        """Runs a command that prints a line for each epoch, and writes its median speed."""
        limit = self.left(limit)
        if not limit:
            return self.write(part, what, "no time left")
        environment = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()}
        try:
            pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            done = subprocess.run(command, cwd=ROOT, env=environment, timeout=limit, **pipes)
            output, end = done.stdout, f"exit code {done.returncode}"
        except subprocess.TimeoutExpired as stopped:
            output, end = stopped.stdout or b"", f"stopped after {limit:.0f} s"
        output = output.decode(errors="replace")  # in which warp may have written into a line of ours
        speeds = [float(speed) for speed in re.findall(rf"(\d+) {SPEED}$", output, re.MULTILINE)][1:]
        if speeds:
            return self.write(part, what, f"{statistics.median(speeds):,.0f} {SPEED}, {len(speeds)} epochs")
        self.write(part, what, f"{end}: {output.strip()[-200:]!r}")

    def ours(self, part, what, limit=90, env_id="ant", flags="", more=()):
        command = [sys.executable, "-m", "benchmark.peer", "this", "crl", "--env-id", env_id]
        self.speed(part, what, [*command, "--num-envs", "4" if self.rehearse else "256", *more], limit, flags)

    def learn(self, part, what, flags, limit=240):
        """Trains until it is done or the time is up, and writes the last evaluation; `metrics.csv` is the curve."""
        limit = self.left(limit)
        if not limit:
            return self.write(part, what, "no time left")
        if self.rehearse:
            flags += " --num-envs 4 --total-timesteps 2000 --num-evals 2 --num-eval-envs 4 --batch-size 8"
        run = self.folder / what.replace(", ", "_").replace(" ", "_")
        shutil.rmtree(run, ignore_errors=True)  # or it would go on with what an earlier call began
        flags += f" --checkpoint-every 0 --run-dir {run}"
        process = subprocess.Popen([sys.executable, "crl_jax.py", *flags.split()], cwd=ROOT)
        try:
            end = f"exit code {process.wait(limit)}"
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()  # until then it holds the GPU's memory
            end = f"stopped after {limit:.0f} s"
        rows = read_csv(run / "metrics.csv")
        cells = (f"{name} {rows[-1][name]}" for name in ("steps", "seconds", *(f"eval/{x}" for x in MEASURES)))
        self.write(part, what, ", ".join(cells) if rows else f"nothing was evaluated: {end}")


def peer(session):
    finds_gpu = "import sys, jax; sys.exit(jax.default_backend() != 'gpu')"
    if not PYTHON.exists() or (not session.rehearse and subprocess.run([PYTHON, "-c", finds_gpu]).returncode):
        return session.write("peer", "jaxgcrl", f"{PYTHON} has no jax that finds a GPU")
    for turn in (1, 2):
        session.ours("peer", f"this, turn {turn}")
        size = "64" if session.rehearse else "256"
        theirs = peer_side("speed", "crl", "--env-id", "ant", "--num-envs", size)
        session.speed("peer", f"jaxgcrl, turn {turn}", theirs, 180)


def graphs(session):
    for what, flags in GRAPHS.items():
        session.ours("graphs", what, flags=flags)


def environments(session):
    for num_envs, ratio, batch, chunk in GROWN:
        what = f"{num_envs} environments, batch {batch}, chunks of {chunk}"
        sizes = f"--num-envs {num_envs} --env-steps-per-update {ratio} --batch-size {batch} --buffer-size 2000"
        steps = "--total-timesteps 10000000 --num-eval-envs 256"
        session.learn("environments", what, f"--env-id ant {sizes} {steps} --action-chunk {chunk}", limit=180)


def physics(session):
    for env_id in PHYSICS:
        task, _ = envs.TASKS[env_id]
        for backend in ("spring", "mjx", "warp", "mujoco"):
            if backend in task.backends:
                more = "--backend", backend, "--iterations", "4"
                session.ours("physics", f"{env_id}, {backend}", 120, env_id, more=more)


def long(session):
    many = "--total-timesteps 50000000 --num-envs 1024 --env-steps-per-update 64 --num-evals 50 --buffer-size 2000"
    for env_id in ("ant_big_maze", "humanoid"):
        session.learn("long", env_id, f"--env-id {env_id} {DEEP} {many}", limit=600)


PARTS = {part.__name__: part for part in (peer, environments, graphs, physics, long)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--minutes", type=float, default=20, help="after which all of it ends")
    parser.add_argument("--folder", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--rehearse", action="store_true", help="with a few environments and steps")
    given = parser.parse_args()
    if unknown := set(given.parts) - PARTS.keys():
        parser.error(f"no part {unknown.pop()!r}: choose from {', '.join(PARTS)}")
    folder = given.folder.absolute() / ("rehearsal" if given.rehearse else "")
    session = Session(folder, given.minutes, given.rehearse)
    for name in given.parts or PARTS:
        PARTS[name](session)


if __name__ == "__main__":
    main()
