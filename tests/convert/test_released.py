"""The released weights by name: their configurations have the sizes of the released classes."""

import functools
import json
import math

import golden_cases
import jax
import numpy as np
import pytest
import synthetic

from diffsda_jax import config as configuration
from diffsda_jax.convert import __main__ as command
from diffsda_jax.convert import released
from diffsda_jax.convert.infer_spec import fixed_sizes, infer_spec
from diffsda_jax.convert.mapping import UNUSED, rules
from diffsda_jax.convert.released import CONFIGS, config_of
from diffsda_jax.experiment import model_spec
from diffsda_jax.model import variable_shapes
from diffsda_jax.train.checkpoint import load_for_inference

PTH = golden_cases.FOLDER / "audio_mel.pth"
LATENT, FRAME = (32, 32, 4), (64, 64, 3)
# Configuration, shape of a step, and millions of parameters of the released class, as measured.
CLASSES = [
    ("vox256.py:reference", LATENT, 228.0),
    ("celebv256.py:reference", LATENT, None),
    ("mug64.py:reference", FRAME, 27.6),
    ("mug64.py:small", FRAME, 27.6),
    ("taichi64.py:reference", FRAME, 69.4),
    ("air_quality.py:reference", (10,), 13.6),
    ("etth1.py:reference", (6,), 14.4),
    ("physionet.py:reference", (10,), 8.5),
    ("timit.py:reference", (80,), 9.9),
    ("librispeech.py:reference", (80,), 4.5),
]


@functools.cache
def shapes_of(spec):
    return variable_shapes(spec)


def count(shapes):
    return sum(math.prod(shape) for shape in shapes) / 1e6


@pytest.mark.parametrize(("path", "shape", "millions"), CLASSES)
def test_reference_form_has_the_shapes_of_the_released_class(path, shape, millions):
    config = configuration.load_config(f"configs/{path}")
    spec = model_spec(config, "video" if len(shape) == 3 else "series", shape)
    variables = shapes_of(spec)
    used = synthetic.key_shapes(rules(spec), variables)
    assert len(used) == len(jax.tree.leaves(variables))
    unused = synthetic.unused_shapes(used)
    assert all(UNUSED.match(key) for key in unused) and bool(unused) == (spec.kind == "video")
    from_file = infer_spec(used | unused)
    assert from_file.shape == spec.shape
    for field in fixed_sizes(spec.kind):
        assert getattr(from_file, field) == getattr(spec, field), field
    frequencies = jax.tree.leaves(variables["constants"])  # stored, but no parameters
    parameters = count(used.values()) - count(leaf.shape for leaf in frequencies)
    if millions is not None:  # two of the measured ones are rounded twice: 27.546 and 14.347
        assert parameters + count(unused.values()) == pytest.approx(millions, abs=0.055)
    if path.startswith("vox256"):
        assert parameters == pytest.approx(217, abs=0.5)
        assert count(unused.values()) == pytest.approx(10.8, abs=0.05)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_name_has_a_configuration_of_the_released_form(name):
    config = configuration.load_config(config_of(name))
    assert config.model.recurrence == "reference" and config.eval.form == "reference"
    assert CONFIGS[name] in {path for path, _, _ in CLASSES}


def test_the_names_are_those_of_the_release():
    names = ["vox1", "celebv", "mug", "mug_small", "taichi", "physionet", "airq", "etth"]
    assert list(CONFIGS) == names


def run(capsys, *arguments):
    status = command.main([*map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_configuration_of_a_name_is_in_the_checkpoint(tmp_path, capsys):
    """The file's own sizes, which are tiny here, win over the configuration's and are named."""
    out_dir = tmp_path / "run"
    status, out, err = run(capsys, "--name=etth", f"--checkpoint={PTH}", f"--out={out_dir}")
    assert (status, err) == (0, "")
    assert "model.static_dim is 8, not the configuration's 16: taken from the file" in out
    variables, meta = load_for_inference(out_dir)
    config = meta["config"]
    assert config["source"]["name"] == "etth1" and config["model"]["static_dim"] == 8
    assert config["eval"]["form"] == "reference" and config["data"]["length"] == 672
    assert meta["model"]["static_dim"] == variables["params"]["encoder"]["static"]["bias"].size == 8
    notes = json.loads((out_dir / "conversion_report.json").read_text())["notes"]
    assert len(notes) == sum("is it the right one" in note for note in notes) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--name=vox"],
            "unknown released weights 'vox'. Did you mean 'vox1'? Known: airq, celebv",
        ),
        (["--name=vox1"], "'latents', a video source, but the file holds a series model"),
    ],
)
def test_wrong_names_are_one_line(tmp_path, capsys, arguments, message):
    out_dir = tmp_path / "run"
    status, _, err = run(capsys, *arguments, f"--checkpoint={PTH}", f"--out={out_dir}")
    assert status == 2 and err.count("\n") == 1 and message in err and not out_dir.exists()


def test_names_need_the_configurations_that_a_wheel_lacks(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(released, "FOLDER", tmp_path / "configs")
    out_dir = tmp_path / "run"
    status, _, err = run(capsys, "--name=etth", f"--checkpoint={PTH}", f"--out={out_dir}")
    assert status == 2 and err.count("\n") == 1 and not out_dir.exists()
    assert "--name needs a checkout of the project (pip install -e .); or give --config: " in err
    assert f"{tmp_path / 'configs' / 'etth1.py'}, the configuration of 'etth', is not there" in err


def test_a_name_and_a_configuration_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        command.main(["--checkpoint=a", "--out=b", "--name=vox1", "--config=c"])
    assert "not allowed with argument" in capsys.readouterr().err


def test_a_name_is_not_for_an_autoencoder(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", **golden_cases.state_dict("first_stage_vq"))
    arguments = (f"--checkpoint={tmp_path / 'a.npz'}", f"--out={tmp_path / 'run'}")
    status, _, err = run(capsys, *arguments, "--name=vox1")
    assert status == 2 and "--name is 'vox1', but the file holds a frame autoencoder" in err
