"""Which key of the released state dict becomes which variable, and how its array is laid out.

Three classes are known: ``DiffSDAPriorKarras`` (video), ``DiffSDAPriorKarrasTimit`` (audio) and
``DiffSDAPriorKarrasTS`` (series); the last two have the same keys. Pure functions of a
``ModelSpec``, so any widths, levels and factor sizes are covered.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from diffsda_jax.model import ModelSpec
from diffsda_jax.nets.step_mlp import NUM_LAYERS
from diffsda_jax.nets.unet import BLOCKS_DOWN, BLOCKS_UP

Path = tuple[str, ...]

LAYOUTS = {
    "copy": lambda array: array,
    "linear": lambda array: array.T,  # (out, in) -> (in, out)
    "conv": lambda array: array.transpose(2, 3, 1, 0),  # OIHW -> HWIO
    "pointwise": lambda array: array[:, :, 0, 0].T,  # a 1x1 convolution that is a Dense here
}
RANKS = {"linear": 2, "conv": 4, "pointwise": 4}

# One cross-attention group for each conditioned block: in the file, never used by the forward pass.
UNUSED = re.compile(r"^backbone\..+\.crossattn\.")

# Gates of torch's recurrences are in the order i, f, g, o, as here; both biases are kept.
_RECURRENT = {
    "weight_ih_l0": ("kernel_input", "linear"),
    "weight_hh_l0": ("kernel_hidden", "linear"),
    "bias_ih_l0": ("bias", "copy"),
    "bias_hh_l0": ("bias_hidden", "copy"),
}


class Rule(NamedTuple):
    """One variable and where it comes from.

    Attributes:
      key: canonical name in the state dict.
      path: names from the collection down to the variable.
      layout: a name of ``LAYOUTS``.
      alias: a second name under which the file holds the same tensor, or None.
    """

    key: str
    path: Path
    layout: str
    alias: str | None = None


def rules(spec: ModelSpec) -> list[Rule]:
    """All rules of one model; every variable of the model appears exactly once.

    Args:
      spec: what is converted to; its ``recurrence`` must be ``"reference"``.

    Raises:
      ValueError: the recurrence is not the released code's.
    """
    if spec.recurrence != "reference":
        raise ValueError(
            f"model.recurrence is {spec.recurrence!r}; released weights fit only 'reference' "
            "(bidirectional LSTM and tanh RNN)."
        )
    denoiser, encoder = ("params", "denoiser"), ("params", "encoder")
    video = spec.kind == "video"
    embedding = f"backbone.time_embed{'ding' if video else ''}.timembedding"
    found = [
        Rule(f"{embedding}.0.freqs", ("constants", "denoiser", "noise", "frequencies"), "copy"),
        *_linear(f"{embedding}.1", (*denoiser, "noise", "dense_0")),
        *_linear(f"{embedding}.3", (*denoiser, "noise", "dense_1")),
        *_linear("backbone.fc_a", (*denoiser, "factors")),
    ]
    if video:
        found += _unet("backbone", (*denoiser, "unet"), spec, spec.channels, conditioned=True)
        front = (*encoder, "front", "unet")
        found += _unet("encoder", front, spec, spec.encoder_channels, conditioned=False)
    else:
        found += _step_mlps(denoiser, (*encoder, "front"))
    lstm = "encoder.lstm" if video else "encoder.z_lstm"
    for source, suffix, name in (
        (lstm, "", "lstm"),
        (lstm, "_reverse", "lstm_reverse"),
        ("encoder.d_rnn", "", "rnn_dynamic"),
    ):
        for key, (variable, layout) in _RECURRENT.items():
            path = (*encoder, "recurrence", name, variable)
            found.append(Rule(f"{source}.{key}{suffix}", path, layout))
    found += _linear("encoder.fc_s", (*encoder, "static"))
    found += _linear("encoder.fc_d", (*encoder, "dynamic"))
    return found


def _linear(source: str, path: Path, layout: str = "linear", alias: str | None = None):
    """Weight and bias of a linear layer or convolution."""
    for key, name, how in (("weight", "kernel", layout), ("bias", "bias", "copy")):
        yield Rule(f"{source}.{key}", (*path, name), how, alias and f"{alias}.{key}")


def _norm(source: str, path: Path) -> Iterator[Rule]:
    """Scale and bias of a normalisation."""
    yield Rule(f"{source}.weight", (*path, "scale"), "copy")
    yield Rule(f"{source}.bias", (*path, "bias"), "copy")


def _step_mlps(denoiser: Path, front: Path) -> Iterator[Rule]:
    """The per-step MLPs of audio and series."""
    for i in range(NUM_LAYERS):
        source = f"backbone.layers.{i}"
        yield from _linear(f"{source}.linear", (*denoiser, f"dense_{i}"))
        if i < NUM_LAYERS - 1:
            for letter, name in (("t", "noise"), ("a", "factors")):
                yield from _linear(
                    f"{source}.{letter}_linear_emb",
                    (*denoiser, f"{name}_{i}"),
                    alias=f"{source}.{letter}_cond_layers.1",
                )
            yield from _norm(f"{source}.norm", (*denoiser, f"norm_{i}"))
        yield from _linear(f"encoder.layers.{i}.linear", (*front, f"dense_{i}"))
        yield from _norm(f"encoder.layers.{i}.norm", (*front, f"norm_{i}"))


def _unet(
    source: str, path: Path, spec: ModelSpec, channels: int, conditioned: bool
) -> Iterator[Rule]:
    """One U-Net; blocks and resampling layers are numbered together on each side of the file."""
    last = len(spec.channel_mults) - 1
    widths = [channels * mult for mult in spec.channel_mults]
    width, skips = channels, [channels]
    yield from _linear(f"{source}.head", (*path, "conv_in"), "conv")
    for level in range(last + 1):
        attention, first = level in spec.attention_levels, level * (BLOCKS_DOWN + 1)
        for i in range(BLOCKS_DOWN):
            block = f"{source}.downblocks.{first + i}", (*path, f"down_{level}_{i}")
            yield from _block(*block, width != widths[level], attention, conditioned)
            width = widths[level]
            skips.append(width)
        if level < last:
            down = f"{source}.downblocks.{first + BLOCKS_DOWN}.main"
            yield from _linear(down, (*path, f"down_{level}_conv"), "conv")
            skips.append(width)
    yield from _block(f"{source}.middleblocks.0", (*path, "middle_0"), False, True, conditioned)
    yield from _block(f"{source}.middleblocks.1", (*path, "middle_1"), False, False, conditioned)
    for level in range(last, -1, -1):
        attention, first = level in spec.attention_levels, (last - level) * (BLOCKS_UP + 1)
        for i in range(BLOCKS_UP):
            block = f"{source}.upblocks.{first + i}", (*path, f"up_{level}_{i}")
            shortcut = width + skips.pop() != widths[level]
            yield from _block(*block, shortcut, attention, conditioned)
            width = widths[level]
        if level > 0:
            up = f"{source}.upblocks.{first + BLOCKS_UP}.main"
            yield from _linear(up, (*path, f"up_{level}_conv"), "conv")
    yield from _norm(f"{source}.tail.0", (*path, "norm_out"))
    yield from _linear(f"{source}.tail.2", (*path, "conv_out"), "conv")


def _block(
    source: str, path: Path, shortcut: bool, attention: bool, conditioned: bool
) -> Iterator[Rule]:
    """One residual block; the file puts its layers in block1, block2 and, conditioned, block3."""
    for number, conv in ((1, 2), (2, 3), (3, 3))[: 3 if conditioned else 2]:
        yield from _norm(f"{source}.block{number}.0", (*path, f"norm_{number}"))
        yield from _linear(f"{source}.block{number}.{conv}", (*path, f"conv_{number}"), "conv")
    if conditioned:
        yield from _linear(f"{source}.temb_proj.1", (*path, "noise"))
        yield from _linear(f"{source}.aemb_proj.1", (*path, "factors"))
    if shortcut:
        yield from _linear(f"{source}.shortcut", (*path, "shortcut"), "conv")
    if attention:
        yield from _norm(f"{source}.attn.group_norm", (*path, "attention", "norm"))
        for key, name in (("_q", "query"), ("_k", "key"), ("_v", "value"), ("", "out")):
            yield from _linear(f"{source}.attn.proj{key}", (*path, "attention", name), "pointwise")


def to_layout(array: np.ndarray, layout: str) -> np.ndarray:
    """An array of the state dict, of any shape, as float32 in the shape of the layout used here."""
    return np.ascontiguousarray(LAYOUTS[layout](array), dtype=np.float32)
