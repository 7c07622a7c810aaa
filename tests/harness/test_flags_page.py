"""docs/flags-and-metrics.md has all flags and all metrics, as the scripts have them."""

import dataclasses
import re

import jax
import pytest

import harness
from docs.generate import METRICS, PAGE, SCRIPTS, flags_of, page


@pytest.mark.quick
def test_page_is_up_to_date():
    assert PAGE.read_text() == page(), "write it anew: python -m docs.generate"


@pytest.mark.quick
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_has_its_line(script):
    flags_class = SCRIPTS[script].Args
    sections = flags_of(flags_class) | flags_of(harness.RunArgs)
    assert {name for fields in sections.values() for name in fields} == {
        x.name for x in dataclasses.fields(flags_class)
    }


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_metric_is_explained(script):
    module = SCRIPTS[script]
    init, train = module.make_train(module.Args())
    metrics = jax.eval_shape(lambda key: train(init(key), 1)[1], jax.random.key(0))
    explained = {tag for tag, (scripts, _) in METRICS.items() if not scripts or script in scripts.split()}
    assert metrics.keys() == {tag for tag in explained if not tag.startswith("charts/")}


@pytest.mark.quick
def test_what_a_run_adds_is_explained():
    source = (PAGE.parents[1] / "harness" / "run.py").read_text()
    assert set(re.findall(r'"(charts/\w+)"', source)) == {tag for tag in METRICS if tag.startswith("charts/")}
