"""Writes what the curves in `results/` show into the docs: pictures, tables, records.

    python -m benchmark.plot --docs docs/results.md README.md
    python -m benchmark.plot --random    # first measures anew, on every task, what uniform random actions reach

Between the marks <!-- plot: TASK --> and <!-- /plot --> of these files comes the table of a task, between those of
`overview` one of all tasks, between those of `CRL and others` one of the tasks that CRL, with several seeds, and
another method were trained on, and between those of `published` the figures of `published.csv` beside ours. The first
file gets a section for each task that it lacks, in the order of their names. `curves/TASK.png` beside it are the
pictures of each task, `curves.png` is one of several.

Tables compare the methods of a task after equal numbers of steps, the smallest final number of any of them (the peer's
aside), and at the end of each. Between two evaluations a curve is a straight line. Of five seeds or more a cell is the
inter-quartile mean and its 95 % bootstrap interval (percentile), of fewer the mean, the least and the greatest. Seeds
that are under way count only where none has ended.

`records.md` has, by task, the shortest time from the start of the process to a measure, the median over seeds, of
curves that are committed, where random actions do not reach it. Its lines stay: a faster way is a new line, more seeds
of one way take the place of fewer.
"""

import argparse
import csv
import re
import statistics
import subprocess
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator
from scipy.stats import bootstrap, trim_mean

import envs
from benchmark.learning import HERE, read_csv
from crl_jax import OF_TASKS
from harness.cli import of_task

METHODS = {  # method: title
    "crl": "CRL",
    "sac_her": "SAC + HER",
    "sac": "SAC",
    "td3_her": "TD3 + HER",
    "ppo_dense": "PPO, shaped reward",
    "jaxgcrl": "jaxgcrl",
}
PEER = "jaxgcrl"
MEASURES = {"success_rate": "success rate", "time_near_goal": "time near goal"}
GOALS = {"success_rate": 0.8, "time_near_goal": 0.5}  # of records
RECORDS_HEAD = """# Records

Seconds from the start of the process, compiling included, to the first evaluation with a success rate of 0.8, and to
the first with a time near goal of 0.5: medians over seeds, on one or two cores of a CPU. `python -m benchmark.plot`
adds a line when a committed curve of `benchmark/results/` is faster than all lines of its task. Some of these cores
were four times as fast as others. A command has the defaults of its commit, some of which are others today: `git
checkout COMMIT` first. Random actions touch most goals of `reacher`: there only near counts.
"""
RECORDS = ("task", "goal", "seconds", "seeds", "command", "commit", "date", "jaxgcrl, seconds")


class Curve(NamedTuple):
    """A method on a task."""

    path: Path
    command: str
    whole: bool  # all seeds have come to their end
    steps: np.ndarray  # (evaluations,)
    values: dict[str, np.ndarray]  # (seeds, evaluations): seconds and measures
    memory: float  # largest of all seeds, MB

    @property
    def seeds(self):
        return len(self.values["seconds"])

    def at(self, name, steps):
        """Values after so many steps, (seeds,)."""
        return np.array([np.interp(steps, self.steps, values) for values in self.values[name]])

    def seconds_until(self, measure, threshold):
        """Of each seed, (seeds,), until the first evaluation that reaches it; infinite if none does."""
        reached = self.values[measure] >= threshold
        first = np.take_along_axis(self.values["seconds"], reached.argmax(1)[:, None], axis=1)[:, 0]
        return np.where(reached.any(1), first, np.inf)


def load(path):
    seeds = defaultdict(list)
    for row in read_csv(path):
        seeds[row["seed"]].append(row)
    ended = [rows for rows in seeds.values() if rows[-1]["mb"]]
    rows_of = ended or list(seeds.values())
    length = min(map(len, rows_of))
    values = {
        name: np.array([[float(row[name]) for row in rows[:length]] for rows in rows_of])
        for name in ("seconds", *MEASURES)
    }
    steps = np.array([float(row["steps"]) for row in rows_of[0][:length]])
    memory = max(float(rows[-1]["mb"] or 0) for rows in rows_of)
    return Curve(path, rows_of[0][0]["command"], bool(ended), steps, values, memory)


