"""The public API of the prior: a trained one as an object that samples factors."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from diffsda_jax import prior
from diffsda_jax.data.transforms import Normalizer
from diffsda_jax.diffusion.samplers import SamplerSpec
from diffsda_jax.evals.interface import padded_batches, valid_steps
from diffsda_jax.factors import Factors
from diffsda_jax.model import ModelSpec
from diffsda_jax.prior import PriorSpec
from diffsda_jax.rngs import stream
from diffsda_jax.train.integrity import hash_weights

ArrayLike = Array | np.ndarray
FOLDER = "prior"  # of a sequence model's workdir
META_KEY = "prior"  # of a checkpoint: the description
HASH_KEY, WEIGHTS_KEY = "weights of the hash", "eval.weights"  # of what it was made from
_PARTS = ("static", "dynamic")
_BLOCK = 1024  # sequences sampled at once; bounds memory


class Prior:
    """A prior with its weights, which samples factors in the units of its sequence model.

    Every call is one jitted program for each block of up to 1,024 sequences, compiled once for each
    number of sequences and length. The same seed and count give the same factors.

    Attributes:
      spec: the prior's description.
      variables: collections ``params`` and ``constants``.
      normalizers: of s and of d, between the model's units and mean 0, standard deviation 1.
      sampler: with which the form ``joint`` is sampled.
      meta: what the checkpoint says of itself.

    References:
      DiffSDA (arXiv 2510.05717), section 3: ``p(s_0, d_0^{1:V})``.
    """

    def __init__(
        self,
        spec: PriorSpec,
        variables: Mapping[str, Any],
        normalizers: tuple[Normalizer, Normalizer],
        sampler: SamplerSpec | None = None,
        meta: Mapping[str, Any] | None = None,
    ):
        """Takes weights that fit ``spec``; see ``from_checkpoint`` for the usual way."""
        self.spec, self.variables = spec, dict(variables)
        self.normalizers, self.meta = normalizers, dict(meta or {})
        self.sampler = sampler or prior.DEFAULT_SAMPLER

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike, weights: str = "ema") -> "Prior":
        """Reads a prior that ``--mode=prior`` trained.

        Args:
          path: the workdir of the sequence model, its folder ``prior``, or one step's folder there.
          weights: ``"ema"``, the moving average, or ``"raw"``.

        Returns:
          The prior on this process's first device.

        Raises:
          FileNotFoundError: the directory does not exist, or the model in it has no prior.
          ValueError: it is no checkpoint of a prior, or a damaged one; or the model in the workdir
            was trained further since.
        """
        from diffsda_jax.train import checkpoint, integrity  # Orbax takes seconds to import

        workdir = integrity.absolute(path)
        place = workdir / FOLDER if (workdir / FOLDER).is_dir() else workdir
        found = place / checkpoint.FOLDER if place.name == FOLDER else place
        if place.name == FOLDER and not any(found.glob("*/meta")):
            raise FileNotFoundError(f"{place} holds no checkpoint yet: {_way_out(place.parent)}.")
        variables, meta = checkpoint.load_for_inference(place, weights)
        if META_KEY not in meta:
            raise FileNotFoundError(
                f"{path} holds a sequence model and no prior of it: {_way_out(path)}."
                if "model" in meta
                else f"{path} is no checkpoint of a prior: {_way_out('DIR')}."
            )
        newest = max(integrity.list_steps(workdir / checkpoint.FOLDER), default=None)
        if place != workdir and newest not in (None, meta["model_step"]):
            raise ValueError(
                f"the prior in {place} was trained with the model of step {meta['model_step']}, "
                f"but the newest in {workdir} is of step {newest}: move {place} away and "
                f"{_way_out(workdir)}; or give {place} to load the prior all the same."
            )
        spec = PriorSpec.from_dict(meta[META_KEY])
        integrity.check_compatible(prior.variable_shapes(spec), variables)
        static, dynamic = (Normalizer.from_dict(meta["factors"][of]) for of in _PARTS)
        normalizers = (static, dynamic)
        return cls(spec, variables, normalizers, SamplerSpec.from_dict(meta["sampler"]), meta)

    def check_model(self, spec: ModelSpec, variables: Mapping[str, Any], weights: str) -> None:
        """Refuses another sequence model than that whose factors the prior was trained on.

        A checkpoint that does not say of which model it is, such as a converted one, is not
        refused.

        Args:
          spec: of the sequence model.
          variables: of the sequence model.
          weights: which of its weights they are, ``"ema"`` or ``"raw"``.

        Raises:
          ValueError: it is another one; the message says what differs.
        """
        known = self.meta.get("made_from", {})
        found = {WEIGHTS_KEY: weights, HASH_KEY: hash_weights(repr(spec), variables)}
        for name, value in found.items():
            if name in known and known[name] != value:
                raise ValueError(
                    f"the prior was trained on factors of a model with {name} {known[name]!r}, and "
                    f"this model's are {value!r}: use that model, or move the folder {FOLDER} away "
                    f"and {_way_out('DIR')}."
                )

    def sample(
        self,
        count: int,
        length: int | None = None,
        *,
        seed: int = 0,
        lengths: Int[ArrayLike, "B"] | None = None,
    ) -> Factors:
        """Samples both factors of sequences that never were.

        Args:
          count: number B of sequences.
          length: V; None = as in training. Only the form ``joint`` samples other lengths.
          seed: of the draws.
          lengths: number of real steps of each sequence, the rest being padding; None = all.

        Returns:
          ``static [B, S]`` and ``dynamic [B, V, D]``, numpy arrays in the model's units.

        Raises:
          ValueError: a count or length below 1, a length that the form does not sample, or
            ``lengths`` that do not fit.
        """
        if count < 1:
            raise ValueError(f"count is {count}; it must be at least 1.")
        length = self._length(length)
        return self._sample("both", count, length, seed, _given_lengths(lengths, count, length))

    def sample_dynamic(
        self,
        static: Float[ArrayLike, "B S"],
        length: int | None = None,
        *,
        seed: int = 0,
        lengths: Int[ArrayLike, "B"] | None = None,
    ) -> Factors:
        """Samples dynamics for given static factors.

        Args:
          static: s of B sequences, as ``encode`` gives it.
          length: V; None = as in training.
          seed: of the draws.
          lengths: number of real steps of each sequence, the rest being padding; None = all.

        Returns:
          ``static`` as given and ``dynamic [B, V, D]``.

        Raises:
          ValueError: another size than the model's, a length that the form does not sample, or
            ``lengths`` that do not fit.
        """
        static = self._given("static", static, (self.spec.static_dim,))
        length = self._length(length)
        given = {"static": self.normalizers[0].apply(static)}
        given |= _given_lengths(lengths, len(static), length)
        return self._sample("dynamic", len(static), length, seed, given).replace(static=static)

    def sample_static(
        self,
        dynamic: Float[ArrayLike, "B V D"],
        *,
        seed: int = 0,
        lengths: Int[ArrayLike, "B"] | None = None,
    ) -> Factors:
        """Samples static factors for given dynamics.

        Args:
          dynamic: d of B sequences, as ``encode`` gives it.
          seed: of the draws.
          lengths: number of real steps of each sequence, the rest being padding; None = all.

        Returns:
          ``static [B, S]`` and ``dynamic`` as given.

        Raises:
          ValueError: another size than the model's, a length that the form does not sample, or
            ``lengths`` that do not fit.
        """
        dynamic = self._given("dynamic", dynamic, (None, self.spec.dynamic_dim))
        length = self._length(dynamic.shape[1])
        given = _given_lengths(lengths, len(dynamic), length)
        real = valid_steps((len(dynamic), length), given.get("lengths"))[..., None]
        normalised = self.normalizers[1].apply(dynamic)
        given["dynamic"] = np.where(real, normalised, np.float32(0))
        return self._sample("static", len(dynamic), length, seed, given).replace(dynamic=dynamic)

    def _length(self, length: int | None) -> int:
        """The length to sample.

        Raises:
          ValueError: one that the form does not sample.
        """
        length = self.spec.length if length is None else length
        if length < 1:
            raise ValueError(f"length is {length}; it must be at least 1.")
        if self.spec.form != "joint" and length != self.spec.length:
            raise ValueError(
                f"length is {length}, but this prior of form {self.spec.form!r} samples "
                f"{self.spec.length} steps only; leave length out, or train one of form 'joint' "
                "(--mode=prior --config.prior.form=joint), which samples any length."
            )
        return length

    def _given(self, name: str, values: ArrayLike, shape: tuple[int | None, ...]) -> np.ndarray:
        """Given factors on the host.

        Raises:
          ValueError: another shape than the model's, none at all, or values that are not finite.
        """
        values = np.asarray(values, np.float32)
        wanted = ("B", *("V" if size is None else size for size in shape))
        fits = values.ndim == len(wanted) and values.shape[-1] == shape[-1] and values.size
        if not fits or not np.isfinite(values).all():
            what = f"shape {values.shape}" if not fits else "values that are not finite"
            raise ValueError(
                f"{name} has {what}; this prior takes [{', '.join(map(str, wanted))}], as encode "
                "of its sequence model gives it."
            )
        return values

    def _sample(
        self, what: str, count: int, length: int, seed: int, given: dict[str, np.ndarray]
    ) -> Factors:
        """Samples block by block, and goes back to the model's units.

        What is sampled has noise of its own, so that one seed gives unrelated samples.
        """
        root, parts = jax.random.key(seed), []
        for block, (index, real) in enumerate(padded_batches(count, _BLOCK)):
            factors = prior.sample_factors(
                self.spec,
                self.variables,
                stream(root, f"prior/{what}", block),
                count=len(index),
                length=length,
                sampler=self.sampler,
                **{name: values[index] for name, values in given.items()},
            )
            parts.append([np.asarray(getattr(factors, of))[:real] for of in _PARTS])
        joined = (np.concatenate(part) for part in zip(*parts, strict=True))
        static, dynamic = (
            normalizer.invert(values)
            for normalizer, values in zip(self.normalizers, joined, strict=True)
        )
        return Factors(static=static, dynamic=dynamic)


def _given_lengths(
    lengths: Int[ArrayLike, "B"] | None, count: int, length: int
) -> dict[str, np.ndarray]:
    """Lengths by name, or nothing where there are none.

    Raises:
      ValueError: another number of them, or one below 1 or above ``length``.
    """
    if lengths is None:
        return {}
    values = np.asarray(lengths, np.int32)
    if values.shape != (count,) or values.min() < 1 or values.max() > length:
        raise ValueError(
            f"lengths has shape {values.shape} and values from {values.min(initial=length)} to "
            f"{values.max(initial=0)}; needed: one for each of the {count} sequences, 1 to "
            f"{length}."
        )
    return {"lengths": values}


def make_meta(
    spec: PriorSpec,
    normalizers: tuple[Normalizer, Normalizer],
    sampler: SamplerSpec,
    model_step: int,
) -> dict[str, Any]:
    """What a checkpoint must say for ``Prior.from_checkpoint``."""
    statistics = {of: n.to_dict() for of, n in zip(_PARTS, normalizers, strict=True)}
    return {
        META_KEY: spec.to_dict(),
        "factors": statistics,
        "sampler": sampler.to_dict(),
        "model_step": model_step,
    }


def _way_out(workdir: str | os.PathLike) -> str:
    """The command that trains a prior."""
    return (
        f"train one with python -m diffsda_jax.main --workdir={workdir} --mode=prior, with the "
        "--config of the model if it is not in the workdir"
    )
