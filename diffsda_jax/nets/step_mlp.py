"""The per-step MLPs of audio and time series: five layers that see their input again and again."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from diffsda_jax.nets.layers import (
    NORM_EPSILON,
    Dropout,
    NoiseEmbedding,
    dense,
    repeat_each,
    scale_shift,
)

NUM_LAYERS = 5
EMBEDDING = 256  # width of the noise embedding
WIDTH_FACTOR = 4  # hidden width for each unit of the configured width m


def _run_layers(module: nn.Module, run_layer: Callable[..., Array], h: Array, count: int) -> Array:
    """One layer after the other; with ``module.remat`` gradients compute their insides again."""
    for layer in range(count):
        run = functools.partial(run_layer, layer=layer)
        h = (nn.remat(run) if module.remat else run)(module, h)
    return h


class StepMLPEncoder(nn.Module):
    """Linear-LayerNorm-SiLU-dropout on every step; the last layer has no activation.

    Attributes:
      width: m; the layers are 4 m wide.
      dropout: rate after every activation.
      bfloat16: products in bfloat16, see ``bfloat16_product``.
      remat: gradients compute the inside of each layer again instead of keeping it.

    References:
      DiffSDA (arXiv 2510.05717), section 3 and appendix (audio and time series).
    """

    width: int
    dropout: float = 0.1
    bfloat16: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B V F"], train: bool = False) -> Float[Array, "B V E"]:
        """Features of every step, ``E = 4 m``."""

        def run_layer(module: nn.Module, h: Array, layer: int) -> Array:
            h = h if layer == 0 else jnp.concatenate([h, x], axis=-1)
            h = dense(WIDTH_FACTOR * self.width, f"dense_{layer}", bfloat16=self.bfloat16)(h)
            h = nn.LayerNorm(epsilon=NORM_EPSILON, name=f"norm_{layer}")(h)
            return h if layer == NUM_LAYERS - 1 else Dropout(self.dropout)(nn.silu(h), train)

        return _run_layers(self, run_layer, x, NUM_LAYERS)


class StepMLPDenoiser(nn.Module):
    """F for audio and series: every layer is scaled and shifted by the noise level and by z.

    Attributes:
      features: number F of features of a step.
      width: m; the layers are 4 m wide.
      dropout: rate after every activation.
      tail_gain: gain of the last layer's initial weights.
      bfloat16: products in bfloat16, see ``bfloat16_product``.
      remat: gradients compute the inside of each layer again instead of keeping it.

    References:
      DiffSDA (arXiv 2510.05717), appendix (audio and time series); Perez et al. 2018 (FiLM).
    """

    features: int
    width: int
    dropout: float = 0.1
    tail_gain: float = 1e-5
    bfloat16: bool = False
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N V F"],
        c_noise: Float[Array, "N V"],
        factors: Float[Array, "B V Z"],
        train: bool = False,
    ) -> Float[Array, "N V F"]:
        """The raw network output ``F(c_in x; z, c_noise)`` for N = B K noisy sequences.

        The K copies of a sequence follow each other; what only depends on its factors is computed
        once for all of them.
        """
        noise = nn.silu(NoiseEmbedding(EMBEDDING, EMBEDDING // 4, name="noise")(c_noise))
        condition = nn.silu(dense(EMBEDDING, "factors")(factors))
        hidden, linear = WIDTH_FACTOR * self.width, functools.partial(dense, bfloat16=self.bfloat16)

        def run_layer(module: nn.Module, h: Array, layer: int) -> Array:
            h = h if layer == 0 else jnp.concatenate([h, x], axis=-1)
            h = linear(hidden, f"dense_{layer}")(h)
            h = scale_shift(h, linear(2 * hidden, f"noise_{layer}")(noise))
            by_factors = linear(2 * hidden, f"factors_{layer}")(condition)
            h = scale_shift(h, repeat_each(by_factors, len(x)))
            h = nn.silu(nn.LayerNorm(epsilon=NORM_EPSILON, name=f"norm_{layer}")(h))
            return Dropout(self.dropout)(h, train)

        h = jnp.concatenate([_run_layers(self, run_layer, x, NUM_LAYERS - 1), x], axis=-1)
        return dense(self.features, f"dense_{NUM_LAYERS - 1}", gain=self.tail_gain)(h)
