"""What CRL asks of any device: floating point operations, and bytes read and written, as XLA counts them before it
optimises the program. Prints a row of a table.

    python benchmark/cost.py --env-id reacher --backend generalized    # the peer's physics; native MuJoCo is not XLA's
    .venv-peer/bin/python benchmark/peer_speed.py crl --cost --env-id reacher    # peer.py makes this environment

Settings: `equal_settings.py`. XLA counts the body of a loop once, so an iteration's count less those of the bodies of
its unroll and of its updates is that of what happens between the two: filling the buffer and drawing the batches. A
whole iteration has the bodies as often as they run; loops within the physics count once.
"""

import argparse
import dataclasses
from unittest import mock

import jax

try:
    from jax.extend.core import jaxpr_as_fun
except ImportError:  # the peer's jax
    from jax.core import jaxpr_as_fun

ITERATIONS = 97  # of a training that is only traced: no other scan is as long


class Traced(Exception):
    """The scan over iterations has been reached; carries the program of an iteration."""


def program_of_iteration(start_training):
    """The program that `start_training`, called, is about to scan ITERATIONS times."""
    scan = jax.lax.scan

    def watch(f, init, xs=None, length=None, **options):
        if length == ITERATIONS:
            shapes = jax.tree_util.tree_map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), init)
            raise Traced(jax.make_jaxpr(lambda carry: f(carry, xs))(shapes))
        return scan(f, init, xs, length, **options)

    with mock.patch("jax.lax.scan", watch):
        try:
            start_training()
        except Traced as traced:
            return traced.args[0]
    raise RuntimeError("no scan over the iterations")


def bodies_of_scans(jaxpr, length):
    """The bodies of all scans of this length, wherever in the program they are."""
    for equation in jaxpr.eqns:
        for name, inner in equation.params.items():
            if name in ("jaxpr", "call_jaxpr"):
                if equation.primitive.name == "scan" and equation.params["length"] == length:
                    yield inner
                yield from bodies_of_scans(getattr(inner, "jaxpr", inner), length)


def cost(program):
    """Floating point operations, and bytes read and written."""
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in program.in_avals]
    analysis = jax.jit(jaxpr_as_fun(program)).lower(*shapes).cost_analysis()
    return analysis["flops"], analysis["bytes accessed"]


def report(name, start_training, num_envs, unroll_length, updates):
    """Prints the row, for a training of so many environments, steps of each and updates in an iteration."""
    program = program_of_iteration(start_training)
    unroll = next(bodies_of_scans(program.jaxpr, unroll_length))
    *_, update = bodies_of_scans(program.jaxpr, updates)  # it comes after the unroll, which can be as long
    costs = [cost(each) for each in (program, unroll, update)]
    (_, all_bytes), (_, step_bytes), (flops, size) = costs
    batch = (all_bytes - step_bytes - size) / updates
    steps = num_envs * unroll_length
    step_mflop, step_mb = (
        (once + (unroll_length - 1) * step + (updates - 1) * update) / steps / 1e6
        for once, step, update in zip(*costs, strict=True)
    )
    print("| | MFLOP an update | MB an update | MB a batch | MFLOP a step, all in all | MB a step |")
    print("| --- | --- | --- | --- | --- | --- |")
    cells = f"{flops / 1e6:,.0f}", f"{size / 1e6:,.1f}", f"{batch / 1e6:,.2f}", f"{step_mflop:,.1f}", f"{step_mb:,.2f}"
    print(f"| {name} | {' | '.join(cells)} |")


def main():
    from equal_settings import make_args  # needs what the peer's environment lacks

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="reacher")
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--backend", help="physics; by default the one that the task has on this machine")
    given = parser.parse_args()
    module, args = make_args("crl", given.env_id, given.num_envs, ITERATIONS, epochs=1)
    args = dataclasses.replace(args, backend=given.backend)
    init, train = module.make_train(args)
    runner = jax.eval_shape(init, jax.random.key(0))
    updates = module.make_schedule(args).updates_per_iteration
    report("this", lambda: train(runner, 1), args.num_envs, args.unroll_length, updates)


if __name__ == "__main__":
    main()
