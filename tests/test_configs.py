"""Every file of configs/ trains and evaluates, shrunk (design: every config runs)."""

import functools
import json
from pathlib import Path

import jax
import pytest

from diffsda_jax import config as configuration
from diffsda_jax import runs

# The same networks again, as of digits, japanese_vowels and, for latents, test_high_resolution.
SLOW_CONFIGS = ["configs/celebv256.py", "configs/taichi64.py", "configs/video_folder.py:latents"]
SLOW_CONFIGS += ["configs/vox256.py"]
SLOW_CONFIGS += ["configs/digits.py:32", "configs/japanese_vowels.py:original"]
SLOW_CONFIGS += ["configs/mug64.py", "configs/video_folder.py"]
# Run by test_series_runs and test_speech_run.
SLOW_CONFIGS += [f"configs/{name}.py" for name in ("air_quality", "etth1", "physionet")]
SLOW_CONFIGS += ["configs/known_factors.py", "configs/librispeech.py"]
CONFIGS = [str(path) for path in sorted(Path("configs").glob("*.py"))]
CONFIGS += ["configs/csv.py:long", "configs/librispeech.py:espeak"]
CONFIGS = [path for path in CONFIGS if path not in SLOW_CONFIGS]
CONFIGS += [pytest.param(path, marks=pytest.mark.slow) for path in SLOW_CONFIGS]
REFERENCES = ["air_quality", "etth1", "physionet", "timit", "librispeech", "speech_folder"]
REFERENCES += ["vox256", "celebv256", "mug64", "taichi64"]
MORE_REFERENCES = {"librispeech": ["espeak_reference"], "mug64": ["small"]}


@pytest.fixture
def _one_device(monkeypatch):
    """Programs for eight take longer to compile, and meshes have tests of their own."""
    make_mesh = functools.partial(configuration.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(configuration, "make_mesh", make_mesh)


@pytest.mark.usefixtures("_one_device")
@pytest.mark.parametrize("path", CONFIGS)
def test_every_config_runs(path, tmp_path):
    result = runs.smoke(configuration.load_config(path), tmp_path)
    assert int(result.state.step) == 2 and not result.interrupted
    metrics = json.loads((tmp_path / "eval" / "00000002" / "metrics.json").read_text())
    assert metrics["metrics"] and any((tmp_path / "eval" / "00000002").glob("*.png"))


@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_variant_is_the_released_form_whatever_the_default_adds(name):
    for variant in ["reference", *MORE_REFERENCES.get(name, ())]:
        config = configuration.load_config(f"configs/{name}.py:{variant}")
        assert config.model.recurrence == "reference" and config.model.precision == "float32"
        assert config.model.dynamic_activation == "linear" and not config.model.center_dynamic
        assert config.loss.dynamic_noise == config.loss.encoder_noise == 0
        assert config.eval.form == "reference" and config.eval.start == ""


@pytest.mark.parametrize(
    ("name", "source"),
    [("vox256", "voxceleb1"), ("celebv256", "celebv_hq"), ("video_folder", "video_folder")],
)
def test_one_file_has_the_frames_and_the_latents_that_are_made_of_them(name, source):
    variant = ":latents" if name == "video_folder" else ""
    latents = configuration.load_config(f"configs/{name}.py{variant}").source
    frames = configuration.load_config(f"configs/{name}.py:frames").source
    assert (latents.name, frames.name, frames.options.size) == ("latents", source, 256)
    assert (latents.options.length, frames.options.length) == (10, 1)  # no clip is too short


def test_a_length_set_later_reaches_the_latents():
    config = configuration.load_config("configs/vox256.py")
    config.data.length = 16
    assert config.source.options.length == 16
