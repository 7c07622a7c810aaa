"""The speed that arithmetic allows, and what training at the settings of `equal_settings.py` makes of it.

    python benchmark/bound.py crl sac ppo --env-id reacher --num-envs 64

An iteration has to multiply matrices (counted in its program) and to step the physics. Nothing on these cores is
quicker than the two alone, at the rates that are measured here in turns with the training: float32 products of 256³, as
the forward and the backward pass of a layer have them, and bare native physics.
"""

import argparse
import math
import statistics
import sys
import time
from pathlib import Path
from unittest import mock

import jax
from equal_settings import SETTINGS, make_args
from jax.extend.core import jaxprs_in_params

sys.path.insert(0, str(Path(__file__).parent.parent))
from stepping import make_scan

import envs

ITERATIONS, TURNS = 4, 5


def seconds(function, *args):
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    return time.perf_counter() - start


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


def make_timed(init, train, module, evaluate=lambda *args: {}):
    """A function that times one epoch of a training by the script `module`, and the operations of the epoch's matrix
    products. Nothing is evaluated: one episode takes as many steps in a row as many an iteration."""
    runner = jax.jit(init)(jax.random.key(0))
    with mock.patch.object(module, "evaluate", evaluate):
        program = jax.jit(train, static_argnums=1).trace(runner, 1)
    compiled = program.lower().compile()
    return lambda: seconds(compiled, runner), flops_of_products(program.jaxpr.jaxpr)


def measure(algorithm, env_id, num_envs):
    """The cells of a row of the table."""
    module, args = make_args(algorithm, env_id, num_envs, ITERATIONS, epochs=1)
    schedule = module.make_schedule(args)
    steps = ITERATIONS * schedule.steps_per_iteration
    training, flops = make_timed(*module.make_train(args), module)
    products = make_products(256)
    bare = make_scan(envs.make(env_id, args.backend), num_envs, steps // num_envs)
    turns = [(products(), bare(), steps / training()) for _ in range(TURNS + 1)][1:]
    rate, stepping, speed = (statistics.median(column) for column in zip(*turns, strict=True))
    bound = steps / (flops / rate + steps / stepping)
    per_update = flops / ITERATIONS / schedule.updates_per_iteration
    cells = f"{per_update / 1e6:,.0f}", f"{rate / 1e9:,.0f}", f"{stepping:,.0f}", f"{bound:,.0f}", f"{speed:,.0f}"
    return algorithm, *cells, f"{speed / bound:.0%}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("algorithm", nargs="*", default=SETTINGS)
    parser.add_argument("--env-id", default="reacher")
    parser.add_argument("--num-envs", type=int, default=64)
    given = parser.parse_args()
    print("| | products, MFLOP an update | at GFLOP/s | bare steps/s | bound, steps/s | training, steps/s | share |")
    print("|" + " --- |" * 7)
    for algorithm in given.algorithm:
        print(f"| {' | '.join(measure(algorithm, given.env_id, given.num_envs))} |", flush=True)


if __name__ == "__main__":
    main()
