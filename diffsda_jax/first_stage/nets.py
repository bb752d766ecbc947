"""Encoder, decoder and quantiser of the frame autoencoders. Channels last throughout.

References:
  Esser et al.: Taming transformers, CVPR 2021; Rombach et al.: Latent diffusion, CVPR 2022
  (appendix: autoencoders); van den Oord et al.: VQ-VAE, NIPS 2017 (nearest code).
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from diffsda_jax.first_stage.spec import FirstStageSpec
from diffsda_jax.nets.layers import NORM_EPSILON, XAVIER, GroupNorm, conv, dense
from diffsda_jax.nets.unet import upsample_nearest

EPSILON = 1e-6  # that these networks add to the variance in GroupNorm
LOG_VARIANCE_RANGE = (-30.0, 20.0)
# Bounds on what is held at once, in values: of attention (queries x keys) and of the quantiser
# (pixels x codes). They would otherwise exceed the memory of everything else for large frames.
_MAX_SCORES = 1 << 24
# GroupNorm here adds NORM_EPSILON; for inputs multiplied by c that is NORM_EPSILON / c^2.
_NORM_SCALE = math.sqrt(NORM_EPSILON / EPSILON)


def _norm(x: Float[Array, "N H W C"], name: str) -> Float[Array, "N H W C"]:
    """GroupNorm with ``EPSILON``, as a submodule of the module that calls it."""
    return GroupNorm(name=name)(x * _NORM_SCALE)


class PixelAttention(nn.Module):
    """Single-head self-attention over the pixels of one image, with a residual connection."""

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        """Adds what every pixel reads from all pixels of its image."""
        channels, pixels = x.shape[-1], x.shape[1] * x.shape[2]
        h = _norm(x, "norm").reshape(-1, pixels, 1, channels)  # one head
        parts = tuple(dense(channels, name)(h) for name in ("query", "key", "value"))
        images = max(1, _MAX_SCORES // pixels**2)
        read = jax.lax.map(lambda qkv: jax.nn.dot_product_attention(*qkv), parts, batch_size=images)
        return x + dense(channels, "out")(read).reshape(x.shape)


class ResBlock(nn.Module):
    """Twice GroupNorm, SiLU and convolution beside a shortcut; then attention where asked for.

    Attributes:
      features: width of the output.
      attention: ends with self-attention.
    """

    features: int
    attention: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W O"]:
        """The shortcut is a 1x1 convolution if the width changes."""
        h = x
        for i in (1, 2):
            h = conv(self.features, 3, f"conv_{i}")(nn.silu(_norm(h, f"norm_{i}")))
        if x.shape[-1] != self.features:
            x = dense(self.features, "shortcut")(x)
        return PixelAttention(name="attention")(x + h) if self.attention else x + h


def _middle(h: Float[Array, "N H W C"], attention: bool) -> Float[Array, "N H W C"]:
    """The two blocks of the lowest resolution, in the encoder and in the decoder."""
    h = ResBlock(h.shape[-1], attention, name="middle_0")(h)
    return ResBlock(h.shape[-1], name="middle_1")(h)


class Encoder(nn.Module):
    """From frames to the map that the 1x1 convolution before the latent reads.

    Attributes:
      spec: sizes.
    """

    spec: FirstStageSpec

    @nn.compact
    def __call__(self, images: Float[Array, "N H W C"]) -> Float[Array, "N h w K"]:
        """K is ``z_channels``, or twice as many with ``double_z``; ``h = H / f``."""
        spec, last = self.spec, len(self.spec.channel_mults) - 1
        h = conv(spec.channels, 3, "conv_in")(images)
        for level, mult in enumerate(spec.channel_mults):
            for i in range(spec.num_res_blocks):
                attention = level in spec.attention_levels
                h = ResBlock(spec.channels * mult, attention, name=f"down_{level}_{i}")(h)
            if level < last:  # zeros on the right and below only, unlike the U-Nets of nets.unet
                h = nn.Conv(
                    h.shape[-1],
                    (3, 3),
                    strides=(2, 2),
                    padding=((0, 1), (0, 1)),
                    kernel_init=XAVIER,
                    name=f"down_{level}_conv",
                )(h)
        h = nn.silu(_norm(_middle(h, spec.middle_attention), "norm_out"))
        return conv((1 + spec.double_z) * spec.z_channels, 3, "conv_out")(h)


class Decoder(nn.Module):
    """From the map behind the 1x1 convolution after the latent to frames.

    Attributes:
      spec: sizes.
    """

    spec: FirstStageSpec

    @nn.compact
    def __call__(self, z: Float[Array, "N h w Z"]) -> Float[Array, "N H W C"]:
        """``H = f h``; the values are not limited to [-1, 1]."""
        spec = self.spec
        widths = [spec.channels * mult for mult in spec.channel_mults]
        h = _middle(conv(widths[-1], 3, "conv_in")(z), spec.middle_attention)
        for level in reversed(range(len(widths))):
            for i in range(spec.num_res_blocks + 1):
                attention = level in spec.attention_levels
                h = ResBlock(widths[level], attention, name=f"up_{level}_{i}")(h)
            if level > 0:
                h = conv(widths[level], 3, f"up_{level}_conv")(upsample_nearest(h))
        return conv(spec.image_channels, 3, "conv_out")(nn.silu(_norm(h, "norm_out")))


class FirstStageModel(nn.Module):
    """The autoencoder of one ``FirstStageSpec``; see ``FirstStage`` for the public interface.

    Attributes:
      spec: description.
    """

    spec: FirstStageSpec

    def setup(self):
        """Submodules, and the codebook of a VQ."""
        spec = self.spec
        self.encoder, self.decoder = Encoder(spec), Decoder(spec)
        self.before_latent = nn.Dense((1 + spec.double_z) * spec.embed_dim, kernel_init=XAVIER)
        self.after_latent = nn.Dense(spec.z_channels, kernel_init=XAVIER)
        if spec.kind == "vq":
            shape, bound = (spec.codebook_size, spec.embed_dim), 1 / spec.codebook_size
            self.codebook = self.param(
                "codebook",
                lambda key: jax.random.uniform(key, shape, minval=-bound, maxval=bound),
            )

    def encode(self, images: Float[Array, "N H W C"]) -> Float[Array, "N h w E"]:
        """Latents before quantisation (VQ), or their means (KL)."""
        encoded = self.before_latent(self.encoder(images))
        return encoded[..., : self.spec.embed_dim]

    def moments(
        self, images: Float[Array, "N H W C"]
    ) -> tuple[Float[Array, "N h w E"], Float[Array, "N h w E"]]:
        """Mean and log-variance of the latents (KL)."""
        mean, log_variance = jnp.split(self.before_latent(self.encoder(images)), 2, axis=-1)
        return mean, jnp.clip(log_variance, *LOG_VARIANCE_RANGE)

    def quantize(
        self, latents: Float[Array, "N h w E"]
    ) -> tuple[Float[Array, "N h w E"], Int[Array, "N h w"]]:
        """The code nearest to every latent by Euclidean distance, and its index (VQ)."""
        codes = self.codebook

        def nearest(pixel: Float[Array, "E"]) -> Int[Array, ""]:
            # |z - c|^2 less |z|^2, in full precision: on accelerators the default swaps codes.
            product = jnp.matmul(codes, pixel, precision=jax.lax.Precision.HIGHEST)
            return jnp.argmin(jnp.square(codes).sum(-1) - 2 * product)

        pixels = latents.reshape(-1, latents.shape[-1])
        batch = max(1, _MAX_SCORES // len(codes))
        indices = jax.lax.map(nearest, pixels, batch_size=batch).reshape(latents.shape[:-1])
        return jnp.take(codes, indices, axis=0), indices

    def decode(self, latents: Float[Array, "N h w E"]) -> Float[Array, "N H W C"]:
        """Frames from latents, which a VQ replaces by the nearest codes first."""
        if self.spec.kind == "vq":
            latents = self.quantize(latents)[0]
        return self.decoder(self.after_latent(latents))

    def __call__(self, images: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        """Reconstruction; what ``init`` traces."""
        return self.decode(self.encode(images))


def make_model(spec: FirstStageSpec) -> FirstStageModel:
    """Builds the linen module of a description."""
    return FirstStageModel(spec)


def variable_shapes(spec: FirstStageSpec) -> dict[str, Any]:
    """Shapes of the variables, which do not depend on the size of frames; computes nothing."""
    frame = (1, spec.factor, spec.factor, spec.image_channels)
    example = jax.ShapeDtypeStruct(frame, jnp.float32)
    return dict(jax.eval_shape(make_model(spec).init, jax.random.key(0), example))
