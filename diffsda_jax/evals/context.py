"""What all parts of an evaluation share: the model, the data, the factors and the settings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer

from diffsda_jax.data.sources.tasks import Task
from diffsda_jax.evals.choices import check_choice
from diffsda_jax.evals.interface import (
    Clips,
    FactorPrior,
    Lengths,
    SequenceModel,
    Sound,
    observed_values,
    with_one_static,
)
from diffsda_jax.evals.judges import Judge
from diffsda_jax.evals.swap import STARTS, decode_factors, make_pairs, make_start
from diffsda_jax.factors import Factors

FrameDecoder = Callable[[np.ndarray], np.ndarray]  # latents [N, V, h, w, E] to [N, V, H, W, 3]
Render = Callable[[np.ndarray, np.ndarray], Clips]  # of static and dynamic factors
# Places of the donors of the static factor and of the dynamics.
Pairs = tuple[Integer[np.ndarray, " P"], Integer[np.ndarray, " P"]]
FORMS = ("corrected", "reference")
INTERPOLATIONS = ("linear", "spherical")
_START_OF_FORM = {"corrected": "random", "reference": "target"}
_DEFAULT_PARTS = ("verification", "probes", "judge", "reconstruction", "swap", "one_factor")
_ALL_PARTS = (
    *_DEFAULT_PARTS,
    "utterances",
    "tasks",
    "known_factors",
    "disentanglement",
    "interventions",
    "faces",
    "face_reconstruction",
    "generation",
)


@dataclass(frozen=True)
class EvalSettings:
    """What the numbers of an evaluation depend on, besides the model and the data.

    Attributes:
      num_swaps: swaps, and at most as many clips to reconstruct.
      num_steps: sampler steps.
      solver: of the sampler, for the record: it is the model's own (``DiffSDA.using``).
      start: start noise of swaps: ``random``, ``zero``, ``target`` or ``donor``, see
        ``swap.make_start``. Empty: that of the form, which it then becomes.
        Decodes from one factor always start from random noise.
      seed: of pairs, start noise, the judge and the choice of pictures.
      form: ``corrected`` (swaps start from random noise) or ``reference`` (from ``x_T`` of the
        target, as the released code does for faces; padding counts in verification; the probes of
        tasks are reused from repeat to repeat).
      parts: which of the parts of an evaluation.
      judge_steps: optimiser steps of the judge.
      task_steps: optimiser steps of each repeat of the probes of tasks.
      batch_size: clips encoded and sampled at once.
      num_samples: clips that a prior makes in each way, and as many of each control.
      interpolation: of static factors, ``linear`` or ``spherical`` (about their mean).
    """

    num_swaps: int = 256
    num_steps: int = 32
    solver: str = "heun"
    start: str = ""
    seed: int = 0
    form: str = "corrected"
    parts: Sequence[str] = _DEFAULT_PARTS
    judge_steps: int = 600
    task_steps: int = 1000
    batch_size: int = 64
    num_samples: int = 256
    interpolation: str = "linear"

    def __post_init__(self):
        """Checks the choices and resolves the start noise.

        Raises:
          ValueError: a choice that is not allowed.
        """
        check_choice("form", self.form, FORMS)
        object.__setattr__(self, "start", self.start or _START_OF_FORM[self.form])
        check_choice("start", self.start, STARTS)
        check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        for part in self.parts:
            check_choice("parts", part, _ALL_PARTS)


@dataclass(frozen=True, kw_only=True)
class Domain:
    """What an evaluation may be given of the data beside arrays; each has a part that needs it.

    Attributes:
      sound: how speech is made audible.
      tasks: what the data set is used for.
      render: makes normalised clips from true factors.
      frame_decoder: makes frames of video latents; None where ``x`` are frames, or no first stage
        is known.
      given_pairs: places of the donors of given swaps; None draws pairs.
      networks: pretrained networks that look at frames, by role, see ``networks``.
      fps: frames a second of videos that are written.
      prior: samples factors of clips that never were, see `generation`.
      why_no_prior: why one that there is cannot be used; None where it can, or there is none.
    """

    sound: Sound | None = None
    tasks: Sequence[Task] = ()
    render: Render | None = None
    frame_decoder: FrameDecoder | None = None
    given_pairs: Pairs | None = None
    networks: Mapping[str, Any] = field(default_factory=dict)
    fps: float = 8.0
    prior: FactorPrior | None = None
    why_no_prior: str | None = None


@dataclass(frozen=True, kw_only=True)
class Context(Domain):
    """One evaluation.

    Attributes:
      model: what is evaluated.
      kind: ``video`` or ``series``.
      train: arrays of the training split: ``x`` and maybe ``mask``, ``length``, labels.
      test: the same of the test split.
      train_factors: factors of all training clips.
      test_factors: factors of all test clips.
      judge: trained judge, or None.
      settings: of the evaluation.
      readers: arrays that the judge was trained on, see ``enrolment``.
      trial: places of the test clips that are swapped, reconstructed and judged.
    """

    model: SequenceModel
    kind: str
    train: dict[str, Any]
    test: dict[str, Any]
    train_factors: Factors
    test_factors: Factors
    judge: Judge | None
    settings: EvalSettings
    readers: dict[str, Any]
    trial: Integer[np.ndarray, " T"]

    def to_frames(self, x: Clips) -> Float[np.ndarray, "B V H W C"]:
        """What is to be seen of video clips: frames ``[N, V, H, W, C]`` in [-1, 1]."""
        return x if self.frame_decoder is None else self.frame_decoder(x)

    def to_rgb(self, x: Clips) -> Float[np.ndarray, "B V H W 3"]:
        """RGB frames as a picture shows them, in [-1, 1]; a single channel is grey."""
        frames = np.clip(np.asarray(self.to_frames(x), np.float32), -1.0, 1.0)
        return np.repeat(frames, 3, -1) if frames.shape[-1] == 1 else frames

    def test_clips(self, index: Integer[np.ndarray, " P"]) -> tuple[Clips, Factors, Lengths | None]:
        """Some test clips, their factors and lengths."""
        return self.test["x"][index], self.test_factors[index], self.pick("length", index)

    def pick(self, name: str, index: Integer[np.ndarray, " P"]) -> Any:
        """An array of the test split at some clips, or None where there is no such array."""
        return self.test[name][index] if name in self.test else None

    def observed(self, index: Integer[np.ndarray, " P"]) -> Bool[np.ndarray, "P V *maskdims"]:
        """True where a value of a test clip was observed and is not padding."""
        x, _, length = self.test_clips(index)
        return observed_values(x.shape, length, self.pick("mask", index))

    def codes(self, split: str) -> Factors:
        """Factors of all clips of ``train`` or ``test`` to be read: with one s a clip."""
        data, factors = getattr(self, split), getattr(self, f"{split}_factors")
        return with_one_static(factors, data.get("length"))

    def some_clips(self) -> Integer[np.ndarray, " P"]:
        """Test clips for reconstructions, at most ``num_swaps``, fixed by the seed."""
        order = np.random.default_rng(self.settings.seed).permutation(self.trial)
        return order[: self.settings.num_swaps]

    def pairs(self) -> Pairs:
        """Donors of s and of d: those given, or drawn ones that differ in what labels there are."""
        if self.given_pairs is not None:
            return self.given_pairs
        labels = [
            self.test[name][self.trial]
            for name in ("static_label", "dynamic_label")
            if name in self.test and len(np.unique(self.test[name][self.trial])) > 1
        ]
        pairs = make_pairs(
            len(self.trial), self.settings.num_swaps, seed=self.settings.seed, labels=labels
        )
        return self.trial[pairs[0]], self.trial[pairs[1]]

    def why_no_swaps(self) -> str | None:
        """Why no swaps can be made, or None if they can."""
        count = len(self.trial)
        if count < 2:
            return f"there is {count} test clip; swaps need 2 or more"
        return None if self.settings.num_swaps > 0 else "num_swaps is 0; swaps need 1 or more"

    def why_no_frames(self) -> str | None:
        """Why the clips cannot be seen as frames, or None if they can."""
        if self.kind != "video":
            return "the data are not frames"
        channels = self.test["x"].shape[-1]
        if self.frame_decoder is None and channels not in (1, 3):
            return f"{channels} channels are not frames: set first_stage.checkpoint for latents"
        return None

    def decode(
        self,
        factors: Factors,
        static_index: np.ndarray,
        dynamic_index: np.ndarray,
        start: str | None = None,
    ) -> Clips:
        """Clips from mixed factors.

        Args:
          factors: of B clips.
          static_index: test clip of each static factor, ``[B]``.
          dynamic_index: test clip of each dynamic factor, ``[B]``.
          start: noise to decode from; None = that of the settings.

        Returns:
          The clips.
        """
        noise = make_start(
            self.model,
            start or self.settings.start,
            self.test["x"][dynamic_index].shape,
            target=self.test_clips(static_index),
            donor=self.test_clips(dynamic_index),
            num_steps=self.settings.num_steps,
            seed=self.settings.seed,
            batch_size=self.settings.batch_size,
        )
        return self.decode_from_noise(factors, noise)

    def decode_from_noise(
        self, factors: Factors, noise: Float[np.ndarray, "B V *element"] | None = None
    ) -> Clips:
        """Clips of factors that belong to no test clip, from given noise or that of the seed."""
        if noise is None:
            shape = (*factors.dynamic.shape[:2], *self.test["x"].shape[2:])
            rng = np.random.default_rng(self.settings.seed)
            noise = rng.standard_normal(shape, dtype=np.float32)
        return decode_factors(
            self.model,
            factors,
            noise,
            num_steps=self.settings.num_steps,
            batch_size=self.settings.batch_size,
        )
