"""What progress, TensorBoard and checkpoints cost: the script as users start it against the bare scan, in turns.

    python benchmark/overhead.py crl_jax.py

Both sides train the same epochs with the same flags, defaults but for the number of steps. What counts is the time from
the end of the first epoch to the end of the last, its checkpoint included, so neither starting nor compiling.
"""

import argparse
import importlib
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
STEPS, TURNS = 300_000, 5


def script(name):
    """Seconds of a run of the script."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, ROOT / name, "--total-timesteps", str(STEPS), "--runs-dir", folder]
        with subprocess.Popen(command, text=True, stdout=subprocess.PIPE) as process:
            times = [time.time() for line in process.stdout if line.lstrip().startswith(("1/", "checkpoint"))]
    return times[-1] - times[0]


def bare(name):
    """Seconds of the same scan by itself, and its number of epochs."""
    module = importlib.import_module(name.removesuffix(".py"))
    args = module.Args(total_timesteps=STEPS)
    schedule = module.make_schedule(args)
    init, train = module.make_train(args)
    runner = jax.jit(init)(jax.random.key(args.seed))
    train = jax.jit(train, static_argnums=1, donate_argnums=0)
    rest = train.lower(runner, schedule.num_epochs - 1).compile()
    runner, _ = jax.block_until_ready(train(runner, 1))
    start = time.time()
    jax.block_until_ready(rest(runner))
    return time.time() - start, schedule.num_epochs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script")
    name = parser.parse_args().script
    jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "jax"))
    print("| turn | the script, s | bare scan, s | ratio |\n| --- | --- | --- | --- |")
    ratios = []
    for turn in range(1, TURNS + 1):
        whole, (alone, epochs) = script(name), bare(name)
        ratios.append(whole / alone)
        print(f"| {turn} | {whole:.1f} | {alone:.1f} | {whole / alone:.3f} |", flush=True)
    print(f"\nmedian {statistics.median(ratios):.3f}, {epochs - 1} epochs of {STEPS / epochs:,.0f} steps")


if __name__ == "__main__":
    main()
