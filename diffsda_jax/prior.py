"""The prior: diffusion over the factors (s, d^{1:V}), for sampling what no sequence gave.

Pure functions of arrays in normalised units: every coordinate of s and of d has mean 0 and
standard deviation 1 over the training set.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from diffsda_jax.diffusion import ddpm, edm, samplers, schedules
from diffsda_jax.factors import Factors
from diffsda_jax.nets.applied import applied
from diffsda_jax.nets.prior_nets import JointPrior
from diffsda_jax.nets.skip_mlp import FlatPrior
from diffsda_jax.prior_spec import FORMS, PriorSpec
from diffsda_jax.rngs import stream

__all__ = (
    "FORMS",
    "LossOptions",
    "check_sampler",
    "PriorSpec",
    "init_variables",
    "make_loss_fn",
    "make_prior",
    "pack",
    "sample_factors",
    "unpack",
    "variable_shapes",
)

LossFn = Callable[[Any, Any, dict[str, Array], Array], tuple[Array, dict[str, Array]]]
DEFAULT_SAMPLER = samplers.SamplerSpec("heun", 32)


def make_prior(spec: PriorSpec) -> nn.Module:
    """Builds the linen module of a description."""
    return JointPrior(spec) if spec.form == "joint" else FlatPrior(spec)


def pack(static: Float[Array, "B S"], dynamic: Float[Array, "B V D"]) -> Float[Array, "B A"]:
    """Flat vectors ``(s, d^1, ..., d^V)``."""
    return jnp.concatenate([static, dynamic.reshape(len(dynamic), -1)], axis=-1)


def unpack(
    x: Float[Array, "B A"], static_dim: int, dynamic_dim: int
) -> tuple[Float[Array, "B S"], Float[Array, "B V D"]]:
    """Undoes ``pack``."""
    static, dynamic = jnp.split(x, [static_dim], axis=-1)
    return static, dynamic.reshape(len(x), -1, dynamic_dim)


def init_variables(spec: PriorSpec, key: Array) -> dict[str, Any]:
    """Initial variables, collections ``params`` and, for ``joint``, ``constants``.

    Args:
      spec: description of the prior.
      key: typed key.
    """
    return dict(make_prior(spec).lazy_init(key, *_example(spec)))


def variable_shapes(spec: PriorSpec) -> dict[str, Any]:
    """Shapes of the variables of a prior, without computing them."""
    return dict(jax.eval_shape(make_prior(spec).init, jax.random.key(0), *_example(spec)))


def _example(spec: PriorSpec) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes of the module's arguments."""
    if spec.form != "joint":
        return (
            jax.ShapeDtypeStruct((1, spec.flat_dim), jnp.float32),
            jax.ShapeDtypeStruct((1,), jnp.int32),
        )
    shapes = ((1, spec.static_dim), (1, spec.length, spec.dynamic_dim), (1,), (1,))
    return tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """How a batch of factors becomes a loss.

    Attributes:
      p_mean: mean of ln sigma (``joint``).
      p_std: standard deviation of ln sigma (``joint``).
      equal_share: share of items whose s and d have the same noise level (``joint``).
      clean_share: share of items of which s, and share of which d, is given without noise
        (``joint``); the other items have independent levels.
      train: apply dropout (``joint``).
    """

    p_mean: float = -0.4
    p_std: float = 1.2
    equal_share: float = 0.5
    clean_share: float = 0.15
    train: bool = True

    def __post_init__(self):
        """Checks the shares.

        Raises:
          ValueError: they are none.
        """
        if min(self.equal_share, self.clean_share) < 0 or (
            self.equal_share + 2 * self.clean_share > 1 + 1e-9
        ):
            raise ValueError(
                f"equal_share is {self.equal_share} and clean_share {self.clean_share}; needed: "
                "both 0 or more, and equal_share + 2 clean_share at most 1."
            )


def make_loss_fn(spec: PriorSpec, **options: Any) -> LossFn:
    """Builds the loss of a prior, fit for ``train.step.make_train_step``.

    ``joint`` denoises s and d^{1:V} together. Part of the items have one noise level for both, as
    in sampling both; part have one of them without noise, as in sampling the other given it; the
    rest have two independent levels. ``s`` and ``d`` weigh the same. ``reference`` and
    ``independent`` predict the noise at a step that is drawn evenly.

    Args:
      spec: description of the prior.
      **options: fields of ``LossOptions``.

    Returns:
      ``loss(params, constants, batch, key) -> (loss, {"loss": loss})`` of a batch with ``static``
      ``[B, S]``, ``dynamic`` ``[B, V, D]`` and optionally ``length`` ``[B]``.

    Raises:
      ValueError: an option out of range.

    References:
      Karras et al. 2022, equation 8; Bao et al. 2023 (UniDiffuser), section 3; Ho et al. 2020,
      equation 14.
    """
    use = LossOptions(**options)
    return _make_joint_loss(spec, use) if spec.form == "joint" else _make_flat_loss(spec)


