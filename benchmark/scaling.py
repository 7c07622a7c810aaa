"""How CRL's costs grow: with environments, batch, depth, seeds and cores. Prints a table (`sampling.py` the buffer's).

    python benchmark/scaling.py --env-id reacher --picture docs/scaling.png

Times are of whole trainings, without compiling or evaluation, medians of turns. A step's is that of a training with
hardly any updates, one of two rows in each iteration; an update's is the difference between a training and that one.
"""

import argparse
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import matplotlib.pyplot as plt
from bound import make_timed
from matplotlib.ticker import LogLocator

sys.path.insert(0, str(Path(__file__).parent.parent))
import crl_jax

ITERATIONS, TURNS = 4, 5
STEPS = 100_000  # at least, of all environments, where steps are timed
STEPS_PER_UPDATE = 64  # enough updates to time one, where updates are what is timed
SWEEPS = {  # title: flag, its values, other flags, what is timed
    "environments": ("num_envs", (16, 64, 256, 1024, 4096), {}, "step"),
    "batch size": ("batch_size", (64, 128, 256, 512, 1024), {}, "update"),
    "layers, residual": ("depth", (4, 8, 16, 32), dict(residual=True, layer_norm=True), "update"),
    "seeds at once": ("num_seeds", (1, 2, 4), dict(num_envs=64), "seed"),
}
UNITS = {"step": "µs an environment step", "update": "ms an update", "seed": "µs an environment step"}


def make_training(args, iterations):
    """A function that times so many iterations, of all seeds at once, in seconds."""
    steps = iterations * args.num_envs * args.unroll_length
    args = replace(args, total_timesteps=steps, num_evals=1, learning_starts=1)
    init, train = crl_jax.make_train(args)
    seeds = partial(jax.random.split, num=args.num_seeds)
    timed, _ = make_timed(lambda key: jax.vmap(init)(seeds(key)), jax.vmap(train, in_axes=(0, None)), crl_jax)
    return timed


def make_cost(args, what):
    """A function that measures the cost of one step or update, in the unit of `UNITS`."""
    per_iteration = args.num_envs * args.unroll_length
    if what == "seed":
        fully = make_training(args, ITERATIONS)
        return lambda: 1e6 * fully() / (ITERATIONS * per_iteration * args.num_seeds)
    iterations = max(ITERATIONS, STEPS // per_iteration) if what == "step" else ITERATIONS
    hardly = make_training(replace(args, env_steps_per_update=per_iteration, batch_size=2), iterations)
    if what == "step":
        return lambda: 1e6 * hardly() / (iterations * per_iteration)
    some = make_training(replace(args, env_steps_per_update=STEPS_PER_UPDATE), ITERATIONS)
    return lambda: 1e3 * (some() - hardly()) / (ITERATIONS * per_iteration // STEPS_PER_UPDATE)


def measure(settings, what):
    """The cost for each of the settings, measured in turns: medians."""
    costs = [make_cost(args, what) for args in settings]
    turns = [[cost() for cost in costs] for _ in range(TURNS)]
    return [statistics.median(values) for values in zip(*turns, strict=True)]


def on_cores(count, env_id):
    """The costs with default flags where only `count` cores are to be had."""
    command = [sys.executable, __file__, "--env-id", env_id, "--cores", str(count)]
    return [float(x) for x in subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout.split()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="reacher")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--cores", type=int, help="print the costs with default flags on so many cores, and no more")
    given = parser.parse_args()
    default = crl_jax.Args(env_id=given.env_id)
    if given.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])  # before JAX makes its threads
        return print(*measure([default], "step"), *measure([default], "update"))
    rows = []  # title, what is timed, values, costs

    def add(title, what, values, costs):
        rows.append((title, what, values, costs))
        cells = ", ".join(f"{value:,}: {cost:.3g}" for value, cost in zip(values, costs, strict=True))
        print(f"| {title} | {UNITS[what]} | {cells} |", flush=True)

    for title, (flag, values, others, what) in SWEEPS.items():
        settings = [replace(default, **{flag: value}, **others) for value in values]
        add(title, what, values, measure(settings, what))
    counts = range(1, len(os.sched_getaffinity(0)) + 1)
    by_core = [on_cores(count, given.env_id) for count in counts]
    for what, costs in zip(("step", "update"), zip(*by_core, strict=True), strict=True):
        add("cores", what, counts, costs)
    if given.picture:
        figure, axes = plt.subplots(2, 2, figsize=(8, 5.5))
        for ax, (title, what, values, costs) in zip(axes.flat, rows, strict=False):  # without the cores
            ax.plot(values, costs, "o-")
            if what == "update":
                proportional = [costs[-1] * value / values[-1] for value in values]
                ax.plot(values, proportional, ":", color="grey", label="proportional")
                ax.legend(fontsize="small")
            ax.set(title=title, ylabel=UNITS[what], xscale="log", yscale="log")
            ax.set_ylim(min(costs) / 2, max(costs) * 2)
            ax.set_xticks(values, [f"{value:,}" for value in values], fontsize="small")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.minorticks_off()
        figure.tight_layout()
        figure.savefig(given.picture, dpi=110)


if __name__ == "__main__":
    main()
