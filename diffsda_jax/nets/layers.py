"""Layers shared by the U-Nets and the per-step MLPs. Channels last throughout."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

XAVIER = nn.initializers.xavier_uniform()
NORM_EPSILON = 1e-5  # of every GroupNorm and LayerNorm
MAX_GROUPS = 32
WIDTH_MULTIPLE = 8  # that U-Net widths must be of, so that groups stay meaningful
FOURIER_SCALE = 16.0


def xavier(gain: float = 1.0) -> Callable:
    """Xavier-uniform initialiser whose bound is multiplied by ``gain``."""
    return nn.initializers.variance_scaling(gain**2, "fan_avg", "uniform")


def fold_sequence(x: Float[Array, "B V *event"]) -> Float[Array, "N *event"]:
    """Joins batch and sequence: ``[B, V, ...] -> [B V, ...]``."""
    return x.reshape((x.shape[0] * x.shape[1], *x.shape[2:]))


def unfold_sequence(x: Float[Array, "N *event"], batch: int) -> Float[Array, "B V *event"]:
    """Undoes ``fold_sequence``: ``[B V, ...] -> [B, V, ...]``."""
    return x.reshape((batch, x.shape[0] // batch, *x.shape[1:]))


def dense(features: int, name: str, gain: float = 1.0) -> nn.Dense:
    """Linear layer with Xavier-uniform weights and zero bias."""
    return nn.Dense(features, kernel_init=xavier(gain), name=name)


def conv(features: int, size: int, name: str, stride: int = 1, gain: float = 1.0) -> nn.Conv:
    """Square convolution with the same padding on both sides, Xavier-uniform, zero bias."""
    pad = size // 2
    return nn.Conv(
        features,
        (size, size),
        strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        kernel_init=xavier(gain),
        name=name,
    )


class GroupNorm(nn.Module):
    """Group normalisation in 32 groups of neighbouring channels, fewer where 32 does not divide.

    Sums run over pixels first and over the channels of a group afterwards, which XLA compiles on
    the CPU to about a third of the time of the usual reshape.

    References:
      Wu and He: Group Normalization, ECCV 2018.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        """Normalises every image on its own."""
        channels = x.shape[-1]
        num_groups = math.gcd(MAX_GROUPS, channels)
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))

        def group_mean(values: Float[Array, "N C"]) -> Float[Array, "N C"]:
            grouped = values.reshape(values.shape[0], num_groups, -1).mean(-1)
            return jnp.repeat(grouped, channels // num_groups, axis=-1)

        mean = group_mean(x.mean((1, 2)))[:, None, None, :]
        centred = x - mean
        variance = group_mean(jnp.square(centred).mean((1, 2)))[:, None, None, :]
        factor = jax.lax.rsqrt(variance + NORM_EPSILON) * scale[None, None, None, :]
        return centred * factor + bias[None, None, None, :]


class Attention(nn.Module):
    """Single-head self-attention over the pixels of one image, with a residual connection.

    References:
      DiffSDA denoiser (arXiv 2510.05717, appendix: architecture); Ho et al. 2020 for the block.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        """Adds what every pixel reads from all pixels of its image."""
        num, height, width, channels = x.shape
        h = GroupNorm(name="norm")(x).reshape(num, height * width, channels)
        query, key, value = (dense(channels, name)(h) for name in ("query", "key", "value"))
        scores = jnp.einsum("nqc,nkc->nqk", query, key) * channels**-0.5
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        # Dividing after the product touches N x C instead of N x N values.
        read = jnp.einsum("nqk,nkc->nqc", weights, value) / weights.sum(-1, keepdims=True)
        return x + dense(channels, "out")(read).reshape(x.shape)


class NoiseEmbedding(nn.Module):
    """Random Fourier features of ``c_noise = ln(sigma) / 4`` and two layers.

    The frequencies are drawn once and never trained: they live in the collection ``constants``.

    Attributes:
      features: width of the output; half of ``fourier_features`` frequencies are drawn.
      fourier_features: number of cosines and sines together.

    References:
      Tancik et al.: Fourier Features, NeurIPS 2020; Song et al. 2021 for the scale of 16.
    """

    features: int
    fourier_features: int

    @nn.compact
    def __call__(self, c_noise: Float[Array, "*batch"]) -> Float[Array, "*batch E"]:
        """Embeds noise levels of any shape; adds one axis of ``features``."""
        frequencies = self.variable(
            "constants",
            "frequencies",
            lambda: (
                FOURIER_SCALE
                * jax.random.normal(self.make_rng("params"), (self.fourier_features // 2,))
            ),
        ).value
        angles = (
            2
            * jnp.pi
            * c_noise[..., None]
            * jax.lax.stop_gradient(frequencies).reshape((1,) * c_noise.ndim + (-1,))
        )
        h = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        h = nn.silu(dense(self.features, "dense_0")(h))
        return nn.silu(dense(self.features, "dense_1")(h))


def scale_shift(
    h: Float[Array, "... C"], scale_and_shift: Float[Array, "... C2"]
) -> Float[Array, "... C"]:
    """``h (1 + scale) + shift``; the first half of the last axis of the second argument scales."""
    scale, shift = jnp.split(scale_and_shift, 2, axis=-1)
    return h * (1 + scale) + shift
