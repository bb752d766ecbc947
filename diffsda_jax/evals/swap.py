"""Interventions on the factors: swap, reconstruct, keep one factor only.

What is decoded from noise takes noise drawn here, item by item, so the result depends on the seed
and not on the batch size.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer

from diffsda_jax.data.transforms import expand_mask
from diffsda_jax.evals.interface import (
    Clips,
    Lengths,
    SequenceModel,
    map_batches,
    valid_steps,
    with_one_static,
)
from diffsda_jax.factors import Factors, mix

STARTS = ("random", "zero", "target", "donor")
INVERTED_STARTS = ("target", "donor")
_REPAIR_ROUNDS = 100


def make_pairs(
    num_clips: int,
    num_swaps: int,
    *,
    seed: int = 0,
    labels: Sequence[Integer[np.ndarray, " N"]] = (),
) -> tuple[Integer[np.ndarray, " P"], Integer[np.ndarray, " P"]]:
    """Who gives the static factor and who the dynamics of each swap.

    A random derangement: every clip serves about equally often on both sides and never with
    itself. With ``labels`` the two clips of a pair also differ in every label, as far as the
    label counts allow (labels listed first matter most).

    Args:
      num_clips: number of clips N, at least 2.
      num_swaps: number of pairs P; beyond N further derangements are drawn.
      seed: the same seed gives the same pairs.
      labels: integer labels ``[N]`` in which the two clips of a pair should differ.

    Returns:
      ``(static_index, dynamic_index)``, both ``[P]``.

    Raises:
      ValueError: fewer than two clips or no swap is asked for.
    """
    if num_clips < 2 or num_swaps < 1:
        raise ValueError(
            f"make_pairs: num_clips={num_clips} and num_swaps={num_swaps}; allowed are at least 2 "
            f"and at least 1; evaluate on more clips."
        )
    rng = np.random.default_rng(seed)
    static_index: list[np.ndarray] = []
    dynamic_index: list[np.ndarray] = []
    while sum(map(len, dynamic_index)) < num_swaps:
        donors = rng.permutation(num_clips)
        dynamic_index.append(donors)
        static_index.append(_derange(donors, labels, rng))
    return (
        np.concatenate(static_index)[:num_swaps],
        np.concatenate(dynamic_index)[:num_swaps],
    )


def make_start(
    model: SequenceModel,
    start: str,
    shape: tuple[int, ...],
    *,
    target: tuple[Clips, Factors, Lengths | None],
    donor: tuple[Clips, Factors, Lengths | None],
    num_steps: int = 32,
    seed: int = 0,
    batch_size: int = 64,
) -> Float[np.ndarray, "B V *element"]:
    """Unit-variance start noise of a swap.

    Args:
      model: inverts clips to ``x_T`` for `target` and `donor`.
      start: ``random`` (codes alone decide), ``zero`` (no noise: what is typical of the codes, for
        steps that do not flicker against each other), ``target`` (``x_T`` of the clip that gives
        the static factor) or ``donor`` (``x_T`` of the clip that gives the dynamics).
      shape: shape of the clips to sample.
      target: clips that give the static factor, their factors and lengths.
      donor: clips that give the dynamics, their factors and lengths.
      num_steps: steps of the inversion.
      seed: of the random noise, which also fills steps past the end of the inverted clip.
      batch_size: clips inverted at once.

    Raises:
      ValueError: unknown start.
    """
    if start not in STARTS:
        raise ValueError(f"start={start!r}; allowed are {', '.join(STARTS)}; choose one of them.")
    if start == "zero":
        return np.zeros(shape, np.float32)
    noise = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    if start == "random":
        return noise
    x, factors, length = target if start == "target" else donor
    inverted = map_batches(
        lambda index: model.invert(x[index], factors[index], num_steps=num_steps),
        len(x),
        batch_size,
    )
    real = expand_mask(valid_steps(shape, length), len(shape))
    return np.where(real, inverted, noise)


def decode_factors(
    model: SequenceModel,
    factors: Factors,
    start: Float[np.ndarray, "B V *element"],
    *,
    num_steps: int = 32,
    batch_size: int = 64,
) -> Clips:
    """Sample clips from factors and given start noise, batch by batch."""
    return map_batches(
        lambda index: model.decode(factors[index], start=start[index], num_steps=num_steps),
        len(start),
        batch_size,
    )


def reconstruct(
    model: SequenceModel,
    x: Clips,
    factors: Factors,
    *,
    start: str = "random",
    num_steps: int = 32,
    seed: int = 0,
    length: Lengths | None = None,
    batch_size: int = 64,
) -> Clips:
    """Decode clips from their own factors.

    ``start="random"`` shows what the codes hold; ``start="inverted"`` starts from the clips' own
    ``x_T`` and is nearly lossless by construction.

    Raises:
      ValueError: another start.
    """
    if start not in ("random", "inverted"):
        raise ValueError(f"start={start!r}; allowed are random, inverted; choose one of them.")
    own = (x, factors, length)
    noise = make_start(
        model,
        "target" if start == "inverted" else "random",
        x.shape,
        target=own,
        donor=own,
        num_steps=num_steps,
        seed=seed,
        batch_size=batch_size,
    )
    return decode_factors(model, factors, noise, num_steps=num_steps, batch_size=batch_size)


def reconstruction_starts(model: SequenceModel) -> tuple[str, ...]:
    """The starts of ``reconstruct`` that a model has; one may say that it cannot invert."""
    return ("random", "inverted") if getattr(model, "can_invert", True) else ("random",)


def mean_factors(factors: Factors, length: Lengths | None = None) -> Factors:
    """Mean of s over the clips and mean of d over the clips and their real steps, batch of 1."""
    dynamic = np.asarray(factors.dynamic)
    valid = valid_steps(dynamic.shape, length)
    mean_dynamic = dynamic[valid].mean(0)
    return Factors(
        static=np.asarray(with_one_static(factors, length).static).mean(0, keepdims=True),
        dynamic=np.tile(mean_dynamic, (1, dynamic.shape[1], 1)),
    )


def keep_one_factor(factors: Factors, mean: Factors, keep: str) -> Factors:
    """Factors with the other factor set to its mean over the data.

    Args:
      factors: of the clips, batch B.
      mean: from `mean_factors`, batch 1.
      keep: ``static`` or ``dynamic``.

    Raises:
      ValueError: another factor to keep.
    """
    if keep not in ("static", "dynamic"):
        raise ValueError(f"keep={keep!r}; allowed are static, dynamic; choose one of them.")
    if keep == "static":
        return _as_numpy(mix(static_from=factors, dynamic_from=mean))
    return _as_numpy(mix(static_from=mean, dynamic_from=factors))


def _as_numpy(factors: Factors) -> Factors:
    return Factors(static=np.asarray(factors.static), dynamic=np.asarray(factors.dynamic))


def _conflicts(
    left: np.ndarray, right: np.ndarray, labels: Sequence[np.ndarray]
) -> Integer[np.ndarray, " P"]:
    """How bad each pair is: 0 is fine; itself weighs most, then the labels in their order."""
    score = (left == right).astype(np.int64) << len(labels)
    for place, label in enumerate(labels):
        score += (label[left] == label[right]).astype(np.int64) << (len(labels) - 1 - place)
    return score


def _derange(
    donors: Integer[np.ndarray, " N"], labels: Sequence[np.ndarray], rng: np.random.Generator
) -> Integer[np.ndarray, " N"]:
    """A random rearrangement of ``donors`` whose pairs do not conflict, as far as possible.

    Starts from a random cycle, which has no fixed point, and exchanges the partner of a
    conflicting pair with that of a random other pair whenever it lowers the sum of the conflicts.
    """
    partner = np.roll(donors, 1)
    for _ in range(_REPAIR_ROUNDS):
        bad = np.flatnonzero(_conflicts(partner, donors, labels))
        if not len(bad):
            break
        for here in bad:
            there = rng.integers(len(donors))
            both = np.array([here, there])
            before = _conflicts(partner[both], donors[both], labels).sum()
            after = _conflicts(partner[both[::-1]], donors[both], labels).sum()
            if after < before:
                partner[both] = partner[both[::-1]]
    return partner
