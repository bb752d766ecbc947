"""The patch discriminator, which scores overlapping patches of a frame; used in training only.

References:
  Isola et al.: Image-to-image translation, CVPR 2017 (70x70 PatchGAN); Esser et al.: Taming
  transformers, CVPR 2021 (for autoencoders).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

SLOPE = 0.2  # of every leaky ReLU
_STD = 0.02  # of initial weights
_LARGEST_MULT = 8
_NORM_EPSILON = 1e-5
_NORMAL = nn.initializers.normal(_STD)


def _conv(features: int, stride: int, name: str, use_bias: bool = True) -> nn.Conv:
    """Convolution of 4x4 pixels between borders of one pixel."""
    return nn.Conv(
        features,
        (4, 4),
        strides=(stride, stride),
        padding=((1, 1), (1, 1)),
        use_bias=use_bias,
        kernel_init=_NORMAL,
        name=name,
    )


class BatchNorm(nn.Module):
    """Normalises every channel over all images and pixels of the batch at hand.

    There are no moving averages: nothing is ever scored outside training.

    References:
      Ioffe and Szegedy: Batch Normalization, ICML 2015.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        """Normalises, scales and shifts."""
        shape = (x.shape[-1],)
        scale = self.param("scale", lambda key: 1 + _NORMAL(key, shape))
        bias = self.param("bias", nn.initializers.zeros, shape)
        centred = x - x.mean((0, 1, 2), keepdims=True)
        variance = jnp.square(centred).mean((0, 1, 2), keepdims=True)
        factor = jax.lax.rsqrt(variance + _NORM_EPSILON) * scale[None, None, None, :]
        return centred * factor + bias[None, None, None, :]


class PatchDiscriminator(nn.Module):
    """Scores of patches: high for real frames, low for reconstructions.

    Attributes:
      channels: width of the first layer; it doubles with every layer up to 8 times this.
      layers: convolutions that halve the frame; 3 make patches of 70x70 pixels.
    """

    channels: int = 64
    layers: int = 3

    @nn.compact
    def __call__(self, images: Float[Array, "N H W C"]) -> Float[Array, "N h w"]:
        """One score for each patch, not limited; see ``check_patches`` for what frames fit."""
        h = nn.leaky_relu(_conv(self.channels, 2, "conv_0")(images), SLOPE)
        for i in range(1, self.layers + 1):
            features = self.channels * min(2**i, _LARGEST_MULT)
            h = _conv(features, 2 if i < self.layers else 1, f"conv_{i}", use_bias=False)(h)
            h = nn.leaky_relu(BatchNorm(name=f"norm_{i}")(h), SLOPE)
        return _conv(1, 1, "conv_out")(h)[..., 0]


def check_discriminator(model: PatchDiscriminator, height: int, width: int) -> None:
    """Refuses sizes that leave no patch of a frame, or no channel.

    Raises:
      ValueError: names the size and what is allowed.
    """
    if model.channels < 1:
        raise ValueError(
            f"first_stage_training.discriminator_channels is {model.channels}; it must be at least "
            "1."
        )
    most = max(0, (min(height, width) // 3).bit_length() - 1)  # a side of 3 * 2**layers or more
    if not 1 <= model.layers <= most:
        way_out = f"allowed: 1 to {most}" if most else "the smallest frames are 6x6"
        raise ValueError(
            f"first_stage_training.discriminator_layers is {model.layers} for frames of "
            f"{height}x{width}; {way_out}."
        )
