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

from diffsda_jax.diffusion import edm, samplers, schedules
from diffsda_jax.factors import Factors
from diffsda_jax.nets.prior_nets import FactorTransformer
from diffsda_jax.rngs import stream

FORMS = ("joint", "reference", "independent")
LossFn = Callable[[Any, Any, dict[str, Array], Array], tuple[Array, dict[str, Array]]]
DEFAULT_STEPS, DEFAULT_SOLVER = 32, "heun"


@dataclasses.dataclass(frozen=True)
class PriorSpec:
    """Everything that fixes the prior's parameters and behaviour; plain values only.

    Attributes:
      form: ``"joint"`` (a transformer over one static and V dynamic tokens), ``"reference"`` (the
        released flat MLP) or ``"independent"`` (two of them, one for s and one for d).
      static_dim: S.
      dynamic_dim: D.
      length: V of the training set; ``joint`` samples any other length, too.
      width: of a token (``joint``).
      num_layers: number of blocks (``joint``).
      num_heads: attention heads, a divisor of ``width`` (``joint``).
      dropout: rate (``joint``).
      sigma_data: standard deviation of the factors that the preconditioning assumes (``joint``).
      sigma_min: lowest noise level of the sampler (``joint``).
      sigma_max: highest noise level of the sampler (``joint``).
      rho: how strongly the sampler's levels crowd at low noise (``joint``).
    """

    form: str
    static_dim: int
    dynamic_dim: int
    length: int
    width: int = 128
    num_layers: int = 4
    num_heads: int = 4
    dropout: float = 0.1
    sigma_data: float = 1.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self):
        """Checks values; raises ValueError naming the field, the value and what is allowed."""
        if self.form not in FORMS:
            raise ValueError(
                f"prior.form is {self.form!r}; allowed: {', '.join(map(repr, FORMS))}."
            )
        for field in ("static_dim", "dynamic_dim", "length", "width", "num_layers", "num_heads"):
            if getattr(self, field) < 1:
                raise ValueError(f"prior.{field} is {getattr(self, field)}; it must be at least 1.")
        if self.width % self.num_heads:
            raise ValueError(
                f"prior.width is {self.width}, which prior.num_heads={self.num_heads} does not "
                "divide; choose a multiple."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"prior.dropout is {self.dropout}; it must be 0 or more and below 1.")
        for field in ("sigma_data", "sigma_min", "rho"):
            if not getattr(self, field) > 0:
                raise ValueError(f"prior.{field} is {getattr(self, field)}; it must be above 0.")
        if not self.sigma_max > self.sigma_min:
            raise ValueError(
                f"prior.sigma_max is {self.sigma_max}; it must be above sigma_min={self.sigma_min}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PriorSpec":
        """Inverse of ``to_dict``.

        Raises:
          ValueError: a field is unknown or missing.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(
                f"prior.{unknown[0]} is unknown; known fields: {', '.join(sorted(known))}."
            )
        required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
        if missing := sorted(required - set(values)):
            raise ValueError(f"prior.{missing[0]} is missing from the prior's description.")
        return cls(**values)


class JointPrior(nn.Module):
    """The transformer in EDM form, with a noise level for s and one for d.

    Attributes:
      spec: the description.
    """

    spec: PriorSpec

    @nn.compact
    def __call__(
        self,
        static: Float[Array, "B S"],
        dynamic: Float[Array, "B V D"],
        sigma_static: Float[Array, "B"],
        sigma_dynamic: Float[Array, "B"],
        length: Int[Array, "B"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B S"], Float[Array, "B V D"]]:
        """Denoised s and d^{1:V}; what is given without noise has the level ``sigma_min``."""
        spec = self.spec
        of_static = edm.preconditioning(sigma_static, spec.sigma_data)
        of_dynamic = edm.preconditioning(sigma_dynamic, spec.sigma_data)
        net = FactorTransformer(
            spec.static_dim,
            spec.dynamic_dim,
            spec.width,
            spec.num_layers,
            spec.num_heads,
            spec.dropout,
            name="transformer",
        )
        outputs = net(
            edm.expand(of_static.c_in, 2) * static,
            edm.expand(of_dynamic.c_in, 3) * dynamic,
            of_static.c_noise,
            of_dynamic.c_noise,
            length,
            train,
        )
        parts = zip((of_static, of_dynamic), (static, dynamic), outputs, strict=True)
        return tuple(
            edm.expand(c.c_skip, x.ndim) * x + edm.expand(c.c_out, x.ndim) * out
            for c, x, out in parts
        )


def make_prior(spec: PriorSpec) -> nn.Module:
    """Builds the linen module of a description."""
    return JointPrior(spec)


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
      train: apply dropout.
    """

    p_mean: float = -0.4
    p_std: float = 1.2
    equal_share: float = 0.5
    clean_share: float = 0.15
    train: bool = True

    def __post_init__(self):
        """Raises ValueError for shares that are none."""
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
    rest have two independent levels. ``s`` and ``d`` weigh the same.

    Args:
      spec: description of the prior.
      **options: fields of ``LossOptions``.

    Returns:
      ``loss(params, constants, batch, key) -> (loss, {"loss": loss})`` of a batch with ``static``
      ``[B, S]``, ``dynamic`` ``[B, V, D]`` and optionally ``length`` ``[B]``.

    Raises:
      ValueError: an option out of range.

    References:
      Karras et al. 2022, equation 8; Bao et al. 2023 (UniDiffuser), section 3.
    """
    return _make_joint_loss(spec, LossOptions(**options))


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
        denoised = prior.apply(
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
    num_steps: int | None = None,
    solver: str | None = None,
) -> Factors:
    """Samples factors: both, d given s, or s given d.

    Args:
      spec: description of the prior.
      variables: its variables.
      key: typed key.
      count: number B of sequences.
      length: V.
      static: given s; then d is sampled and s returned as it is.
      dynamic: given d; then s is sampled and d returned as it is.
      lengths: real steps of each item, the rest is padding; None = all are real.
      num_steps: steps of the solver; None = 32.
      solver: name of the solver; None = Heun.

    Returns:
      ``static [B, S]`` and ``dynamic [B, V, D]``; padding is zero where d was sampled.

    Raises:
      ValueError: s and d are both given, or of other sizes than ``count``, ``length`` and ``spec``.
    """
    _check_given(spec, count, length, static, dynamic, lengths)
    run = (num_steps or DEFAULT_STEPS, solver or DEFAULT_SOLVER)
    return _sample_joint(spec, *run, count, length, variables, key, static, dynamic, lengths)


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


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _sample_joint(
    spec: PriorSpec,
    num_steps: int,
    solver: str,
    count: int,
    length: int,
    variables: Mapping[str, Any],
    key: Array,
    static: Array | None,
    dynamic: Array | None,
    lengths: Array | None,
) -> Factors:
    """``sample_factors`` of ``joint``: the solver's state is what is not given, flat."""
    prior, clean = make_prior(spec), jnp.full((count,), spec.sigma_min)
    sizes = {"static": spec.static_dim, "dynamic": length * spec.dynamic_dim}
    wanted = [name for name, given in (("static", static), ("dynamic", dynamic)) if given is None]
    split = np.cumsum([sizes[name] for name in wanted])[:-1]

    def unpack(x: Array) -> dict[str, Array]:
        parts = dict(zip(wanted, jnp.split(x, split, axis=1), strict=True))
        if "dynamic" in parts:
            parts["dynamic"] = parts["dynamic"].reshape(count, length, spec.dynamic_dim)
        return parts

    def denoise(x: Array, sigma: Array) -> Array:
        parts, level = unpack(x), jnp.broadcast_to(sigma, (count,))
        denoised = prior.apply(
            variables,
            parts.get("static", static),
            parts.get("dynamic", dynamic),
            level if static is None else clean,
            level if dynamic is None else clean,
            lengths,
        )
        denoised = dict(zip(("static", "dynamic"), denoised, strict=True))
        return jnp.concatenate([denoised[name].reshape(count, -1) for name in wanted], axis=1)

    grid = schedules.sigma_grid(num_steps, spec.sigma_min, spec.sigma_max, spec.rho)
    noise = jax.random.normal(stream(key, "start"), (count, sum(sizes[n] for n in wanted)))
    parts = unpack(samplers.heun(denoise, grid[0].astype(np.float32) * noise, grid))
    if "dynamic" in parts and lengths is not None:
        real = _real_steps(lengths, length)
        parts["dynamic"] = jnp.where(real[..., None], parts["dynamic"], 0.0)
    return Factors(static=parts.get("static", static), dynamic=parts.get("dynamic", dynamic))
