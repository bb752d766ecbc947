"""Examples of what a model does: swaps, reconstructions, the worst of both, and traversals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer

from diffsda_jax.evals.context import Context
from diffsda_jax.evals.exploration import (
    FACTORS,
    Codes,
    Components,
    fit_components,
    gather_codes,
)
from diffsda_jax.evals.interface import Clips, Lengths, encode_clips, mean_over_steps
from diffsda_jax.evals.traversal_pictures import traverse
from diffsda_jax.factors import Factors, mix

Errors = Float[np.ndarray, " P"]


class Swaps(NamedTuple):
    """Some swaps and how they went.

    Attributes:
      static_index: test clips that give s ``[P]``.
      dynamic_index: test clips that give d.
      x: results, normalised ``[P, V, ...]``.
      static_error: see `read_back`.
      dynamic_error: see `read_back`.
    """

    static_index: Integer[np.ndarray, " P"]
    dynamic_index: Integer[np.ndarray, " P"]
    x: Clips
    static_error: Errors
    dynamic_error: Errors

    def worst(self, count: int) -> Integer[np.ndarray, " W"]:
        """Places of those that the encoder reads back worst, the worst first."""
        return np.argsort(-np.maximum(self.static_error, self.dynamic_error))[:count]


class Reconstructions(NamedTuple):
    """Some test clips decoded from their own factors, and noise that knows nothing of them.

    Attributes:
      clip_index: of the test clips ``[P]``.
      x: decoded, normalised ``[P, V, ...]``.
      error: mean squared error over the variance of the data, ``[P]``; the mean clip gets 1.
    """

    clip_index: Integer[np.ndarray, " P"]
    x: Clips
    error: Errors

    def worst(self, count: int) -> Integer[np.ndarray, " W"]:
        """Places of those with the largest errors, the largest first."""
        return np.argsort(-self.error)[:count]


class Traversal(NamedTuple):
    """One test clip moved along the components of one factor.

    Attributes:
      factor: ``static`` or ``dynamic``.
      clip: its place in the test split.
      titles: of the components.
      places: titles of the places on a component, an odd number; the middle one is the clip.
      x: decoded from one start noise, normalised ``[K, A, V, ...]``.
    """

    factor: str
    clip: int
    titles: list[str]
    places: list[str]
    x: Float[np.ndarray, "K A V *element"]


@dataclass(frozen=True)
class Examples:
    """What a page shows of a model beside the files of its run.

    Attributes:
      context: the data and the model.
      swaps: none where there are fewer than two clips.
      reconstructions: of test clips.
      traversals: of both factors, but for those that `unmoved` is about.
      label_names: names of the classes of ``static`` and ``dynamic`` labels, or None.
      unmoved: why factors have no traversal, a sentence each.
    """

    context: Context
    swaps: Swaps | None
    reconstructions: Reconstructions
    traversals: list[Traversal]
    label_names: Mapping[str, Sequence[str] | None] = field(default_factory=dict)
    unmoved: Sequence[str] = ()


def make_examples(
    context: Context,
    *,
    num_clips: int = 24,
    num_components: int = 3,
    num_places: int = 7,
    known: Sequence[tuple[Components, Sequence[str]]] = (),
    label_names: Mapping[str, Sequence[str] | None] | None = None,
) -> Examples:
    """Decodes some clips; the same context gives the same examples.

    Args:
      context: of an evaluation, without a judge.
      num_clips: swaps and reconstructions to make, of which a page shows a few.
      num_components: of each factor.
      num_places: on each component, odd.
      known: components that an exploration found, and their titles; of a factor without, they are
        the principal components of the training clips.
      label_names: see `Examples`.
    """
    index = context.some_clips()[:num_clips]
    x = context.decode_from_noise(context.test_factors[index], _noise(context, len(index)))
    rebuilt = Reconstructions(index, x, normalised_errors(context, index, x))
    swaps = None if context.why_no_swaps() else _make_swaps(context, num_clips)
    traversals, unmoved = [], []
    if context.test_factors.static.ndim == 3:
        unmoved = ["The model has one s for each step, and components are of one s a sequence."]
    elif len(index):
        for factor in FACTORS:
            found = [pair for pair in known if pair[0].factor == factor]
            if not found and len(codes := _codes(context, factor).values) < 2:
                unmoved.append(f"There is {len(codes)} {factor} code to find components in.")
                continue
            components, titles = found[0] if found else _principal(context, factor, num_components)
            traversals.append(
                _traverse(context, int(index[0]), components, titles, num_places, num_components)
            )
    return Examples(context, swaps, rebuilt, traversals, label_names or {}, unmoved)


def normalised_errors(context: Context, index: Integer[np.ndarray, " P"], x: Clips) -> Errors:
    """Mean squared error of each clip over what is real of it, over the variance of all of it.

    Args:
      context: with the test clips.
      index: their places.
      x: decoded clips to compare them with.
    """
    clips = context.test["x"]
    everywhere = context.observed(np.arange(len(clips)))
    variance = max(float(clips[everywhere].var()), 1e-12)
    observed = context.observed(index)
    squares = np.square(np.asarray(x, np.float64) - clips[index])
    pairs = zip(squares, observed, strict=True)
    return np.array([square[real].mean() if real.any() else 0.0 for square, real in pairs]) / (
        variance
    )


def read_back(
    context: Context, x: Clips, wanted: Factors, length: Lengths | None
) -> tuple[Errors, Errors]:
    """How far the factors that the encoder reads from decoded clips are from those they hold.

    Each is a mean squared distance over the variance of that factor over the test clips: 0 is
    found again exactly, 1 is as far off as the mean code, 2 as another clip's.

    Args:
      context: with the encoder and the test factors.
      x: decoded clips.
      wanted: that they were decoded from.
      length: number of real steps, or None for all.

    Returns:
      Errors of s and of d.
    """
    found = encode_clips(context.model, x, length, batch_size=context.settings.batch_size)
    errors = []
    for name in FACTORS:
        ours, theirs = (np.asarray(getattr(one, name), np.float64) for one in (found, wanted))
        all_of = gather_codes(context.test_factors, name, "step", context.test.get("length"))
        spread = max(float(np.var(all_of.values, axis=0, dtype=np.float64).sum()), 1e-12)
        distance = np.square(ours - theirs).sum(-1)
        if distance.ndim == 2:
            distance = mean_over_steps(distance[..., None], length)[:, 0]
        errors.append(distance / spread)
    return errors[0], errors[1]


def _make_swaps(context: Context, count: int) -> Swaps:
    """The first swaps of the evaluation."""
    static_index, dynamic_index = (index[:count] for index in context.pairs())
    factors = mix(
        static_from=context.test_factors[static_index],
        dynamic_from=context.test_factors[dynamic_index],
    )
    x = context.decode(factors, static_index, dynamic_index)
    errors = read_back(context, x, factors, context.pick("length", dynamic_index))
    return Swaps(static_index, dynamic_index, x, *errors)


def _codes(context: Context, factor: str) -> Codes:
    """Codes of the training clips."""
    bounded = getattr(context.model, "bounded_dynamic", False)
    length = context.train.get("length")
    return gather_codes(context.codes("train"), factor, "step", length, bounded)


def _principal(context: Context, factor: str, count: int) -> tuple[Components, list[str]]:
    """Principal components of the codes of the training clips."""
    codes = _codes(context, factor)
    components = fit_components(codes, factor, num_components=count, seed=context.settings.seed)
    share = [f"{100 * part:.0f} % of variance" for part in components.share]
    return components, [f"{factor[0]}{place + 1}, {text}" for place, text in enumerate(share)]


def _traverse(
    context: Context,
    clip: int,
    components: Components,
    titles: Sequence[str],
    num_places: int,
    most: int,
) -> Traversal:
    """One clip along the first components of one factor."""
    count = min(most, len(components))
    moved, places = traverse(components, context.test_factors[np.array([clip])], num_places)
    moved = moved[: count * num_places]
    factors = Factors(
        static=np.concatenate([one.static for one in moved]),
        dynamic=np.concatenate([one.dynamic for one in moved]),
    )
    x = context.decode_from_noise(factors, np.repeat(_noise(context, 1), len(moved), axis=0))
    x = x.reshape(count, num_places, *x.shape[1:])
    return Traversal(components.factor, clip, list(titles)[:count], places, x)


def _noise(context: Context, count: int) -> Clips:
    """Start noise that knows nothing of the clips: zero where swaps start from it, else random."""
    shape = (count, *context.test["x"].shape[1:])
    if context.settings.start == "zero":
        return np.zeros(shape, np.float32)
    return np.random.default_rng(context.settings.seed).standard_normal(shape, dtype=np.float32)
