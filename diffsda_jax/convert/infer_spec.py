"""The model's description, read from the names and shapes of a released state dict.

What shapes cannot tell: audio and series classes have the same keys and are both ``kind="series"``
here; a video model with one static code for every frame (``sheared_s=False``) has the same shapes
as the usual one and is taken for it; height and width enter only as their product, and are taken
as equal unless given; dropout, noise levels and preconditioning constants are the defaults.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from diffsda_jax.model import ModelSpec
from diffsda_jax.nets.layers import MAX_GROUPS
from diffsda_jax.nets.step_mlp import NUM_LAYERS, WIDTH_FACTOR
from diffsda_jax.nets.unet import BLOCKS_DOWN

Shapes = Mapping[str, tuple[int, ...]]
CLASSES = {
    "video": "DiffSDAPriorKarras",
    "series": "DiffSDAPriorKarrasTimit or DiffSDAPriorKarrasTS",
}
# Fields that the weights fix, for each kind; a configuration decides about the others.
FIXED = {
    "video": ("channels", "encoder_channels", "channel_mults", "attention_levels"),
    "series": ("width", "encoder_width"),
}
FIXED_ALWAYS = ("kind", "shape", "static_dim", "dynamic_dim", "hidden_dim")
# What every released model is, whatever a configuration says.
RELEASED: dict[str, Any] = {
    "recurrence": "reference",
    "dynamic_activation": "linear",
    "center_dynamic": False,
    "encoder_pooling": False,
    "template_channels": 0,
}


class Reader:
    """Looks up sizes and says which key is needed for what when it is not there."""

    def __init__(self, shapes: Shapes):
        """Takes key -> shape."""
        self.shapes = shapes

    def size(self, key: str, axis: int, rank: int, what: str) -> int:
        """Size of one axis of a tensor of known rank.

        Raises:
          ValueError: there is no such tensor, or it is of another rank.
        """
        if key not in self.shapes:
            raise ValueError(
                f"The state dict has no key {key!r}, from which {what} is read; is the file whole, "
                "and of one of the classes that can be converted?"
            )
        shape = tuple(self.shapes[key])
        if len(shape) != rank:
            raise ValueError(
                f"{key!r} has shape {shape}; {what} is read from it, which needs {rank} axes."
            )
        return shape[axis]

    def multiple(self, key: str, channels: int, what: str) -> int:
        """Output width of a convolution in base widths.

        Raises:
          ValueError: as for ``size``, or the width is no multiple.
        """
        width = self.size(key, 0, 4, what)
        if width % channels:
            raise ValueError(
                f"{key!r} is {width} wide, not a multiple of the base width {channels}; {what} are "
                "whole numbers."
            )
        return width // channels


def is_sequence_model(keys: Iterable[str]) -> bool:
    """Whether some keys are of a released sequence model's denoiser."""
    return any(key.startswith("backbone.") for key in keys)


def infer_kind(shapes: Shapes) -> str:
    """``"video"`` or ``"series"``, by the names of the recurrence and of the backbone's layers.

    Raises:
      ValueError: neither fits.
    """
    video = ("backbone.downblocks.", "backbone.head.", "encoder.downblocks.", "encoder.lstm.")
    series = ("backbone.layers.", "encoder.layers.", "encoder.z_lstm.")
    has_video, has_series = (any(k.startswith(p) for k in shapes) for p in (video, series))
    if has_video != has_series:
        return "video" if has_video else "series"
    some = ", ".join(map(repr, list(shapes)[:3])) or "none"
    raise ValueError(
        f"The {len(shapes)} keys (first ones: {some}) are those of no known class; known: "
        f"{CLASSES['video']} ('backbone.downblocks...'), {CLASSES['series']} "
        "('backbone.layers...'), and the autoencoders VQModel and AutoencoderKL "
        "('encoder.down...')."
    )


def infer_spec(shapes: Shapes, frame_size: tuple[int, int] | None = None) -> ModelSpec:
    """Builds the description from shapes alone.

    Args:
      shapes: key -> shape, names without ``module.``.
      frame_size: (H, W) of a video model whose frames are not square.

    Returns:
      A description with the values of ``RELEASED``; see the module's docstring for what is assumed.

    Raises:
      ValueError: an unknown class, a key without which a size is not known, or sizes that
        contradict each other.
    """
    reader, kind = Reader(shapes), infer_kind(shapes)
    lstm = "encoder.lstm" if kind == "video" else "encoder.z_lstm"
    factors: dict[str, Any] = {
        "static_dim": reader.size("encoder.fc_s.weight", 0, 2, "static_dim"),
        "dynamic_dim": reader.size("encoder.fc_d.weight", 0, 2, "dynamic_dim"),
        "hidden_dim": reader.size(f"{lstm}.weight_hh_l0", 1, 2, "hidden_dim"),
    }
    both = reader.size("backbone.fc_a.weight", 1, 2, "static_dim + dynamic_dim")
    if both != factors["static_dim"] + factors["dynamic_dim"]:
        raise ValueError(
            f"'backbone.fc_a.weight' reads {both} values, but the encoder gives static_dim="
            f"{factors['static_dim']} + dynamic_dim={factors['dynamic_dim']}; the two "
            "halves of the state dict are not of one model."
        )
    if kind == "series":
        if frame_size is not None:
            raise ValueError(
                f"frame_size is {frame_size}, but the state dict is of {CLASSES['series']}, which "
                "has no frames; leave it out."
            )
        return ModelSpec(kind=kind, **RELEASED, **factors, **_series_fields(reader))
    pixels = reader.size(f"{lstm}.weight_ih_l0", 1, 2, "the number of pixels of a frame")
    colours = reader.size("backbone.head.weight", 1, 4, "the number of colours")
    shape = (*_frame_size(pixels, frame_size), colours)
    return ModelSpec(kind=kind, shape=shape, **RELEASED, **factors, **_video_fields(reader))


