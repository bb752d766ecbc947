"""From a source to batches with Grain: shuffled, repeated, sharded by process, resumable.

The order is `shuffle, repeat, map, share, batch`. Every epoch is shuffled anew. Because repetition
comes before batching, a batch may join the end of an epoch to the start of the next: no element is
lost, and a data set smaller than a batch works too. Of a source that reads whole batches the map
only draws the randomness of each element, and the batch is read after batching: the same elements,
without Grain's and numpy's costs for each of them.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from diffsda_jax.data.sources.base import BatchedSource, BrokenItemError, Source
from diffsda_jax.data.transforms import Normalizer, check_finite, check_length, fit_length

LABELS = ("static_label", "static_id", "dynamic_label", "group")
KNOWN = ("position", "target_", "factor_")  # what is known of an element beside its labels
_SEED_LIMIT = 2**32
_MOST_ELEMENTS = 2**60


def make_element(
    source: Source,
    index: int,
    rng: np.random.Generator,
    *,
    length: int,
    length_mode: str,
    normalizer: Normalizer,
    random: bool,
) -> dict[str, np.ndarray]:
    """Loads one element, fits its length and normalises it.

    Args:
        source: where it comes from.
        index: which one.
        rng: source of randomness.
        length: V.
        length_mode: see `transforms.fit_length`.
        normalizer: see `transforms.Normalizer`.
        random: random windows instead of the first ones.

    Returns:
        `x` float32 `[V, ...]`, `mask` bool (`[V, F]` for series, `[V]` for video), `length` int32,
        and the labels of the source. Of audio `x` `[N]`, as it is, `length` in samples, and the
        labels: a front end makes the sequence.

    Raises:
        BrokenItemError: the item cannot be read.
        ValueError: a value is not finite, or the item is too short for a crop; the item is named.
    """
    element = source.load(index, rng)
    check_finite(element, source, index)
    labels = {key: np.int32(element[key]) for key in LABELS if key in element}
    if source.spec.kind == "audio":
        samples = np.int32(element.get("length", len(element["x"])))
        return {"x": element["x"], "length": samples, **labels}
    try:
        element = fit_length(element, length, length_mode, rng, random)
    except ValueError as error:
        raise ValueError(f"{source.item_name(index)}: {error}") from None
    out = {
        "x": normalizer.apply(element["x"], element["mask"]),
        "mask": element["mask"],
        "length": np.int32(element["length"]),
    }
    known = {
        key: np.asarray(value, np.float32)
        for key, value in element.items()
        if key.startswith(KNOWN)
    }
    return {**out, **labels, **known}


def make_batch(
    source: BatchedSource,
    indices: Int[np.ndarray, " B"],
    draws: Float[np.ndarray, " B"],
    normalizer: Normalizer,
) -> dict[str, np.ndarray]:
    """Loads and normalises a batch of elements that have the wanted length.

    Args:
        source: where it comes from.
        indices: which ones.
        draws: the randomness of each, in [0, 1).
        normalizer: see `transforms.Normalizer`.

    Returns:
        What `make_element` makes of each, with a leading axis B: `x` `[B, V, ...]`, `mask` and
        `length` `[B]`, and labels `[B]`.

    Raises:
        BrokenItemError: one of the items cannot be read.
        ValueError: a value is not finite; the item is named.
    """
    batch = source.load_batch(indices, draws)
    x = normalizer.apply(batch["x"])
    if not np.isfinite(x).all():
        for raw, index in zip(batch["x"], indices, strict=True):
            check_finite({"x": raw}, source, int(index))
    size, length = x.shape[:2]
    return {
        "x": x,
        "mask": np.ones((size, length), bool),
        "length": np.full(size, length, np.int32),
        **{key: batch[key].astype(np.int32) for key in LABELS if key in batch},
    }


def _check_crop(source: Source, length: int, length_mode: str) -> None:
    """Refuses, before training starts, a crop that some element is too short for."""
    check_length(length, length_mode)
    crop = length_mode == "crop" and source.spec.kind != "audio"
    lengths = source.lengths() if crop else None
    if lengths is None or not len(lengths) or lengths.min() >= length:
        return
    short = int(np.argmin(lengths))
    raise ValueError(
        f"{int((lengths < length).sum())} of {len(lengths)} sequences are shorter than "
        f"length={length}, the shortest is {source.item_name(short)} with {lengths[short]} steps: "
        "lower the length, or use length_mode 'pad' or 'resample'"
    )


def _or_next(make: Callable[..., Any], source: Source) -> Callable[..., Any]:
    """Puts the next readable element in the place of a broken one, which is counted and named."""

    def load(index: int, randomness: Any) -> dict[str, np.ndarray]:
        total = len(source)
        for step in range(total):
            place = (index + step) % total
            try:
                return make(source, place, randomness)
            except BrokenItemError as error:
                source.skip(source.item_name(place), str(error))
        raise ValueError(f"{source.name}/{source.split}: no element can be read")

    return load


def _draw(index: int, rng: np.random.Generator) -> tuple[int, float]:
    """An element's index with the randomness that it takes."""
    return index, rng.random()


