"""What each choice of CRL is worth on a task: trains with one choice changed at a time, and prints a table.

    python benchmark/ablation.py --env-id reacher --csv benchmark/results/ablation/reacher.csv -- --num-evals 8

Every energy with every contrastive loss, and the default with other networks, batches, numbers of updates and so on.
Figures are means over seeds and over the last quarter of a training's evaluations, in brackets the least and the
greatest seed. `--csv FILE` adds each training to FILE when it ends; those that FILE has already are not run again.
"""

import argparse
import csv
import statistics
import sys
import time
from pathlib import Path

import jax
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
import crl_jax

DEFAULT = crl_jax.Args()
RESIDUAL = {"residual": True, "layer_norm": True, "activation": "swish"}
VARIANTS = (
    *({"energy": e, "contrastive_loss": c} for e in crl_jax.ENERGIES for c in crl_jax.CONTRASTIVE_LOSSES),
    {"activation": "swish"},
    {"layer_norm": True},
    {"width": 64},
    {"width": 512},
    {"depth": 4},
    {"depth": 4} | RESIDUAL,
    {"depth": 8} | RESIDUAL,
    {"batch_size": 64},
    {"batch_size": 512},
    {"env_steps_per_update": 8},
    {"env_steps_per_update": 64},
    {"random_goals": 0.5},
    {"gamma": 0.97},
    {"anneal_lr": True},
)
TITLES = ("flags", "variant", "seed", "success_rate", "time_near_goal", "seconds")


def flags_of(variant):
    """The variant as flags; those that are the default's are left out."""
    changed = {flag: value for flag, value in variant.items() if value != getattr(DEFAULT, flag)}
    words = (f"--{flag.replace('_', '-')}" + ("" if value is True else f" {value}") for flag, value in changed.items())
    return " ".join(words) or "default"


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


def main():
    own, flags = sys.argv[1:], []
    if "--" in own:
        own, flags = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="reacher")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--csv", type=Path, required=True)
    parser.epilog = "What follows -- are flags for crl_jax.py."
    given = parser.parse_args(own)
    flags += ["--env-id", given.env_id]
    base, flags = vars(tyro.cli(crl_jax.Args, args=flags)), " ".join(flags)
    given.csv.parent.mkdir(parents=True, exist_ok=True)
    print("| | success rate | time near goal | seconds |\n| --- | --- | --- | --- |")
    for variant in VARIANTS:
        name, done = flags_of(variant), []
        if given.csv.exists():
            with given.csv.open() as file:
                rows = [row for row in csv.DictReader(file) if (row["flags"], row["variant"]) == (flags, name)]
            done = [row for row in rows if int(row["seed"]) in given.seeds]
        missing = [seed for seed in given.seeds if str(seed) not in {row["seed"] for row in done}]
        for row in train(crl_jax.Args(**base | variant), missing) if missing else ():
            new = not given.csv.exists()
            with given.csv.open("a", newline="") as file:
                writer = csv.writer(file)
                writer.writerows([TITLES] * new)
                writer.writerow([flags, name, row[0], *(f"{x:.4f}" for x in row[1:3]), f"{row[3]:.1f}"])
            done.append(dict(zip(TITLES, (flags, name, *row), strict=True)))
        cells = [f"`{name}`" if name != "default" else name]
        for title in TITLES[3:]:
            values = [float(row[title]) for row in done]
            spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
            mean = statistics.mean(values)
            cells.append(f"{mean:.0f}" if title == "seconds" else f"{mean:.2f}{spread}")
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
