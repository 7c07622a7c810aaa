"""Mutation test: makes one mistake at a time in the mathematics of the scripts and sees whether the tests notice it.

    python benchmark/mutants.py
    python benchmark/mutants.py --module ppo_jax envs.wrappers --every 5
    python benchmark/mutants.py --list

A mutant is a copy of the repository, in a temporary folder, with one change; `CORE` says which tests should fail there.
It is killed if one of them does, if they cannot even be imported, or if they take longer than `--timeout` seconds.
Prints each mutant with what came of it, at the end those that were not killed once more, and a table of the modules.
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
# Module -> functions, classes and assignments -> the tests that should catch a mistake in them. No trainings, they take
# minutes; nor the test that the scripts share functions word for word, which notices any change, right or wrong.
CORE = {
    "crl_jax": {
        "LOG_STD_RANGE action_distribution sample_action": "test_losses.py -k 'log_std or log_prob or density'",
        "buffer_add sample_pairs": "test_buffer.py",
        "ENERGIES energy_of_rows energy_of_pairs infonce CONTRASTIVE_LOSSES crl_loss": (
            "test_losses.py -k 'energies or contrastive_losses or crl_loss or each_loss'"
        ),
        "evaluate": "test_endings.py -k evaluation",
    },
    "sac_her_jax": {
        "correlate": "test_sac_her.py -k correlated_noise",
        "sample_transitions": "test_sac_her.py -k 'share or goals or a_goal'",
        "sac_loss": "test_sac_her.py -k test_losses",
        "unroll iterate": "test_endings.py test_sac_her.py -k 'remembers or same_seed'",
    },
    "ppo_jax": {
        "LOG_STD_RANGE action_distribution log_prob_of sample_u": "test_ppo.py -k 'log_probability or test_losses'",
        "update_statistics normalize": "test_ppo.py -k 'statistics or normalized or contract'",
        "advantages_of": "test_ppo.py -k advantages",
        "ppo_loss": "test_ppo.py -k test_losses",
        "unroll iterate": "test_endings.py test_ppo.py -k 'what_follows or contract'",
    },
    "envs.wrappers": {
        "BatchedEnv": (
            "test_envs.py test_wrappers.py"
            " -k 'episodes_end or new_start or trajectory_ids or new_goal or its_own_episode or plain_loop'"
        ),
    },
}
OPTIONS = "-x -q -n 0 --no-header -p no:randomly --hypothesis-seed=0"
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.USub: ast.UAdd, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.And: ast.Or, ast.Or: ast.And, ast.BitOr: ast.BitAnd,
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
        case ast.Call(func=ast.Attribute(value, name)) if name in CALLS:
            yield "func", ast.Attribute(value, CALLS[name])


def mutants_of(module, source):
    """All mutants of a module, in the order of its lines."""
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    named = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    named |= {ast.unparse(node.targets[0]): node for node in tree.body if isinstance(node, ast.Assign)}
    tests_of, mutants = {}, []
    for names, tests in CORE[module].items():
        tests_of |= {node: tests for name in names.split() for node in ast.walk(named[name]) if hasattr(node, "lineno")}
    for node in sorted(tests_of, key=lambda node: (node.lineno, node.col_offset)):
        for field, mistake in mistakes(node):
            shown, right = node, getattr(node, field)
            while len(ast.unparse(shown)) < 12 and isinstance(parents[shown], ast.expr | ast.keyword):
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
            result = subprocess.run(command, cwd=f"{folder}/tests", env=os.environ | cache, **options)
            code, output = result.returncode, result.stdout
        except subprocess.TimeoutExpired:
            code, output = 1, f"{timeout} s are over"
    not_imported = code == 2 and "during collection" in output
    outcome = "killed" if not_imported else {0: "survived", 1: "killed"}.get(code, f"error {code}")
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
        for name in ("envs", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
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
