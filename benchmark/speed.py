"""Where the time goes, and what share of the machine's limits it reaches.

    python -m benchmark.speed parts --env-id reacher cheetah --picture docs/profile.png    # of an iteration of CRL
    python -m benchmark.speed bound crl sac td3 ppo    # what arithmetic allows, and what training makes of it
    python -m benchmark.speed stepping                 # bare physics under the scan beside `mujoco.rollout` alone
    python -m benchmark.speed start --num-envs 64      # from the first import to the first evaluation, and memory

All figures but those of `start`, one run each, are medians of turns in which what is compared alternates, on native
MuJoCo but for `bound`, which takes the task's own physics.

Parts of an iteration, an unroll and its updates, are differences between whole trainings that do less: hardly any
updates (one of two rows), no evaluation. Limits are bare physics, and float32 matrix products, large ones and ones of a
hidden layer's size, forward and backward.

The bound is for the equal settings of `peer.py`. An iteration has to multiply matrices, counted in its program, and to
step the physics: nothing on these cores is quicker than the two alone, at the rates measured beside the training.

Stepping: both take random actions and all substeps of a control step in one call; ratios are of neighbours.

A start is measured in a process of its own with an empty compilation cache, cold, and in another with what the first
left in it, warm. Memory is the process's peak so far.
"""

import argparse
import itertools
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from unittest import mock

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import mujoco
import numpy as np
import optax
from jax.extend.core import jaxprs_in_params
from mujoco import rollout

import crl_jax
import envs
from benchmark.peer import SETTINGS, make_args

FAMILIES = (
    "reacher", "cheetah", "pusher_easy", "ant", "ant_u_maze", "ant_ball", "ant_push", "humanoid", "humanoid_u_maze",
    "simple_u_maze", "arm_reach", "arm_push_easy", "arm_binpick_easy",
)  # fmt: skip
START = """
import resource, sys, time
last = time.time()
import jax, crl_jax

def done(part):
    global last
    before, last = last, time.time()
    print(part, f"{last - before:.1f}", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000, sep=" | ")

done("import")
args = crl_jax.Args(num_envs=int(sys.argv[1]))
init, train = crl_jax.make_train(args)
key = jax.random.key(args.seed)
done("make the environment")
init = jax.jit(init).lower(key)
done("trace `init`")
init = init.compile()
done("compile `init`, or read it from the cache")
runner = jax.block_until_ready(init(key))
done("run `init`")
train = jax.jit(train, static_argnums=1, donate_argnums=0).lower(runner, 1)
done("trace `train`")
train = train.compile()
done("compile `train`, or read it from the cache")
jax.block_until_ready(train(runner))
done("run the first epoch")
"""  # in a process of its own, so that nothing is imported before


def seconds(function, *args):
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    return time.perf_counter() - start


def medians(timed, turns):
    """The median of each of these functions by name, called in turns, the first of which does not count."""
    rows = [{name: function() for name, function in timed.items()} for _ in range(turns + 1)][1:]
    return {name: statistics.median(row[name] for row in rows) for name in timed}


