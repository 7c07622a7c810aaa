"""What the README shows works as printed."""

import argparse
import importlib
import re
import runpy
import shlex
import subprocess
import sys

import pytest
from test_cli import ROOT, SMALL, run

import envs

README = (ROOT / "README.md").read_text()
TEXTS = README + "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PYTHON = ".venv/bin/python "
COMMANDS = sorted({" ".join(text.split()) for text in re.findall(rf"`({re.escape(PYTHON)}.*?)`", TEXTS, re.DOTALL)})
BLOCKS = [block.strip() for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)]
SCRIPT = re.compile(r"(crl_jax|sac_her_jax|ppo_jax)\.py")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    code, _, err = run(*SMALL, cwd=folder)
    assert code == 0, err
    (directory,) = (folder / "runs").iterdir()
    return directory


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippets_run(number, run_dir, monkeypatch):
    monkeypatch.chdir(run_dir.parent.parent)
    names = {}
    exec(SNIPPETS[number], names)
    if "Cart" in names:  # the task of one's own is learnt
        assert names["metrics"]["eval/success_rate"][-1] > 0.6


# Of tables, which say how to start them once for all.
CELLS = sorted(set(re.findall(r"\| `((?:crl|sac_her|ppo)_jax\.py .*?)` \|", TEXTS)))


def parse(command, monkeypatch):
    """The flags of a script's command line: read and checked, not run."""
    module = importlib.import_module(SCRIPT.match(command[0]).group(1))
    monkeypatch.setattr(sys, "argv", command)
    module.make_schedule(envs.parse_args(module.Args))


@pytest.mark.parametrize("command", [command for command in COMMANDS if "benchmark/" not in command])
def test_commands(command, run_dir, monkeypatch, tmp_path):
    """All that takes seconds is run as printed; of trainings and films the flags are read."""
    words = shlex.split(command.removeprefix(PYTHON).replace("RUN_DIR", str(run_dir)))
    monkeypatch.chdir(ROOT)
    if words[0] == "-m":
        assert words == ["-m", "envs", "--gallery", "docs/gallery.png"]  # minutes; test_render.py runs the other flags
        return
    if "RUN_DIR" in command or "--help" in words:
        result = subprocess.run([sys.executable, *words], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    else:
        parse(words, monkeypatch)


def test_commands_in_tables(monkeypatch):
    assert len(CELLS) > 40
    for command in CELLS:
        parse(shlex.split(command), monkeypatch)


class Parsed(Exception):
    """A program has read its flags."""


@pytest.mark.parametrize("command", [command for command in COMMANDS if "benchmark/" in command])
def test_commands_of_benchmarks(command, monkeypatch):
    """They take minutes: each program is there, and its flags and those that it hands to a script are read."""
    program, *words = shlex.split(command.removeprefix(PYTHON))
    assert (ROOT / program).exists()
    if words:
        parse_args = argparse.ArgumentParser.parse_args

        def only_parse(*args):
            parse_args(*args)
            raise Parsed

        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
        monkeypatch.setattr(sys, "argv", [program, *words])
        monkeypatch.syspath_prepend(ROOT / "benchmark")
        with pytest.raises(Parsed):
            runpy.run_path(str(ROOT / program), run_name="__main__")
    if words and SCRIPT.match(words[0]):
        parse([words[0], *words[words.index("--") + 1 :]] if "--" in words else words, monkeypatch)


def test_quick_start(monkeypatch):
    """`benchmark/quickstart.py` runs the first as printed, `.ci/run` the second."""
    train, test = BLOCKS
    install, _, command = train.rpartition(" && ")
    parse(shlex.split(command.removeprefix(PYTHON)), monkeypatch)
    assert test == f"{install} && .venv/bin/python -m pytest"
    assert test in (ROOT / ".ci" / "run").read_text()


def test_the_programs_of_the_benchmark_are_shown():
    for program in (ROOT / "benchmark").glob("*.py"):
        assert f"benchmark/{program.name}" in TEXTS, program.name


def test_every_logged_metric_is_explained():
    tags = set(re.findall(r"`((?:eval|losses|charts)/\w+)`", README))
    for script in ("crl_jax", "sac_her_jax", "ppo_jax"):
        source = (ROOT / f"{script}.py").read_text()
        loss = source[source.index("    metrics = {") : source.index("}", source.index("    metrics = {"))]
        assert {f"losses/{name}" for name in re.findall(r'"(\w+)":', loss)} <= tags
        assert set(re.findall(r'"(eval/\w+)"', source)) <= tags
    assert set(re.findall(r'"(charts/\w+)"', (ROOT / "envs" / "run.py").read_text())) <= tags


def test_every_id_is_listed():
    """In the table of tasks, with names such as `a_{b,c}_d` written out."""
    listed = set()
    for name in re.findall(r"`([a-z0-9_{},]+)`", README):
        parts = re.split(r"\{(.*?)\}", name)
        options = parts[1].split(",") if len(parts) > 1 else [""]
        listed |= {parts[0] + option + "".join(parts[2:]) for option in options}
    assert set(envs.ENV_IDS) <= listed
    assert f"All {len(envs.ENV_IDS)} tasks" in README
