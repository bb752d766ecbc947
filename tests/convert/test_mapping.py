import golden_cases
import jax
import numpy as np
import pytest
import synthetic

from diffsda_jax.convert.infer_spec import infer_spec
from diffsda_jax.convert.mapping import UNUSED, rules
from diffsda_jax.convert.torch_file import StateDict
from diffsda_jax.convert.weights import ConversionError, convert_state_dict
from diffsda_jax.model import ModelSpec

SERIES = synthetic.SPECS["series"]


def convert(tensors, **kwargs):
    return convert_state_dict(StateDict(tensors, "", (), 0, ()), "file.pth", **kwargs)


def failure(tensors, **kwargs):
    with pytest.raises(ValueError) as error:
        convert(tensors, **kwargs)
    assert "\n" not in str(error.value) and str(error.value).startswith("file.pth")
    return str(error.value)


@pytest.mark.parametrize("case", golden_cases.CASES)
def test_every_key_of_the_original_is_known(case):
    """The manifests list what the original classes hold; independent of the rules."""
    manifest = golden_cases.manifest(case)
    spec = infer_spec({k: tuple(e["shape"]) for k, e in manifest["entries"].items()})
    aliases = {rule.alias: rule.key for rule in rules(spec) if rule.alias}
    for key, entry in manifest["entries"].items():
        assert aliases.get(key) == entry.get("alias_of")
    unused = {key for key in manifest["entries"] if UNUSED.match(key)}
    assert unused == set(manifest["no_grad_params"])
    mapped = {rule.key for rule in rules(spec)}
    assert mapped == set(manifest["entries"]) - unused - set(aliases)
    hparams = manifest["hparams"]
    wanted = {"static_dim": "s_dim", "dynamic_dim": "d_dim", "hidden_dim": "hidden_dim"}
    if case == "video_small":
        wanted |= {"channels": "unets_channels", "encoder_channels": "encoder_channels"}
        wanted |= {"channel_mults": "ch_mult", "attention_levels": "attn"}
        assert spec.shape == (16, 16, 3)
    else:
        wanted |= {"width": "mlp_hidden_dim", "encoder_width": "mlp_hidden_dim_enc"}
        assert spec.shape == (hparams["shape"][-1],)
    values = spec.to_dict()
    assert {k: values[k] for k in wanted} == {k: hparams[v] for k, v in wanted.items()}


@pytest.mark.parametrize("name", synthetic.SPECS)
def test_other_sizes_come_back(name):
    spec = synthetic.SPECS[name]
    variables = synthetic.random_variables(spec)
    tensors = synthetic.state_dict(spec)
    converted = convert(tensors)
    differing = [
        field for field, value in spec.to_dict().items() if converted.spec.to_dict()[field] != value
    ]
    assert differing == []
    jax.tree.map(np.testing.assert_array_equal, converted.variables, variables)
    counts = converted.report.counts()
    assert counts["mapped"] == len(jax.tree.leaves(variables))
    assert counts["unused"] == sum(".crossattn." in key for key in tensors)
    assert sum(counts.values()) == len(tensors)


