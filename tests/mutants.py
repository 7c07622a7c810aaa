"""Mutation test: makes one mistake at a time in the mathematics of the scripts and sees whether the tests notice it.

    python -m tests.mutants --list
    python -m tests.mutants --module td3_her_jax envs.wrappers
    python -m tests.mutants --every 15 --jobs 1

A mutant is a copy of the repository, in a temporary folder, with one change; `CORE` says which tests should fail there.
It is killed if one of them does, or if they cannot even be imported. Prints each mutant with what came of it, at the
end those that were not killed once more, and a table of the modules. Some of them compute the same as the original.
With JAX_COMPILATION_CACHE_DIR set, compiled programs are kept there for the next time.
"""

import argparse
import ast
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
# Module -> functions and classes -> the fastest tests that should catch a mistake in them. What scripts share word for
# word is here once. The test that they do is not: it notices any change, right or wrong.
CORE = {
    "crl_jax": {
        "sample_action": "tests/crl/test_losses.py -k 'density or saturates or log_std'",
        "buffer_add sample_pairs": "tests/crl/test_buffer.py",
        "energy contrastive_loss": "tests/crl/test_losses.py -k 'energies or contrastive_losses'",
        "critic_loss actor_loss alpha_loss total_loss": (
            "tests/crl/test_losses.py -k 'total_loss or each_loss or goals_of'"
        ),
        "make_schedule": "tests/crl/test_training.py -k 'accounted or rounded_up'",
    },
    "sac_her_jax": {
        "sample_transitions": "tests/sac_her/test_sac_her.py -k 'share or goals_are or a_goal'",
        "q_values critic_loss actor_loss alpha_loss total_loss": "tests/sac_her/test_sac_her.py -k test_losses",
        "unroll iterate": (
            "tests/sac_her/test_sac_her.py tests/envs/test_evaluate.py tests/shared/test_scripts.py"
            " -k 'that_move or sac_her_jax and (remembers or acts_by or another_task or units or statistics)'"
        ),
    },
    "td3_her_jax": {
        "noisy_action critic_loss actor_loss act": (
            "tests/td3_her/test_td3_her.py -k 'loss or target_actions or without_noise'"
        ),
        "unroll update iterate": (
            "tests/td3_her/test_td3_her.py tests/envs/test_evaluate.py tests/shared/test_scripts.py"
            " -k 'explores or updates[3] or td3_her_jax and (remembers or units or statistics)'"
        ),
        "make_schedule": "tests/td3_her/test_td3_her.py -k 'accounted or whole_actor_updates'",
    },
    "ppo_jax": {
        "action_distribution log_prob_of sample_u": "tests/ppo/test_ppo.py -k 'log_probability or test_losses'",
        "advantages_of": "tests/ppo/test_ppo.py -k advantages",
        "actor_loss critic_loss total_loss": "tests/ppo/test_ppo.py -k test_losses",
        "unroll iterate": (
            "tests/envs/test_evaluate.py tests/shared/test_scripts.py"
            " -k 'what_follows or ppo_jax and (another_task or units)'"
        ),
        "make_schedule": "tests/ppo/test_ppo.py -k 'accounted or whole_minibatches'",
    },
    "envs.wrappers": {
        "where_done ActionChunk BatchedEnv action_noise pursued_goals train_metrics": "tests/envs/test_wrappers.py",
    },
    "envs.evaluate": {
        "evaluate": "tests/envs/test_evaluate.py -k test_evaluation",
    },
}
OUTCOMES = "survived", "killed", "killed", "error", "error", "no tests"  # of pytest's exit codes, from 0
OPTIONS = "-x -n 0 --no-header --hypothesis-seed=0 --hypothesis-profile=no_shrinking"
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.USub: ast.UAdd, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.FloorDiv: ast.Mod, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.And: ast.Or, ast.Or: ast.And, ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}  # fmt: skip
CALLS = {"maximum": "minimum", "max": "min", "mean": "sum", "any": "all", "ceil": "floor", "zeros": "ones"}
CALLS |= {new: old for old, new in CALLS.items()}


class Mutant(NamedTuple):
    module: str
    source: str  # of the module, with the mistake
    tests: str
    title: str


def path_of(module):
    return module.replace(".", "/") + ".py"


