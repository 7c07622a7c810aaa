"""What README and docs tell a reader to type works: commands parse, links lead somewhere."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import tyro

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = sorted(
    {
        line.split("#")[0].strip().removeprefix("python ")
        for page in PAGES
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
        if re.match(r"python \w+_jax\.py", line) and "my_" not in line
    }
)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.quick
def test_a_command_parses(command):
    script, *flags = shlex.split(command)
    module = importlib.import_module(script.removesuffix(".py"))
    assert tyro.cli(module.Args, args=flags) != module.Args()


@pytest.mark.quick
def test_readme_is_short():
    assert len(README.splitlines()) <= 130 and len(README.split()) <= 1200


@pytest.mark.quick
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert "://" in link or (page.parent / link).exists(), link


@pytest.mark.quick
def test_no_path_of_a_machine_is_printed():
    assert not any(word in page.read_text() for page in PAGES for word in ("/tmp/", sys.prefix, "/home/"))
