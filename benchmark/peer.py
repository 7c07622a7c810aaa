"""This project and its peer, jaxgcrl 0.2.8, in turns at the same settings on the same machine.

    python benchmark/peer.py crl --env-id reacher    # or sac, ppo
    python benchmark/peer.py learning                # CRL: seconds until it has learnt

Settings: `equal_settings.py`; the peer has an environment of its own, .venv-peer, made here if it is missing. Speed is
the median over the epochs after the first, which compiles; the first metric comes at the end of that one.

Learning takes a seed a turn, with the default flags of each, but `--num-envs`, fewer evaluations and fewer steps for
the peer, and counts from the start of the process. Ours runs twice, with an empty compilation cache and with what the
first run left in it; the peer has none. The evaluation before is named too, the last at which it had not learnt yet:
the peer's lie far apart.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import seeds

ROOT = Path(__file__).parent.parent
PYTHON = ROOT / ".venv-peer" / "bin" / "python"
PACKAGES = (  # it pins a CUDA build of jax; these are what it runs with on a CPU
    "jax==0.4.25", "jaxlib==0.4.25", "flax<0.9", "brax==0.12.1", "matplotlib==3.8.4", "mujoco==3.2.7",
    "mujoco-mjx==3.2.7", "numpy<2", "scipy<1.14", "tyro==0.9.17", "wandb", "wandb-osh",
)  # fmt: skip


def set_up():
    """Makes the peer's environment, if it is missing."""
    if PYTHON.exists():
        return
    subprocess.run(["python3.11", "-m", "venv", PYTHON.parent.parent], check=True)
    for packages in (["--no-deps", "jaxgcrl==0.2.8"], PACKAGES):
        subprocess.run([PYTHON, "-m", "pip", "install", "-q", *packages], check=True)


def run(command):
    """Environment steps a second, seconds from the start to the first metric, largest memory in MB."""
    environment = os.environ | {"WANDB_MODE": "disabled"}
    _, lines, memory = seeds.watch(command, env=environment, stderr=subprocess.DEVNULL)
    epochs = [(at, float(line.split()[0])) for at, line in lines if line.endswith("environment steps a second\n")]
    if len(epochs) < 2:
        sys.exit(f"{command} failed")
    return statistics.median(speed for _, speed in epochs[1:]), epochs[0][0], memory


def learning(env_id, num_envs, backend, turns):
    """Prints a table with a row for each run, and the ratios of the seconds until time near goal 0.7. What they are at
    least, had the peer got there right after its evaluation before, comes last."""
    print("| seed | run | success rate ≥ 0.95, s | time near goal ≥ 0.7, s | evaluation before, s |\n|" + " --- |" * 5)
    ours = [sys.executable, "crl_jax.py", "--env-id", env_id, *backend]
    peer = [PYTHON, "benchmark/peer_curve.py", "--env-id", env_id, "--num-envs", num_envs]
    peer += ["--num-evals", "7", "--total-timesteps", "600000"]
    ratios = []
    for seed in turns:
        with tempfile.TemporaryDirectory() as cache:
            own = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
            runs = {
                "jaxgcrl": seeds.run([*peer, "--seed", str(seed)], os.environ | {"WANDB_MODE": "disabled"}),
                "this, cold": seeds.run([*ours, "--seed", str(seed)], own),
                "this, warm": seeds.run([*ours, "--seed", str(seed)], own),
            }
        near, before = {}, {}
        for name, rows in runs.items():
            near[name] = seeds.first(rows, 3, 0.7)
            before[name] = max((row[1] for row in rows if row[1] < near[name]), default=0)
            cells = seeds.first(rows, 2, 0.95), near[name], before[name]
            print(f"| {seed} | {name} | {' | '.join(f'{x:.0f}' for x in cells)} |", flush=True)
        cold, warm = near["this, cold"], near["this, warm"]
        ratios.append([theirs / own for theirs in (near["jaxgcrl"], before["jaxgcrl"]) for own in (cold, warm)])
    names = "cold", "warm", "cold, at least", "warm, at least"
    for name, column in zip(names, zip(*ratios, strict=True), strict=True):
        print(f"\n{name}: median {statistics.median(column):.1f}, {min(column):.1f} to {max(column):.1f} times as soon")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("crl", "sac", "ppo", "learning"))
    parser.add_argument("--env-id", default="reacher")
    parser.add_argument("--num-envs", type=int, default=64, help="of both, for `learning` the peer's alone")
    parser.add_argument("--backend", help="our physics; by default the one that the task has on this machine")
    parser.add_argument("--turns", type=int, nargs="+", default=[1, 2, 3], help="for `learning` they are the seeds")
    args = parser.parse_args()
    backend = ["--backend", args.backend] if args.backend else []
    set_up()
    if args.what == "learning":
        return learning(args.env_id, str(args.num_envs), backend, args.turns)
    flags = [args.what, "--env-id", args.env_id, "--num-envs", str(args.num_envs)]
    ours = [sys.executable, ROOT / "benchmark" / "equal_settings.py", *flags, *backend]
    peer = [PYTHON, ROOT / "benchmark" / "peer_speed.py", *flags]
    print("| turn | steps/s | peer's | ratio | first metric, s | peer's | peak memory, MB | peer's |\n|" + " --- |" * 8)
    ratios = []
    for turn in args.turns:
        theirs, own = run(peer), run(ours)
        ratios.append(own[0] / theirs[0])
        cells = [turn, f"{own[0]:,.0f}", f"{theirs[0]:,.0f}", f"{ratios[-1]:.1f}"]
        cells += [f"{x:,.0f}" for pair in zip(own[1:], theirs[1:], strict=True) for x in pair]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    print(f"\nratio: median {statistics.median(ratios):.1f}, {min(ratios):.1f} to {max(ratios):.1f}")


if __name__ == "__main__":
    main()