def _series_fields(reader: Reader) -> dict[str, Any]:
    """Shape and widths of the per-step MLPs."""
    features = reader.size("backbone.layers.0.linear.weight", 1, 2, "the number of features")
    fields: dict[str, Any] = {"shape": (features,)}
    for network, field in (("backbone", "width"), ("encoder", "encoder_width")):
        hidden = reader.size(f"{network}.layers.0.linear.weight", 0, 2, field)
        if hidden % WIDTH_FACTOR:
            raise ValueError(
                f"'{network}.layers.0.linear.weight' is {hidden} wide; model.{field} needs a "
                f"multiple of {WIDTH_FACTOR}."
            )
        fields[field] = hidden // WIDTH_FACTOR
        layers = indices(reader.shapes, f"{network}.layers", "linear")
        if max(layers) >= NUM_LAYERS:
            raise ValueError(
                f"The {network} has a layer {max(layers)}; the networks here have {NUM_LAYERS} "
                f"layers, 0 to {NUM_LAYERS - 1}."
            )
    return fields


def _video_fields(reader: Reader) -> dict[str, Any]:
    """Widths, levels and attention of the two U-Nets, which must agree."""
    fields: dict[str, Any] = {}
    for network, field in (("backbone", "channels"), ("encoder", "encoder_channels")):
        channels = reader.size(f"{network}.head.weight", 0, 4, field)
        if channels < 1 or channels % MAX_GROUPS:
            raise ValueError(
                f"'{network}.head.weight' gives {channels} channels; GroupNorm needs a multiple of "
                f"{MAX_GROUPS}."
            )
        fields[field] = channels
        mults = _channel_mults(reader, network, channels)
        if fields.setdefault("channel_mults", mults) != mults:
            raise ValueError(
                f"channel_mults are {fields['channel_mults']} in the backbone and {mults} in the "
                "encoder; both networks must have the same levels."
            )
    stride = BLOCKS_DOWN + 1
    found = [indices(reader.shapes, f"{n}.downblocks", "attn") for n in ("backbone", "encoder")]
    fields["attention_levels"] = tuple(sorted({i // stride for blocks in found for i in blocks}))
    return fields


def _channel_mults(reader: Reader, network: str, channels: int) -> tuple[int, ...]:
    """Width of each level as a multiple of ``channels``."""
    stride, side = BLOCKS_DOWN + 1, f"{network}.downblocks"
    levels = 1 + max(indices(reader.shapes, side, "block1"), default=0) // stride
    expected = [level * stride + BLOCKS_DOWN for level in range(levels - 1)]
    if (resampling := indices(reader.shapes, side, "main")) != expected:
        raise ValueError(
            f"{side} has downsampling at {resampling}, expected at {expected}: only U-Nets with "
            f"{BLOCKS_DOWN} residual blocks a level can be converted."
        )
    mults = []
    for level in range(levels):
        key = f"{side}.{level * stride}.block1.2.weight"
        mults.append(reader.multiple(key, channels, "model.channel_mults"))
    return tuple(mults)


def indices(shapes: Shapes, prefix: str, part: str) -> list[int]:
    """Sorted i for which a key ``<prefix>.<i>.<part>.`` exists."""
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.{part}\.")
    return sorted({int(match[1]) for key in shapes if (match := pattern.match(key))})


def _frame_size(pixels: int, frame_size: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width from their product, or the given ones after a check."""
    if frame_size is None:
        side = math.isqrt(pixels)
        if side * side != pixels:
            raise ValueError(
                f"The encoder's LSTM reads {pixels} pixels a frame, which is not a square; say the "
                f"height and width with --frame_size=HxW (H * W = {pixels})."
            )
        return side, side
    height, width = frame_size
    if height * width != pixels:
        raise ValueError(
            f"frame_size is {height}x{width} = {height * width} pixels, but the encoder's LSTM "
            f"reads {pixels}."
        )
    return height, width


def fixed_sizes(kind: str) -> tuple[str, ...]:
    """Options of a configuration's model that the weights of a kind fix."""
    sizes = (field for field in FIXED_ALWAYS if field not in ("kind", "shape"))
    return (*sizes, *FIXED[kind])


def match_spec(inferred: ModelSpec, configured: ModelSpec) -> ModelSpec:
    """Checks a configured description against the file's; returns what both together say.

    Dropout, noise levels and preconditioning constants are not in the weights and stay as
    configured; the fields of ``RELEASED`` are always the file's, because released weights have
    only one value of each.

    Raises:
      ValueError: a field that the weights fix differs; names it with both values.
    """
    for field in FIXED_ALWAYS + FIXED[inferred.kind]:
        in_file, in_config = getattr(inferred, field), getattr(configured, field)
        if in_file != in_config:
            raise ValueError(
                f"model.{field} is {in_file!r} in the file and {in_config!r} in the configuration; "
                "change the configuration, or leave it out to take everything from the file."
            )
    return dataclasses.replace(configured, **{f: getattr(inferred, f) for f in RELEASED})
