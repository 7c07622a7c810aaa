"""Draws learning curves from the files that `seeds.py --csv` wrote, and prints two tables of how they end.

    python benchmark/plot.py benchmark/results/*.csv --near reacher arm_reach --picture docs/curves.png

A file is a method on a task, named `task__method.csv`. Lines are inter-quartile means over seeds, bands 95 % bootstrap
intervals (percentile); of three seeds or fewer, means and each seed's own line, faint. Each task has two panels, one
above the other: over environment steps, and over minutes since the start of the process, on a logarithmic axis. They
show the success rate, but on the tasks named by `--near`, where any policy meets the goal at times, time near goal. So
does the first table, with a row for each task, and minutes and command of the first method; the second has one for each
file.
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator
from scipy.stats import bootstrap, trim_mean

COLUMNS = 4


def iqm(values, axis=-1):
    return trim_mean(values, 0.25, axis=axis)


def interval(values):
    """Ends of the 95 % bootstrap interval of the inter-quartile mean over the last axis."""
    if np.ptp(values) == 0 or values.shape[-1] == 1:
        return values[..., 0], values[..., 0]
    ends = bootstrap((values,), iqm, axis=-1, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return ends.low, ends.high


def summary(values):
    """The inter-quartile mean of values, (seeds,), with its interval."""
    low, high = interval(values)
    return f"{iqm(values):.2f}" + (f" ({low:.2f} to {high:.2f})" if len(values) > 1 else "")


def print_table(rows):
    """Prints dicts of cells by title."""
    print("|", " | ".join(rows[0]), "|\n|" + " --- |" * len(rows[0]))
    print(*(f"| {' | '.join(row.values())} |" for row in rows), "", sep="\n")


def load(path):
    """The command, and a dict of arrays (evaluations, seeds); what not all seeds have come to is left out."""
    seeds = defaultdict(list)
    with path.open() as file:
        for row in csv.DictReader(file):
            seeds[row["seed"]].append(row)
            command = row["command"]
    length = min(map(len, seeds.values()))
    names = ("steps", "seconds", "success_rate", "time_near_goal", "mb")
    table = {
        name: np.array([[float(row[name]) for row in rows[:length]] for rows in seeds.values()]).T for name in names
    }
    return command, table


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--picture", type=Path, required=True)
    parser.add_argument("--near", nargs="+", default=[], help="tasks whose panels show time near goal")
    parser.add_argument("--at", type=int, nargs="+", default=[], help="steps at which the table looks, beside the last")
    args = parser.parse_args()
    tasks = sorted({path.stem.split("__")[0] for path in args.files})
    methods = sorted({path.stem.split("__")[1] for path in args.files})
    columns = min(len(tasks), COLUMNS)
    bands = -(-len(tasks) // columns)
    figure, axes = plt.subplots(
        2 * bands, columns, figsize=(3.2 * columns, 5 * bands), sharey=True, squeeze=False, layout="constrained"
    )
    panels = {task: axes[i // columns * 2 :][:2, i % columns] for i, task in enumerate(tasks)}
    measures = {task: "time near goal" if task in args.near else "success rate" for task in tasks}
    rows, last = [], defaultdict(dict)
    for path in sorted(args.files):
        task, method = path.stem.split("__")
        command, table = load(path)
        shown = table[measures[task].replace(" ", "_")]
        low, high = interval(shown)
        middle = iqm(shown)
        for ax, x in zip(panels[task], (table["steps"][:, 0] / 1e6, table["seconds"].mean(1) / 60), strict=True):
            color = f"C{methods.index(method)}"
            ax.plot(x, middle, marker=".", label=method, color=color)
            if shown.shape[1] > 3:
                ax.fill_between(x, low, high, alpha=0.2, color=color, linewidth=0)
            else:
                ax.plot(x, shown, color=color, alpha=0.3, linewidth=1)
        for i in (*np.searchsorted(table["steps"][:-1, 0], args.at), -1):
            last[task, method] = {
                "task": f"`{task}`",
                "method": method,
                "seeds": str(table["steps"].shape[1]),
                "success rate": summary(table["success_rate"][i]),
                "time near goal": summary(table["time_near_goal"][i]),
                "steps": f"{table['steps'][i, 0]:,.0f}",
                "minutes": f"{table['seconds'][i].mean() / 60:.1f}",
                "MB": f"{table['mb'].max():,.0f}",
                "command": f"`{command}`",
            }
            rows.append(last[task, method])
    overview = []
    for task in tasks:
        ends = {method: last[task, method].get(measures[task], "") for method in methods}
        costs = {f"{title} of {methods[0]}": last[task, methods[0]].get(title, "") for title in ("minutes", "command")}
        overview.append({"task": f"`{task}`"} | ends | costs)
    print_table(overview)
    print_table(rows)
    for task, (upper, lower) in panels.items():
        upper.set(title=task, xlabel="million environment steps")
        lower.set(xlabel=f"{task}: minutes", xscale="log")
        for ax in (upper, lower):
            ax.set_ylabel(measures[task])
        lower.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        lower.xaxis.set_major_formatter("{x:g}")
        lower.xaxis.set_minor_formatter("")
    for ax in axes.flat:
        ax.set_ylim(-0.02, 1.02)
        ax.grid(alpha=0.3)
        ax.set_visible(bool(ax.lines))
    lines = {line.get_label(): line for ax in axes.flat for line in ax.lines if line.get_label() in methods}
    figure.legend([lines[method] for method in methods], methods, loc="outside lower center", ncols=len(methods))
    figure.savefig(args.picture, dpi=110)


if __name__ == "__main__":
    main()
