"""The released prior's network: an MLP over one flat vector that sees its input at every layer."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from diffsda_jax.nets.layers import NORM_EPSILON, dense
from diffsda_jax.prior_spec import PriorSpec

NUM_LAYERS = 10
WIDTH_FACTOR = 4  # hidden width for each coordinate of the vector
STEP_FEATURES = 64  # of the sinusoidal embedding of a step index
MAX_PERIOD = 10_000.0


def step_features(index: Int[Array, "B"]) -> Float[Array, "B E"]:
    """Sinusoidal embedding of step indices: 32 cosines, then 32 sines.

    References:
      Vaswani et al. 2017, section 3.5.
    """
    half = STEP_FEATURES // 2
    frequencies = MAX_PERIOD ** (-np.arange(half) / half)
    angles = index.astype(jnp.float32)[:, None] * jnp.asarray(frequencies, jnp.float32)[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class SkipMLP(nn.Module):
    """Predicts the noise in a flat vector; every layer is scaled by the step, none shifted.

    References:
      DiffSDA (arXiv 2510.05717), appendix (prior); Preechakul et al.: Diffusion Autoencoders, CVPR
      2022 (latent DDIM with skip connections).
    """

    @nn.compact
    def __call__(self, x: Float[Array, "B A"], index: Int[Array, "B"]) -> Float[Array, "B A"]:
        """Noise in ``x [B, A]``; ``index`` is each item's diffusion step. Hidden width 4 A."""
        features = x.shape[-1]
        step = nn.silu(dense(features, "step_0")(step_features(index)))
        step = nn.silu(dense(features, "step_1")(step))
        h = x
        for layer in range(NUM_LAYERS - 1):
            h = h if layer == 0 else jnp.concatenate([h, x], axis=-1)
            h = dense(WIDTH_FACTOR * features, f"dense_{layer}")(h)
            h = h * (1 + dense(WIDTH_FACTOR * features, f"scale_{layer}")(step))
            h = nn.silu(nn.LayerNorm(epsilon=NORM_EPSILON, name=f"norm_{layer}")(h))
        h = jnp.concatenate([h, x], axis=-1)
        return dense(features, f"dense_{NUM_LAYERS - 1}")(h)


class FlatPrior(nn.Module):
    """Noise prediction in flat vectors ``(s, d^1, ..., d^V)``: one net, or one for s and one for d.

    Attributes:
      spec: the description.

    References:
      DiffSDA (arXiv 2510.05717), appendix (prior).
    """

    spec: PriorSpec

    @nn.compact
    def __call__(self, x: Float[Array, "B A"], index: Int[Array, "B"]) -> Float[Array, "B A"]:
        """Predicted unit noise; ``index`` is each item's diffusion step."""
        if self.spec.form == "reference":
            return SkipMLP(name="both")(x, index)
        parts = jnp.split(x, [self.spec.static_dim], axis=-1)
        nets = (SkipMLP(name=name) for name in ("static", "dynamic"))
        return jnp.concatenate([net(v, index) for net, v in zip(nets, parts, strict=True)], -1)
