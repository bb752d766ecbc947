"""Every file of configs/ trains and evaluates, shrunk (design: every config runs)."""

import json
from pathlib import Path

import pytest

from diffsda_jax import config as configuration
from diffsda_jax import runs

CONFIGS = [str(path) for path in sorted(Path("configs").glob("*.py"))]
CONFIGS += ["configs/digits.py:32", "configs/japanese_vowels.py:original"]
CONFIGS += ["configs/csv.py:long", "configs/librispeech.py:espeak"]
REFERENCES = ["air_quality", "etth1", "physionet", "timit", "librispeech", "speech_folder"]


@pytest.mark.parametrize("path", CONFIGS)
def test_every_config_runs(path, tmp_path):
    result = runs.smoke(configuration.load_config(path), tmp_path)
    assert int(result.state.step) == 2 and not result.interrupted
    metrics = json.loads((tmp_path / "eval" / "00000002" / "metrics.json").read_text())
    assert metrics["metrics"] and any((tmp_path / "eval" / "00000002").glob("*.png"))


@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_variant_is_the_released_form_whatever_the_default_adds(name):
    variants = ["reference"] + ["espeak_reference"] * (name == "librispeech")
    for variant in variants:
        config = configuration.load_config(f"configs/{name}.py:{variant}")
        assert config.model.recurrence == "reference" and config.model.precision == "float32"
        assert config.model.dynamic_activation == "linear" and not config.model.center_dynamic
        assert config.loss.dynamic_noise == config.loss.encoder_noise == 0
        assert config.eval.form == "reference" and config.eval.start == ""
