"""Runs that many tests look at, each done once."""

import functools

import pytest
from harness_runs import only_run, run, small


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A function of a script's name: the directory of a run that nobody disturbed; what it printed is in out.txt."""

    @functools.cache
    def finish(script):
        folder = tmp_path_factory.mktemp(script)
        out = run(script, *small(script), cwd=folder)
        (folder / "out.txt").write_text(out)
        return only_run(folder)

    return finish
