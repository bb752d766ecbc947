"""A model that takes the files and arrays of people: what the verbs of the public API share."""

import functools
import os
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from etils import epath
from jaxtyping import Bool, Int

from diffsda_jax import codec
from diffsda_jax.codec import ArrayLike, Codec
from diffsda_jax.data.outline import Outline, outline_of
from diffsda_jax.data.sequences import Sequences
from diffsda_jax.data_form import DataForm, Steps, make_data_form
from diffsda_jax.evals.choices import check_choice
from diffsda_jax.factors import Factors
from diffsda_jax.model import ModelSpec
from diffsda_jax.prior_api import FOLDER, Prior
from diffsda_jax.windowed import (
    decode_windows,
    draw_noise,
    encode_windows,
    invert_windows,
    known_lengths,
    with_lengths,
)

STARTS = ("random", "zero", "inverted")
_BATCH = 16  # windows at once where the run does not say
_WINDOW = 16  # steps decoded at once where the length of training is not known
_Kind = TypeVar("_Kind", bound="MediaCodec")


class Encoded(NamedTuple):
    """Sequences that were encoded.

    Attributes:
      factors: numpy arrays, with ``lengths`` in the model's steps.
      outline: of the sequences.
      steps: the normalised sequences, or None where factors were given.
    """

    factors: Factors
    outline: Outline
    steps: Steps | None

    def pick(self, places: list[int]) -> tuple[Steps | None, Factors]:
        """The normalised data of some places, or None, and their factors."""
        steps = None if self.steps is None else [self.steps[place] for place in places]
        return steps, self.factors[places]