def _make_flat_loss(spec: PriorSpec) -> LossFn:
    """The loss of ``reference`` and ``independent``; padding counts as nothing."""
    prior, alpha_bars = make_prior(spec), jnp.asarray(_alpha_bars(spec), jnp.float32)

    def loss_fn(
        params: Any, constants: Any, batch: dict[str, Array], key: Array
    ) -> tuple[Array, dict[str, Array]]:
        x_clean, length = pack(batch["static"], batch["dynamic"]), batch.get("length")
        count = len(x_clean)
        index = jax.random.randint(stream(key, "step"), (count,), 0, spec.diffusion_steps)
        noise = jax.random.normal(stream(key, "noise"), x_clean.shape)
        x_noisy = ddpm.add_noise(x_clean, noise, alpha_bars[index])
        error = (applied(prior, {"params": params}, x_noisy, index) - noise) ** 2
        if length is None:
            return (loss := jnp.mean(error)), {"loss": loss}
        real = jnp.repeat(_real_steps(length, spec.length), spec.dynamic_dim, axis=1)
        real = jnp.concatenate([jnp.ones((count, spec.static_dim), bool), real], axis=1)
        loss = jnp.sum(jnp.where(real, error, 0.0)) / real.sum()
        return loss, {"loss": loss}

    return loss_fn


def _alpha_bars(spec: PriorSpec) -> Float[np.ndarray, "N"]:
    """Table of the discrete diffusion."""
    return ddpm.make_alpha_bars(spec.diffusion_steps, spec.beta_start, spec.beta_end)


def _make_joint_loss(spec: PriorSpec, use: LossOptions) -> LossFn:
    """The loss of ``joint``."""
    prior = make_prior(spec)

    def loss_fn(
        params: Any, constants: Any, batch: dict[str, Array], key: Array
    ) -> tuple[Array, dict[str, Array]]:
        clean = batch["static"], batch["dynamic"]
        length = batch.get("length")
        count, steps = clean[1].shape[:2]
        sigmas, given = _draw_levels(spec, use, key, count)
        noisy = [
            x + edm.expand(jnp.where(known, 0.0, sigma), x.ndim) * jax.random.normal(k, x.shape)
            for x, sigma, known, k in zip(
                clean, sigmas, given, (stream(key, "static"), stream(key, "dynamic")), strict=True
            )
        ]
        levels = [jnp.where(k, spec.sigma_min, s) for s, k in zip(sigmas, given, strict=True)]
        denoised = applied(
            prior,
            {"params": params, "constants": constants},
            *noisy,
            *levels,
            length,
            use.train,
            rngs={"dropout": stream(key, "dropout")} if use.train else None,
        )
        weights = [
            jnp.where(known, 0.0, edm.loss_weight(sigma, spec.sigma_data))
            for sigma, known in zip(sigmas, given, strict=True)
        ]
        real = jnp.ones((count, steps), bool) if length is None else _real_steps(length, steps)
        loss_static = jnp.mean(weights[0][:, None] * (denoised[0] - clean[0]) ** 2)
        error = weights[1][:, None] * jnp.mean((denoised[1] - clean[1]) ** 2, axis=-1)
        loss_dynamic = jnp.sum(jnp.where(real, error, 0.0)) / jnp.maximum(real.sum(), 1)
        loss = (loss_static + loss_dynamic) / 2
        return loss, {"loss": loss}

    return loss_fn


def _real_steps(length: Int[Array, "B"], steps: int) -> Array:
    """True where a step is data and not padding, ``[B, V]``."""
    return jnp.arange(steps)[None, :] < length[:, None]


