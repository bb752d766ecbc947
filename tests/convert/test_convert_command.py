import hashlib
import json

import golden_cases
import jax
import numpy as np
import pytest
import synthetic
import torch_writer as tw

from diffsda_jax.convert import __main__ as command
from diffsda_jax.convert import convert_file
from diffsda_jax.train.checkpoint import load_for_inference

PTH = golden_cases.FOLDER / "audio_mel.pth"
CONFIG = """
from diffsda_jax.config import default_config, source_config


def get_config():
    config = default_config()
    config.source = source_config("japanese_vowels")
    config.model.static_dim = {static_dim}
    config.model.dynamic_dim = 4
    config.model.hidden_dim = 16
    config.model.width = 16
    config.model.encoder_width = 16
    config.model.dropout = 0.25
    return config
"""


def run(capsys, *arguments):
    status = command.main([*map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_pth_becomes_a_checkpoint(tmp_path, capsys):
    status, out, _ = run(capsys, f"--checkpoint={PTH}", f"--out={tmp_path / 'run'}")
    assert status == 0 and "mapped" in out and "static_dim=8" in out
    variables, meta = load_for_inference(tmp_path / "run")
    expected = convert_file(PTH)
    jax.tree.map(np.testing.assert_array_equal, variables, expected.variables)
    assert meta["step"] == 0 and meta["model"] == expected.spec.to_dict()
    assert meta["source"]["file"] == "audio_mel.pth"
    assert meta["source"]["sha256"] == hashlib.sha256(PTH.read_bytes()).hexdigest()
    report = json.loads((tmp_path / "run" / "conversion_report.json").read_text())
    assert report["counts"]["mapped"] == 77 and report["counts"]["alias"] == 16
    assert len(report["keys"]) == 93


def test_npz_and_nested_data_parallel_pth_give_the_same(tmp_path):
    tensors = golden_cases.state_dict("series")
    np.savez(tmp_path / "a.npz", **tensors)
    items = [(f"module.{k}", tw.plain(str(i), v)) for i, (k, v) in enumerate(tensors.items())]
    tw.write(tmp_path / "b.pth", {"state_dict": tw.ordered(items), "epoch": 3})
    first, second = (convert_file(tmp_path / name) for name in ("a.npz", "b.pth"))
    jax.tree.map(np.testing.assert_array_equal, first.variables, second.variables)
    assert first.report.notes == ()
    assert second.report.notes == (
        "weights taken from entry 'state_dict'",
        "prefix 'module.' taken off 93 names",
    )


def test_config_that_agrees(tmp_path, capsys):
    (tmp_path / "config.py").write_text(CONFIG.format(static_dim=8))
    arguments = [f"--checkpoint={PTH}", f"--out={tmp_path / 'run'}"]
    status, out, err = run(capsys, *arguments, f"--config={tmp_path / 'config.py'}")
    assert (status, err) == (0, "")
    assert "model.recurrence is 'reference', not the configuration's 'lstm'" in out
    meta = load_for_inference(tmp_path / "run")[1]
    assert meta["model"]["dropout"] == 0.25 and meta["model"]["recurrence"] == "reference"
    assert meta["config"]["model"]["recurrence"] == "reference"


def test_a_config_of_another_model_is_put_right(tmp_path, capsys):
    wrong = """    config.model.dynamic_activation = "tanh"
    config.model.encoder_pooling = True
    config.model.template_channels = 3
    return config
"""
    text = CONFIG.format(static_dim=8).replace("    return config\n", wrong)
    (tmp_path / "config.py").write_text(text)
    arguments = [f"--checkpoint={PTH}", f"--out={tmp_path / 'run'}"]
    status, out, _ = run(capsys, *arguments, f"--config={tmp_path / 'config.py'}")
    assert status == 0 and out.count("released weights have no other") == 4
    assert "model.dynamic_activation is 'linear', not the configuration's 'tanh'" in out
    meta = load_for_inference(tmp_path / "run")[1]
    for model in (meta["model"], meta["config"]["model"]):
        assert model["recurrence"] == "reference" and model["dynamic_activation"] == "linear"
        assert model["encoder_pooling"] is False and model["template_channels"] == 0
    report = json.loads((tmp_path / "run" / "conversion_report.json").read_text())
    assert sum("released weights" in note for note in report["notes"]) == 4


def test_a_config_of_other_data_is_refused(tmp_path, capsys):
    text = CONFIG.format(static_dim=8).replace("japanese_vowels", "digits")
    (tmp_path / "config.py").write_text(text)
    arguments = [f"--checkpoint={PTH}", f"--out={tmp_path / 'run'}"]
    status, _, err = run(capsys, *arguments, f"--config={tmp_path / 'config.py'}")
    assert status == 2 and err.count("\n") == 1 and not (tmp_path / "run").exists()
    assert "'digits', a video source, but the file holds a series model" in err


@pytest.mark.parametrize("error", [None, PermissionError(13, "Permission\ndenied", "/x")])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path, capsys, monkeypatch, error):
    (tmp_path / "file").write_text("")
    if error is not None:  # raised here by hand: root may write everywhere
        monkeypatch.setattr(command, "convert", lambda options: (_ for _ in ()).throw(error))
    status, _, err = run(capsys, f"--checkpoint={PTH}", f"--out={tmp_path / 'file' / 'run'}")
    assert status == 2 and err.count("\n") == 1
    assert ("Not a directory" if error is None else "Permission denied: '/x'") in err
    assert "--out a folder to write in" in err


def test_config_that_differs(tmp_path, capsys):
    (tmp_path / "config.py").write_text(CONFIG.format(static_dim=9))
    arguments = [f"--checkpoint={PTH}", f"--out={tmp_path / 'run'}"]
    status, _, err = run(capsys, *arguments, f"--config={tmp_path / 'config.py'}")
    assert status == 2 and err.count("\n") == 1
    assert "model.static_dim is 8 in the file and 9 in the configuration" in err
    assert not (tmp_path / "run").exists()


def test_missing_keys_leave_nothing_behind(tmp_path, capsys):
    tensors = synthetic.state_dict(synthetic.SPECS["series"])
    del tensors["encoder.fc_d.bias"]
    np.savez(tmp_path / "a.npz", **tensors)
    status, out, err = run(
        capsys, f"--checkpoint={tmp_path / 'a.npz'}", f"--out={tmp_path / 'run'}"
    )
    assert status == 2 and out == "" and not (tmp_path / "run").exists()
    assert err.splitlines()[-1].startswith("diffsda_jax: error: a.npz lacks 1 of the 77 tensors")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([f"--checkpoint={PTH}x"], "audio_mel.pthx' is not a file"),
        ([f"--checkpoint={PTH}", "--config=none.py"], "none.py"),
        ([f"--checkpoint={PTH}", "--entry=ema"], "has no tensors in 'ema'; it has them in the top"),
        ([f"--checkpoint={PTH}", "--frame-size=4x5"], "has no frames"),
        ([f"--checkpoint={golden_cases.FOLDER / 'README.md'}"], "neither a .pth nor a .npz"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, arguments, message):
    status, _, err = run(capsys, *arguments, f"--out={tmp_path / 'run'}")
    assert status == 2 and err.count("\n") == 1 and message in err


def test_a_used_directory_is_refused(tmp_path, capsys):
    arguments = [f"--checkpoint={PTH}", f"--out={tmp_path}"]
    assert run(capsys, *arguments)[0] == 0
    status, _, err = run(capsys, *arguments)
    assert status == 2 and "already holds step 0" in err


def test_frame_size_must_be_two_numbers(capsys):
    with pytest.raises(SystemExit):
        command.main(["--checkpoint=a", "--out=b", "--frame-size=12"])
    assert "'12' is not HxW, such as 48x64" in capsys.readouterr().err
