"""How CRL's costs grow: with environments, batch, depth, seeds and cores. Prints a table.

    python -m benchmark.scaling --env-id reacher --picture docs/scaling.png

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

import jax
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator

import crl_jax
from benchmark.speed import make_timed

ITERATIONS = 4
STEPS = 100_000  # at least, of all environments, where steps are timed
STEPS_PER_UPDATE = 64  # enough updates to time one, where updates are what is timed
SWEEPS = {  # title: flag, its values, other flags, what is timed
    "environments": ("num_envs", (16, 64, 256, 1024, 4096), {}, "step"),
    "batch size": ("batch_size", (64, 128, 256, 512, 1024), {}, "update"),
    "layers, residual": ("depth", (4, 8, 16, 32), dict(residual=True, layer_norm=True), "update"),
    "seeds at once": ("num_seeds", (1, 2, 4), dict(num_envs=64), "seed"),
}
UNITS = {"step": "µs a step, no updates", "update": "ms an update", "seed": "µs a step, with updates"}


def make_training(args, iterations):
    """A function that times so many iterations, of all seeds at once, in seconds."""
    args = replace(args, num_evals=1, learning_starts=1)
    steps = iterations * crl_jax.make_schedule(args).steps_per_iteration
    init, train = crl_jax.make_train(replace(args, total_timesteps=steps))
    seeds = partial(jax.random.split, num=args.num_seeds)
    timed, _ = make_timed(lambda key: jax.vmap(init)(seeds(key)), jax.vmap(train, in_axes=(0, None)))
    return timed


def make_cost(args, what):
    """A function that measures the cost of one step or update, in the unit of `UNITS`."""
    per_iteration = crl_jax.make_schedule(args).steps_per_iteration
    if what == "seed":
        fully = make_training(args, ITERATIONS)
        return lambda: 1e6 * fully() / (ITERATIONS * per_iteration * args.num_seeds)
    iterations = max(ITERATIONS, STEPS // per_iteration) if what == "step" else ITERATIONS
    hardly = make_training(replace(args, env_steps_per_update=per_iteration, batch_size=2), iterations)
    if what == "step":
        return lambda: 1e6 * hardly() / (iterations * per_iteration)
    some = make_training(replace(args, env_steps_per_update=STEPS_PER_UPDATE), ITERATIONS)
    return lambda: 1e3 * (some() - hardly()) / (ITERATIONS * per_iteration // STEPS_PER_UPDATE)


def measure(settings, what, turns):
    """The cost for each of the settings, measured in turns: medians."""
    costs = [make_cost(args, what) for args in settings]
    rows = [[cost() for cost in costs] for _ in range(turns)]
    return [statistics.median(values) for values in zip(*rows, strict=True)]


def on_cores(count, env_id, turns):
    """The costs with default flags where only `count` cores are to be had."""
    command = [sys.executable, "-m", "benchmark.scaling", "--env-id", env_id]
    command += ["--cores", str(count), "--turns", str(turns)]
    *_, costs = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout.splitlines()
    return [float(cost) for cost in costs.split()]


def draw(rows, path):
    figure, axes = plt.subplots(2, 2, figsize=(8, 5.5))
    for ax, (title, what, values, costs) in zip(axes.flat, rows, strict=True):
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
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="reacher")
    parser.add_argument("--picture")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=[*SWEEPS, "cores"], default=[*SWEEPS, "cores"])
    parser.add_argument("--cores", type=int, help="print the costs with default flags on so many cores, and no more")
    given = parser.parse_args()
    default = crl_jax.Args(env_id=given.env_id)
    if given.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])  # before JAX makes its threads
        return print(*(x for what in ("step", "update") for x in measure([default], what, given.turns)))
    rows = []  # title, what is timed, values, costs

    def add(title, what, values, costs):
        rows.append((title, what, values, costs))
        cells = ", ".join(f"{value:,}: {cost:.3g}" for value, cost in zip(values, costs, strict=True))
        print(f"| {title} | {UNITS[what]} | {cells} |", flush=True)

    print("| | cost | value: cost |\n| --- | --- | --- |")
    for title, (flag, values, others, what) in SWEEPS.items():
        if title in given.only:
            settings = [replace(default, **{flag: value}, **others) for value in values]
            add(title, what, values, measure(settings, what, given.turns))
    if given.picture:
        draw(rows, given.picture)
    if "cores" in given.only:
        counts = range(1, len(os.sched_getaffinity(0)) + 1)
        by_core = [on_cores(count, given.env_id, given.turns) for count in counts]
        for what, costs in zip(("step", "update"), zip(*by_core, strict=True), strict=True):
            add("cores", what, counts, costs)


if __name__ == "__main__":
    main()
