"""The jitted programs of a sequence model: one for each description, sampler and shapes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffsda_jax.diffusion import samplers, schedules
from diffsda_jax.diffusion.samplers import SamplerSpec
from diffsda_jax.factors import Factors
from diffsda_jax.model import ModelSpec, make_model
from diffsda_jax.nets.applied import applied


@functools.partial(jax.jit, static_argnums=0)
def encode(
    spec: ModelSpec, variables: Any, x: Array, length: Array | None, mask: Array | None
) -> Factors:
    """Factors of normalised sequences; see ``Codec.encode`` for shapes."""
    return applied(make_model(spec), variables, x, length, mask, method="encode")


@functools.partial(jax.jit, static_argnums=0)
def denoise(spec: ModelSpec, variables: Any, x: Array, sigma: Array, factors: Factors) -> Array:
    """The expected clean sequences at noise levels ``sigma`` ``[B, V]``; see ``Codec.denoise``."""
    return applied(make_model(spec), variables, x, sigma, factors, method="denoise")


def denoiser_of(spec: ModelSpec, variables: Any, factors: Factors) -> samplers.Denoise:
    """D at one noise level for all steps, as the samplers call it."""

    def denoise(x: Array, sigma: Array) -> Array:
        levels = jnp.broadcast_to(sigma, x.shape[:2])
        return applied(make_model(spec), variables, x, levels, factors, method="denoise")

    return denoise


def _levels(spec: ModelSpec, sampler: SamplerSpec) -> dict[str, float]:
    """What the sampler's grid is made of."""
    return sampler.levels(spec.sigma_min, spec.sigma_max, spec.rho)


@functools.partial(jax.jit, static_argnums=(0, 1))
def decode(
    spec: ModelSpec,
    sampler: SamplerSpec,
    variables: Any,
    start: Array,
    factors: Factors,
    key: Array,
) -> Array:
    """From unit-variance noise ``start`` to data; see ``Codec.decode`` for shapes."""
    levels = _levels(spec, sampler)
    return samplers.integrate(
        sampler.solver,
        denoiser_of(spec, variables, factors),
        jnp.asarray(start, jnp.float32) * levels["sigma_max"],
        schedules.sigma_grid(sampler.num_steps, **levels),
        eta=sampler.eta,
        key=key,
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def invert(
    spec: ModelSpec, sampler: SamplerSpec, variables: Any, x: Array, factors: Factors
) -> Array:
    """From data to unit-variance noise; see ``Codec.invert`` for shapes."""
    levels = _levels(spec, sampler)
    grid = schedules.inversion_grid(sampler.num_steps, **levels)
    denoise, x = denoiser_of(spec, variables, factors), jnp.asarray(x, jnp.float32)
    return samplers.integrate(sampler.solver, denoise, x, grid) / levels["sigma_max"]
