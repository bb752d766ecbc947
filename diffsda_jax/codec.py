"""A trained or converted checkpoint as an object that encodes, decodes and inverts arrays."""

import copy
import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import Array
from jax.sharding import SingleDeviceSharding
from jaxtyping import Bool, Float, Int

from diffsda_jax import programs
from diffsda_jax.data.transforms import Normalizer
from diffsda_jax.diffusion import samplers
from diffsda_jax.diffusion.samplers import SamplerSpec
from diffsda_jax.factors import Factors
from diffsda_jax.model import ModelSpec, variable_shapes
from diffsda_jax.rngs import stream
from diffsda_jax.train import integrity

ArrayLike = Array | np.ndarray
SAMPLER_FILE = "sampler.json"  # in the workdir, of ``--mode=sampling``
logger = logging.getLogger(__name__)
_Kind = TypeVar("_Kind", bound="Codec")  # of a method's own class


class Codec:
    """A model with its weights, for arrays; every method is one jitted call.

    Arrays are channels last and normalised as the model was trained (``normalizer`` does it); the
    programs are compiled once for each shape.

    Attributes:
      spec: the model's description.
      variables: collections ``params`` and ``constants``.
      normalizer: between the units of the data and the model's, or None if not known.
      meta: what the checkpoint says of itself (step, config, ...).
      chosen_sampler: what ``--mode=sampling`` chose in the workdir, or that of a distilled model;
        None where nothing was chosen.
      sampler: what ``decode`` and ``invert`` do unless told otherwise: the chosen one, else Heun
        with 32 steps.
      origin: path or URL and weights that it was loaded by, or None.

    References:
      DiffSDA (arXiv 2510.05717), sections 3 and 4.
    """

    def __init__(
        self,
        spec: ModelSpec,
        variables: Mapping[str, Any],
        normalizer: Normalizer | None = None,
        meta: Mapping[str, Any] | None = None,
        sampler: SamplerSpec | None = None,
    ):
        """Takes weights that fit ``spec``; see ``from_checkpoint`` for the usual way."""
        self.spec, self.variables = spec, dict(variables)
        self.normalizer, self.meta = normalizer, dict(meta or {})
        self.chosen_sampler = sampler
        self.origin: tuple[str, str] | None = None

    @property
    def sampler(self) -> SamplerSpec:
        """What ``decode`` and ``invert`` do unless told otherwise."""
        return self.chosen_sampler or SamplerSpec()

    @property
    def can_invert(self) -> bool:
        """Whether ``invert`` works; a distilled model only goes from noise to data."""
        return not self.spec.sigma_identity and self.sampler.solver != samplers.CONSISTENCY

    @classmethod
    def from_checkpoint(
        cls: type[_Kind],
        path: str | os.PathLike,
        weights: str = "ema",
        *,
        precision: str | None = None,
        device: str | jax.Device | None = None,
    ) -> _Kind:
        """Reads a checkpoint, whatever number of devices saved it.

        Args:
          path: a run's workdir, its ``checkpoints`` folder, or one step's folder; local, or a URL
            such as ``gs://bucket/run``.
          weights: ``"ema"``, the moving average, or ``"raw"``.
          precision: of the network's large products, ``"float32"`` or ``"bfloat16"``; None = as it
            was trained.
          device: what computes, such as ``"cpu"``, ``"gpu"`` or ``"gpu:1"``, or one of
            ``jax.devices()``; None = this process's first device.

        Returns:
          The model.

        Raises:
          FileNotFoundError: the directory does not exist.
          ValueError: it is no checkpoint, is damaged, or of another architecture than it says; a
            ``sampler.json`` that cannot be read; or an unknown precision or device.
        """
        from diffsda_jax.train import checkpoint, integrity  # Orbax takes seconds to import

        sharding = None if device is None else SingleDeviceSharding(find_device(device))
        variables, meta = checkpoint.load_for_inference(path, weights, sharding)
        if "model" not in meta:
            raise ValueError(
                f"checkpoint {path} does not say which model it holds (no 'model' in its meta); "
                "train or convert it again with this package."
            )
        spec = ModelSpec.from_dict(meta["model"])
        integrity.check_compatible(variable_shapes(spec), variables)
        normalizer, sampler = meta.get("normalizer"), load_sampler(path, meta.get("step"))
        if sampler is None and "distilled" in meta:
            sampler = SamplerSpec.from_dict(meta["distilled"]["sampler"])
        model = cls(spec, variables, normalizer and Normalizer.from_dict(normalizer), meta, sampler)
        model.origin = (os.fspath(path), weights)
        return model if precision is None else model.using(precision=precision)

    def using(
        self: _Kind,
        solver: str | None = None,
        num_steps: int | None = None,
        eta: float | None = None,
        *,
        precision: str | None = None,
        sampler: SamplerSpec | None = None,
    ) -> _Kind:
        """The same weights with another default sampler or precision.

        Args:
          solver: one of ``samplers.SOLVERS``; None = the present one. Another one starts without
            the present one's eta and levels.
          num_steps: N; None = the present number.
          eta: share of the ancestral noise; None = the present one.
          precision: of the network's large products, ``"float32"`` or ``"bfloat16"``; None = the
            model's.
          sampler: all of a sampler at once, instead of the first three.

        Returns:
          A model that shares this one's variables.

        Raises:
          ValueError: a value that is not allowed, or a solver for distilled models where this
            one was not distilled.
        """
        sampler = sampler or self.chosen_sampler
        given: dict[str, Any] = {"num_steps": num_steps, "eta": eta}
        given = {name: value for name, value in given.items() if value is not None}
        if given or solver is not None:
            sampler = sampler or SamplerSpec()
            if solver is not None and solver != sampler.solver:
                sampler = SamplerSpec(solver, sampler.num_steps)
            sampler = dataclasses.replace(sampler, **given)
        # One evaluation from noise to data is the same for every denoiser.
        many = sampler and sampler.solver == samplers.CONSISTENCY and sampler.evaluations > 1
        if many and not self.spec.sigma_identity:
            raise ValueError(
                f"solver is {samplers.CONSISTENCY!r}, but this model was not distilled; choose one "
                f"of {', '.join(map(repr, samplers.SOLVERS))}, or load what --mode=distill made."
            )
        spec = self.spec
        if precision is not None:
            spec = dataclasses.replace(spec, precision=precision)
        model = copy.copy(self)
        model.spec, model.chosen_sampler = spec, sampler
        return model

    def encode(
        self,
        x: Float[ArrayLike, "B V *event"],
        length: Int[ArrayLike, "B"] | None = None,
        mask: Bool[ArrayLike, "B V *maskdims"] | None = None,
    ) -> Factors:
        """Splits sequences into a static and a dynamic factor.

        Args:
          x: ``[B, V, H, W, C]`` or ``[B, V, F]``, normalised.
          length: number of real steps of each sequence, the rest being padding; None = all.
          mask: True = observed, for a model that was trained to see it; None = all are.

        Returns:
          ``static [B, S]`` (``[B, V, S]`` with ``static_per_step``) and ``dynamic [B, V, D]``.

        Raises:
          ValueError: a shape that the model was not made for.
        """
        self._check_x("x", x)
        return programs.encode(self.spec, self.variables, x, length, mask)

    def denoise(
        self,
        x_noisy: Float[ArrayLike, "B V *event"],
        sigma: Float[ArrayLike, "*batch"] | float,
        factors: Factors,
    ) -> Float[Array, "B V *event"]:
        """``D(x; sigma, z)``: the expected clean sequence.

        Args:
          x_noisy: clean data plus noise of standard deviation ``sigma``.
          sigma: noise level: a number, ``[B]``, or ``[B, V]``.
          factors: of B sequences of V steps.

        Returns:
          An estimate of the clean data, shaped like ``x_noisy``.

        Raises:
          ValueError: shapes that do not fit.
        """
        self._check_x("x_noisy", x_noisy)
        self._check_factors(factors, x_noisy.shape[:2])
        sigma = jnp.asarray(sigma, jnp.float32)
        if sigma.shape not in ((), x_noisy.shape[:1], x_noisy.shape[:2]):
            raise ValueError(
                f"sigma has shape {sigma.shape}; allowed: one number, [B] = {x_noisy.shape[:1]} or "
                f"[B, V] = {x_noisy.shape[:2]}."
            )
        sigma = jnp.broadcast_to(sigma[..., None] if sigma.ndim == 1 else sigma, x_noisy.shape[:2])
        return programs.denoise(
            self.spec, self.variables, x_noisy, sigma, factors.replace(lengths=None)
        )

    def decode(
        self,
        factors: Factors,
        start: Float[ArrayLike, "B V *event"] | None = None,
        num_steps: int | None = None,
        seed: int = 0,
        solver: str | None = None,
        eta: float | None = None,
        precision: str | None = None,
    ) -> Float[Array, "B V *event"]:
        """Decodes factors: from noise to data along the probability-flow ODE, all steps at once.

        What is None is as in ``sampler``, see ``using``.

        Args:
          factors: of B sequences of V steps.
          start: unit-variance noise to start from, such as ``invert`` gives; None = drawn.
          num_steps: N; costs N evaluations of the network, with Heun ``2 N - 1``.
          seed: of the drawn noise.
          solver: one of ``samplers.SOLVERS``.
          eta: share of noise added on the way, 0 to 1 (``euler`` and ``dpmpp_2m``).
          precision: ``"float32"`` or ``"bfloat16"``: of the numbers that the network's large
            products multiply. The state and the steps between are float32.

        Returns:
          Normalised data, ``[B, V, ...]``, float32.

        Raises:
          ValueError: shapes that do not fit, or a sampler that does not exist.
        """
        model = self.using(solver, num_steps, eta, precision=precision)
        shape = (*factors.dynamic.shape[:2], *self.spec.shape)
        self._check_factors(factors, shape[:2])
        if start is None:
            start = jax.random.normal(stream(jax.random.key(seed), "start"), shape)
        elif tuple(start.shape) != shape:
            raise ValueError(
                f"start has shape {tuple(start.shape)}, but the factors call for {shape}; give "
                "noise of that shape, or None to draw it."
            )
        key = stream(jax.random.key(seed), "sample")
        factors = factors.replace(lengths=None)
        return programs.decode(model.spec, model.sampler, self.variables, start, factors, key)

    def invert(
        self,
        x: Float[ArrayLike, "B V *event"],
        factors: Factors,
        num_steps: int | None = None,
        solver: str | None = None,
        precision: str | None = None,
    ) -> Float[Array, "B V *event"]:
        """Stochastic encoding: the noise ``x_T`` from which ``decode`` gives ``x`` back.

        What is None is as in ``sampler``, see ``using``; its eta does not count.

        Args:
          x: normalised data.
          factors: of ``x``.
          num_steps: N; costs N evaluations of the network, with Heun ``2 N - 1``.
          solver: one of ``samplers.SOLVERS``.
          precision: as in ``decode``.

        Returns:
          Noise of about unit variance, shaped like ``x``.

        Raises:
          ValueError: shapes that do not fit, a sampler that does not exist, or a model that was
            distilled.
        """
        self._check_x("x", x)
        self._check_factors(factors, x.shape[:2])
        model = self.using(solver, num_steps, eta=0.0, precision=precision)
        if not model.can_invert:
            raise ValueError(
                "a distilled model cannot invert; invert with the one it is made from."
            )
        factors = factors.replace(lengths=None)
        return programs.invert(model.spec, model.sampler, self.variables, x, factors)

    def _check_x(self, name: str, x: ArrayLike) -> None:
        """Refuses data whose steps do not have the model's shape, or that are not finite."""
        if isinstance(x, np.ndarray) and not np.isfinite(x).all():
            raise ValueError(
                f"{name} holds {int((~np.isfinite(x)).sum())} values that are not finite; set "
                "missing ones to 0 and tell them by mask= (normalizer.apply(x, mask) does the "
                "first)."
            )
        if tuple(x.shape[2:]) != self.spec.shape or len(x.shape) < 3:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}; this model takes [B, V, "
                f"{', '.join(map(str, self.spec.shape))}], channels last."
            )

    def _check_factors(self, factors: Factors, batch_and_steps: tuple[int, ...]) -> None:
        """Refuses factors of other sizes than the model's and the data's."""
        batch, steps = batch_and_steps
        expected = ((batch, self.spec.static_dim), (batch, steps, self.spec.dynamic_dim))
        found = (tuple(factors.static.shape), tuple(factors.dynamic.shape))
        per_step = ((batch, steps, self.spec.static_dim), expected[1])
        if found != expected and not (self.spec.static_per_step and found == per_step):
            raise ValueError(
                f"factors have shapes static {found[0]} and dynamic {found[1]}; expected "
                f"{expected[0]} and {expected[1]}."
            )