def test_torch_layouts_by_hand():
    """A convolution and a linear layer, computed here as torch defines them."""
    spec = synthetic.SPECS["one level"]
    tensors = synthetic.state_dict(spec)
    params = convert(tensors).variables["params"]
    x = np.random.default_rng(1).normal(size=(1, 3, 4, 4)).astype(np.float32)
    weight = tensors["encoder.tail.2.weight"][:, :3]  # OIHW
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    expected = sum(
        np.einsum("nihw,oi->nohw", padded[..., r : r + 4, c : c + 4], weight[:, :, r, c])
        for r in range(3)
        for c in range(3)
    )
    kernel = params["encoder"]["front"]["unet"]["conv_out"]["kernel"][:, :, :3]
    got = jax.lax.conv_general_dilated(
        x.transpose(0, 2, 3, 1), kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(got.transpose(0, 3, 1, 2), expected, rtol=1e-4, atol=1e-5)
    code = np.random.default_rng(2).normal(size=(5, 2 + 1)).astype(np.float32)
    np.testing.assert_array_equal(
        code @ params["denoiser"]["factors"]["kernel"], code @ tensors["backbone.fc_a.weight"].T
    )


def test_missing_keys_refuse():
    tensors = synthetic.state_dict(SERIES)
    del tensors["encoder.fc_d.bias"], tensors["backbone.layers.1.norm.weight"]
    with pytest.raises(ConversionError) as error:
        convert(tensors)
    assert "lacks 2 of the 77 tensors" in str(error.value)
    assert "'backbone.layers.1.norm.weight', 'encoder.fc_d.bias'" in str(error.value)
    report = error.value.report
    assert report.counts()["missing"] == 2
    assert "missing: encoder.fc_d.bias" in report.summary()
    assert {e["level"] for e in report.to_dict()["keys"] if e["status"] == "missing"} == {"error"}


@pytest.mark.parametrize(
    "key", ["encoder.fc_s.weight", "encoder.z_lstm.weight_hh_l0", "backbone.layers.0.linear.weight"]
)
def test_missing_key_that_a_size_is_read_from(key):
    tensors = synthetic.state_dict(SERIES)
    del tensors[key]
    assert f"has no key '{key}'" in failure(tensors)


def test_missing_attention_of_one_block_is_not_taken_for_another_model():
    tensors = synthetic.state_dict(synthetic.SPECS["four levels"])
    gone = [key for key in tensors if key.startswith("encoder.downblocks.6.attn.")]
    for key in gone:
        del tensors[key]
    assert len(gone) == 10 and "lacks 10 of the" in failure(tensors)


def test_unexpected_keys_are_listed_with_shapes():
    tensors = synthetic.state_dict(SERIES) | {"prior.weight": np.zeros((3, 2), np.float32)}
    tensors["encoder.crossattn.weight"] = np.zeros(4, np.float32)  # unused only in the backbone
    report = convert(tensors).report
    assert [(e.key, e.shape) for e in report.of("unexpected")] == [
        ("prior.weight", (3, 2)),
        ("encoder.crossattn.weight", (4,)),
    ]
    assert "unexpected: prior.weight (3, 2)" in report.summary()


def test_alias_must_equal_its_tensor():
    tensors = synthetic.state_dict(SERIES)
    key = "backbone.layers.2.t_cond_layers.1.bias"
    tensors[key] = tensors[key] + 1e-3
    with pytest.raises(ConversionError, match="1 second names differ.*layers.2.t_cond.*linear_emb"):
        convert(tensors)
    try:
        convert(tensors)
    except ConversionError as error:
        entry = error.report.of("alias differs")[0]
        assert entry.key == key and entry.to_dict()["level"] == "error"


def test_alias_serves_when_the_first_name_is_gone():
    tensors = synthetic.state_dict(SERIES)
    whole = convert(dict(tensors)).variables
    del tensors["backbone.layers.2.t_linear_emb.weight"]
    converted = convert(tensors)
    jax.tree.map(np.testing.assert_array_equal, converted.variables, whole)
    (entry,) = [e for e in converted.report.of("mapped") if e.note]
    assert entry.key == "backbone.layers.2.t_cond_layers.1.weight"
    assert "'backbone.layers.2.t_linear_emb.weight', which is not in the file" in entry.note


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("encoder.fc_s.bias", np.zeros(5, np.float32), "has shape (5,), but the variable"),
        ("encoder.fc_s.bias", np.zeros((16, 1), np.float32), "has shape (16, 1)"),
        ("encoder.fc_s.bias", np.zeros(16, np.int64), "has type int64"),
        ("encoder.fc_s.bias", np.full(16, np.nan, np.float32), "not finite"),
        ("encoder.fc_s.bias", np.full(16, 1e300), "not finite in float32"),
        ("encoder.fc_s.weight", np.zeros(16, np.float32), "needs 2 axes"),
        ("backbone.fc_a.weight", np.zeros((256, 17), np.float32), "static_dim=16 + dynamic_dim=2"),
        ("encoder.layers.0.linear.weight", np.zeros((13, 13), np.float32), "multiple of 4"),
        ("backbone.layers.5.linear.weight", np.zeros((8, 8), np.float32), "has a layer 5"),
    ],
)
def test_tensors_that_do_not_fit(key, value, message):
    assert message in failure(synthetic.state_dict(SERIES) | {key: value})


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("backbone.downblocks.0.block1.2.weight", (48, 32, 3, 3), "not a multiple of the base"),
        ("encoder.downblocks.3.block1.2.weight", (64, 64, 3, 3), "in the backbone and (1, 1, 2"),
        ("backbone.head.weight", (40, 4, 3, 3), "multiple of 32"),
        ("backbone.downblocks.3.main.weight", (64, 64, 3, 3), "2 residual blocks a level"),
        ("backbone.middleblocks.0.attn.proj.weight", (64, 64), "has shape (64, 64)"),
        ("backbone.middleblocks.0.attn.proj.weight", (64, 64, 3, 3), "has shape (64, 64, 3, 3)"),
    ],
)
def test_video_tensors_that_do_not_fit(key, shape, message):
    tensors = synthetic.state_dict(synthetic.SPECS["four levels"])
    assert message in failure(tensors | {key: np.zeros(shape, np.float32)})


def test_frames_that_are_not_square():
    values = synthetic.SPECS["one level"].to_dict() | {"shape": (4, 6, 1)}
    tensors = synthetic.state_dict(ModelSpec.from_dict(values))
    assert "reads 24 pixels a frame, which is not a square" in failure(tensors)
    assert "frame_size is 5x6 = 30 pixels" in failure(tensors, frame_size=(5, 6))
    assert convert(tensors, frame_size=(4, 6)).spec.shape == (4, 6, 1)
    assert "has no frames" in failure(synthetic.state_dict(SERIES), frame_size=(4, 6))


def test_unknown_classes():
    assert "of no known class" in failure({"conv.weight": np.zeros(3, np.float32)})
    both = synthetic.state_dict(SERIES) | synthetic.state_dict(synthetic.SPECS["one level"])
    assert "of no known class" in failure(both)


def test_half_precision_is_widened_and_told():
    tensors = synthetic.state_dict(SERIES)
    half = {key: value.astype(np.float16) for key, value in tensors.items()}
    converted = convert(half)
    assert {leaf.dtype for leaf in jax.tree.leaves(converted.variables)} == {np.dtype("float32")}
    assert "values of type float16 become float32" in converted.report.notes


def test_only_the_reference_recurrence_has_rules():
    with pytest.raises(ValueError, match="model.recurrence is 'lstm'; .* only 'reference'"):
        rules(ModelSpec.from_dict(SERIES.to_dict() | {"recurrence": "lstm"}))
