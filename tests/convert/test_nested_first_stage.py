"""Autoencoders inside of other state dicts: of latent diffusion models, and of sequence models."""

import json

import golden_cases
import jax
import numpy as np
import pytest
import synthetic

from diffsda_jax import DiffSDA, FirstStage
from diffsda_jax.convert import __main__ as command
from diffsda_jax.convert import convert_state_dict
from diffsda_jax.convert.torch_file import StateDict
from diffsda_jax.convert.weights import ConversionError

OWN = golden_cases.state_dict("first_stage_vq")
NESTED = {f"first_stage_model.{key}": value for key, value in OWN.items()}
DIFFUSION = {
    "betas": (4,),
    "sqrt_recipm1_alphas_cumprod": (4,),
    "posterior_mean_coef1": (4,),
    "scale_factor": (),
    "model.diffusion_model.input_blocks.0.0.weight": (32, 4, 3, 3),
    "model_ema.diffusion_modelinput_blocks00weight": (32, 4, 3, 3),
    "cond_stage_model.encoder.down.0.block.0.conv1.weight": (32, 32, 3, 3),
    "first_stage_model.loss.logvar": (),
    "first_stage_model.loss.discriminator.main.0.weight": (8, 3, 4, 4),
}
UNKNOWN = {"first_stage_model.encoder.new": (2, 3), "model.new": (5,)}


def zeros(shapes):
    return {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}


def convert(tensors):
    return convert_state_dict(StateDict(tensors, "", (), 0, ()), "model.ckpt")


def test_the_autoencoder_of_a_whole_latent_diffusion_model():
    converted, alone = convert(NESTED | zeros(DIFFUSION | UNKNOWN)), convert(OWN)
    assert converted.spec == alone.spec and converted.report.classes == "VQModel"
    jax.tree.map(np.testing.assert_array_equal, converted.variables, alone.variables)
    report = converted.report
    assert [entry.key for entry in report.of("skipped")] == list(DIFFUSION)
    assert {entry.key: entry.shape for entry in report.of("unexpected")} == UNKNOWN
    assert report.counts()["mapped"] == len(OWN)
    assert "unexpected: first_stage_model.encoder.new (2, 3)" in report.summary()


def test_a_missing_key_is_named_as_it_stands_in_the_file():
    tensors = dict(NESTED)
    del tensors["first_stage_model.decoder.up.1.attn.1.q.bias"]
    with pytest.raises(ConversionError, match="'first_stage_model.decoder.up.1.attn.1.q.bias'"):
        convert(tensors | zeros(DIFFUSION))


def test_a_sequence_model_that_brings_its_autoencoder(tmp_path, capsys):
    spec = synthetic.SPECS["one level"]
    np.savez(tmp_path / "vox.npz", **synthetic.state_dict(spec), **NESTED)
    out_dir = tmp_path / "run"
    status = command.main([f"--checkpoint={tmp_path / 'vox.npz'}", f"--out={out_dir}"])
    captured = capsys.readouterr()
    assert (status, captured.err) == (0, "")
    assert "its frame autoencoder has a report of its own" in captured.out
    assert DiffSDA.from_checkpoint(out_dir).spec.static_dim == spec.static_dim
    first_stage = FirstStage.from_checkpoint(out_dir / "first_stage")
    assert first_stage.meta["source"]["file"] == "vox.npz"
    params = convert(OWN).variables["params"]
    jax.tree.map(np.testing.assert_array_equal, first_stage.variables["params"], params)
    counts = [
        json.loads((folder / "conversion_report.json").read_text())["counts"]
        for folder in (out_dir, out_dir / "first_stage")
    ]
    assert counts[0]["skipped"] == counts[1]["mapped"] == len(OWN)
    assert counts[0]["unexpected"] == counts[1]["unexpected"] == 0


def test_an_autoencoder_that_is_not_whole_does_not_stop_its_sequence_model():
    tensors = dict(NESTED)
    del tensors["first_stage_model.quantize.embedding.weight"]
    converted = convert(synthetic.state_dict(synthetic.SPECS["one level"]) | tensors)
    assert converted.first_stage is None
    (note,) = converted.report.notes
    assert "its frame autoencoder cannot be converted" in note and "codebook_size" in note