def flops_of_products(jaxpr):
    """Floating point operations of all matrix products of a program; a scan's count at each of its steps."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
        inner = sum(map(flops_of_products, jaxprs_in_params(equation.params)))
        total += inner * equation.params.get("length", 1)
    return total


def make_products(size):
    """A function that measures a layer's products, forward and backward to its weights and its input: FLOP/s."""
    count = 3 * max(4, int(1e10 / (6 * size**3)))

    def step(x, _):
        return (x.T @ (x @ weights)) @ weights.T, None

    weights = jax.random.orthogonal(jax.random.key(0), size)
    chain = jax.jit(lambda x: jax.lax.scan(step, x, length=count // 3)[0]).lower(weights).compile()
    return lambda: 2 * size**3 * count / seconds(chain, weights)


def make_timed(init, train, evaluate=lambda *args: {}):
    """A function that times one epoch of a training, and the operations of the epoch's matrix products. By default
    nothing is evaluated: one episode takes as many steps in a row as many an iteration."""
    runner = jax.jit(init)(jax.random.key(0))
    with mock.patch.object(envs, "evaluate", evaluate):
        program = jax.jit(train, static_argnums=1).trace(runner, 1)
    compiled = program.lower().compile()
    return lambda: seconds(compiled, runner), flops_of_products(program.jaxpr.jaxpr)


def make_scan(env, num_envs, length):
    """A function that measures the wrapped environment, with observation, reward, success and resets, under `length`
    random actions: single steps a second."""
    env = envs.wrap(env, num_envs, env.episode_length)

    @jax.jit
    def run(key):
        def step(state, key):
            action = jax.random.uniform(key, (num_envs, env.action_size), minval=-1, maxval=1)
            return env.step(state, action), None

        return jax.lax.scan(step, env.reset(key), jax.random.split(key, length))[0]

    seconds(run, jax.random.key(0))  # compiles
    return lambda: num_envs * length * env.action_chunk / seconds(run, jax.random.key(0))


# ---- parts of an iteration -------------------------------------------------------------------------------------------


def make_training(args, env, iterations, **evaluate):
    """A function that times one epoch of so many iterations, and the operations of its matrix products."""
    args = replace(args, learning_starts=1, num_evals=1)
    steps = iterations * crl_jax.make_schedule(args).steps_per_iteration
    return make_timed(*crl_jax.make_train(replace(args, total_timesteps=steps), env), **evaluate)


def make_adam(params, count):
    """A function that times `count` steps of Adam for parameters like these; the gradients are as good as any."""
    optimizer = optax.flatten(optax.adam(1e-3))

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(params, state)
        return (optax.apply_updates(params, updates), state), None

    steps = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), length=count)[0])
    return lambda: seconds(steps, params)


def parts_of_iteration(env_id, iterations, turns):
    """Seconds of the parts of an iteration, and the figures beside them."""
    args = crl_jax.Args(env_id=env_id)
    env = envs.chunk(envs.make(env_id, "mujoco"), args.action_chunk)
    schedule = crl_jax.make_schedule(args)
    steps, updates = schedule.steps_per_iteration, schedule.updates_per_iteration
    runner = jax.jit(crl_jax.make_train(args, env)[0])(jax.random.key(0))
    buffer = runner.buffer._replace(num_steps=jnp.int32(len(runner.buffer.traj_id)))  # reads spread as in a full one
    shape, gamma = (updates, args.batch_size), args.gamma**args.action_chunk
    sample = jax.jit(lambda buffer, key: crl_jax.sample_pairs(buffer, key, shape, gamma))
    scan = make_scan(env, args.num_envs, schedule.unroll_length * iterations)
    training, flops = make_training(args, env, iterations)
    lazy = replace(args, env_steps_per_update=steps, batch_size=2)
    hardly_updated, other_flops = make_training(lazy, env, iterations)
    timed = {
        "all": make_training(args, env, iterations, evaluate=envs.evaluate)[0],
        "training": training,
        "hardly updated": hardly_updated,
        "stepping": lambda: steps * iterations / scan(),
        "sampling": lambda: seconds(sample, buffer, jax.random.key(1)) * iterations,
        "Adam": make_adam(runner.params, updates),
        "products": make_products(args.width),
        "large products": make_products(2048),
    }
    took = medians(timed, turns)
    learning = took["training"] - took["hardly updated"] - took["sampling"]
    num_updates = updates * iterations
    parts = {
        "stepping": took["stepping"] / iterations,
        "acting, writing": (took["hardly updated"] - took["stepping"]) / iterations,
        "sampling": took["sampling"] / iterations,
        "updating": learning / iterations,
        "evaluation": (took["all"] - took["training"]) / schedule.iterations_per_epoch,
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


def print_parts(given):
    figure, ax = plt.subplots(figsize=(8, 1 + 0.5 * len(given.env_id)))
    for row, env_id in enumerate(given.env_id):
        parts, figures = parts_of_iteration(env_id, given.iterations, given.turns)
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
    if given.picture:
        ax.set_yticks(range(len(given.env_id)), given.env_id)
        ax.set_xlabel("share of an iteration")
        ax.set_xlim(0, 1)
        figure.legend(ncols=5, loc="upper center", fontsize="small", frameon=False)
        figure.tight_layout(rect=(0, 0, 1, 0.88))
        figure.savefig(given.picture, dpi=110)


# ---- bound, stepping, start ------------------------------------------------------------------------------------------


def print_bound(given):
    print("| | products, MFLOP an update | at GFLOP/s | bare steps/s | bound, steps/s | training, steps/s | share |")
    print("|" + " --- |" * 7)
    for algorithm in given.algorithm:
        module, args = make_args(algorithm, given.env_id, given.num_envs, None, given.iterations, epochs=1)
        schedule = module.make_schedule(args)
        steps = given.iterations * schedule.steps_per_iteration
        training, flops = make_timed(*module.make_train(args))
        bare = make_scan(envs.make(given.env_id), given.num_envs, steps // given.num_envs)
        took = medians({"products": make_products(256), "stepping": bare, "training": training}, given.turns)
        bound, speed = steps / (flops / took["products"] + steps / took["stepping"]), steps / took["training"]
        per_update = flops / given.iterations / schedule.updates_per_iteration
        cells = f"{per_update / 1e6:,.0f}", f"{took['products'] / 1e9:,.0f}", f"{took['stepping']:,.0f}"
        print(f"| {algorithm} | {' | '.join(cells)} | {bound:,.0f} | {speed:,.0f} | {speed / bound:.0%} |", flush=True)


def python_loop(env, num_envs, length):
    """Steps `mujoco.rollout` only; returns environment steps a second."""
    spec, n_frames = env.build("mujoco")  # without the sensors that our pipeline adds
    model = spec.compile()
    data = [mujoco.MjData(model) for _ in os.sched_getaffinity(0)]
    state = np.zeros((num_envs, mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS)))
    physics = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), num_envs)).pipeline_state
    state[:, 1:] = np.concatenate([physics.q, physics.qd], axis=1)
    random = np.random.default_rng(0)
    with rollout.Rollout(nthread=len(data)) as pool:
        start = time.perf_counter()
        for _ in range(length):
            actions = random.uniform(-1, 1, (num_envs, 1, model.nu))
            states, _ = pool.rollout(model, data, state, np.repeat(actions, n_frames, axis=1))
            state = states[:, -1]
        return num_envs * length / (time.perf_counter() - start)


