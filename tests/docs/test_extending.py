"""The code of docs/extending.md does what the page says."""

import dataclasses
import re
import sys
import types

import numpy as np
import pytest
from oracles import Clueless, DigitOracle, digit_arrays
from pages import ROOT, code_blocks

from diffsda_jax import config as configuration
from diffsda_jax import experiment, runs
from diffsda_jax.data import sources
from diffsda_jax.evals import context, evaluate, parts

PAGE = ROOT / "docs" / "extending.md"


@pytest.fixture(scope="module")
def blocks():
    """The source, its config, the backbone, its test, and the metric."""
    found = code_blocks(PAGE, "python")
    assert len(found) == 5
    return found


def as_module(name, code):
    """A module of the page's code."""
    module = types.ModuleType(name)
    exec(compile(code, f"{PAGE.name}:{name}", "exec"), module.__dict__)
    return module


def test_each_section_is_short():
    for section in PAGE.read_text().split("\n## ")[1:]:
        assert len(section.splitlines()) < 60


def test_a_source_trains_with_its_config(blocks, tmp_path, monkeypatch):
    name = "diffsda_jax.data.sources.pendulums"
    monkeypatch.setitem(sys.modules, name, as_module(name, blocks[0]))
    entry = re.search(r'`"(\w+)": \("(\w+)", "(\w+)"\)`', PAGE.read_text())
    monkeypatch.setitem(sources.SOURCES._places, entry[1], (entry[2], entry[3]))
    file = tmp_path / "pendulums.py"
    file.write_text(blocks[1])
    config = configuration.load_config(str(file))
    source = sources.make_source("pendulums", "test", length=16)
    assert len(source) == 200
    first, again = (source.load(3, np.random.default_rng(seed))["x"] for seed in (0, 1))
    np.testing.assert_array_equal(first, again)
    trained_on = sources.make_source("pendulums", "train", length=16)
    assert (trained_on.load(3, np.random.default_rng(0))["x"] != first).any()
    assert source.fingerprint() != sources.make_source("pendulums", "test").fingerprint()
    built = experiment.build(config)
    assert built.spec.shape == (2,) and len(built.sources["train"]) == 200
    assert int(runs.smoke(config, tmp_path / "run").state.step) == 2


def test_a_backbone_keeps_its_promise(blocks):
    names = {"__name__": "conv_front"}
    exec(compile(blocks[2] + "\n\n" + blocks[3], PAGE.name, "exec"), names)
    factors, later = names["factors"], names["later"]
    assert factors.static.shape == (2, 3) and factors.dynamic.shape == (2, 6, 2)
    np.testing.assert_array_equal(later.dynamic[:, :4], factors.dynamic[:, :4])
    assert (np.asarray(later.dynamic[:, 4:]) != factors.dynamic[:, 4:]).any()


def test_a_metric_tells_an_oracle_from_one_who_knows_nothing(blocks, monkeypatch):
    liveliness = as_module("liveliness", blocks[4]).liveliness
    monkeypatch.setitem(parts.PARTS, "liveliness", liveliness)
    monkeypatch.setattr(context, "_ALL_PARTS", (*context._ALL_PARTS, "liveliness"))
    digits = digit_arrays("train", 60), digit_arrays("test", 60)
    found = {}
    for model in (DigitOracle(*digits), Clueless(*digits)):
        options = {"num_swaps": 50, "pictures": False, "parts": ("liveliness",)}
        metrics = evaluate.evaluate(model, *digits, kind="video", **options).metrics
        found[type(model).__name__] = types.SimpleNamespace(
            **{name.partition("/")[2]: value for name, value in metrics.items()}
        )
    assert found["DigitOracle"].error < 0.5 * found["DigitOracle"].error_chance
    assert found["Clueless"].error > 0.7 * found["Clueless"].error_chance
    assert found["DigitOracle"].liveliness_percent == pytest.approx(100, abs=15)
    settings = dataclasses.replace(context.EvalSettings(), num_swaps=0)
    alone = types.SimpleNamespace(why_no_swaps=lambda: f"num_swaps is {settings.num_swaps}")
    assert liveliness(alone) == ({}, ["liveliness skipped: num_swaps is 0"])
