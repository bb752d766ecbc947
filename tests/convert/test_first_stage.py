"""Frame autoencoders: golden numbers, recognition of their state dicts, and the command."""

import functools
import json

import golden_cases
import jax
import numpy as np
import pytest
import synthetic
import torch_writer as tw

from diffsda_jax import DiffSDA, FirstStage
from diffsda_jax.convert import ConversionError, convert_file, convert_state_dict
from diffsda_jax.convert import __main__ as command
from diffsda_jax.convert.first_stage import infer_spec, recognises, rules
from diffsda_jax.convert.torch_file import StateDict
from diffsda_jax.first_stage.nets import make_model, variable_shapes
from diffsda_jax.first_stage.spec import PUBLISHED, FirstStageSpec

pytestmark = pytest.mark.usefixtures("optimised")

TOLERANCE = 1e-4
VQ, KL = CASES = ("first_stage_vq", "first_stage_kl")
TRAINING = {
    "loss.logvar": (),
    "loss.discriminator.main.0.weight": (64, 3, 4, 4),
    "loss.perceptual_loss.net.slice1.0.weight": (64, 3, 3, 3),
    "model_ema.encoderconv_inweight": (32, 3, 3, 3),
    "colorize": (3, 2, 1, 1),
}
OTHER_SIZES = {
    "attention on two levels": FirstStageSpec(
        "vq", 32, (1, 1, 3), 2, (0, 2), True, 3, 5, 7, image_channels=1
    ),
    "attention nowhere": FirstStageSpec("vq", 64, (1, 2), 1, (), False, 4, 2, 9),
    "one level": FirstStageSpec("kl", 32, (2,), 3, (0,), True, 6, 3),
}


@functools.cache
def golden(name):
    return golden_cases.state_dict(name)


def convert(tensors):
    return convert_state_dict(StateDict(tensors, "", (), 0, ()), "file.ckpt")


def failure(tensors):
    with pytest.raises(ValueError) as error:
        convert(tensors)
    assert "\n" not in str(error.value) and str(error.value).startswith("file.ckpt")
    return str(error.value)


