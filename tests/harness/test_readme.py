"""What README and docs tell a reader to type works: commands parse, snippets run, links lead somewhere."""

import importlib
import re
import shlex
import sys
from functools import partial
from pathlib import Path

import pytest
import tyro
from harness_runs import only_run, run

import crl_jax
import envs

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = sorted(
    {
        line.split("  #")[0].strip().removeprefix("python ")
        for page in PAGES
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
        if re.match(r"python \w+_jax\.py", line) and "my_" not in line
    }
)
SNIPPETS = [
    pytest.param(snippet, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, snippet in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))
    if "HerReplayBuffer" not in snippet  # tests/envs/test_gymnasium.py
]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.quick
def test_a_command_parses(command):
    script, *flags = shlex.split(command)
    module = importlib.import_module(script.removesuffix(".py"))
    assert tyro.cli(module.Args, args=flags) != module.Args()


@pytest.mark.quick
def test_published_settings_name_all_that_a_task_changes():
    """Some tasks have other defaults than the script: each has to be set back."""
    (command,) = (c for c in COMMANDS if "--env-id ant --backend spring" in c and c.startswith("crl_jax.py"))
    flags = {word.removeprefix("--").removeprefix("no-").replace("-", "_") for word in command.split()}
    assert all(defaults.keys() <= flags for defaults in crl_jax.OF_TASKS.values())


@pytest.mark.quick
def test_readme_is_short():
    assert len(README.splitlines()) <= 130 and len(README.split()) <= 1200


@pytest.mark.quick
def test_every_task_has_its_results():
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs" / "results.md").read_text(), re.MULTILINE)
    assert sections == sorted(envs.ENV_IDS)


@pytest.mark.quick
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert "://" in link or (page.parent / link).exists(), link


@pytest.mark.quick
def test_no_path_of_a_machine_is_printed():
    assert not any(word in page.read_text() for page in PAGES for word in ("/tmp/", sys.prefix, "/home/"))


@pytest.mark.xdist_group("run of crl_jax")
@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_runs(snippet, finished, monkeypatch, tmp_path):
    """As printed, where there is a run, but for sizes; a whole script on its command line."""
    if "gymnasium" in snippet:
        pytest.importorskip("gymnasium")
    monkeypatch.chdir(finished("crl_jax").parents[1])
    snippet = re.sub(r"\b[1-9]0_000|\b300\b", "20", snippet)
    sizes = dict(num_envs=8, batch_size=16, buffer_size=200, width=8, num_eval_envs=4, episode_length=50)
    monkeypatch.setattr(crl_jax, "Args", partial(crl_jax.Args, total_timesteps=10_000, **sizes))
    monkeypatch.setattr(crl_jax, "contrastive_loss", crl_jax.contrastive_loss)  # one snippet puts its own in its place
    if "parse_args" not in snippet:
        exec(snippet, {"__name__": "__main__"})
        return
    (tmp_path / "snippet.py").write_text(snippet)
    monkeypatch.syspath_prepend(tmp_path)
    run("snippet", "--total-timesteps", "1", "--population", "4", "--num-eval-envs", "4", cwd=tmp_path)
    assert (only_run(tmp_path) / "policy.jax").exists()
