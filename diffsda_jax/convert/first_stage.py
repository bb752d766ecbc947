"""State dicts of latent diffusion's frame autoencoders: recognition, description, and rules.

Any widths, levels, attention levels and codebooks are covered, VQ and KL. Shapes tell everything
but what such a file never varies: 32 groups in GroupNorm, and no dropout when encoding.

References:
  Rombach et al.: Latent diffusion, CVPR 2022; Esser et al.: Taming transformers, CVPR 2021.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from diffsda_jax.convert.infer_spec import Reader, Shapes, indices, is_sequence_model
from diffsda_jax.convert.mapping import Path, Rule
from diffsda_jax.first_stage.spec import FirstStageSpec
from diffsda_jax.nets.layers import MAX_GROUPS

CLASSES = {"vq": "VQModel", "kl": "AutoencoderKL"}
# Loss with discriminator and perceptual network, moving averages, colours for showing labels.
TRAINING_ONLY = re.compile(
    r"(loss|discriminator|perceptual_loss|lpips|ema|model_ema)\."
    r"|logvar$|colorize$|quantize\.embedding\.(cluster_size|embed_avg)$"
)
# Of an autoencoder within the state dict of a model on its latents.
PREFIX = "first_stage_model."
# The rest of a latent diffusion model: denoiser, condition, averages, numbers of the schedule.
_DIFFUSION = (
    r"(model\.diffusion_model|model_ema|cond_stage_model)\."
    r"|(betas|\w*alphas_cumprod(_prev)?|posterior_\w+|lvlb_weights|logvar|scale_factor|cond_ids)$"
)
LEFT_OUT_NESTED = re.compile(rf"{re.escape(PREFIX)}({TRAINING_ONLY.pattern})|{_DIFFUSION}")
NESTED = re.compile(re.escape(PREFIX))
_OWN = (
    "encoder.conv_in.",
    "encoder.down.",
    "encoder.mid.",
    "decoder.conv_in.",
    "decoder.up.",
    "decoder.mid.",
)
_CODEBOOK = "quantize.embedding.weight"


def recognises(keys: Iterable[str]) -> bool:
    """Whether some keys are an autoencoder's and none a sequence model's."""
    keys = list(keys)
    return any(key.startswith(_OWN) for key in keys) and not is_sequence_model(keys)


def without_prefix(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Shapes of the autoencoder within another model's state dict, under its own names."""
    return {key.removeprefix(PREFIX): shape for key, shape in shapes.items() if NESTED.match(key)}


def infer_spec(shapes: Shapes) -> FirstStageSpec:
    """Builds the description from shapes alone.

    Args:
      shapes: key -> shape.

    Raises:
      ValueError: a key without which a size is not known, or sizes that contradict each other.
    """
    reader = Reader(shapes)
    channels = reader.size("encoder.conv_in.weight", 0, 4, "channels")
    if channels < 1 or channels % MAX_GROUPS:
        raise ValueError(
            f"'encoder.conv_in.weight' gives {channels} channels; GroupNorm needs a multiple of "
            f"{MAX_GROUPS}."
        )
    sides = ("encoder.down", "decoder.up")
    attention = {level for side in sides for level in indices(shapes, side, "attn")}
    return FirstStageSpec(
        channels=channels,
        channel_mults=_channel_mults(reader, channels),
        num_res_blocks=_num_res_blocks(shapes),
        attention_levels=tuple(sorted(attention)),
        middle_attention=any(".mid.attn_1." in key for key in shapes),
        z_channels=reader.size("decoder.conv_in.weight", 1, 4, "z_channels"),
        image_channels=reader.size("encoder.conv_in.weight", 1, 4, "image_channels"),
        **_latent_fields(reader),
    )


def _latent_fields(reader: Reader) -> dict[str, Any]:
    """Kind, channels of a latent, and number of codes."""
    embed_dim = reader.size("post_quant_conv.weight", 1, 4, "embed_dim")
    outputs = reader.size("quant_conv.weight", 0, 4, "kind")
    if outputs == 2 * embed_dim and not any(key.startswith("quantize.") for key in reader.shapes):
        return {"kind": "kl", "embed_dim": embed_dim}
    if outputs != embed_dim:
        raise ValueError(
            f"'quant_conv.weight' gives {outputs} channels and 'post_quant_conv.weight' takes "
            f"{embed_dim}; a VQ has as many and a codebook, a KL twice as many and none."
        )
    codes = reader.size(_CODEBOOK, 0, 2, "codebook_size")
    return {"kind": "vq", "embed_dim": embed_dim, "codebook_size": codes}


