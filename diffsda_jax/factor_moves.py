"""Directions of factors that were found in given codes, and ways from one pair to another."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from etils import epath

from diffsda_jax.evals import exploration
from diffsda_jax.evals.choices import check_choice
from diffsda_jax.evals.exploration import Components
from diffsda_jax.evals.interface import with_one_static
from diffsda_jax.evals.sample_measures import spherical_path, straight_path
from diffsda_jax.factors import Factors
from diffsda_jax.npz_file import read_arrays
from diffsda_jax.windowed import join_factors, known_lengths, with_lengths

DIMENSIONS = "dimensions"
PATHS = ("linear", "spherical")
MOVED = ("static", "dynamic", "both")
_FEWEST_CODES = 8


def find_components(
    codes: Factors,
    factor: str,
    along: str,
    num_components: int,
    seed: int = 0,
    bounded: bool = False,
) -> Components:
    """Directions in which codes vary.

    Args:
      codes: of any sequences, with ``lengths``.
      factor: ``static`` or ``dynamic``.
      along: a decomposition of ``evals.exploration``, or ``dimensions``: the factor's own.
      num_components: at most so many.
      seed: of the decomposition.
      bounded: d was bounded by tanh.

    Raises:
      ValueError: an option that is not allowed, or too few codes for a decomposition.
    """
    check_choice("factor", factor, exploration.FACTORS)
    if ":" not in along:
        check_choice("along", along, (*exploration.DECOMPOSITIONS, DIMENSIONS))
    found = exploration.gather_codes(codes, factor, "step", known_lengths(codes), bounded)
    count, size = found.values.shape
    if along != DIMENSIONS:
        if count < _FEWEST_CODES:
            raise ValueError(
                f"directions by {along!r} need {_FEWEST_CODES} codes of the {factor} factor, and "
                f"there are {count}: take along={DIMENSIONS}, the factor's own, give more "
                "sequences as codes, or train a prior (--mode=prior), which samples them."
            )
        return exploration.fit_components(
            found, factor, decomposition=along, num_components=num_components, seed=seed
        )
    std = found.values.std(0) if count > 1 else np.ones(size)
    return Components(
        factor=factor,
        level="step",
        mean=found.values.mean(0),
        std=std,
        directions=np.eye(size)[:num_components],
        spread=np.ones(min(num_components, size)),
        share=np.full(min(num_components, size), 1 / size),
        read=lambda z: z[:, :num_components],
        bounded=found.bounded,
    )


def load_components(
    file: Path | epath.Path, factor: str, num_components: int | None = None
) -> tuple[Components, list[str]]:
    """Directions that ``--mode=explore`` found and kept, and their titles.

    Args:
      file: ``components.npz`` of an exploration, of d by step.
      factor: ``static`` or ``dynamic``.
      num_components: at most so many; None = all.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, or holds something else.
    """
    check_choice("factor", factor, exploration.FACTORS)
    arrays = read_arrays(file)
    parts = ("mean", "std", "directions", "spread", "share", "names")
    if missing := [part for part in parts if f"{factor}_{part}" not in arrays]:
        raise ValueError(
            f"{file} holds no {factor}_{missing[0]}; run --mode=explore again, or remove it."
        )
    mean, std, *of_each = (arrays[f"{factor}_{part}"] for part in parts)
    directions, spread, share, names = (values[:num_components] for values in of_each)
    components = Components(
        factor=factor,
        level="sequence" if factor == "static" else "step",
        mean=mean,
        std=std,
        directions=directions,
        spread=spread,
        share=share,
        read=lambda z: z @ directions.T,
        bounded=bool(arrays.get(f"{factor}_bounded", False)),
    )
    return components, names.tolist()


def move(
    factors: Factors, components: Components, shares: Sequence[float], reach: float
) -> Factors:
    """Factors of every sequence moved along every component to every place, in this order.

    Args:
      factors: of B sequences.
      components: K of them.
      shares: A places, as shares of ``reach``.
      reach: in standard deviations of the codes along each.
    """
    alphas = components.alphas(reach)
    return join_factors(
        [
            components.move_factors(one, k, float(alphas[k] * share)).replace(lengths=one.lengths)
            for one in (factors[[place]] for place in range(len(factors)))
            for k in range(len(components))
            for share in shares
        ]
    )


def make_paths(begin: Factors, end: Factors, moved: str, num_points: int, path: str) -> Factors:
    """Points between sequences, both ends among them.

    Args:
      begin: of B sequences, which give what does not move.
      end: of B sequences.
      moved: one of ``MOVED``. Where d moves, the shorter of the two sequences sets the length.
      num_points: K.
      path: of s, one of ``PATHS``; spherical is about the mean of all s. Where there is one for
        each step, their means are the ends.

    Returns:
      Factors of ``B K`` sequences, path by path.

    Raises:
      ValueError: an option that is not allowed, or different numbers of sequences.
    """
    check_choice("factor", moved, MOVED)
    check_choice("path", path, PATHS)
    if num_points < 2:
        raise ValueError(f"num_points is {num_points}; it must be at least 2, both ends.")
    if len(begin) != len(end):
        raise ValueError(
            f"begin holds {len(begin)} sequences and end {len(end)}; give as many of each."
        )
    first, last = (with_one_static(one, known_lengths(one)) for one in (begin, end))
    centre = np.concatenate([first.static, last.static]).mean(0)
    points = []
    for place in range(len(first)):
        a, b = first[[place]], last[[place]]
        (s_a, d_a), (s_b, d_b) = ((np.asarray(x.static), np.asarray(x.dynamic)) for x in (a, b))
        length = int(known_lengths(a)[0])
        static, dynamic = (np.repeat(x, num_points, axis=0) for x in (s_a, d_a))
        if moved != "dynamic":
            straight = path == "linear"
            static = (
                straight_path(s_a, s_b, num_points)
                if straight
                else spherical_path(s_a, s_b, centre, num_points)
            )[:, 0]
        if moved != "static":
            length = min(length, int(known_lengths(b)[0]))
            dynamic = straight_path(d_a[:, :length], d_b[:, :length], num_points)[:, 0]
        lengths = np.full(num_points, length, np.int32)
        points.append(with_lengths(Factors(static, dynamic[:, :length], lengths)))
    return join_factors(points)
