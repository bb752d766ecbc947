"""What a frame autoencoder is made of, and the published sizes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from diffsda_jax.nets.layers import WIDTH_MULTIPLE

KINDS = ("vq", "kl")
META_KEY = "first_stage"  # of a checkpoint's meta, where the description is kept


@dataclasses.dataclass(frozen=True)
class FirstStageSpec:
    """Everything that fixes the parameters' shapes and the autoencoder's behaviour; plain values.

    Attributes:
      kind: ``"vq"`` (latents are replaced by the nearest code before decoding) or ``"kl"`` (the
        encoder gives mean and log-variance, of which the mean is the latent).
      channels: base width, a multiple of 8; published files need one of 32.
      channel_mults: width of each level as a multiple of the base; every level but the last halves
        the frame.
      num_res_blocks: residual blocks of each level of the encoder; the decoder has one more.
      attention_levels: indices of the levels whose blocks are each followed by attention.
      middle_attention: the two blocks of the lowest resolution have attention between them.
      z_channels: width between the U-shaped halves and the 1x1 convolutions around the latent.
      embed_dim: channels of a latent.
      codebook_size: number of codes (``"vq"``); 0 for ``"kl"``.
      image_channels: colours of a frame.

    Raises:
      ValueError: values that are not allowed.

    References:
      Esser et al.: Taming transformers, CVPR 2021; Rombach et al.: Latent diffusion, CVPR 2022.
    """

    kind: str
    channels: int = 128
    channel_mults: tuple[int, ...] = (1, 2, 2, 4)
    num_res_blocks: int = 2
    attention_levels: tuple[int, ...] = ()
    middle_attention: bool = True
    z_channels: int = 4
    embed_dim: int = 4
    codebook_size: int = 0
    image_channels: int = 3

    def __post_init__(self):
        """Checks values; raises ValueError naming the field, the value and what is allowed."""
        if self.kind not in KINDS:
            raise ValueError(
                f"first_stage.kind is {self.kind!r}; allowed: {', '.join(map(repr, KINDS))}."
            )
        for field in ("channels", "num_res_blocks", "z_channels", "embed_dim", "image_channels"):
            if getattr(self, field) < 1:
                raise ValueError(
                    f"first_stage.{field} is {getattr(self, field)}; it must be at least 1."
                )
        if self.channels % WIDTH_MULTIPLE:
            raise ValueError(
                f"first_stage.channels is {self.channels}; GroupNorm needs a multiple of "
                f"{WIDTH_MULTIPLE}."
            )
        if not self.channel_mults or min(self.channel_mults) < 1:
            raise ValueError(
                f"first_stage.channel_mults is {self.channel_mults}; it must hold a number of 1 or "
                "more for each level."
            )
        levels = range(len(self.channel_mults))
        if bad := [level for level in self.attention_levels if level not in levels]:
            raise ValueError(
                f"first_stage.attention_levels names level {bad[0]}; there are levels 0 to "
                f"{levels[-1]} (first_stage.channel_mults)."
            )
        if (self.codebook_size > 0) != (self.kind == "vq") or self.codebook_size < 0:
            raise ValueError(
                f"first_stage.codebook_size is {self.codebook_size} for kind {self.kind!r}; it "
                "must be at least 1 for 'vq' and 0 for 'kl'."
            )

    @property
    def factor(self) -> int:
        """f: by how much height and width of a frame exceed those of its latent."""
        return 2 ** (len(self.channel_mults) - 1)

    @property
    def double_z(self) -> bool:
        """Whether the encoder gives two values for each of the latent's, mean and log-variance."""
        return self.kind == "kl"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = dataclasses.asdict(self)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "FirstStageSpec":
        """Inverse of ``to_dict``; fields that are left out have their defaults.

        Raises:
          ValueError: a field is unknown, or there is no ``kind``.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown or "kind" not in values:
            what = f"{unknown[0]} is unknown" if unknown else "kind is missing"
            raise ValueError(f"first_stage.{what}; known fields: {', '.join(known)}.")
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**fields)


# Sizes of the autoencoders published with latent diffusion (its table of models), by name.
PUBLISHED = {
    "vq-f4": FirstStageSpec(
        "vq", channel_mults=(1, 2, 4), z_channels=3, embed_dim=3, codebook_size=8192
    ),
    "vq-f8": FirstStageSpec(
        "vq", channel_mults=(1, 2, 2, 4), attention_levels=(3,), codebook_size=256
    ),
    "kl-f8": FirstStageSpec("kl", channel_mults=(1, 2, 4, 4)),
}
