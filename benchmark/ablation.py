"""What each choice of CRL is worth on a task: trains with one choice changed at a time, and prints a table.

    python -m benchmark.ablation --env-id reacher --csv benchmark/results/ablation/reacher.csv -- --num-evals 8

Every energy with every contrastive loss, then other networks, batches, numbers of updates and so on. All start from the
script's defaults and the flags behind --, without what `--env-id` chooses. Where a training takes long, `--only energy
batch_size` tries the variants that change no other flag. Figures are means over seeds and over the last quarter of a
training's evaluations, in brackets the least and the greatest seed; seconds are without compiling. The CSV gets each
training when it ends; those that it has are not run again.
"""

import argparse
import csv
import dataclasses
import statistics
import sys
import time
import typing
from pathlib import Path

import jax
import tyro

import crl_jax
from benchmark.learning import read_csv

CHOICES = {field.name: typing.get_args(field.type) for field in dataclasses.fields(crl_jax.Args)}
RESIDUAL = {"residual": True, "layer_norm": True, "activation": "swish"}
VARIANTS = (
    *({"energy": e, "contrastive_loss": c} for e in CHOICES["energy"] for c in CHOICES["contrastive_loss"]),
    {"action_chunk": 2},
    {"action_chunk": 3},
    {"action_chunk": 5},
    {"random_goals": 0.5},
    {"commanded_goals": 0.0},
    {"commanded_goals": 1.0},
    {"normalize_observations": False},
    {"goal_noise": 0.3},
    {"random_goals": 0.5, "target_entropy": -1.0, "anneal_lr": True},  # what ants once had, without chunks
    {"target_entropy": -1.0},
    {"target_entropy": 0.0},
    {"gamma": 0.97},
    {"anneal_lr": True},
    {"anneal_lr": False},
    {"activation": "swish"},
    {"layer_norm": True},
    {"layer_norm": False},
    {"width": 64},
    {"width": 512},
    {"depth": 4},
    {"depth": 4, "layer_norm": True},
    {"depth": 4} | RESIDUAL,
    {"depth": 8} | RESIDUAL,
    {"batch_size": 64},
    {"batch_size": 512},
    {"env_steps_per_update": 8},
    {"env_steps_per_update": 64},
)
TITLES = ("flags", "variant", "seed", "success_rate", "time_near_goal", "seconds")


def flags_of(changes):
    """Changes, a dict, as flags."""
    words = []
    for flag, value in changes.items():
        name = flag.replace("_", "-")
        words += [f"--{name}" if value is True else f"--no-{name}" if value is False else f"--{name} {value}"]
    return " ".join(words) or "default"


def changes_of(base, only):
    """What each variant changes of `base`, a dict of flags, by its name; no other flags than `only`, if given."""
    changes = [{flag: value for flag, value in variant.items() if value != base[flag]} for variant in VARIANTS]
    return {flags_of(each): each for each in changes if not only or set(each) <= set(only)}


def train(args, seeds):
    """Trains once for each seed, compiled once. Yields the seed, both metrics and the seconds without compiling."""
    init, train = crl_jax.make_train(args)
    epochs = crl_jax.make_schedule(args).num_epochs
    compiled = jax.jit(lambda key: train(init(key), epochs)[1]).lower(jax.random.key(0)).compile()
    for seed in seeds:
        start = time.perf_counter()
        metrics = jax.block_until_ready(compiled(jax.random.key(seed)))
        last = slice(-max(epochs // 4, 1), None)
        figures = (metrics[f"eval/{name}"][last].mean().item() for name in ("success_rate", "time_near_goal"))
        yield seed, *figures, time.perf_counter() - start


def append(path, row):
    with path.open("a", newline="") as file:
        csv.writer(file).writerow(row)


def main():
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="reacher")
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103], help="not those of the results")
    parser.add_argument("--csv", type=Path, required=True)
    choices = sorted(set().union(*VARIANTS))
    parser.add_argument("--only", nargs="+", choices=choices, metavar="FLAG", help="only variants of these flags")
    parser.epilog = "What follows -- are flags for crl_jax.py."
    given, flags = parser.parse_args(words[:end]), words[end + 1 :]
    flags += ["--env-id", given.env_id]
    base, flags = vars(tyro.cli(crl_jax.Args, args=flags)), " ".join(flags)
    if not given.csv.exists():
        given.csv.parent.mkdir(parents=True, exist_ok=True)
        append(given.csv, TITLES)
    known = [row for row in read_csv(given.csv) if row["flags"] == flags and int(row["seed"]) in given.seeds]
    print("| | success rate | time near goal | seconds |\n| --- | --- | --- | --- |")
    for name, changes in changes_of(base, given.only).items():
        rows = [row for row in known if row["variant"] == name]
        missing = [seed for seed in given.seeds if str(seed) not in {row["seed"] for row in rows}]
        for seed, success, near, seconds in train(crl_jax.Args(**base | changes), missing) if missing else ():
            row = flags, name, seed, f"{success:.4f}", f"{near:.4f}", f"{seconds:.1f}"
            append(given.csv, row)
            rows.append(dict(zip(TITLES, row, strict=True)))
        cells = [f"`{name}`" if name != "default" else name]
        for title in TITLES[3:]:
            values = [float(row[title]) for row in rows]
            spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
            mean = statistics.mean(values)
            cells.append(f"{mean:.0f}" if title == "seconds" else f"{mean:.2f}{spread}")
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
