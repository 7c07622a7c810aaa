"""Where the time of CRL's training goes, and what share of the machine's limits it reaches.

    python benchmark/limits.py --env-id reacher cheetah --picture docs/profile.png

All of it on native MuJoCo, which ants take only if told so. Limits are measured on the same cores: bare native physics,
and float32 matrix products, large ones and ones of a hidden layer's size, forward and backward. The parts of an
iteration (an unroll and its updates, with default flags) are differences between whole trainings that do less: hardly
any updates (one of two rows), no evaluation. Medians of turns.
"""

import argparse
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from bound import make_products, make_timed, seconds

sys.path.insert(0, str(Path(__file__).parent.parent))
from stepping import make_scan

import crl_jax
import envs

ITERATIONS, REPEATS = 8, 5


def make_training(args, env, log=None, **evaluate):
    """A function that times one epoch of ITERATIONS iterations, and the operations of its matrix products."""
    steps = args.num_envs * args.unroll_length
    args = replace(args, total_timesteps=ITERATIONS * steps, num_evals=1, learning_starts=1)
    return make_timed(*crl_jax.make_train(args, env, log=log), crl_jax, **evaluate)


def make_adam(params, count):
    """A function that times `count` steps of Adam for parameters like these; the gradients are as good as any."""
    optimizer = optax.adam(1e-3)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(params, state)
        return (optax.apply_updates(params, updates), state), None

    steps = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), length=count)[0])
    return lambda: seconds(steps, params)


def profile(env_id):
    """Seconds of the parts of an iteration, and the figures beside them."""
    args = crl_jax.Args(env_id=env_id)
    env = envs.make(env_id, "mujoco")
    steps = args.num_envs * args.unroll_length
    updates = steps // args.env_steps_per_update
    init, _ = crl_jax.make_train(args, env)
    runner = jax.jit(init)(jax.random.key(0))
    buffer = runner.buffer._replace(num_steps=jnp.int32(len(runner.buffer.traj_id)))  # reads spread as in a full one
    shape = (updates, args.batch_size)
    sample = jax.jit(lambda buffer, key: crl_jax.sample_pairs(buffer, key, shape, args.gamma))
    scan = make_scan(env, args.num_envs, args.unroll_length * ITERATIONS)
    training, flops = make_training(args, env)
    hardly_updated, other_flops = make_training(replace(args, env_steps_per_update=steps, batch_size=2), env)
    timed = {
        "all": make_training(args, env, evaluate=crl_jax.evaluate)[0],
        "training": training,
        "hardly updated": hardly_updated,
        "logged": make_training(args, env, log=lambda metrics: None)[0],
        "stepping": lambda: steps * ITERATIONS / scan(),
        "sampling": lambda: seconds(sample, buffer, jax.random.key(1)) * ITERATIONS,
        "Adam": make_adam(runner.params, updates),
        "products": make_products(args.width),
        "large products": make_products(2048),
    }
    turns = [{name: function() for name, function in timed.items()} for _ in range(REPEATS + 1)][1:]
    took = {name: statistics.median(turn[name] for turn in turns) for name in timed}
    learning = took["training"] - took["hardly updated"] - took["sampling"]
    num_updates = updates * ITERATIONS
    epoch = crl_jax.make_schedule(args).iterations_per_epoch
    parts = {
        "stepping": took["stepping"] / ITERATIONS,
        "acting, writing": (took["hardly updated"] - took["stepping"]) / ITERATIONS,
        "sampling": took["sampling"] / ITERATIONS,
        "updating": learning / ITERATIONS,
        "evaluation": (took["all"] - took["training"]) / epoch,
        "log": max(took["logged"] - took["training"], 0) / epoch,
    }
    figures = {
        "stepping in training / bare": took["stepping"] / took["hardly updated"],
        "updates a second while updating": num_updates / learning,
        "ms an update": 1000 * learning / num_updates,
        "ms of its products at their bare rate": 1000 * (flops - other_flops) / num_updates / took["products"],
        "ms of its Adam alone": 1000 * took["Adam"] / updates,
        "GFLOP/s of updates": (flops - other_flops) / learning / 1e9,
        f"GFLOP/s of {args.width}³ products": took["products"] / 1e9,
        "GFLOP/s of 2048³ products": took["large products"] / 1e9,
    }
    return parts, figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", nargs="+", default=["reacher", "cheetah"])
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    figure, ax = plt.subplots(figsize=(8, 1 + 0.5 * len(args.env_id)))
    for row, env_id in enumerate(args.env_id):
        parts, figures = profile(env_id)
        total, left = sum(parts.values()), 0.0
        print(f"\n{env_id}: {total * 1000:.0f} ms an iteration")
        for i, (name, value) in enumerate(parts.items()):
            print(f"  {name}: {value * 1000:.1f} ms, {value / total:.1%}")
            ax.barh(row, value / total, left=left, color=f"C{i}", label=name if row == 0 else None)
            if value > 0.04 * total:
                ax.text(left + value / total / 2, row, f"{value / total:.0%}", ha="center", va="center", color="white")
            left += value / total
        for name, value in figures.items():
            print(f"  {name}: {value:,.2f}")
    if args.picture:
        ax.set_yticks(range(len(args.env_id)), args.env_id)
        ax.set_xlabel("share of an iteration")
        ax.set_xlim(0, 1)
        figure.legend(ncols=6, loc="upper center", fontsize="small", frameon=False)
        figure.tight_layout(rect=(0, 0, 1, 0.88))
        figure.savefig(args.picture, dpi=110)


if __name__ == "__main__":
    main()