def load_sampler(path: str | os.PathLike, step: int | None = None) -> SamplerSpec | None:
    """The sampler that ``--mode=sampling`` chose for the run that a path lies in.

    Args:
      path: a run's workdir, its ``checkpoints`` folder, or one step's folder.
      step: of the checkpoint that is read; one chosen at another step is used too, and logged.

    Returns:
      The sampler, or None where none was chosen.

    Raises:
      ValueError: the file is damaged.
    """
    workdir = find_workdir(path)
    file = workdir / SAMPLER_FILE
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text())
        sampler = SamplerSpec.from_dict(values["sampler"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} cannot be read ({error}); run --mode=sampling again, or remove it to sample "
            "with Heun."
        ) from error
    if step is not None and values.get("step") != step:
        logger.warning(
            "%s was chosen at step %s and is used at step %s; --mode=sampling chooses again",
            file,
            values.get("step"),
            step,
        )
    return sampler


def find_workdir(path: str | os.PathLike) -> epath.Path:
    """The workdir that a path of a checkpoint lies in; see ``load_sampler`` for what it may be."""
    workdir = integrity.absolute(path)
    if not (workdir / "checkpoints").is_dir():  # not a workdir, so it lies in one
        parts = (workdir, *workdir.parents)
        names = [part.name for part in parts[:2]]
        workdir = parts[names.index("checkpoints") + 1 if "checkpoints" in names else 0]
    return workdir


def find_device(device: str | jax.Device) -> jax.Device:
    """A device of this process by its platform and number.

    Args:
      device: ``"cpu"``, ``"gpu"`` or ``"tpu"``, or with a number ``"gpu:1"``; or a device itself.

    Raises:
      ValueError: there is none of this name here.
    """
    if not isinstance(device, str):
        return device
    platform, _, number = device.partition(":")
    try:
        return jax.local_devices(backend=platform)[int(number or 0)]
    except (RuntimeError, ValueError, IndexError):
        platforms = {device.platform for device in jax.local_devices()} | {"cpu"}
        raise ValueError(
            f"device is {device!r}; there are here: "
            + ", ".join(f"{p!r} ({len(jax.local_devices(backend=p))})" for p in sorted(platforms))
            + "; a number after a colon chooses, from 0."
        ) from None