def load_all(folder):
    """The curves of each task by method, in the order of METHODS."""
    tasks = defaultdict(dict)
    for path in sorted(folder.glob("*__*.csv"), key=lambda path: [*METHODS].index(path.stem.split("__")[1])):
        task, method = path.stem.split("__")
        tasks[task][method] = load(path)
    return dict(sorted(tasks.items()))


def random_policy(obs, noise):
    return 2 * jax.scipy.stats.norm.cdf(noise) - 1


def write_random(path):
    """What uniform random actions reach on every task, in 128 episodes as long as those that CRL is evaluated on."""
    rows = [["task", *MEASURES]]
    for env_id in envs.ENV_IDS:
        env = envs.make(env_id)
        length = of_task(env_id, OF_TASKS)[1].get("episode_length", env.episode_length)
        evaluate = jax.jit(lambda key, env=env, length=length: envs.evaluate(env, random_policy, key, 128, length))
        measures = evaluate(jax.random.key(0))
        rows.append([env_id, *(f"{measures[f'eval/{name}']:.4g}" for name in MEASURES)])
        print(*rows[-1], flush=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


# ---- tables ----------------------------------------------------------------------------------------------------------


def middle(values):
    """Over the first axis, the seeds: the inter-quartile mean of five or more, else the mean."""
    return trim_mean(values, 0.25) if len(values) >= 5 else np.mean(values, axis=0)


def interval(values):
    """Ends of the 95 % bootstrap interval of `middle` for five seeds or more, else the least and the greatest."""
    if len(values) < 5:
        return values.min(0), values.max(0)
    statistic, random = partial(trim_mean, proportiontocut=0.25), np.random.default_rng(0)
    return bootstrap((values,), statistic, axis=0, method="percentile", rng=random).confidence_interval


def summary(values):
    low, high = interval(values)
    return f"{middle(values):.2f}" + (f" ({low:.2f} to {high:.2f})" if len(values) > 1 else "")


def table(rows):
    """Dicts of cells by title."""
    lines = rows[0].keys(), ["---"] * len(rows[0]), *(row.values() for row in rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def equal_steps(curves):
    """The smallest final number of steps among the methods, but for the peer's and what is under way."""
    ends = [curve.steps[-1] for method, curve in curves.items() if method != PEER and curve.whole]
    return min(ends or (curve.steps[-1] for curve in curves.values()))


def table_of_task(curves):
    steps = equal_steps(curves)
    rows = []
    for method, curve in curves.items():
        at = {name: summary(curve.at(name, steps)) if steps <= curve.steps[-1] else "–" for name in MEASURES}
        rows.append(
            {
                "method": METHODS[method],
                "seeds": f"{curve.seeds}" + ("" if curve.whole else ", under way"),
                f"success at {steps:,.0f} steps": at["success_rate"],
                f"near at {steps:,.0f}": at["time_near_goal"],
                "at the end: steps": f"{curve.steps[-1]:,.0f}",
                "success": summary(curve.values["success_rate"][:, -1]),
                "near": summary(curve.values["time_near_goal"][:, -1]),
                "minutes": f"{curve.values['seconds'][:, -1].mean() / 60:.1f}",
                "MB": f"{curve.memory:,.0f}" if curve.memory else "–",
                "command": f"`python {curve.command}`",
            }
        )
    return table(rows)


def overview(tasks, random=None):
    """A row for each task: success rate / time near goal after equal steps, in italics of fewer than three seeds. Where
    there are several methods the longest near is bold, and what its seeds' interval does not exclude, unless it is 0.
    `random` has what random actions reach, for a column more."""
    columns = [method for method in METHODS if method != PEER and any(method in curves for curves in tasks.values())]
    rows = []
    for task, curves in tasks.items():
        steps = equal_steps(curves)
        ends = {
            method: [f"{middle(curve.at(name, steps)):.2f}" for name in MEASURES]
            for method, curve in curves.items()
            if method in columns and steps <= curve.steps[-1]
        }
        near = {method: curves[method].at("time_near_goal", steps) for method in ends}
        best = max(near.values(), key=middle, default=None)
        compared = len(near) > 1 and middle(best) >= 0.005
        bold = [method for method, values in near.items() if compared and interval(values)[1] >= interval(best)[0]]
        cells = {method: " / ".join(end) for method, end in ends.items()}
        cells |= {method: f"*{cell}*" for method, cell in cells.items() if curves[method].seeds < 3}
        cells |= {method: f"**{cells[method]}**" for method in bold}
        row = {"task": f"`{task}`", "steps": f"{steps:,.0f}"}
        if random:
            row["random"] = " / ".join(f"{float(random[task][name]):.2f}" for name in MEASURES)
        rows.append(row | {METHODS[m]: cells.get(m, "") for m in columns})
    return table(rows)


def published(tasks):
    """A row for each published figure of a curve that is here: theirs, and ours after as many steps, or at its end."""
    rows = []
    for row in read_csv(HERE / "published.csv"):
        curve = tasks.get(row["task"], {}).get(row["method"])
        if curve is None:
            continue
        steps = min(float(row["steps"]), curve.steps[-1])
        rows.append(
            {
                "task": f"`{row['task']}`",
                "method": METHODS[row["method"]],
                "measure": MEASURES[row["measure"]],
                "published": row["value"],
                "million steps": f"{float(row['steps']) / 1e6:g}",
                "where": row["settings"],
                "here": summary(curve.at(row["measure"], steps)),
                "our million steps": f"{steps / 1e6:.1f}",
                "seeds": f"{curve.seeds}",
            }
        )
    return table(rows)


def insert(path, name, text, append):
    """Puts text between the marks of this name in a file; without marks into a new section, by name, or nowhere."""
    whole = path.read_text() if path.exists() else ""
    start, end = f"<!-- plot: {name} -->", "<!-- /plot -->"
    if start in whole:
        before, _, rest = whole.partition(start)
        after = rest.partition(end)[2]
    elif append:
        later = (title.start() for title in re.finditer(r"^## (\w+)$", whole, re.MULTILINE) if title[1] > name)
        at = next(later, len(whole))
        before = f"{whole[:at].rstrip()}\n\n## {name}\n\n![{name}](curves/{name}.png)\n\n".lstrip()
        after = f"\n\n{whole[at:]}".rstrip() + "\n"
    else:
        return
    path.write_text(f"{before}{start}\n\n{text}\n\n{end}{after}")


# ---- records ---------------------------------------------------------------------------------------------------------


def commit_of(path):
    """Commit and date of a file's last line; None if it is not committed."""
    last = len(path.read_text().splitlines())
    blame = ["git", "blame", "--date=short", "-L", f"{last},{last}", "--", path.name]
    result = subprocess.run(blame, cwd=path.parent, capture_output=True, text=True)
    if result.returncode or result.stdout.startswith("00000000"):
        return None
    return result.stdout.split()[0].lstrip("^")[:7], re.search(r"\d{4}-\d\d-\d\d", result.stdout).group()


def write_records(path, tasks, random):
    """Adds to the file's table what is faster than all of its lines, or has more seeds than the line of its command."""
    lines = [line for line in (path.read_text() if path.exists() else "").splitlines() if line.startswith("| `")]
    known = [dict(zip(RECORDS, (cell.strip() for cell in line.split("|")[1:-1]), strict=True)) for line in lines]
    for task, curves in tasks.items():
        for measure, threshold in GOALS.items():
            if float(random[task][measure]) >= threshold:
                continue
            goal = f"{MEASURES[measure]} {threshold}"
            times = {m: statistics.median(curve.seconds_until(measure, threshold)) for m, curve in curves.items()}
            peer = times.pop(PEER, None)
            if peer == np.inf:
                peer = f"more than {curves[PEER].values['seconds'][:, -1].mean():,.0f}"
            elif peer is not None:
                peer = f"{peer:,.0f}"
            method = min(times, key=times.get, default=None)
            if method is None or times[method] == np.inf:
                continue
            curve = curves[method]
            before = [row for row in known if (row["task"], row["goal"]) == (f"`{task}`", goal)]
            command = f"`python {curve.command}`"
            fewer = [row for row in before if row["command"] == command and int(row["seeds"]) < curve.seeds]
            others = [int(row["seconds"].replace(",", "")) for row in before if row not in fewer]
            if round(times[method]) >= min(others, default=np.inf):
                continue
            commit = commit_of(curve.path)
            if commit is None:
                print(f"{curve.path.name} would be a record: commit it first")
                continue
            cells = f"{times[method]:,.0f}", f"{curve.seeds}", command, *commit, peer or ""
            known = [row for row in known if row not in fewer]
            known.append(dict(zip(RECORDS, (f"`{task}`", goal, *cells), strict=True)))
    if not known:
        return
    known.sort(key=lambda row: (row["task"].strip("`"), row["goal"], row["date"]))  # of one day as they came
    path.write_text(f"{RECORDS_HEAD}\n{table(known)}\n")


# ---- pictures --------------------------------------------------------------------------------------------------------


def draw(panels, path):
    """A picture with a column for each of the panels, (task, its curves, "steps" or "minutes"), and a row for each
    measure. Lines are the middle of seeds, bands their interval."""
    size = min(3.2 * len(panels), 13), 5  # wider, and letters are too small where a page scales it down
    figure, axes = plt.subplots(2, len(panels), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for column, (task, curves, over) in zip(axes.T, panels, strict=True):
        for ax, (measure, title) in zip(column, MEASURES.items(), strict=True):
            for method, curve in curves.items():
                values, color = curve.values[measure], f"C{[*METHODS].index(method)}"
                x = curve.steps / 1e6 if over == "steps" else curve.values["seconds"].mean(0) / 60
                ax.plot(x, middle(values), marker=".", label=METHODS[method], color=color)
                ax.fill_between(x, *interval(values), alpha=0.2, color=color, linewidth=0)
            ax.set(ylim=(-0.02, 1.02), ylabel=title if ax in axes[:, 0] else None)
            ax.grid(alpha=0.3)
            if over == "minutes":
                ax.set_xscale("log")
                ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                ax.xaxis.set_major_formatter("{x:g}")
                ax.xaxis.set_minor_formatter("")
        column[0].set_title(task)
        column[1].set_xlabel("million environment steps" if over == "steps" else "minutes")
    lines = {line.get_label(): line for ax in axes.flat for line in ax.lines}
    titles = [title for title in METHODS.values() if title in lines]
    figure.legend([lines[title] for title in titles], titles, loc="outside lower center", ncols=3 * len(panels) // 2)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--docs", type=Path, nargs="+", default=[HERE.parent / "docs" / "results.md"])
    six = ["reacher", "cheetah", "simple_big_maze", "pusher_easy", "ant", "ant_u_maze"]
    parser.add_argument("--tasks", nargs="+", default=six, help="of curves.png, over minutes")
    parser.add_argument("--random", action="store_true", help="measure random actions anew, into random.csv")
    args = parser.parse_args()
    if args.random:
        write_random(HERE / "random.csv")
    tasks, folder = load_all(args.results), args.docs[0].parent
    several = {task: curves for task, curves in tasks.items() if "crl" in curves and curves["crl"].seeds > 1}
    compared = {task: curves for task, curves in several.items() if len({*curves} - {PEER}) > 1}
    random = {row["task"]: row for row in read_csv(HERE / "random.csv")}
    for path in args.docs:
        insert(path, "overview", overview(tasks, random), append=False)
        insert(path, "CRL and others", overview(compared), append=False)
        insert(path, "published", published(tasks), append=False)
        for task, curves in tasks.items():
            insert(path, task, table_of_task(curves), append=path == args.docs[0])
    for task, curves in tasks.items():
        draw([(task, curves, "steps"), (task, curves, "minutes")], folder / "curves" / f"{task}.png")
    draw([(task, tasks[task], "minutes") for task in args.tasks if task in tasks], folder / "curves.png")
    write_records(folder / "records.md", tasks, random)


if __name__ == "__main__":
    main()