def _channel_mults(reader: Reader, channels: int) -> tuple[int, ...]:
    """Width of each level as a multiple of ``channels``; both sides must have the same levels."""
    levels = [indices(reader.shapes, side, "block") for side in ("encoder.down", "decoder.up")]
    count = 1 + max((level for side in levels for level in side), default=0)
    return tuple(
        reader.multiple(
            f"encoder.down.{level}.block.0.conv1.weight", channels, "first_stage.channel_mults"
        )
        for level in range(count)
    )


def _num_res_blocks(shapes: Shapes) -> int:
    """Blocks of a level of the encoder; the decoder must have one more."""
    down, up = (
        1 + max(indices(shapes, f"{side}.0.block", "conv1"), default=0)
        for side in ("encoder.down", "decoder.up")
    )
    if up > down + 1:
        raise ValueError(
            f"The levels have {down} residual blocks in the encoder and {up} in the decoder; only "
            "autoencoders with one more in the decoder can be converted."
        )
    return down


def rules(spec: FirstStageSpec) -> list[Rule]:
    """All rules of one autoencoder; every variable appears exactly once."""
    params = ("params",)
    found = [
        *_layer("quant_conv", (*params, "before_latent"), "pointwise"),
        *_layer("post_quant_conv", (*params, "after_latent"), "pointwise"),
    ]
    if spec.kind == "vq":
        found.append(Rule(_CODEBOOK, (*params, "codebook"), "copy"))
    last = len(spec.channel_mults) - 1
    widths = [spec.channels * mult for mult in spec.channel_mults]
    # Side, levels in their order, width at their start, blocks of each, how the resolution changes.
    down = ("encoder", "down", range(last + 1), spec.channels, spec.num_res_blocks, "downsample")
    up = ("decoder", "up", range(last, -1, -1), widths[last], spec.num_res_blocks + 1, "upsample")
    for network, side, levels, width, blocks, resampling in (down, up):
        path = (*params, network)
        for name in ("conv_in", "conv_out"):
            found += _layer(f"{network}.{name}", (*path, name), "conv")
        found += _layer(f"{network}.norm_out", (*path, "norm_out"))
        attention = f"{network}.mid.attn_1" if spec.middle_attention else None
        found += _block(f"{network}.mid.block_1", (*path, "middle_0"), False, attention)
        found += _block(f"{network}.mid.block_2", (*path, "middle_1"), False, None)
        for level in levels:
            source = f"{network}.{side}.{level}"
            for i in range(blocks):
                attention = f"{source}.attn.{i}" if level in spec.attention_levels else None
                block = f"{source}.block.{i}", (*path, f"{side}_{level}_{i}")
                found += _block(*block, width != widths[level], attention)
                width = widths[level]
            if level != levels[-1]:
                conv = (*path, f"{side}_{level}_conv")
                found += _layer(f"{source}.{resampling}.conv", conv, "conv")
    return found


def _layer(source: str, path: Path, layout: str | None = None) -> Iterator[Rule]:
    """Weight and bias of a convolution or, without a layout, of a normalisation."""
    yield Rule(f"{source}.weight", (*path, "kernel" if layout else "scale"), layout or "copy")
    yield Rule(f"{source}.bias", (*path, "bias"), "copy")


def _block(source: str, path: Path, shortcut: bool, attention: str | None) -> Iterator[Rule]:
    """One residual block, with the attention that follows it if there is one."""
    for i in (1, 2):
        yield from _layer(f"{source}.norm{i}", (*path, f"norm_{i}"))
        yield from _layer(f"{source}.conv{i}", (*path, f"conv_{i}"), "conv")
    if shortcut:
        yield from _layer(f"{source}.nin_shortcut", (*path, "shortcut"), "pointwise")
    if attention:
        path = (*path, "attention")
        yield from _layer(f"{attention}.norm", (*path, "norm"))
        for key, name in (("q", "query"), ("k", "key"), ("v", "value"), ("proj_out", "out")):
            yield from _layer(f"{attention}.{key}", (*path, name), "pointwise")
