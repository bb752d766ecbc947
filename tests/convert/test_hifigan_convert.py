import logging
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from diffsda_jax.convert import hifigan as convert
from diffsda_jax.convert import report
from diffsda_jax.convert.torch_file import StateDict, load_state_dict
from diffsda_jax.nets.hifigan import Hifigan, HifiganSpec

GOLDEN = Path(__file__).parent / "hifigan_golden"
TOLERANCE = 1e-4
SPEC = HifiganSpec(
    num_mels=6,
    channels=16,
    upsample_rates=(4, 2),
    upsample_kernels=(8, 4),
    resblock_kernels=(3, 5),
    resblock_dilations=((1, 3, 5), (1, 3, 5)),
)
KEYS = 3 * (2 + 2 + 4 * 6)  # gain, direction and bias of every convolution


def tensors(name="g_legacy"):
    return dict(load_state_dict(GOLDEN / name).tensors)


def converted(changed):
    return convert.convert_hifigan(StateDict(changed, "", (), 0, ()), "file")


def refusal(changed):
    with pytest.raises(ValueError) as error:
        converted(changed)
    assert "\n" not in str(error.value) and str(error.value).startswith("file")
    return str(error.value)


def folded(source):
    """The same generator with one weight for each layer, as removing weight norm leaves it."""
    out = {key: value for key, value in source.items() if key.endswith("bias")}
    for key, gain in source.items():
        if key.endswith("weight_g"):
            direction = source[key[:-1] + "v"].astype(np.float64)
            lengths = [np.linalg.norm(row) for row in direction]
            out[key[:-2]] = np.float32(
                [g * row / n for g, row, n in zip(gain.ravel(), direction, lengths, strict=True)]
            )
    return out


@pytest.fixture(scope="module")
def apply():
    return jax.jit(Hifigan(SPEC).apply)


@pytest.fixture
def io():
    with np.load(GOLDEN / "io.npz") as file:
        return dict(file)


@pytest.mark.parametrize("name", ["g_legacy", "g_zip", "folded.npz"])
def test_wave_equals_torch(apply, io, tmp_path, name):
    path = GOLDEN / name
    if name == "folded.npz":
        path = tmp_path / name
        np.savez(path, **folded(tensors()))
    spec, variables = convert.load_hifigan(path)
    assert spec == SPEC
    got = apply(variables, io["log_mel"])
    error = np.abs(got - io["wave"]).max() / io["wave"].std()
    print(f"{name}: relative error {error:.1e}")
    assert got.shape == (2, 9 * 8) and error < TOLERANCE
    # Control: gains forgotten.
    flat = {k: np.ones_like(v) if k.endswith("weight_g") else v for k, v in tensors().items()}
    other = apply(converted(flat).variables, io["log_mel"])
    assert np.abs(other - io["wave"]).max() / io["wave"].std() > 0.1


def test_every_key_is_reported(caplog, tmp_path):
    path = tmp_path / "g_00000001"
    np.savez(path.with_suffix(".npz"), **tensors(), extra=np.zeros(3, np.float32))
    with caplog.at_level(logging.INFO, "diffsda_jax"):
        convert.load_hifigan(path.with_suffix(".npz"))
    assert "1 unknown keys were left out, first ones: 'extra'" in caplog.text
    state = load_state_dict(GOLDEN / "g_legacy")._replace(other_keys=("steps",))
    key_report = convert.convert_hifigan(state, "g_legacy").report
    assert key_report.counts()[report.MAPPED] == KEYS
    assert [e.key for e in key_report.of(report.UNEXPECTED)] == ["steps"]
    by_key = {entry.key: entry for entry in key_report.entries}
    assert by_key["ups.1.weight_v"].target == "params/up_1/kernel"
    assert by_key["ups.1.weight_v"].note == "weight norm folded"
    assert by_key["resblocks.3.convs1.2.bias"].target == "params/block_1_1/dilated_2/bias"
    text = key_report.summary()
    assert "weights taken from entry 'generator'" in text and "rates (4, 2)" in text


@pytest.mark.parametrize(
    "key", ["conv_post.bias", "ups.0.weight_g", "resblocks.2.convs2.1.weight_v"]
)
def test_missing_keys_are_refused(key):
    changed = tensors()
    del changed[key]
    assert f"lacks 1 of the {KEYS} tensors of HiFi-GAN's Generator, first ones: '{key}'" in (
        refusal(changed)
    )


def test_sizes_of_the_published_generators():
    """v1 and v2 from shapes alone; keys and shapes as the paper's appendix gives them."""
    for channels in (512, 128):
        shapes = {"conv_pre.weight_v": (channels, 80, 7), "conv_post.weight_v": (1, 32, 7)}
        for i, kernel in enumerate((16, 16, 4, 4)):
            width = channels >> (i + 1)
            shapes[f"ups.{i}.weight_v"] = (2 * width, width, kernel)
            for j, taps in enumerate((3, 7, 11)):
                for m in range(3):
                    name = f"resblocks.{3 * i + j}.convs1.{m}.weight_v"
                    shapes[name] = (width, width, taps)
        assert convert.infer_spec(shapes) == HifiganSpec(channels=channels)


def test_other_classes_are_refused():
    renamed = {re.sub(r"convs1", "convs", key): value for key, value in tensors().items()}
    assert "short residual blocks of HiFi-GAN v3" in refusal(renamed)
    assert "not those of HiFi-GAN's Generator, which has 'conv_pre.weight_v'" in refusal(
        {"a": np.zeros(3)}
    )
    cut = {k: v for k, v in tensors().items() if not k.startswith("resblocks.3.")}
    assert "2 upsamplings ('ups...') and 3 residual blocks" in refusal(cut)
    two = {k: v for k, v in tensors().items() if not re.search(r"convs\d\.2\.", k)}
    assert "2 pairs of convolutions" in refusal(two)
    odd = tensors()
    odd["ups.1.weight_v"] = odd["ups.1.weight_v"][:, :, :3]
    assert "upsampling kernels (8, 3)" in refusal(odd)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("ups.0.weight_v", lambda v: 0 * v, "'ups.0.weight_v' gives values that are not finite"),
        ("conv_post.bias", lambda v: v * np.inf, "'conv_post.bias' gives values that are not"),
        ("conv_pre.weight_g", lambda v: v[:3], "(3, 1, 1), but 'conv_pre.weight_v' of shape"),
        ("ups.0.weight_v", lambda v: v[:, :3], "gives an array of shape (8, 16, 3), but the other"),
        ("ups.0.bias", lambda v: v.astype(int), "'ups.0.bias' has type int64"),
        ("conv_pre.weight_v", lambda v: v[0], "has shape (6, 7); a convolution's has 3 axes"),
        ("conv_post.weight_v", lambda v: v[0], "of shape (4, 7) asks for (4, 1)"),
        ("ups.0.bias", lambda v: v[1:], "'ups.0.bias' gives an array of shape (7,)"),
    ],
)
def test_wrong_tensors_are_refused(key, change, message):
    changed = tensors()
    changed[key] = change(changed[key])
    assert message in refusal(changed)


def test_file_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="none' is not a file"):
        convert.load_hifigan(GOLDEN / "none")