def _batch_or_next(source: BatchedSource, normalizer: Normalizer) -> Callable[..., Any]:
    """Makes batches out of lists of `_draw`, with `_or_next` where one of the items is broken."""

    def make_one(source: BatchedSource, index: int, draw: float) -> dict[str, np.ndarray]:
        return make_batch(source, np.array([index]), np.array([draw]), normalizer)

    one_or_next = _or_next(make_one, source)

    def load(drawn: list[tuple[int, float]]) -> dict[str, np.ndarray]:
        try:
            indices, draws = zip(*drawn, strict=True)
            return make_batch(source, np.array(indices), np.array(draws), normalizer)
        except BrokenItemError:
            parts = [one_or_next(index, draw) for index, draw in drawn]
            return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    return load


def _global_order(
    count: int, batch_size: int, seed: int, process_index: int, process_count: int
) -> tuple[Any, Callable[[Any], Any], int]:
    """The endless order of all elements, what takes this process's share of it, its batch size.

    Raises:
        ValueError: see `make_train_dataset`.
    """
    import grain

    if batch_size < 1 or process_count < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size={batch_size} is the size over all processes: use a positive multiple of "
            f"process_count={process_count}"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index}: use 0 to {process_count - 1}")
    if not 0 <= seed < _SEED_LIMIT:
        raise ValueError(f"seed={seed} of the data: use 0 to {_SEED_LIMIT - 1}")
    # As good as endless; Grain's own endless length overflows with batches of one.
    order = grain.MapDataset.range(count).seed(seed).shuffle().repeat(_MOST_ELEMENTS // count)
    size = batch_size // process_count

    def share(elements: Any) -> Any:
        """This process's rows of every batch, which together are the batch of a single process."""
        if process_count == 1:
            return elements

        def element(number: int) -> Any:
            batch, row = divmod(number, size)
            return elements[batch * batch_size + process_index * size + row]

        return grain.MapDataset.range(len(elements) // batch_size * size).map(element)

    return order, share, size


def _iterate(dataset: Any, num_threads: int, prefetch_batches: int) -> Any:
    """The iterator of a data set, with threads that make batches ahead of use."""
    import grain

    options = grain.ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=prefetch_batches if num_threads else 0
    )
    return iter(dataset.to_iter_dataset(options))


def make_array_iterator(
    read: Callable[[Int[np.ndarray, " B"]], dict[str, np.ndarray]],
    count: int,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 2,
    prefetch_batches: int = 8,
) -> Any:
    """Makes the infinite iterator of batches that one call reads, without randomness of their own.

    Args:
        read: makes a batch of the numbers of its elements; called from several threads.
        count: number of elements.
        batch_size: see `make_train_dataset`, as for all that is not listed here.
        seed: of the order.
        process_index: see there.
        process_count: see there.
        num_threads: see `make_train_iterator`.
        prefetch_batches: see there.

    Returns:
        A `grain.DatasetIterator`, of which the same is true as of `make_train_iterator`'s.

    Raises:
        ValueError: see `make_train_dataset`.
    """
    order, share, size = _global_order(count, batch_size, seed, process_index, process_count)
    batches = share(order).batch(size, batch_fn=list).map(lambda chosen: read(np.array(chosen)))
    return _iterate(batches, num_threads, prefetch_batches)


def make_train_dataset(
    source: Source,
    *,
    length: int,
    length_mode: str = "resample",
    normalizer: Normalizer,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Any:
    """Makes the infinite data set of this process's batches, with random access by step.

    Process i of n gets the i-th of n equal parts of every batch that a single process would see,
    so the shares are disjoint, cover everything, and a run may go on with more or fewer processes.

    Args:
        source: the training split.
        length: V.
        length_mode: see `transforms.fit_length`; "crop" and "pad" take random windows.
        normalizer: see `transforms.Normalizer`.
        batch_size: over all processes; a multiple of `process_count`.
        seed: of the order and of all random choices, in [0, 2^32).
        process_index: in `[0, process_count)`.
        process_count: number of processes.

    Returns:
        A `grain.MapDataset` of dicts with a leading axis of `batch_size / process_count`.

    Raises:
        ValueError: a value outside these, an empty source, or sequences too short for a crop.
    """
    if not len(source):
        raise ValueError(f"{source.name}/{source.split} has no elements")
    _check_crop(source, length, length_mode)
    order, share, size = _global_order(len(source), batch_size, seed, process_index, process_count)
    if isinstance(source, BatchedSource) and np.all(source.lengths() == length):
        drawn = share(order.random_map(_draw)).batch(size, batch_fn=list)
        return drawn.map(_batch_or_next(source, normalizer))
    form: dict[str, Any] = {"length_mode": length_mode, "normalizer": normalizer}
    make = functools.partial(make_element, length=length, random=True, **form)
    return share(order.random_map(_or_next(make, source))).batch(size)


def make_train_iterator(
    source: Source,
    *,
    length: int,
    length_mode: str = "resample",
    normalizer: Normalizer,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 2,
    prefetch_batches: int = 8,
) -> Any:
    """Makes the infinite iterator of training batches.

    `get_state()` before a batch and `set_state()` later give that batch again, exactly, whatever
    the number of threads.

    Args:
        source: see `make_train_dataset`, as for all that is not listed here.
        length: see there.
        length_mode: see there.
        normalizer: see there.
        batch_size: see there.
        seed: see there.
        process_index: see there.
        process_count: see there.
        num_threads: threads that make batches; 0 makes them in the caller's thread.
        prefetch_batches: batches held ready.

    Returns:
        A `grain.DatasetIterator` of dicts of numpy arrays.

    Raises:
        ValueError: see `make_train_dataset`.
    """
    dataset = make_train_dataset(
        source,
        length=length,
        length_mode=length_mode,
        normalizer=normalizer,
        batch_size=batch_size,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
    )
    return _iterate(dataset, num_threads, prefetch_batches)


def load_arrays(
    source: Source,
    *,
    length: int,
    length_mode: str = "resample",
    normalizer: Normalizer,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Loads a source into stacked arrays, the same ones every time: for evaluation.

    Windows are the first ones. Items that cannot be read are left out, counted and named.

    Args:
        source: any split.
        length: V.
        length_mode: see `transforms.fit_length`.
        normalizer: see `transforms.Normalizer`.
        limit: load only so many elements, spread evenly over the source.
        seed: of what the source itself draws.

    Returns:
        The keys of `make_element` with a leading axis of the number N of elements: `x`
        `[N, V, ...]`, and so on.

    Raises:
        ValueError: nothing to load, a bad value, or too many broken items.
    """
    _check_crop(source, length, length_mode)
    indices = np.arange(len(source))
    if limit is not None and limit < len(indices):
        indices = np.linspace(0, len(indices) - 1, limit).round().astype(int)
    elements = []
    for index in map(int, indices):
        rng = np.random.default_rng([seed, index])
        try:
            elements.append(
                make_element(
                    source,
                    index,
                    rng,
                    length=length,
                    length_mode=length_mode,
                    normalizer=normalizer,
                    random=False,
                )
            )
        except BrokenItemError as error:
            source.skip(source.item_name(index), str(error))
    if not elements:
        raise ValueError(f"{source.name}/{source.split} has no elements to load (limit={limit})")
    return {key: np.stack([element[key] for element in elements]) for key in elements[0]}


def num_steps_per_epoch(source: Source, batch_size: int) -> float:
    """Steps in which as many elements are seen as the source has."""
    return len(source) / batch_size
