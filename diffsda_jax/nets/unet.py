"""The 2-D U-Net applied to every frame on its own: denoiser (conditioned) and encoder (not)."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from diffsda_jax.nets import layers
from diffsda_jax.nets.layers import Attention, Dropout, GroupNorm, NoiseEmbedding, dense

BLOCKS_DOWN = 2
BLOCKS_UP = BLOCKS_DOWN + 1
TEMPLATE_WIDTH = 256
EMBEDDING_FACTOR = 4  # width of the embeddings for each base channel


class ResBlock(nn.Module):
    """Residual block; with embeddings (noise, factors) it is modulated and has a third layer.

    GN-SiLU-conv; GN, then scale and shift by the noise, then by the factors, SiLU-dropout-conv;
    when conditioned a third GN-SiLU-dropout-conv; a 1x1 shortcut when the width changes; and
    attention where the level asks for it.

    Attributes:
      features: width of the output.
      attention: ends with self-attention.
      dropout: rate.
      bfloat16: products, and what lies between them, in bfloat16; sums of norms in float32.

    References:
      DiffSDA (arXiv 2510.05717), appendix (video); Preechakul et al. 2022 (two AdaGN in a row).
    """

    features: int
    attention: bool = False
    dropout: float = 0.1
    bfloat16: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N H W C"],
        noise: Float[Array, "N E"] | None = None,
        factors: Float[Array, "N E"] | None = None,
        train: bool = False,
    ) -> Float[Array, "N H W O"]:
        """``noise`` and ``factors`` are embeddings that went through SiLU already, or both None."""
        drop = functools.partial(Dropout(self.dropout), train=train)
        conv = functools.partial(layers.conv, bfloat16=self.bfloat16)
        dense = functools.partial(layers.dense, bfloat16=self.bfloat16)
        h = conv(self.features, 3, "conv_1")(nn.silu(GroupNorm(name="norm_1")(x)))
        modulations = [
            dense(2 * self.features, name)(embedding)
            for embedding, name in ((noise, "noise"), (factors, "factors"))
            if embedding is not None
        ]
        h = GroupNorm(name="norm_2")(h, *modulations)
        h = conv(self.features, 3, "conv_2")(drop(nn.silu(h)))
        if noise is not None:
            h = conv(self.features, 3, "conv_3")(drop(nn.silu(GroupNorm(name="norm_3")(h))))
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, "shortcut")(x)
        h = h + x
        return Attention(self.bfloat16, name="attention")(h) if self.attention else h


@jax.custom_vjp
def upsample_nearest(x: Float[Array, "N H W C"]) -> Float[Array, "N H2 W2 C"]:
    """Doubles height and width by repeating pixels.

    Its gradient is three additions, where that of ``jax.image.resize`` scatters.
    """
    num, height, width, channels = x.shape
    copies = jnp.broadcast_to(x[:, :, None, :, None], (num, height, 2, width, 2, channels))
    return copies.reshape(num, 2 * height, 2 * width, channels)


def _upsample_forward(x: Array) -> tuple[Array, None]:
    return upsample_nearest(x), None


def _upsample_backward(_: None, gradient: Array) -> tuple[Array]:
    rows = gradient[:, ::2] + gradient[:, 1::2]
    return (rows[:, :, ::2] + rows[:, :, 1::2],)


upsample_nearest.defvjp(_upsample_forward, _upsample_backward)


class UNet(nn.Module):
    """U-Net with skip connections: levels of two blocks down, three blocks up.

    Attributes:
      out_channels: channels of the output.
      channels: base width.
      channel_mults: width of each level as a multiple of ``channels``.
      attention_levels: indices of the levels whose blocks end with attention.
      dropout: rate.
      tail_gain: gain of the last convolution's initial weights.
      bfloat16: all but the last convolution in bfloat16, see ``ResBlock``; the result is float32.
      remat: gradients compute the inside of each block again instead of keeping it.

    References:
      Ho, Jain, Abbeel 2020; DiffSDA (arXiv 2510.05717), appendix (video).
    """

    out_channels: int
    channels: int
    channel_mults: tuple[int, ...]
    attention_levels: tuple[int, ...]
    dropout: float = 0.1
    tail_gain: float = 1e-5
    bfloat16: bool = False
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N H W C"],
        noise: Float[Array, "N E"] | None = None,
        factors: Float[Array, "N E"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "N H W O"], Float[Array, "N P"]]:
        """Returns the output and the middle features averaged over pixels.

        Height and width must be divisible by two for each level but the last.
        """
        block_class = nn.remat(ResBlock, static_argnums=(4,)) if self.remat else ResBlock

        def block(h, level, name, attention):
            width = self.channels * self.channel_mults[level]
            res_block = block_class(width, attention, self.dropout, self.bfloat16, name=name)
            return res_block(h, noise, factors, train)

        conv = functools.partial(layers.conv, bfloat16=self.bfloat16)
        h = conv(self.channels, 3, "conv_in")(x)
        skips, last = [h], len(self.channel_mults) - 1
        for level in range(last + 1):
            for i in range(BLOCKS_DOWN):
                h = block(h, level, f"down_{level}_{i}", level in self.attention_levels)
                skips.append(h)
            if level < last:
                h = conv(h.shape[-1], 3, f"down_{level}_conv", stride=2)(h)
                skips.append(h)
        h = block(h, last, "middle_0", True)
        h = block(h, last, "middle_1", False)
        pooled = h.astype(jnp.float32).mean((1, 2))
        for level in range(last, -1, -1):
            for i in range(BLOCKS_UP):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(h, level, f"up_{level}_{i}", level in self.attention_levels)
            if level > 0:
                h = conv(h.shape[-1], 3, f"up_{level}_conv")(upsample_nearest(h))
        h = nn.silu(GroupNorm(name="norm_out")(h.astype(jnp.float32)))
        return layers.conv(self.out_channels, 3, "conv_out", gain=self.tail_gain)(h), pooled


class UNetDenoiser(nn.Module):
    """F for video: the U-Net modulated by noise level and factors, one frame at a time.

    Attributes:
      unet: with as many output channels as the frames have.
      template_channels: channels of an image that a small perceptron draws from the factors and
        that the U-Net sees beside its input. Modulation acts alike on all pixels, so without it
        shapes have to grow from the borders, which takes long training. 0 (off) in the paper.
    """

    unet: UNet
    template_channels: int = 0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N H W C"],
        c_noise: Float[Array, "N"],
        factors: Float[Array, "N Z"],
        train: bool = False,
    ) -> Float[Array, "N H W C"]:
        """The raw network output ``F(c_in x; z, c_noise)`` for N = B V frames."""
        width = EMBEDDING_FACTOR * self.unet.channels
        noise = nn.silu(NoiseEmbedding(width, self.unet.channels, name="noise")(c_noise))
        condition = nn.silu(dense(width, "factors")(factors))
        if self.template_channels:
            x = jnp.concatenate([x, self._template(factors, x.shape)], axis=-1)
        return self.unet(x, noise, condition, train)[0]

    def _template(
        self, factors: Float[Array, "N Z"], shape: tuple[int, ...]
    ) -> Float[Array, "N H W K"]:
        """Draws an image of ``template_channels`` from the factors alone."""
        h = factors
        for layer in range(2):
            h = nn.silu(dense(TEMPLATE_WIDTH, f"template_{layer}")(h))
        size = (*shape[1:3], self.template_channels)
        return dense(math.prod(size), "template_out")(h).reshape((shape[0], *size))