class MediaCodec(Codec):
    """A ``Codec`` that reads files, and takes sequences of any number and length.

    Attributes:
      form: what the data went through, as the checkpoint says.
      batch_size: windows that go through the network at once at most.
    """

    _places: tuple[str | None, str | None] = (None, None)  # of first stage and vocoder

    @classmethod
    def from_checkpoint(
        cls: type[_Kind],
        path: str | os.PathLike,
        weights: str = "ema",
        *,
        precision: str | None = None,
        device: str | jax.Device | None = None,
        first_stage: str | None = None,
        vocoder: str | None = None,
    ) -> _Kind:
        """Reads a checkpoint; see ``Codec.from_checkpoint``.

        Args:
          path: a run's workdir, its ``checkpoints`` folder, or one step's folder; local or a URL
            such as ``gs://bucket/run``.
          weights: ``"ema"``, the moving average, or ``"raw"``.
          precision: ``"float32"`` or ``"bfloat16"``; None = as it was trained.
          device: such as ``"cpu"`` or ``"gpu:1"``; None = this process's first device.
          first_stage: checkpoint of the frame autoencoder of a model of latents; None = the run's.
          vocoder: HiFi-GAN checkpoint; None = the run's, else Griffin-Lim.

        Returns:
          The model.

        Raises:
          FileNotFoundError, ValueError: see ``Codec.from_checkpoint``.
        """
        model = super().from_checkpoint(path, weights, precision=precision, device=device)
        model._places = (first_stage, vocoder)
        return model

    @functools.cached_property
    def form(self) -> DataForm:
        """What the data went through, as the checkpoint says; see ``data_form``.

        Raises:
          ValueError: a vocoder was given to a model that makes no sound.
        """
        workdir = None if self.origin is None else codec.find_workdir(self.origin[0])
        form = make_data_form(self.spec, self.normalizer, self.meta, workdir, *self._places)
        if self._places[1] and form.kind != "audio":
            raise ValueError(
                f"vocoder is {self._places[1]!r}, but this model is of {form.kind}, which makes no "
                "sound; leave it out."
            )
        return form

    def read(self, x: Any, rate: float | None = None) -> Sequences:
        """Files or arrays as one batch in the units of the data; see ``DataForm.read``.

        Args:
          x: ``Sequences``; a path or a list of paths (mp4, gif or folders of frames; wav, flac;
            csv; npz); or arrays: one batch, one sequence or a list of sequences. Video is
            ``[V, H, W, C]`` of 0 to 255 (floats: -1 to 1), a series ``[V, F]`` with NaN for
            missing values, sound ``[N]``.
          rate: steps (samples) a second, where arrays or files do not say.

        Returns:
          The batch.

        Raises:
          FileNotFoundError, ValueError, ImportError: see ``DataForm.read``.
        """
        return self.form.read(x, rate)

    def encode(
        self,
        x: Any,
        length: Int[ArrayLike, "B"] | None = None,
        mask: Bool[ArrayLike, "B V *maskdims"] | None = None,
        *,
        progress: bool = False,
    ) -> Factors:
        """Splits sequences into a static and a dynamic factor.

        Args:
          x: a path, ``Sequences``, or a list of paths or of arrays ``[V, ...]``, in the units of
            the data; or one array ``[B, V, H, W, C]`` or ``[B, V, F]``, normalised.
          length: for arrays: number of real steps of each sequence; None = all.
          mask: for arrays: True = observed, for a model that was trained to see it; None = all are.
          progress: shows a bar, for files and ``Sequences``.

        Returns:
          ``static [B, S]`` (``[B, V, S]`` with ``static_per_step``) and ``dynamic [B, V, D]``; of
          files and ``Sequences`` numpy arrays, with the ``lengths``. s of a sequence that is longer
          than those of training is the mean over windows of that length; frames of a video are as
          far from one another in them as in training (``form.stride``).

        Raises:
          FileNotFoundError, ValueError, ImportError: see ``read``; a shape that the model was not
            made for.
        """
        if isinstance(x, (str, os.PathLike, Sequences, list, tuple)):
            return self._encoded(x, progress=progress).factors
        return super().encode(x, length, mask)

    def has_prior(self) -> bool:
        """Whether there is a prior beside the checkpoint."""
        return self.origin is not None and (codec.find_workdir(self.origin[0]) / FOLDER).is_dir()

    def explored(self) -> epath.Path | None:
        """Where ``--mode=explore`` keeps the components of this checkpoint by its defaults."""
        if self.origin is None:
            return None
        folder = codec.find_workdir(self.origin[0]) / "explore"
        return folder / f"{int(self.meta.get('step', 0)):08d}" / "components.npz"

    def load_prior(self) -> Prior:
        """The prior that ``--mode=prior`` trained in the checkpoint's workdir.

        Raises:
          FileNotFoundError: there is none.
          ValueError: it cannot be read, or is of another model.
        """
        if self.origin is None:
            raise FileNotFoundError(
                "this model was not loaded from a workdir, where a prior would be; use "
                "DiffSDA.from_checkpoint."
            )
        path, weights = self.origin
        prior = Prior.from_checkpoint(codec.find_workdir(path), weights)
        # The description that the weights were saved with: precision may be another by now.
        prior.check_model(ModelSpec.from_dict(self.meta["model"]), self.variables, weights)
        return prior

    def _encoded(self, x: Any, name: str = "sequence", progress: bool = False) -> Encoded:
        """Factors of what a verb is given."""
        if isinstance(x, Factors):
            factors = with_lengths(x)
            self._check_factors(factors, factors.dynamic.shape[:2])
            names = tuple(f"{name}_{place}" for place in range(len(factors)))
            return Encoded(factors, Outline(names, (self.form.rate,) * len(factors)), None)
        sequences = self.form.read(x)
        steps, masks = self.form.to_steps(sequences)
        sizes = (self.form.length, self.batch_size)
        stride = self.form.stride
        factors = encode_windows(self, steps, masks, *sizes, stride=stride, progress=progress)
        return Encoded(factors, outline_of(sequences), steps)

    def _decoded(
        self,
        factors: Factors,
        outline: Outline,
        start: str,
        seed: int,
        progress: bool,
        own: tuple[Steps | None, Factors] | None = None,
        noise_of: list[int] | None = None,
    ) -> Sequences:
        """Sequences of factors, in the units of the data.

        Args:
          factors: of B sequences.
          outline: of them.
          start: one of ``STARTS``.
          seed: of random noise.
          progress: shows a bar.
          own: for ``"inverted"``: the normalised data whose noise it is, and their factors.
          noise_of: number of the random noise of each sequence; None = its place.

        Raises:
          ValueError: an unknown start, or ``"inverted"`` without data.
        """
        check_choice("start", start, STARTS)
        factors = with_lengths(factors)
        sizes = (self.form.length or _WINDOW, self.batch_size)
        if start == "inverted":
            if own is None or own[0] is None:
                raise ValueError(
                    "start is 'inverted', but there are no data whose noise could be found; "
                    "allowed here: 'random', 'zero'."
                )
            noise = invert_windows(self, own[0], own[1], *sizes)
        else:
            noise = draw_noise(known_lengths(factors), self.spec.shape, seed, noise_of)
            noise = [x if start == "random" else np.zeros_like(x) for x in noise]
        found = decode_windows(self, factors, noise, *sizes, seed=seed, progress=progress)
        return self.form.from_steps(found, outline)

    @property
    def batch_size(self) -> int:
        """Windows that go through the network at once at most: ``eval.batch_size`` of the run."""
        return (self.meta.get("config") or {}).get("eval", {}).get("batch_size", _BATCH)