def print_stepping(given):
    print(f"{len(os.sched_getaffinity(0))} cores; environment steps a second, median of {given.turns}\n")
    print("| id | environments | `mujoco.rollout` alone | under the scan | ratio: median (min to max) |")
    print("| --- | --- | --- | --- | --- |")
    for env_id, num_envs in itertools.product(given.env_id, given.num_envs):
        env = envs.make(env_id, backend="mujoco")
        scan = make_scan(env, num_envs, given.length)
        python_loop(env, num_envs, 20)
        rows = [(python_loop(env, num_envs, given.length), scan()) for _ in range(given.turns)]
        alone, under_scan = (statistics.median(column) for column in zip(*rows, strict=True))
        ratios = sorted(b / a for a, b in rows)
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"| `{env_id}` | {num_envs:,} | {alone:,.0f} | {under_scan:,.0f} | {spread} |", flush=True)


def print_start(given):
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-c", START, str(given.num_envs)]
        options = dict(env=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}, stdout=subprocess.PIPE, text=True)
        cold, warm = (subprocess.run(command, check=True, **options).stdout.splitlines() for _ in range(2))
    print("| | cold, s | MB | warm, s | MB |\n|" + " --- |" * 5)
    for one, other in zip(cold, warm, strict=True):
        if " | " in one:  # libraries print too
            print(f"| {one} | {other.partition(' | ')[2]} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    parts, bound, stepping, start = map(commands.add_parser, ("parts", "bound", "stepping", "start"))
    parts.set_defaults(run=print_parts)
    parts.add_argument("--env-id", nargs="+", default=["reacher", "cheetah"])
    parts.add_argument("--picture")
    bound.set_defaults(run=print_bound)
    bound.add_argument("algorithm", nargs="*", default=list(SETTINGS))
    bound.add_argument("--env-id", default="reacher")
    bound.add_argument("--num-envs", type=int, default=64)
    stepping.set_defaults(run=print_stepping)
    stepping.add_argument("--env-id", nargs="+", default=FAMILIES)
    stepping.add_argument("--num-envs", type=int, nargs="+", default=[256])
    stepping.add_argument("--length", type=int, default=200, help="control steps of one measurement")
    start.set_defaults(run=print_start)
    start.add_argument("--num-envs", type=int, default=256)
    for command, iterations, turns in ((parts, 8, 5), (bound, 4, 5), (stepping, None, 7)):
        command.add_argument("--turns", type=int, default=turns)
        if iterations:
            command.add_argument("--iterations", type=int, default=iterations, help="of one measurement")
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
