"""Sequences of any number and length through a model: windows in, and whole sequences out."""

from collections.abc import Callable, Sequence

import numpy as np
from tqdm.auto import tqdm

from diffsda_jax.buckets import Window, batches, cut_windows, fitting_stride
from diffsda_jax.codec import Codec
from diffsda_jax.factors import Factors

Steps = Sequence[np.ndarray]  # sequences [V, ...] of any lengths


def encode_windows(
    model: Codec,
    steps: Steps,
    masks: Steps,
    size: int | None,
    batch_size: int,
    *,
    stride: int = 1,
    progress: bool = False,
) -> Factors:
    """Factors of normalised sequences.

    Args:
      model: of the sequences.
      steps: ``[V, ...]`` each.
      masks: True = observed, ``[V, F]`` of a series.
      size: steps of a window; None = each sequence at once.
      batch_size: windows at once at most.
      stride: steps from one to the next that the model sees; a sequence is encoded as so many that
        lie between each other, or as fewer, where the first would have less than ``size`` steps.
      progress: shows a bar.

    Returns:
      Numpy arrays: s the mean over the windows of a sequence, weighted by the steps that are their
      own, d and the ``lengths`` of whole sequences, zeros after the end.
    """
    strides = [fitting_stride(stride, len(x), size) for x in steps]
    if max(strides, default=1) > 1:
        apart, seen = (
            [x[k::own] for x, own in zip(each, strides, strict=True) for k in range(own)]
            for each in (steps, masks)
        )
        found = encode_windows(model, apart, seen, size, batch_size, progress=progress)
        return _woven(found, strides)
    lengths = np.array([len(x) for x in steps], np.int32)
    windows = cut_windows(lengths.tolist(), size)
    parts: dict[int, Factors] = {}
    with _bar("encoding", windows, progress) as bar:
        for group, rows, width in batches(windows, batch_size):
            inside = [(w.sequence, slice(w.start, w.stop)) for _, w in group]
            x = _fill([steps[place][own] for place, own in inside], rows, width)
            real = [w.stop - w.start for _, w in group]
            length = np.array(real + [1] * (rows - len(real)), np.int32)
            mask = None
            if model.spec.encoder_sees_mask:
                mask = _fill([masks[place][own] for place, own in inside], rows, width)
            found = model.encode(x, length, mask)
            static, dynamic = np.asarray(found.static), np.asarray(found.dynamic)
            for row, (place, _) in enumerate(group):
                parts[place] = Factors(static=static[[row]], dynamic=dynamic[[row]])
            bar.update(len(group))
    return _whole(windows, [parts[place] for place in range(len(windows))], lengths)


def _woven(apart: Factors, strides: Sequence[int]) -> Factors:
    """Factors of sequences from those of every second (third, ...) of their steps."""
    counts, per_step = known_lengths(apart), apart.static.ndim == 3
    begins = np.cumsum([0, *strides[:-1]])
    lengths = np.add.reduceat(counts, begins).astype(np.int32)
    most, batch = int(lengths.max()), len(strides)
    dynamic = np.zeros((batch, most, apart.dynamic.shape[-1]), np.float32)
    static = np.zeros((batch, *((most,) if per_step else ()), apart.static.shape[-1]), np.float32)
    for row, (begin, stride) in enumerate(zip(begins, strides, strict=True)):
        for place in range(stride):
            part, count = begin + place, counts[begin + place]
            own = slice(place, lengths[row], stride)
            dynamic[row, own] = apart.dynamic[part, :count]
            if per_step:
                static[row, own] = apart.static[part, :count]
            else:
                static[row] += np.float32(count / lengths[row]) * apart.static[part]
    return Factors(static=static, dynamic=dynamic, lengths=lengths)


def _bar(what: str, windows: Sequence[Window], shown: bool) -> tqdm:
    """A bar on standard error that counts windows."""
    return tqdm(total=len(windows), desc=what, unit="window", disable=not shown)


def _whole(windows: Sequence[Window], parts: Sequence[Factors], lengths: np.ndarray) -> Factors:
    """Factors of sequences from those of their windows."""
    per_step = parts[0].static.ndim == 3
    most, size = int(lengths.max()), parts[0].static.shape[-1]
    static = np.zeros((len(lengths), *((most,) if per_step else ()), size), np.float32)
    dynamic = np.zeros((len(lengths), most, parts[0].dynamic.shape[-1]), np.float32)
    for window, part in zip(windows, parts, strict=True):
        own = slice(window.own, window.stop)
        inside = slice(window.own - window.start, window.stop - window.start)
        dynamic[window.sequence, own] = part.dynamic[0, inside]
        if per_step:
            static[window.sequence, own] = part.static[0, inside]
        else:
            share = np.float32((window.stop - window.own) / lengths[window.sequence])
            static[window.sequence] += share * part.static[0]
    return Factors(static=static, dynamic=dynamic, lengths=lengths)


