"""How data of the user become what a model takes, and back, as its checkpoint says."""

import dataclasses
import functools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import Array
from jaxtyping import Float

from diffsda_jax.buckets import length_bucket
from diffsda_jax.data import audio_io
from diffsda_jax.data.media_reader import CSV_OPTIONS, read_files
from diffsda_jax.data.outline import Outline
from diffsda_jax.data.sequences import Sequences
from diffsda_jax.data.transforms import Normalizer, fit_length
from diffsda_jax.features import FrontEnd
from diffsda_jax.first_stage_api import FirstStage
from diffsda_jax.model import ModelSpec
from diffsda_jax.vocoders import Vocoder, make_vocoder

_LOG = logging.getLogger(__name__)
_PIXELS = (1, 3)  # channels of frames; another number is of latents
_MOST_DEVIATIONS = 6.0  # log spectra are kept within so many: they are exponents
_LARGEST_PIXEL = 2.0  # of frames as floats: decoded ones pass 1 by a little
_LEAST_SAMPLES = 4096  # of a waveform that the front end is given

Steps = list[np.ndarray]  # normalised sequences [V, ...] of any lengths


@dataclasses.dataclass(frozen=True)
class DataForm:
    """The preprocessing of one model's data.

    Attributes:
      kind: of the data: ``video``, ``audio`` or ``series``.
      shape: of one step of the model.
      normalizer: between the units of the data (after front end or first stage) and the model's.
      length: steps of a training sequence, or None if not known.
      stride: frames from one step to the next in training clips (video).
      resampled: series were brought to ``length`` steps by interpolation.
      front_end: makes frames of waveforms (audio).
      first_stage: makes latents of frames, for a model of latents.
      chunk_frames: frames that the first stage takes at once.
      vocoder: path of a HiFi-GAN checkpoint; empty = Griffin-Lim (audio).
      feature_names: columns of a series.
      rate: steps of the data a second, where the checkpoint says.
      csv_options: how tables are laid out.
    """

    kind: str
    shape: tuple[int, ...]
    normalizer: Normalizer
    length: int | None = None
    stride: int = 1
    resampled: bool = False
    front_end: FrontEnd | None = None
    first_stage: FirstStage | None = None
    chunk_frames: int = 8
    vocoder: str = ""
    feature_names: tuple[str, ...] | None = None
    rate: float | None = None
    csv_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        """Checks that nothing is missing which the data go through.

        Raises:
          ValueError: resampled series without a length, or audio without a front end.
        """
        if self.resampled and self.length is None:
            raise ValueError(
                "the series of this model were resampled, and length is None; the config in its "
                "checkpoint must hold data.length, to which they were."
            )
        if self.kind == "audio" and self.front_end is None:
            raise ValueError(
                "kind is 'audio' and front_end is None; give the one that makes the model's frames."
            )

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of the frames that are read, in pixels."""
        factor = 1 if self.first_stage is None else self.first_stage.spec.factor
        return self.shape[0] * factor, self.shape[1] * factor

    def read(self, x: Any, rate: float | None = None) -> Sequences:
        """Files or arrays as one batch, in the units of the data.

        Args:
          x: ``Sequences``; a path or a list of paths, see ``data.media_reader``; or arrays: one
            batch, one sequence, or a list of sequences. Video is ``[V, H, W, C]`` of 0 to 255 or,
            as floats, of -1 to 1; a series ``[V, F]`` with NaN for missing values; sound ``[N]``.
          rate: steps (samples) a second, where arrays or files do not say.

        Raises:
          FileNotFoundError: a path that does not exist.
          ValueError: data that this model does not take, or that cannot be read.
          ImportError: a package that a format needs is missing.
        """
        if isinstance(x, (str, os.PathLike)):
            x = [x]
        if isinstance(x, Sequences):
            sequences = x
        elif isinstance(x, (list, tuple)) and all(isinstance(p, (str, os.PathLike)) for p in x):
            sequences = self._read_files(x)
        else:
            sequences = self._read_arrays(x)
        self._check(sequences)
        default = self.rate if self.front_end is None else float(self.front_end.source_rate_hz)
        rates = tuple(own or rate or default for own in sequences.rates)
        return dataclasses.replace(sequences, rates=rates)

    def _read_files(self, paths: Sequence[str | os.PathLike]) -> Sequences:
        height, width = self.frame_size if self.kind == "video" else (0, 0)
        if height != width:
            raise ValueError(
                f"frames of this model are {height}x{width}, and files are read as squares; give "
                "arrays of frames instead."
            )
        return read_files(
            [Path(path) for path in paths],
            self.kind,
            size=height,
            feature_names=self.feature_names,
            csv_options=self.csv_options,
        )

    def _read_arrays(self, x: Any) -> Sequences:
        rank = {"video": 4, "series": 2, "audio": 1}[self.kind]
        arrays = [np.asarray(one) for one in x] if isinstance(x, (list, tuple)) else np.asarray(x)
        if isinstance(arrays, np.ndarray):
            arrays = [arrays] if arrays.ndim == rank else list(arrays)
        if not arrays or any(one.ndim != rank or not len(one) for one in arrays):
            raise ValueError(
                f"x holds arrays of shapes {[one.shape for one in arrays][:3]}; this model takes "
                f"{self.kind}, of which a sequence has {rank} axes and at least one step."
            )
        video = self.kind == "video"
        items = [_given_pixels(x) if video else np.asarray(x, np.float32) for x in arrays]
        names = [f"sequence_{place}" for place in range(len(items))]
        rates = [None] * len(items)
        return Sequences.join(items, self.kind, rates, names, self.feature_names)

    def _check(self, sequences: Sequences) -> None:
        """Refuses data of another kind or shape, and values that are infinite."""
        wanted = {"video": (*self.frame_size, 3) if self.kind == "video" else (), "audio": ()}
        event, shape = sequences.x.shape[2:], wanted.get(self.kind, self.shape)
        if sequences.kind != self.kind or event != shape:
            raise ValueError(
                f"the data are {sequences.kind} with steps of shape {event}; this model takes "
                f"{self.kind} with steps of shape {shape}."
            )
        own, given = self.feature_names, sequences.feature_names
        if own is not None and given is not None and own != given:
            raise ValueError(
                f"the series have the columns {', '.join(given)}; this model takes "
                f"{', '.join(own)}, in this order."
            )
        if np.isinf(sequences.x).any():
            raise ValueError("the data hold infinite values; set missing ones to NaN.")
        if self.kind == "audio" and np.isnan(sequences.x).any():
            raise ValueError("the waveforms hold values that are not numbers; mend them.")

    def to_steps(self, sequences: Sequences) -> tuple[Steps, Steps]:
        """Normalised sequences of the model and their masks (True = observed).

        Args:
          sequences: as ``read`` gives them.

        Returns:
          Arrays ``[V, ...]`` of the model's steps, and masks ``[V, F]`` of a series, else ``[V]``.
        """
        if self.kind == "series":
            pairs = [self._series_steps(x) for x in sequences.items()]
            return [x for x, _ in pairs], [mask for _, mask in pairs]
        if self.front_end is not None:
            sounds = zip(sequences.items(), sequences.sound_rates, strict=True)
            steps = [self._sound_steps(self.front_end, x, rate) for x, rate in sounds]
        else:
            steps = [self._frame_steps(x) for x in sequences.items()]
        return steps, [np.ones(len(x), bool) for x in steps]

    def _series_steps(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mask = ~np.isnan(x)
        x = np.where(mask, x, np.float32(0))
        if self.resampled:
            assert self.length is not None  # see __post_init__
            element = fit_length({"x": x, "mask": mask}, self.length)
            x, mask = element["x"], element["mask"]
        return self.normalizer.apply(x, mask), mask

    def _frame_steps(self, frames: np.ndarray) -> np.ndarray:
        x = frames.astype(np.float32) / 127.5 - 1.0
        if self.first_stage is not None:
            return self.normalizer.apply(self.first_stage.encode(x, self.chunk_frames))
        return x if self.shape[-1] == 3 else x.mean(-1, keepdims=True)

    def _sound_steps(self, front_end: FrontEnd, samples: np.ndarray, rate_hz: float) -> np.ndarray:
        """Frames of a whole recording; zeros after its end fill it up to a bucket."""
        spec = front_end.spectrogram
        samples = audio_io.resample(samples, round(rate_hz), front_end.source_rate_hz)
        count = audio_io.resampled_length(
            len(samples), front_end.source_rate_hz, spec.sample_rate_hz
        )
        frames = -(-count // spec.hop) + (front_end.kind == "linear")
        most = max(_LEAST_SAMPLES, length_bucket(len(samples) + 2 * spec.n_fft))
        padded = np.pad(samples, (0, most - len(samples)))
        return self.normalizer.apply(np.asarray(_frames(front_end, padded[None]))[0, :frames])

    def from_steps(self, steps: Steps, outline: Outline) -> Sequences:
        """Sequences in the units of the data from those of the model.

        Args:
          steps: normalised, ``[V, ...]`` each.
          outline: of each of them.

        Returns:
          The batch, with the lengths and rates of the outline.

        Raises:
          ValueError: steps of different shapes.
        """
        rates: Sequence[float | None] = outline.rates
        if self.front_end is not None:
            known = [rate or float(self.front_end.source_rate_hz) for rate in rates]
            items = [self._sound(self.front_end, x, r) for x, r in zip(steps, known, strict=True)]
            rates = known
        elif self.kind == "video":
            items = [self._frames_of(x) for x in steps]
        else:
            items = [self.normalizer.invert(x) for x in steps]
        if outline.lengths is not None:
            items = [self._as_long(x, n) for x, n in zip(items, outline.lengths, strict=True)]
        return Sequences.join(
            items, self.kind, rates, outline.names, self.feature_names, outline.columns
        )

    def _as_long(self, x: np.ndarray, length: int) -> np.ndarray:
        """As many steps as the data had."""
        if self.kind == "audio":
            return np.pad(x[:length], (0, max(0, length - len(x))))
        if self.resampled and len(x) != length:
            return fit_length({"x": x}, length)["x"]
        return x[:length]

    def _frames_of(self, x: np.ndarray) -> np.ndarray:
        if self.first_stage is not None:
            x = self.first_stage.decode(self.normalizer.invert(x), self.chunk_frames)
        return _pixels(x)

    def _sound(self, front_end: FrontEnd, x: np.ndarray, rate_hz: float) -> np.ndarray:
        """The waveform of normalised frames, at a rate of one's own."""
        spec, limit = front_end.spectrogram, _MOST_DEVIATIONS * self.normalizer.target_std
        frames = self.normalizer.invert(np.clip(np.nan_to_num(x), -limit, limit))
        filled = length_bucket(max(len(frames), _LEAST_SAMPLES // spec.hop))
        quiet = np.full((filled - len(frames), frames.shape[1]), np.log(spec.floor), np.float32)
        wave = np.asarray(self._play(np.concatenate([frames, quiet])[None]))[0]
        count = (len(frames) - (front_end.kind == "linear")) * spec.hop
        wave = np.clip(np.nan_to_num(wave[:count]), -1.0, 1.0).astype(np.float32)
        return audio_io.resample(wave, spec.sample_rate_hz, round(rate_hz))

    @functools.cached_property
    def _play(self) -> Vocoder:
        assert self.front_end is not None  # only sound is played
        return make_vocoder(self.front_end, self.vocoder)


@functools.partial(jax.jit, static_argnums=0)
def _frames(
    front_end: FrontEnd, x: Float[Array, "B N"] | Float[np.ndarray, "B N"]
) -> Float[Array, "B V F"]:
    return front_end(jnp.asarray(x))


def _given_pixels(x: np.ndarray) -> np.ndarray:
    """``_pixels`` of frames of the user; refuses floats that cannot be meant for [-1, 1]."""
    if np.issubdtype(x.dtype, np.floating) and not np.abs(x).max() <= _LARGEST_PIXEL:  # or NaN
        raise ValueError(
            f"frames hold floats from {x.min():g} to {x.max():g}; give -1 to 1, or whole numbers "
            "(uint8) from 0 to 255."
        )
    return _pixels(x)


def _pixels(x: np.ndarray) -> np.ndarray:
    """Frames ``[V, H, W, C]`` as RGB of 0 to 255; floats are in [-1, 1], what is outside is cut."""
    if np.issubdtype(x.dtype, np.floating):
        x = np.round((np.clip(np.nan_to_num(x), -1.0, 1.0) + 1.0) * 127.5)
    elif x.min() < 0 or x.max() > 255:
        raise ValueError(
            f"frames hold whole numbers from {x.min()} to {x.max()}; give 0 to 255, or floats from "
            "-1 to 1."
        )
    x = x.astype(np.uint8)
    return np.repeat(x, 3, axis=-1) if x.shape[-1] == 1 else x


def make_data_form(
    spec: ModelSpec,
    normalizer: Normalizer | None,
    meta: Mapping[str, Any],
    workdir: epath.Path | None = None,
    first_stage: str | None = None,
    vocoder: str | None = None,
) -> DataForm:
    """Reads from a checkpoint what was done to its data.

    Args:
      spec: of the model.
      normalizer: of the checkpoint; None leaves values as they are.
      meta: of the checkpoint.
      workdir: that it lies in, where a converted model has its first stage.
      first_stage: checkpoint of the first stage; None takes that of the run.
      vocoder: HiFi-GAN checkpoint; None takes that of the run.

    Raises:
      ValueError, FileNotFoundError: a first stage that is needed and missing, or another one than
        that of the latents; a given vocoder that does not fit.
    """
    config, source = meta.get("config") or {}, meta.get("source") or {}
    data, options = config.get("data", {}), config.get("source", {}).get("options", {})
    front_end = meta.get("front_end") and FrontEnd(**meta["front_end"])
    kind = "audio" if front_end else spec.kind
    if meta and normalizer is None and spec.kind == "series":
        _LOG.warning(
            "the checkpoint does not say how its data were normalised: values are taken and given "
            "as the network has them"
        )
    names = source.get("feature_names")
    settings = config.get("first_stage", {})
    form = DataForm(
        kind=kind,
        shape=tuple(spec.shape),
        normalizer=normalizer or Normalizer(target_std=spec.sigma_data),
        length=data.get("length"),
        stride=(options.get("stride") or 1) if spec.kind == "video" else 1,
        resampled=kind == "series" and data.get("length_mode") == "resample",
        front_end=front_end,
        first_stage=_find_first_stage(spec, meta, workdir, first_stage),
        chunk_frames=settings.get("chunk_frames", 8),
        vocoder=config.get("eval", {}).get("vocoder", "") if vocoder is None else vocoder,
        feature_names=tuple(names) if names and kind == "series" else None,
        rate=source.get("fps") if front_end is None else None,
        csv_options={k: options[k] for k in CSV_OPTIONS if options.get(k) is not None},
    )
    if vocoder and front_end:
        _ = form._play  # one that does not fit is named before anything is decoded
    return form


def _find_first_stage(
    spec: ModelSpec,
    meta: Mapping[str, Any],
    workdir: epath.Path | None,
    given: str | None,
) -> FirstStage | None:
    """The frame autoencoder of a model of latents; None for other models."""
    config = meta.get("config") or {}
    beside = None if workdir is None else workdir / "first_stage"
    is_beside = beside is not None and beside.is_dir()
    latent = config.get("source", {}).get("name") == "latents" or is_beside
    if spec.kind != "video" or not (latent or given or spec.shape[-1] not in _PIXELS):
        return None
    named = config.get("first_stage", {}).get("checkpoint")
    path = given or (named if named and epath.Path(named).expanduser().exists() else None)
    path = path or (str(beside) if is_beside else None)
    if path is None:
        raise ValueError(
            "the model is of latents of frames, and the first stage that makes them "
            f"({named or 'not named in the checkpoint'}) is not here; give its checkpoint by "
            "first_stage= (--first_stage=DIR on the command line)."
        )
    first_stage = FirstStage.from_checkpoint(path)
    known = ((meta.get("source") or {}).get("facts") or {}).get("first_stage")
    if first_stage.spec.embed_dim != spec.shape[-1] or known not in (
        None,
        first_stage.fingerprint(),
    ):
        raise ValueError(
            f"the first stage {path} is another one than that of the model's latents; give that "
            "one by first_stage= (--first_stage=DIR on the command line)."
        )
    return first_stage
