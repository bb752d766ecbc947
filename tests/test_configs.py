"""Every file of configs/ trains and evaluates, shrunk (design: every config runs)."""

import json
from pathlib import Path

import pytest

from diffsda_jax import config as configuration
from diffsda_jax import runs

CONFIGS = [str(path) for path in sorted(Path("configs").glob("*.py"))]
CONFIGS += ["configs/digits.py:32", "configs/japanese_vowels.py:original"]
CONFIGS += ["configs/csv.py:long"]


@pytest.mark.parametrize("path", CONFIGS)
def test_every_config_runs(path, tmp_path):
    result = runs.smoke(configuration.load_config(path), tmp_path)
    assert int(result.state.step) == 2 and not result.interrupted
    metrics = json.loads((tmp_path / "eval" / "00000002" / "metrics.json").read_text())
    assert metrics["metrics"] and any((tmp_path / "eval" / "00000002").glob("*.png"))
