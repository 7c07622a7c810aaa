"""A run in processes of its own, which signals end and which share compiled programs."""

import os
import signal

import pytest
from harness_runs import assert_same_end, run, saved, small, start, table

LINE = small("crl_jax", "--total-timesteps 3936 --num-evals 40 --checkpoint-every 6 --run-dir mine")


def until(word, process):
    """Reads what it prints, up to a line with this word."""
    for line in process.stdout:
        if word in line.split():
            return
    pytest.fail(process.stderr.read())


def test_one_line_through_signals_to_the_same_bits(tmp_path):
    """A job that is ended and queued again: signals have their ordinary effect, at once. What was compiled before is
    found again, also by a process that goes on."""
    cache = tmp_path / "cache"
    line = [*LINE, "--compilation-cache", cache]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # a fast machine needs less than JAX's second

    def programs():
        return {path.name for path in cache.glob("jit__lambda*-cache")}

    compiled = set()
    for word, number in (("epoch", signal.SIGINT), ("checkpoint;", signal.SIGKILL), ("checkpoint;", signal.SIGTERM)):
        process = start("crl_jax", *line, cwd=tmp_path, env=environment)
        until(word, process)  # the head of the table stands before anything is compiled
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == -number, out + err
        assert err == "" or (number == signal.SIGINT and err.endswith("\nKeyboardInterrupt\n")), err  # before it trains
        if word == "epoch":
            assert saved(tmp_path / "mine") == []
        else:
            assert compiled <= programs() and len(compiled) in (0, len(programs()))
            compiled = programs()
            assert compiled and 6 <= saved(tmp_path / "mine")[-1] < 40
    process = start("crl_jax", *line, cwd=tmp_path, env=environment)
    out, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (0, "") and "going on after epoch" in out
    assert programs() == compiled
    (tmp_path / "whole").mkdir()
    run("crl_jax", *LINE, cwd=tmp_path / "whole")
    assert len(table(tmp_path / "mine")) == 40
    assert_same_end("crl_jax", tmp_path / "whole" / "mine", tmp_path / "mine")
