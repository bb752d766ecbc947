"""From waveforms to the normalised frames that a model sees, on the accelerator; their statistics.

Workers only decode and cut; everything after that is one jitted program on whole batches.
"""

import dataclasses
import functools
import json
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from diffsda_jax.audio.spectrogram import LinearSpec, MelSpec, log_linear, log_mel, resample
from diffsda_jax.data.sources.base import BrokenItemError, ElementSpec, Source, hash_of
from diffsda_jax.data.transforms import Normalizer, normalizer_from_sums

_LOG = logging.getLogger(__name__)
KINDS = ("mel", "linear")
_BATCH = 64
_Counts = TypeVar("_Counts", Int[np.ndarray, "B"], Array)
_MOST_FOR_STATISTICS = 50_000  # chunks; their mean and spread do not change with more


@dataclasses.dataclass(frozen=True)
class FrontEnd:
    """Waveform to log spectrogram frames.

    Attributes:
      kind: ``mel`` (HiFi-GAN's, at 22.05 kHz) or ``linear`` (at the rate of the source).
      source_rate_hz: of the waveforms.
      num_samples: N of a waveform.
    """

    kind: str
    source_rate_hz: int
    num_samples: int

    def __post_init__(self):
        """Checks the kind.

        Raises:
          ValueError: it is unknown.
        """
        if self.kind not in KINDS:
            raise ValueError(
                f"data.front_end is {self.kind!r}; allowed: {', '.join(map(repr, KINDS))}."
            )

    @property
    def spectrogram(self) -> MelSpec | LinearSpec:
        """What is computed, for `audio.griffin_lim` and vocoders too."""
        if self.kind == "mel":
            return MelSpec()
        return LinearSpec(sample_rate_hz=self.source_rate_hz)

    def __call__(self, x: Float[Array, "B N"]) -> Float[Array, "B V F"]:
        """Log spectrogram, not normalised."""
        spec = self.spectrogram
        if isinstance(spec, LinearSpec):
            return log_linear(x, spec)
        return log_mel(resample(x, self.source_rate_hz, spec.sample_rate_hz), spec)

    def shape(self) -> tuple[int, int]:
        """``(V, F)`` of the frames of one waveform."""
        x = jax.ShapeDtypeStruct((1, self.num_samples), jnp.float32)
        return jax.eval_shape(self.__call__, x).shape[1:]

    def num_frames(self, num_samples: _Counts) -> _Counts:
        """Frames, from the first on, that hold something of the first samples ``[B]``: 1 to V.

        Args:
          num_samples: number of real samples of each waveform, ``[B]``.

        Returns:
          Number of frames of each, ``[B]``.
        """
        spec = self.spectrogram
        samples_a_frame = spec.hop * self.source_rate_hz / spec.sample_rate_hz
        frames = -(-num_samples // samples_a_frame)
        return frames.clip(1, self.shape()[0]).astype(np.int32)

    def element(self, spec: ElementSpec) -> ElementSpec:
        """The element after the front end."""
        _, bins = self.shape()
        return dataclasses.replace(
            spec,
            kind="series",
            shape=(bins,),
            feature_names=tuple(f"{self.kind} {number}" for number in range(bins)),
            fps=self.spectrogram.sample_rate_hz / self.spectrogram.hop,
        )


def frames_of_batch(
    front_end: FrontEnd, normalizer: Normalizer
) -> Callable[[dict[str, Array]], dict[str, Array]]:
    """Makes of a batch of waveforms a batch of sequences, traceable by JAX.

    ``x`` ``[B, N]`` becomes ``[B, V, F]``, ``length`` counts frames instead of samples, and
    ``mask`` ``[B, V]`` is False in what only fills up a chunk.
    """
    frames_of = normalized(front_end, normalizer)

    def convert(batch: dict[str, Array]) -> dict[str, Array]:
        x, length = frames_of(batch["x"]), front_end.num_frames(batch["length"])
        mask = jnp.arange(x.shape[1])[None] < length[:, None]
        return {**batch, "x": x, "length": length, "mask": mask}

    return convert


def normalized(
    front_end: FrontEnd, normalizer: Normalizer
) -> Callable[[Float[Array, "B N"] | Float[np.ndarray, "B N"]], Float[Array, "B V F"]]:
    """The front end followed by the normaliser, traceable by JAX.

    Raises:
      ValueError: a normaliser that was fitted to nothing.
    """
    if normalizer.mean is None or normalizer.std is None:
        raise ValueError("frames of sound need a normalizer with mean and std; fit one to them.")
    mean = normalizer.mean[None, None]
    scale = (normalizer.target_std / normalizer.std)[None, None]
    return lambda x: _normalized(front_end, mean, scale, x)


@functools.partial(jax.jit, static_argnums=0)  # here: compiled once, however often it is asked for
def _normalized(
    front_end: FrontEnd,
    mean: Float[Array, "1 1 F"] | Float[np.ndarray, "1 1 F"],
    scale: Float[Array, "1 1 F"] | Float[np.ndarray, "1 1 F"],
    x: Float[Array, "B N"] | Float[np.ndarray, "B N"],
) -> Float[Array, "B V F"]:
    return (front_end(jnp.asarray(x)) - mean) * scale


def fit_front_end_normalizer(
    source: Source, front_end: FrontEnd, target_std: float, cache_dir: str | os.PathLike
) -> Normalizer:
    """Mean and spread of every bin over the training split, computed once and kept in a cache.

    At most 50,000 chunks, spread evenly over the split, are read.

    Args:
      source: the training split.
      front_end: makes the frames.
      target_std: standard deviation after normalising.
      cache_dir: of the machine; the file is named by a fingerprint of data and front end.

    Returns:
      The normaliser.

    Raises:
      ValueError: no chunk can be read, or too many cannot.
    """
    facts = [source.fingerprint(), dataclasses.asdict(front_end), target_std]
    file = Path(cache_dir).expanduser() / f"statistics-{hash_of(facts)}.json"
    known = _read_cache(file, front_end.shape()[1:])
    if known is not None:
        _LOG.info("statistics of %s/%s from %s", source.name, source.split, file)
        return known
    normalizer = _fit(source, front_end, target_std)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.with_suffix(f".{os.getpid()}.tmp")
        scratch.write_text(json.dumps(normalizer.to_dict()))
        scratch.replace(file)
    except OSError as error:
        _LOG.warning("statistics are not kept for the next start: %s", error)
    return normalizer


def _read_cache(file: Path, shape: tuple[int, ...]) -> Normalizer | None:
    """Statistics that an earlier start left; None without any, or with a damaged file."""
    try:
        normalizer = Normalizer.from_dict(json.loads(file.read_text()))
        both = normalizer.mean, normalizer.std
        if any(values is None or values.shape != shape for values in both):
            raise ValueError(f"expected {shape[0]} means and standard deviations")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _LOG.warning("statistics in %s cannot be read and are made anew: %s", file, error)
        return None
    return normalizer


def _fit(source: Source, front_end: FrontEnd, target_std: float) -> Normalizer:
    """Reads the chunks and sums up; see ``fit_front_end_normalizer``."""
    count = min(len(source), _MOST_FOR_STATISTICS)
    index = np.linspace(0, len(source) - 1, count).round().astype(int)
    spec = front_end.element(source.spec)
    shift, sums = None, np.zeros((3, *spec.shape))
    frames_of = jax.jit(front_end)
    with tqdm(total=count, desc="statistics", unit="chunk", disable=None) as bar:
        for block in _blocks(index, _BATCH):
            chunks = list(read_chunks(source, block))
            bar.update(len(block))
            if not chunks:
                continue
            frames = np.asarray(frames_of(_stack(chunks, _BATCH)))[: len(chunks)]
            counts = _num_frames(front_end, chunks)
            frames = frames[np.arange(frames.shape[1]) < counts[:, None]].astype(np.float64)
            shift = frames.mean(0) if shift is None else shift  # so that the squares lose no digits
            sums[0] += len(frames)
            sums[1] += (frames - shift).sum(0)
            sums[2] += ((frames - shift) ** 2).sum(0)
    if shift is None:
        raise ValueError(f"{source.name}/{source.split}: no element can be read")
    count_of, total, squares = sums
    return normalizer_from_sums(source, count_of, total, squares, shift, target_std)


def read_chunks(source: Source, index: np.ndarray) -> Iterator[dict[str, Any]]:
    """Elements at ``index`` ``[N]``, in order, read by threads; what cannot be read is counted."""

    def load(place: int) -> dict[str, Any] | str:
        try:
            return source.load(place, np.random.default_rng([0, place]))
        except BrokenItemError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        for place, element in zip(index, pool.map(load, map(int, index)), strict=True):
            if isinstance(element, str):
                source.skip(source.item_name(int(place)), element)
            else:
                yield element


def load_frames(
    source: Source, front_end: FrontEnd, normalizer: Normalizer, limit: int
) -> dict[str, np.ndarray]:
    """A split as normalised frames, for evaluation: like ``data.pipeline.load_arrays``.

    Args:
      source: any split.
      front_end: makes the frames.
      normalizer: of the training split.
      limit: chunks at most; of more, whole recordings are taken, spread evenly over the split.

    Returns:
      ``x`` ``[N, V, F]``, ``length`` in frames, and the labels of the source.

    Raises:
      ValueError: nothing can be read, or too much cannot.
    """
    frames_of = normalized(front_end, normalizer)
    arrays: list[dict[str, Any]] = []
    for block in _blocks(_choose(source, limit), _BATCH):
        chunks = list(read_chunks(source, block))
        if not chunks:
            continue
        frames = np.asarray(frames_of(_stack(chunks, _BATCH)))[: len(chunks)]
        counts = _num_frames(front_end, chunks)
        arrays += [
            {**chunk, "x": x, "length": count}
            for chunk, x, count in zip(chunks, frames, counts, strict=True)
        ]
    if not arrays:
        raise ValueError(f"{source.name}/{source.split}: no element can be read")
    return {
        key: np.stack(
            [np.asarray(array[key], None if key == "x" else np.int32) for array in arrays]
        )
        for key in arrays[0]
    }


def _choose(source: Source, limit: int) -> np.ndarray:
    """At most ``limit`` elements of whole recordings, in their order; one recording at least."""
    groups = source.groups()
    groups = np.arange(len(source)) if groups is None else groups
    if len(groups) <= limit:
        return np.arange(len(groups))
    names, sizes = np.unique(groups, return_counts=True)
    count = max(1, int(len(names) * limit / len(groups)))
    while True:
        chosen = np.linspace(0, len(names) - 1, count).round().astype(int)
        if count == 1 or sizes[chosen].sum() <= limit:
            return np.flatnonzero(np.isin(groups, names[chosen]))
        count -= 1


def _blocks(index: np.ndarray, size: int) -> list[np.ndarray]:
    """Consecutive parts of at most ``size``."""
    return [index[first : first + size] for first in range(0, len(index), size)]


def _num_frames(front_end: FrontEnd, chunks: list[dict[str, Any]]) -> np.ndarray:
    """Frames of each chunk that are not filling; all of them where the source knows no lengths."""
    samples = [chunk.get("length", len(chunk["x"])) for chunk in chunks]
    return front_end.num_frames(np.array(samples))


def _stack(chunks: list[dict[str, Any]], size: int) -> np.ndarray:
    """Waveforms ``[size, N]``, the last one repeated to fill: one size, one program."""
    x = np.stack([chunk["x"] for chunk in chunks])
    return np.concatenate([x, np.repeat(x[-1:], size - len(x), axis=0)])
