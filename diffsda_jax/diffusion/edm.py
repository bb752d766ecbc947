"""EDM preconditioning, noise draw and loss.

References:
  Karras, Aittala, Aila, Laine: Elucidating the Design Space of Diffusion-Based Generative Models,
  NeurIPS 2022 (table 1). DiffSDA (arXiv 2510.05717), section 3, uses sigma_data = 0.5.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, PRNGKeyArray

DISTRIBUTIONS = ("log_normal", "uniform")
WEIGHTINGS = ("edm", "uniform", "min_snr")


class Preconditioning(NamedTuple):
    """The four coefficients of ``D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)``."""

    c_skip: Float[Array, "..."]
    c_out: Float[Array, "..."]
    c_in: Float[Array, "..."]
    c_noise: Float[Array, "..."]


def preconditioning(
    sigma: Float[Array, "*batch"], sigma_data: float = 0.5, sigma_identity: float = 0.0
) -> Preconditioning:
    """Coefficients that keep input and target of the network at unit variance.

    Args:
      sigma: noise levels, any shape (``[B]`` or ``[B, V]``), positive.
      sigma_data: standard deviation of the clean data.
      sigma_identity: level at which D is the identity, whatever the network says; 0 for a
        denoiser, the lowest level for a consistency function.

    Returns:
      Four arrays of the shape of ``sigma``.

    References:
      Karras et al. 2022, table 1 (row "Network and preconditioning"); Song et al. 2023
      (Consistency Models), appendix C, for the level of identity.
    """
    total, above = sigma**2 + sigma_data**2, sigma - sigma_identity
    return Preconditioning(
        c_skip=sigma_data**2 / (above**2 + sigma_data**2),
        c_out=above * sigma_data / jnp.sqrt(total),
        c_in=1.0 / jnp.sqrt(total),
        c_noise=jnp.log(sigma) / 4.0,
    )


def loss_weight(
    sigma: Float[Array, "*batch"],
    sigma_data: float = 0.5,
    weighting: str = "edm",
    snr_limit: float = 5.0,
) -> Float[Array, "*batch"]:
    """Weight of the squared error of D at each noise level.

    With the signal-to-noise ratio ``snr = (sigma_data / sigma)^2``:

    - ``"edm"``: ``(snr + 1) / sigma_data^2``, which is ``1 / c_out^2`` and makes the loss of F even
      over noise levels;
    - ``"uniform"``: 1, the plain squared error of D, in which high noise counts most;
    - ``"min_snr"``: ``min(snr, snr_limit) / sigma_data^2``, in which low noise, where there is
      little left to learn, does not count more than ``snr_limit``.

    Args:
      sigma: noise levels, any shape.
      sigma_data: standard deviation of the clean data.
      weighting: one of ``WEIGHTINGS``.
      snr_limit: gamma of ``"min_snr"``.

    Returns:
      Weights, the shape of ``sigma``.

    Raises:
      ValueError: unknown weighting.

    References:
      Karras et al. 2022, table 1 (``lambda(sigma) = 1 / c_out^2``). Hang et al. 2023, Efficient
      Diffusion Training via Min-SNR Weighting Strategy (prediction of x_0, gamma = 5).
    """
    if weighting == "edm":
        return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    if weighting == "uniform":
        return jnp.ones_like(sigma)
    if weighting == "min_snr":
        return jnp.minimum(sigma**-2, snr_limit / sigma_data**2)
    raise ValueError(
        f"loss.weighting is {weighting!r}; allowed: {', '.join(map(repr, WEIGHTINGS))}."
    )


def sample_sigma(
    key: PRNGKeyArray,
    shape: tuple[int, ...],
    distribution: str = "log_normal",
    p_mean: float = -0.4,
    p_std: float = 1.0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
) -> Float[Array, "..."]:
    """Draws training noise levels; with shape ``[B, V]`` every step of a sequence gets its own.

    Args:
      key: typed key.
      shape: shape of the draw, normally ``(B, V)``.
      distribution: ``"log_normal"``: ln sigma ~ N(p_mean, p_std^2), as the released code does;
        ``"uniform"``: diffusion time uniform in [sigma_min, sigma_max], as the paper's text says
        (in EDM the time is sigma itself).
      p_mean: mean of ln sigma.
      p_std: standard deviation of ln sigma.
      sigma_min: lowest noise level of ``"uniform"``.
      sigma_max: highest noise level of ``"uniform"``.

    Returns:
      Noise levels of the given shape, float32.

    Raises:
      ValueError: unknown distribution.

    References:
      Karras et al. 2022, table 1 (noise distribution); DiffSDA, section 3.
    """
    if distribution == "log_normal":
        return jnp.exp(p_mean + p_std * jax.random.normal(key, shape))
    if distribution == "uniform":
        return jax.random.uniform(key, shape, minval=sigma_min, maxval=sigma_max)
    raise ValueError(
        f"noise.distribution is {distribution!r}; allowed: {', '.join(map(repr, DISTRIBUTIONS))}."
    )


def expand(value: Array, rank: int) -> Array:
    """Appends axes of size one to ``value``, ``[B]`` or ``[B, V]``, up to ``rank`` axes.

    So it broadcasts per item or per step.
    """
    return value.reshape(value.shape + (1,) * (rank - value.ndim))


def denoising_loss(
    x_denoised: Float[Array, "B V *event"],
    x_clean: Float[Array, "B V *event"],
    weight: Float[Array, "B V"],
    mask: Bool[Array, "B V *_"] | None = None,
) -> Float[Array, ""]:
    """Weighted squared error, averaged over all elements.

    Missing elements count as zero and stay in the denominator, as in the released code, so that
    sequences with little data weigh little.

    Args:
      x_denoised: output of D.
      x_clean: the data.
      weight: ``loss_weight(sigma)``, one for each item and step.
      mask: True = observed; ``[B, V]`` or the shape of x; None = everything is observed.

    Returns:
      A scalar.

    References:
      Karras et al. 2022, equation 8; DiffSDA (arXiv 2510.05717), equation 9 (the single loss).
    """
    error = expand(weight, x_clean.ndim) * (x_denoised - x_clean) ** 2
    if mask is not None:
        error = jnp.where(expand(mask, x_clean.ndim), error, 0.0)
    return jnp.mean(error)