def run(capsys, *arguments):
    status = command.main([*map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """The golden arrays, channels last, and the converted autoencoder."""
    expected = golden_cases.arrays(request.param)
    expected = {k: np.moveaxis(v, 1, -1) if v.ndim == 4 else v for k, v in expected.items()}
    converted = convert(golden(request.param))
    return request.param, expected, FirstStage(converted.spec, converted.variables)


def test_every_array_of_the_case(case):
    name, expected, model = case
    latent = model.encode(expected["x"])
    got = {"reconstruction": model.decode(latent), "decoded_z": model.decode(expected["z"])}

    @functools.partial(jax.jit, static_argnums=1)
    def apply(array, method):
        return make_model(model.spec).apply(model.variables, array, method=method)

    if name == VQ:
        got["latent"], got["indices"] = latent, apply(latent, "quantize")[1]
        got["quantized_z"], got["indices_z"] = apply(expected["z"], "quantize")
    else:
        got["mean"], got["logvar"] = apply(expected["x"], "moments")
        np.testing.assert_allclose(latent, got["mean"], atol=1e-5)
    assert set(got) == set(expected) - {"x", "z"}
    for key, value in got.items():
        if key.startswith("indices"):
            np.testing.assert_array_equal(value, expected[key])
        else:
            error = np.abs(value - expected[key]).max() / np.abs(expected[key]).max()
            assert error < TOLERANCE, key


@pytest.mark.parametrize("name", CASES)
def test_the_description_is_the_manifests(name):
    manifest = golden_cases.manifest(name)
    hparams, entries = manifest["hparams"], manifest["entries"]
    spec = infer_spec({key: tuple(entry["shape"]) for key, entry in entries.items()})
    assert {rule.key for rule in rules(spec)} == set(entries)
    sizes = [hparams["resolution"] // 2**level for level in range(len(hparams["ch_mult"]))]
    attention = [level for level, size in enumerate(sizes) if size in hparams["attn_resolutions"]]
    assert spec.to_dict() == {
        "kind": manifest["kind"],
        "channels": hparams["ch"],
        "channel_mults": hparams["ch_mult"],
        "num_res_blocks": hparams["num_res_blocks"],
        "attention_levels": attention,
        "middle_attention": True,
        "z_channels": hparams["z_channels"],
        "embed_dim": hparams["embed_dim"],
        "codebook_size": hparams.get("n_embed") or 0,
        "image_channels": hparams["in_channels"],
    }
    assert spec.double_z == hparams["double_z"]


@pytest.mark.parametrize("name", OTHER_SIZES)
def test_other_sizes_come_back(name):
    spec, generator = OTHER_SIZES[name], np.random.default_rng(0)
    variables = jax.tree.map(
        lambda s: generator.normal(size=s.shape).astype(np.float32), variable_shapes(spec)
    )
    tensors = {}
    for rule in rules(spec):
        value = variables
        for part in rule.path:
            value = value[part]
        tensors[rule.key] = np.ascontiguousarray(synthetic.INVERSE[rule.layout](value))
    converted = convert(tensors)
    assert converted.spec == spec
    jax.tree.map(np.testing.assert_array_equal, converted.variables, variables)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_are_recognised(name):
    """Shapes alone; nothing of this size is computed."""
    spec = PUBLISHED[name]
    variables = variable_shapes(spec)
    shapes = synthetic.key_shapes(rules(spec), variables)
    assert recognises(shapes) and infer_spec(shapes) == spec
    assert len(shapes) == len(jax.tree.leaves(variables))
    if name == "kl-f8":  # the autoencoder of Stable Diffusion 1, whose size is widely reported
        assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 83_653_863


@pytest.mark.parametrize("nested", [False, True])
def test_the_command(tmp_path, capsys, case, nested):
    name, expected, model = case
    extra = {key: np.zeros(shape, np.float32) for key, shape in TRAINING.items()}
    tensors = golden(name) | extra | {"encoder.new": np.ones((2, 3), np.float32)}
    file = tmp_path / "model.ckpt"
    if nested:
        items = [(key, tw.plain(str(i), value)) for i, (key, value) in enumerate(tensors.items())]
        callback = tw.Global("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
        score = tw.plain("score", np.float32(0.5))
        content = {"epoch": 3, "callbacks": {callback: {"best_model_score": score}}}
        tw.write(file, content | {"state_dict": tw.ordered(items)})
    else:
        tw.write_state_dict(file, tensors)
    out_dir = tmp_path / "first_stage"
    status, out, err = run(capsys, f"--checkpoint={file}", f"--out={out_dir}")
    assert (status, err) == (0, "") and f"first_stage: kind='{model.spec.kind}'" in out
    assert "unexpected: encoder.new (2, 3)" in out
    for key, shape in TRAINING.items():
        assert f"skipped: {key} {shape}" in out
    assert ("weights taken from entry 'state_dict'" in out) == nested
    counts = json.loads((out_dir / "conversion_report.json").read_text())["counts"]
    assert counts["skipped"] == len(TRAINING) and counts["unexpected"] == 1
    assert counts["mapped"] == len(tensors) - len(TRAINING) - 1

    restored = FirstStage.from_checkpoint(out_dir)
    assert restored.spec == model.spec and restored.meta["source"]["file"] == "model.ckpt"
    np.testing.assert_array_equal(restored.encode(expected["x"]), model.encode(expected["x"]))
    with pytest.raises(ValueError, match="does not say which model"):
        DiffSDA.from_checkpoint(out_dir)


def test_a_missing_key_leaves_nothing_behind(tmp_path, capsys):
    tensors = dict(golden(VQ))
    del tensors["decoder.up.1.attn.1.q.bias"]
    np.savez(tmp_path / "a.npz", **tensors)
    arguments = (f"--checkpoint={tmp_path / 'a.npz'}", f"--out={tmp_path / 'run'}")
    status, out, err = run(capsys, *arguments)
    assert status == 2 and out == "" and not (tmp_path / "run").exists()
    assert "missing: decoder.up.1.attn.1.q.bias" in err
    last = err.splitlines()[-1]
    assert last.startswith("diffsda_jax: error: a.npz lacks 1 of the 155 tensors of VQModel")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config=x.py", "--config is 'x.py', but the file holds a frame autoencoder (VQModel)"),
        ("--frame-size=4x5", "frame_size is (4, 5), but the state dict is of a frame autoencoder"),
    ],
)
def test_flags_of_sequence_models_are_refused(tmp_path, capsys, flag, message):
    np.savez(tmp_path / "a.npz", **golden(VQ))
    arguments = (f"--checkpoint={tmp_path / 'a.npz'}", f"--out={tmp_path / 'run'}", flag)
    status, _, err = run(capsys, *arguments)
    assert status == 2 and err.count("\n") == 1 and message in err


def test_attention_on_one_side_only_is_missing_on_the_other():
    tensors = golden(VQ)
    tensors = {k: v for k, v in tensors.items() if not k.startswith("decoder.up.1.attn.")}
    with pytest.raises(ConversionError, match=r"lacks 20 .*'decoder\.up\.1\.attn\.0\.norm"):
        convert(tensors)


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("encoder.conv_in.weight", (40, 3, 3, 3), "gives 40 channels; GroupNorm needs a multiple"),
        ("encoder.down.1.block.0.conv1.weight", (48, 32, 3, 3), "is 48 wide, not a multiple of"),
        ("quant_conv.weight", (6, 4, 1, 1), "gives 6 channels and 'post_quant_conv.weight' takes"),
        ("quant_conv.weight", (8, 8, 1, 1), "gives 8 channels and 'post_quant_conv.weight' takes"),
        ("decoder.up.0.block.2.conv1.weight", (32, 32, 3, 3), "1 residual blocks in the encoder"),
        ("decoder.up.2.block.0.conv1.weight", (32, 32, 3, 3), "no key 'encoder.down.2.block.0"),
        ("quantize.embedding.weight", (16, 5), "has shape (16, 5), but the variable"),
        ("quant_conv.weight", (4, 4, 3, 3), "has shape (4, 4, 3, 3), but the variable"),
    ],
)
def test_tensors_that_do_not_fit(key, shape, message):
    assert message in failure(golden(VQ) | {key: np.zeros(shape, np.float32)})


def test_a_vq_without_its_codebook_is_told():
    tensors = dict(golden(VQ))
    del tensors["quantize.embedding.weight"]
    assert "no key 'quantize.embedding.weight', from which codebook_size" in failure(tensors)


def test_sequence_models_are_not_taken_for_autoencoders():
    for name in golden_cases.CASES:
        assert not recognises(golden_cases.manifest(name)["entries"])
    pth = golden_cases.FOLDER / "audio_mel.pth"
    assert convert_file(pth).report.classes.startswith("DiffSDA")