def mistakes(node):
    """Other values for fields of this node of the syntax tree, each a mistake."""
    match node:
        case ast.BinOp(op=op) | ast.AugAssign(op=op) | ast.UnaryOp(op=op) | ast.BoolOp(op=op) if type(op) in OPERATORS:
            yield "op", OPERATORS[type(op)]()
        case ast.Compare(ops=[op]) if type(op) in OPERATORS:
            yield "ops", [OPERATORS[type(op)]()]
        case ast.Constant(value=bool(value)):
            yield "value", not value
        case ast.Constant(value=int(value) | float(value)):
            yield "value", value + 1
        case ast.Call(func=ast.Name("stop")):
            yield "func", ast.Name("")  # stop(x) -> (x)
        case ast.Call(func=ast.Attribute(attr="where"), args=[condition, one, other]):
            yield "args", [condition, other, one]
        case ast.Call(func=ast.Name(name)) if name in CALLS:
            yield "func", ast.Name(CALLS[name])
        case ast.Call(func=ast.Attribute(value, name)) if name in CALLS:
            yield "func", ast.Attribute(value, CALLS[name])


def mutants_of(module, source):
    """All mutants of a module, in the order of its lines."""
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    named = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    tests_of, mutants = {}, []
    for names, tests in CORE[module].items():
        tests_of |= {node: tests for name in names.split() for node in ast.walk(named[name]) if hasattr(node, "lineno")}
    for node in sorted(tests_of, key=lambda node: (node.lineno, node.col_offset)):
        for field, mistake in mistakes(node):
            shown, right = node, getattr(node, field)
            while len(ast.unparse(shown)) < 8 and isinstance(parents[shown], ast.expr | ast.keyword):
                shown = parents[shown]  # `1 -> 2` alone says little
            before = ast.unparse(shown)
            setattr(node, field, mistake)
            title = f"{path_of(module)}:{node.lineno}: {before} -> {ast.unparse(shown)}"
            mutants.append(Mutant(module, ast.unparse(tree), tests_of[node], title))
            setattr(node, field, right)
    return mutants


def run(mutant, root, timeout):
    """Runs a mutant's tests. Returns what became of it and what pytest printed."""
    start = time.time()
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(f"{root}/sources", folder, dirs_exist_ok=True)
        Path(folder, path_of(mutant.module)).write_text(mutant.source)
        command = [sys.executable, "-m", "pytest", *shlex.split(mutant.tests), *OPTIONS.split()]
        cache = {"JAX_COMPILATION_CACHE_DIR": f"{root}/cache", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        options = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout)
        try:
            result = subprocess.run(command, cwd=folder, env=cache | os.environ, **options)
            outcome, output = OUTCOMES[result.returncode], result.stdout
        except subprocess.TimeoutExpired:
            outcome, output = "too slow", f"{timeout} s are over"
    print(f"{outcome:8} {time.time() - start:4.0f} s  {mutant.title}", flush=True)
    return outcome, output


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", nargs="+", choices=CORE, default=list(CORE))
    parser.add_argument("--every", type=int, default=1, help="take only each N-th mutant")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for a mutant")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    args = parser.parse_args()
    sources = {module: (ROOT / path_of(module)).read_text() for module in args.module}
    mutants = [mutant for module, source in sources.items() for mutant in mutants_of(module, source)][:: args.every]
    if args.list:
        return print(*(mutant.title for mutant in mutants), sep="\n")

    with tempfile.TemporaryDirectory() as root, ThreadPoolExecutor(args.jobs) as pool:
        copy = Path(root, "sources")  # others may edit the repository meanwhile
        for name in ("envs", "harness", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        for path in (*ROOT.glob("*.py"), ROOT / "pyproject.toml"):
            shutil.copy(path, copy)
        right = {module: ast.unparse(ast.parse(source)) for module, source in sources.items()}
        unchanged = {m.tests: m._replace(source=right[m.module], title=f"unchanged: {m.tests}") for m in mutants}
        for outcome, output in pool.map(lambda mutant: run(mutant, root, args.timeout), unchanged.values()):
            if outcome != "survived":
                sys.exit(f"{output}\nThese tests must pass where nothing is changed.")
        outcomes = [outcome for outcome, _ in pool.map(lambda mutant: run(mutant, root, args.timeout), mutants)]

    print("\nNot killed:")
    for mutant, outcome in zip(mutants, outcomes, strict=True):
        if outcome != "killed":
            print(f"{outcome:8} {mutant.title}")
    print("\n| module | mutants | killed | share |\n| --- | --- | --- | --- |")
    for name in (*args.module, "total"):
        killed = [o == "killed" for m, o in zip(mutants, outcomes, strict=True) if name in (m.module, "total")]
        print(f"| {name} | {len(killed)} | {sum(killed)} | {sum(killed) / max(len(killed), 1):.0%} |")


if __name__ == "__main__":
    main()