def _draw_levels(
    spec: PriorSpec, use: LossOptions, key: Array, count: int
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Noise levels of s and of d, and which of them are given without noise, all ``[B]``."""
    draws = (
        edm.sample_sigma(
            stream(key, f"sigma/{name}"), (count,), "log_normal", use.p_mean, use.p_std
        )
        for name in ("static", "dynamic")
    )
    sigma_static, sigma_dynamic = draws
    case = jax.random.uniform(stream(key, "case"), (count,))
    sigma_dynamic = jnp.where(case < use.equal_share, sigma_static, sigma_dynamic)
    first, second = use.equal_share + use.clean_share, use.equal_share + 2 * use.clean_share
    static_given = (case >= use.equal_share) & (case < first)
    return (sigma_static, sigma_dynamic), (static_given, (case >= first) & (case < second))


def sample_factors(
    spec: PriorSpec,
    variables: Mapping[str, Any],
    key: Array,
    *,
    count: int,
    length: int,
    static: Float[Array, "B S"] | Float[np.ndarray, "B S"] | None = None,
    dynamic: Float[Array, "B V D"] | Float[np.ndarray, "B V D"] | None = None,
    lengths: Int[Array, "B"] | Int[np.ndarray, "B"] | None = None,
    sampler: samplers.SamplerSpec | None = None,
) -> Factors:
    """Samples factors: both, d given s, or s given d.

    ``reference`` knows no conditional distribution and ``independent`` has none: of both, what is
    sampled is the wanted part of an unconditional sample, whatever is given. They sample sequences
    of ``spec.length`` only, by all ``spec.diffusion_steps``.

    Args:
      spec: description of the prior.
      variables: its variables.
      key: typed key.
      count: number B of sequences.
      length: V.
      static: given s; then d is sampled and s returned as it is.
      dynamic: given d; then s is sampled and d returned as it is.
      lengths: real steps of each item, the rest is padding; None = all are real.
      sampler: of ``joint``; None = Heun with 32 steps.

    Returns:
      ``static [B, S]`` and ``dynamic [B, V, D]``; padding is zero where d was sampled.

    Raises:
      ValueError: s and d are both given, or of other sizes than ``count``, ``length`` and ``spec``;
        or a sampler for distilled models.
    """
    _check_given(spec, count, length, static, dynamic, lengths)
    how = DEFAULT_SAMPLER if sampler is None else sampler
    check_sampler(how)
    if spec.form == "joint":
        sampled = _sample_joint(spec, how, count, length, variables, key, static, dynamic, lengths)
    else:
        sampled = _sample_flat(spec, count, variables, key)
    if dynamic is None and lengths is not None:
        real = _real_steps(jnp.asarray(lengths), length)
        sampled = sampled.replace(dynamic=jnp.where(real[..., None], sampled.dynamic, 0.0))
    return Factors(
        static=sampled.static if static is None else static,
        dynamic=sampled.dynamic if dynamic is None else dynamic,
    )


def check_sampler(sampler: samplers.SamplerSpec) -> None:
    """Refuses a sampler of distilled models, which priors are not.

    Raises:
      ValueError: the sampler's solver is for them.
    """
    if sampler.solver not in samplers.SOLVERS:
        raise ValueError(
            f"prior.solver is {sampler.solver!r}, which is for distilled models; allowed: "
            f"{', '.join(map(repr, samplers.SOLVERS))}."
        )


def _check_given(spec: PriorSpec, count: int, length: int, static, dynamic, lengths) -> None:
    """Raises ValueError where what is given does not fit."""
    if static is not None and dynamic is not None:
        raise ValueError(
            "static and dynamic are both given, so that nothing is left to sample; leave one out."
        )
    expected = {
        "static": (static, (count, spec.static_dim)),
        "dynamic": (dynamic, (count, length, spec.dynamic_dim)),
        "lengths": (lengths, (count,)),
    }
    for name, (value, shape) in expected.items():
        if value is not None and value.shape != shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {shape}.")
    if spec.form != "joint" and length != spec.length:
        raise ValueError(
            f"length is {length}, but a prior of the form {spec.form!r} samples sequences of "
            f"{spec.length} steps only; a 'joint' one samples any length."
        )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sample_flat(spec: PriorSpec, count: int, variables: Mapping[str, Any], key: Array) -> Factors:
    """Unconditional samples of ``reference`` and ``independent``."""
    prior, shape = make_prior(spec), (count, spec.flat_dim)
    make_chain = {"ddim": ddpm.ddim_chain, "ddpm": ddpm.ddpm_chain}[spec.chain]
    x = ddpm.run_chain(
        make_chain(_alpha_bars(spec)),
        lambda x, index: applied(prior, variables, x, jnp.broadcast_to(index, (count,))),
        jax.random.normal(stream(key, "start"), shape),
        lambda index: jax.random.normal(stream(key, "step", index), shape),
    )
    static, dynamic = unpack(x, spec.static_dim, spec.dynamic_dim)
    return Factors(static=static, dynamic=dynamic)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _sample_joint(
    spec: PriorSpec,
    how: samplers.SamplerSpec,
    count: int,
    length: int,
    variables: Mapping[str, Any],
    key: Array,
    static: Array | None,
    dynamic: Array | None,
    lengths: Array | None,
) -> Factors:
    """Samples of ``joint``; given factors stay as they are, at the lowest noise level."""
    prior, lowest = make_prior(spec), jnp.full((count,), spec.sigma_min)
    levels = how.levels(spec.sigma_min, spec.sigma_max, spec.rho)
    grid = schedules.sigma_grid(how.num_steps, **levels)
    start = grid[0].astype(np.float32) * jax.random.normal(
        stream(key, "start"), (count, spec.static_dim + length * spec.dynamic_dim)
    )

    def denoise(x: Array, sigma: Array) -> Array:
        level, noisy = jnp.broadcast_to(sigma, (count,)), unpack(x, *dims)
        return pack(
            *applied(
                prior,
                variables,
                noisy[0] if static is None else static,
                noisy[1] if dynamic is None else dynamic,
                level if static is None else lowest,
                level if dynamic is None else lowest,
                lengths,
            )
        )

    dims = spec.static_dim, spec.dynamic_dim
    noise = stream(key, "noise")
    x = samplers.integrate(how.solver, denoise, start, grid, eta=how.eta, key=noise)
    return Factors(**dict(zip(("static", "dynamic"), unpack(x, *dims), strict=True)))
