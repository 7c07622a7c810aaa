"""What the README shows works as printed."""

import re
from pathlib import Path

import pytest

import envs

README = (Path(__file__).parent.parent / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippets_run(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(SNIPPETS[number], names)
    if "Cart" in names:  # the task of one's own is learnt
        assert names["metrics"]["eval/success_rate"][-1] > 0.6


def test_every_id_is_listed():
    """In the table of tasks, with names such as `a_{b,c}_d` written out."""
    listed = set()
    for name in re.findall(r"`([a-z0-9_{},]+)`", README):
        parts = re.split(r"\{(.*?)\}", name)
        options = parts[1].split(",") if len(parts) > 1 else [""]
        listed |= {parts[0] + option + "".join(parts[2:]) for option in options}
    assert set(envs.ENV_IDS) <= listed
    assert f"All {len(envs.ENV_IDS)} tasks" in README