def decode_windows(
    model: Codec,
    factors: Factors,
    noise: Steps,
    size: int | None,
    batch_size: int,
    *,
    seed: int = 0,
    progress: bool = False,
) -> list[np.ndarray]:
    """Normalised sequences ``[V, ...]`` of factors, by windows.

    Steps do not see each other, so windows change nothing.

    Args:
      model: of the factors.
      factors: numpy arrays with ``lengths``.
      noise: unit-variance start of each sequence ``[V, ...]``.
      size: steps of a window; None = each sequence at once.
      batch_size: windows at once at most.
      seed: of noise that a sampler adds on the way, if it does (``eta`` above 0); another
        ``batch_size`` or other sequences beside one give it another draw.
      progress: shows a bar.
    """

    def run(group: list[tuple[int, Window]], rows: int, width: int) -> np.ndarray:
        start = _fill([noise[w.sequence][w.start : w.stop] for _, w in group], rows, width)
        own_seed = seed + group[0][0]
        return np.asarray(model.decode(_part(factors, group, rows, width), start, seed=own_seed))

    return _map(run, known_lengths(factors), size, batch_size, progress)


def invert_windows(
    model: Codec, steps: Steps, factors: Factors, size: int | None, batch_size: int
) -> list[np.ndarray]:
    """The noise ``[V, ...]`` from which ``decode_windows`` gives each sequence back; see there."""

    def run(group: list[tuple[int, Window]], rows: int, width: int) -> np.ndarray:
        x = _fill([steps[w.sequence][w.start : w.stop] for _, w in group], rows, width)
        return np.asarray(model.invert(x, _part(factors, group, rows, width)))

    return _map(run, known_lengths(factors), size, batch_size, progress=False)


def _map(
    run: Callable, lengths: np.ndarray, size: int | None, batch_size: int, progress: bool
) -> list[np.ndarray]:
    """What ``run`` makes of all windows, joined to sequences."""
    windows = cut_windows(lengths.tolist(), size)
    whole: dict[int, np.ndarray] = {}
    with _bar("decoding", windows, progress) as bar:
        for group, rows, width in batches(windows, batch_size):
            result = run(group, rows, width)
            for row, (_, window) in enumerate(group):
                if window.sequence not in whole:
                    shape = (lengths[window.sequence], *result.shape[2:])
                    whole[window.sequence] = np.zeros(shape, result.dtype)
                values = result[row, : window.stop - window.start]
                whole[window.sequence][window.start : window.stop] = values
            bar.update(len(group))
    return [whole[place] for place in range(len(lengths))]


def _part(factors: Factors, group: list[tuple[int, Window]], rows: int, width: int) -> Factors:
    """Factors of windows, filled up."""
    given = np.asarray(factors.dynamic)
    dynamic = [given[w.sequence, w.start : w.stop] for _, w in group]
    static = np.asarray(factors.static)[[w.sequence for _, w in group]]
    if static.ndim == 3:
        parts = zip(static, group, strict=True)
        filled = _fill([one[w.start : w.stop] for one, (_, w) in parts], rows, width)
    else:
        filled = np.concatenate([static, np.repeat(static[-1:], rows - len(static), axis=0)])
    return Factors(static=filled, dynamic=_fill(dynamic, rows, width))


def _fill(parts: Sequence[np.ndarray], rows: int, width: int) -> np.ndarray:
    """Arrays ``[V, ...]`` as one ``[rows, width, ...]``, zeros where there is nothing."""
    out = np.zeros((rows, width, *parts[0].shape[1:]), parts[0].dtype)
    for row, part in zip(out, parts, strict=False):
        row[: len(part)] = part
    return out


def join_factors(batch: Sequence[Factors]) -> Factors:
    """Batches of factors as one, filled up to the longest; numpy arrays with ``lengths``."""
    batch = [with_lengths(one) for one in batch]
    most = max(one.dynamic.shape[1] for one in batch)

    def joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
        parts = [
            np.pad(x, [(0, 0), (0, most - x.shape[1]), (0, 0)]) if x.ndim == 3 else x
            for x in arrays
        ]
        return np.concatenate(parts)

    return Factors(
        static=joined([np.asarray(one.static) for one in batch]),
        dynamic=joined([np.asarray(one.dynamic) for one in batch]),
        lengths=np.concatenate([known_lengths(one) for one in batch]),
    )


def with_lengths(factors: Factors) -> Factors:
    """Factors as numpy arrays with the lengths of their sequences, all steps if none are known."""
    static, dynamic = (np.asarray(x, np.float32) for x in (factors.static, factors.dynamic))
    return Factors(static=static, dynamic=dynamic, lengths=known_lengths(factors))


def known_lengths(factors: Factors) -> np.ndarray:
    """The lengths ``[B]`` of sequences, all steps if none are known."""
    if factors.lengths is None:
        return np.full(len(factors.dynamic), factors.dynamic.shape[1], np.int32)
    return np.asarray(factors.lengths).astype(np.int32)


def draw_noise(
    lengths: np.ndarray, shape: tuple[int, ...], seed: int, noise_of: Sequence[int] | None = None
) -> list[np.ndarray]:
    """Unit-variance noise ``[V, *shape]`` for each sequence, whatever batch it is in.

    Args:
      lengths: steps of each, ``[B]``.
      shape: of a step.
      seed: of all.
      noise_of: number of the noise of each; None = its place. The same number and a shorter length
        give the beginning of the same noise.

    Raises:
      ValueError: a negative seed.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be 0 or more.")
    numbers = range(len(lengths)) if noise_of is None else noise_of
    return [
        np.random.default_rng([seed, number]).standard_normal((length, *shape), dtype=np.float32)
        for number, length in zip(numbers, lengths, strict=True)
    ]
