"""Layers shared by the U-Nets and the per-step MLPs. Channels last throughout."""

import functools
import math
from collections.abc import Callable
from typing import Any

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


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def repeat_each(h: Float[Array, "B *rest"], count: int) -> Float[Array, "N *rest"]:
    """Every item ``N / B`` times in a row, so that there are ``count`` = N; N = B leaves them.

    The gradient's sum over the copies is written as additions, which XLA compiles on the CPU to a
    tenth of the time of its reduction over an axis that is not the last.

    Raises:
      ValueError: ``count`` is no multiple of the number of items.
    """
    if count % len(h):
        raise ValueError(
            f"{count} sequences cannot share {len(h)} factors evenly; give a multiple."
        )
    return h if count == len(h) else jnp.repeat(h, count // len(h), axis=0)


def _repeat_forward(h: Array, count: int) -> tuple[Array, int]:
    return repeat_each(h, count), len(h)


def _repeat_backward(count: int, items: int, gradient: Array) -> tuple[Array]:
    copies = gradient.reshape(items, count // items, *gradient.shape[1:])
    return (functools.reduce(jnp.add, [copies[:, k] for k in range(copies.shape[1])]),)


repeat_each.defvjp(_repeat_forward, _repeat_backward)


@jax.custom_vjp
def bfloat16_product(
    x: Float[Array, "*batch K"], kernel: Float[Array, "K M"]
) -> Float[Array, "*batch M"]:
    """``x @ kernel`` in bfloat16, added up in float32; so are both products of its gradient.

    The arguments, the result and the gradients are float32. What XLA does by default on a TPU; on
    CPUs with bfloat16 instructions about twice as fast as float32.
    """
    return _product_forward(x, kernel)[0]


def _product_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    halves = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    return _contract(*halves, (x.ndim - 1,), (0,)), halves


def _product_backward(halves: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    (x, kernel), gradient = halves, gradient.astype(jnp.bfloat16)
    batch = tuple(range(x.ndim - 1))
    return (
        _contract(gradient, kernel, (x.ndim - 1,), (1,)),
        _contract(x, gradient, batch, batch),
    )


def _contract(left: Array, right: Array, left_axes: tuple, right_axes: tuple) -> Array:
    """Product over some axes of either side, added up in float32."""
    axes = ((left_axes, right_axes), ((), ()))
    return jax.lax.dot_general(left, right, axes, preferred_element_type=jnp.float32)


bfloat16_product.defvjp(_product_forward, _product_backward)


def product(
    x: Float[Array, "*batch K"], kernel: Float[Array, "K M"], bfloat16: bool
) -> Float[Array, "*batch M"]:
    """``x @ kernel`` in float32 or, with ``bfloat16``, by ``bfloat16_product``."""
    return bfloat16_product(x, kernel) if bfloat16 else x @ kernel


def dense(features: int, name: str, gain: float = 1.0, bfloat16: bool = False) -> nn.Dense:
    """Linear layer, Xavier-uniform weights, zero bias; ``bfloat16``: by ``bfloat16_product``."""

    def dot_general(x: Array, kernel: Array, _axes: Any, **_options: Any) -> Array:
        return bfloat16_product(x, kernel)

    return nn.Dense(
        features,
        kernel_init=xavier(gain),
        dot_general=dot_general if bfloat16 else None,
        name=name,
    )


class Dropout(nn.Module):
    """Dropout that draws 8 random bits a value, a quarter of what flax's costs.

    The bits are kept in memory, so that the gradient reads them where XLA would draw them again.

    Attributes:
      rate: share of values that become 0, the others are scaled up. Other than 0 it is rounded to
        a multiple of 2^-8 between 2^-8 and 1 - 2^-8: 0.1 is 0.1016.

    References:
      Srivastava et al. 2014.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "*batch F"], train: bool) -> Float[Array, "*batch F"]:
        """Drops in training only; needs the random stream ``dropout`` then."""
        if not train or self.rate == 0:
            return x
        threshold, features = min(max(round(self.rate * 2**8), 1), 2**8 - 1), x.shape[-1]
        shape = (*x.shape[:-1], -(-features // 4))
        words = jax.random.bits(self.make_rng("dropout"), shape, jnp.uint32)
        numbers = jax.lax.bitcast_convert_type(jax.lax.optimization_barrier(words), jnp.uint8)
        keep = numbers.reshape(*x.shape[:-1], -1)[..., :features] >= threshold
        return jnp.where(keep, x / (1 - threshold / 2**8), 0.0)


def conv(
    features: int,
    size: int,
    name: str,
    stride: int = 1,
    gain: float = 1.0,
    bfloat16: bool = False,
) -> nn.Conv:
    """Square convolution with the same padding on both sides, Xavier-uniform, zero bias.

    Args:
      features: channels of the result.
      size: side of the kernel in pixels.
      name: of the layer.
      stride: pixels of the input for one of the result.
      gain: of the initialiser.
      bfloat16: both factors and the result are; the parameters stay float32.

    Returns:
      The layer.
    """
    pad = size // 2
    return nn.Conv(
        features,
        (size, size),
        strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        kernel_init=xavier(gain),
        dtype=jnp.bfloat16 if bfloat16 else None,
        name=name,
    )


class GroupNorm(nn.Module):
    """Group normalisation in 32 groups of neighbouring channels, fewer where 32 does not divide.

    All that it does to an image, the modulations too, is one factor and one summand a channel, so
    that images are read once for their sums and once for the result. Sums run over pixels first
    and over the channels of a group afterwards, which XLA compiles on the CPU to about a third of
    the time of the usual reshape. They are float32; the result has the type of ``x``.

    References:
      Wu and He: Group Normalization, ECCV 2018; Chan, Golub, LeVeque 1983 for variances of parts.
    """

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W C"], *modulations: Float[Array, "N C2"]
    ) -> Float[Array, "N H W C"]:
        """Normalises every image on its own, then applies ``scale_shift`` by each modulation."""
        channels, kind = x.shape[-1], x.dtype
        x = x.astype(jnp.float32)
        num_groups = math.gcd(MAX_GROUPS, channels)
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))

        def group_mean(values: Float[Array, "N C"]) -> Float[Array, "N C"]:
            grouped = values.reshape(values.shape[0], num_groups, -1).mean(-1)
            return jnp.repeat(grouped, channels // num_groups, axis=-1)

        # Statistics do not depend on the origin; near the data squares lose no digits.
        origin = jax.lax.stop_gradient(x[:, 0, 0])
        x = x - origin[:, None, None, :]
        channel_mean, channel_square = x.mean((1, 2)), jnp.square(x).mean((1, 2))
        within = jnp.maximum(channel_square - jnp.square(channel_mean), 0)
        mean = group_mean(channel_mean) + (group_mean(origin) - origin)
        variance = group_mean(within + jnp.square(channel_mean - mean))
        factor = jax.lax.rsqrt(variance + NORM_EPSILON) * scale[None, :]
        summand = bias[None, :] - mean * factor
        for modulation in modulations:
            own_scale, own_shift = jnp.split(modulation, 2, axis=-1)
            factor, summand = factor * (1 + own_scale), summand * (1 + own_scale) + own_shift
        return (x * factor[:, None, None, :] + summand[:, None, None, :]).astype(kind)


class Attention(nn.Module):
    """Single-head self-attention over the pixels of one image, with a residual connection.

    Attributes:
      bfloat16: products in bfloat16; they and the softmax are added up in float32.

    References:
      DiffSDA denoiser (arXiv 2510.05717, appendix: architecture); Ho et al. 2020 for the block.
    """

    bfloat16: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        """Adds what every pixel reads from all pixels of its image."""
        num, height, width, channels = x.shape
        h = GroupNorm(name="norm")(x).reshape(num, height * width, channels)
        linear = functools.partial(dense, bfloat16=self.bfloat16)
        query, key, value = (linear(channels, name)(h) for name in ("query", "key", "value"))
        scores = self._product("nqc,nkc->nqk", query, key) * channels**-0.5
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        # Dividing after the product touches N x C instead of N x N values.
        read = self._product("nqk,nkc->nqc", weights, value) / weights.sum(-1, keepdims=True)
        return x + linear(channels, "out")(read).reshape(x.shape).astype(x.dtype)

    def _product(self, axes: str, left: Array, right: Array) -> Array:
        """``einsum`` of two arrays, in the precision asked for."""
        if not self.bfloat16:
            return jnp.einsum(axes, left, right)
        left, right = left.astype(jnp.bfloat16), right.astype(jnp.bfloat16)
        return jnp.einsum(axes, left, right, preferred_element_type=jnp.float32)


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
    scale, shift = jnp.split(scale_and_shift.astype(h.dtype), 2, axis=-1)
    return h * (1 + scale) + shift
