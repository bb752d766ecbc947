"""What components mean: which known attribute each follows, and what else it moves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, Num

from diffsda_jax.evals.component_stability import correlations
from diffsda_jax.evals.exploration import Codes, Components, random_components
from diffsda_jax.evals.interface import Clips, Lengths, mean_over_steps, valid_steps
from diffsda_jax.evals.judges import Judge
from diffsda_jax.evals.metrics import centre_of_mass
from diffsda_jax.factors import Factors

Measure = Callable[[Clips], Num[np.ndarray, "B *steps"]]
Decode = Callable[[Sequence[Factors]], Float[np.ndarray, "M B V *element"]]

_AXES = ("y position", "x position")  # of (row, column)
_KNOWN_FROM = 0.3  # association from which a component is called by an attribute
_TOLD_FROM = 0.05  # standard deviations that are worth a word
_TOLD_FROM_PERCENT = 1.0


@dataclass(frozen=True)
class Attribute:
    """Something that is known of the clips.

    Attributes:
      name: for people.
      values: numbers, or classes as integers; ``[N]`` of clips, or ``[N, V]`` of their steps.
      is_class: whether they are classes.
      measure: reads it from decoded clips, or None where nothing can.
      classes: their names.
    """

    name: str
    values: Num[np.ndarray, "N *steps"]
    is_class: bool = False
    measure: Measure | None = None
    classes: Sequence[str] | None = None

    @property
    def key(self) -> str:
        """The name in metrics."""
        return self.name.replace(" ", "_")

    def spread(self, length: Lengths | None) -> float:
        """Standard deviation over all clips and their real steps."""
        if self.values.ndim == 1:
            return float(np.std(self.values))
        return float(np.std(self.values[valid_steps(self.values.shape, length)]))

    def at(self, codes: Codes, length: Lengths | None) -> Num[np.ndarray, " P"]:
        """The value at each code: of its step, or of its sequence (mean over the real steps)."""
        values = self.values
        if values.ndim == 2 and codes.step is None:
            values = mean_over_steps(values[..., None].astype(np.float64), length)[:, 0]
        if values.ndim == 2:
            return values[codes.sequence, codes.step]
        return values[codes.sequence]


def make_attributes(
    data: Mapping[str, Any],
    moved: Mapping[str, Any],
    *,
    judge: Judge | None = None,
    to_frames: Callable[[Clips], Clips] | None = None,
    names: Mapping[str, Sequence[str] | None] | None = None,
    classes: Sequence[str] = (),
) -> list[Attribute]:
    """All that is known of some clips: labels, positions, and ``factor_*`` and ``target_*`` arrays.

    What is the same for all clips is left out; a target of several numbers counts by their mean.

    Args:
      data: arrays of the clips, as ``experiment.load_split`` gives them.
      moved: arrays of the clips that are moved and decoded: their ``length`` and ``mask``.
      judge: reads labels from decoded clips.
      to_frames: makes frames of decoded clips, in which the place of an object is tracked; None
        where that makes no sense.
      names: of the classes of labels, and of the columns of other arrays, by their key.
      classes: keys of arrays that hold classes, beside the labels.
    """
    found, names = [], names or {}
    for kind in ("static", "dynamic"):
        if (key := f"{kind}_label") in data:
            measure = _judged(judge, kind, moved) if judge is not None else None
            found.append(Attribute(f"{kind} label", data[key], True, measure, names.get(key)))
    if "position" in data:
        for axis, name in enumerate(_AXES):
            measure = _tracked(to_frames, axis) if to_frames else None
            found.append(Attribute(name, data["position"][..., axis], measure=measure))
    for key in sorted(key for key in data if key.startswith(("factor_", "target_"))):
        values = data[key]
        if key in classes:
            found.append(Attribute(key.replace("_", " "), values.astype(np.int64), True))
            continue
        if key.startswith("target_"):
            mean = values.reshape(len(values), -1).mean(1)
            found.append(Attribute(key.replace("_", " "), mean))
            continue
        known = names.get(key) or [f"{key} {column + 1}" for column in range(values.shape[-1])]
        for column, name in enumerate(known):
            found.append(Attribute(name.replace("_", " "), values[..., column]))
    return [item for item in found if (item.values != item.values.flat[0]).any()]


def _judged(judge: Judge, kind: str, moved: Mapping[str, Any]) -> Measure | None:
    """Labels by the judge, or None if it was not trained on that kind."""
    if not getattr(judge.net, f"num_{kind}"):
        return None
    return lambda x: judge.predict(x, moved.get("length"), moved.get("mask"))[kind]


def _tracked(to_frames: Callable[[Clips], Clips], axis: int) -> Measure:
    return lambda x: centre_of_mass(to_frames(x))[..., axis]


def associations(
    coordinates: Float[np.ndarray, "P K"], values: Num[np.ndarray, " P"], is_class: bool
) -> Float[np.ndarray, " K"]:
    """How closely an attribute goes with each coordinate: r, or for classes eta, 0 to 1.

    Eta squared is the share of a coordinate's variance that lies between the classes, here without
    what as many classes of random members would have.

    References:
      Kelley, An unbiased correlation ratio measure, PNAS 1935 (epsilon squared).
    """
    if not is_class:
        return correlations(coordinates, values[:, None])[:, 0]
    number = np.unique(values, return_inverse=True)[1]
    counts = np.bincount(number)
    if len(counts) == len(values):  # one member each: nothing within
        return np.zeros(coordinates.shape[1])
    within = np.empty(coordinates.shape[1])
    for place, column in enumerate(coordinates.T):
        centre = np.bincount(number, column) / counts
        within[place] = np.mean((column - centre[number]) ** 2)
    total = np.maximum(coordinates.var(0), 1e-12)
    freedom = (len(values) - 1) / (len(values) - len(counts))
    return np.sqrt(np.clip(1.0 - within / total * freedom, 0.0, 1.0))


def multiple_correlation(
    coordinates: Float[np.ndarray, "P K"], values: Float[np.ndarray, " P"]
) -> float:
    """Correlation of a number with the best linear reading of it from some coordinates."""
    design = np.column_stack([np.ones(len(values)), coordinates])
    read = design @ np.linalg.lstsq(design, values, rcond=None)[0]
    return float(correlations(read[:, None], values[:, None].astype(np.float64))[0, 0])


def measure_effects(
    components: Components,
    factors: Factors,
    attributes: Sequence[Attribute],
    decode: Decode,
    *,
    length: Lengths | None = None,
    known_length: Integer[np.ndarray, " N"] | None = None,
    deviations: float = 1.0,
) -> Float[np.ndarray, "K A"]:
    """What moving along each component does to each attribute of the decoded clips.

    Clips are decoded from factors moved by plus and by minus some standard deviations of the
    component, and from the factors as they are, all from the same start noise.

    Args:
      components: to move along.
      factors: of the clips that are moved.
      attributes: of the data; their spread is the unit of numbers.
      decode: clips from a list of factors.
      length: number of real steps of the clips that are moved.
      known_length: number of real steps of the clips that the attributes are of.
      deviations: how far to move.

    Returns:
      For numbers half the root mean square of the difference of both ends, in standard deviations
      of the attribute over the data, for each standard deviation of the component: 1 for a
      component that alone makes the attribute. For classes the percentage of moved clips that are
      judged differently from the clip that is not moved. NaN for what cannot be measured.
    """
    effects = np.full((len(components), len(attributes)), np.nan)
    if not any(item.measure for item in attributes):
        return effects
    alphas = components.alphas(deviations)
    ends = [
        components.move_factors(factors, place, sign * alphas[place])
        for place in range(len(components))
        for sign in (-1.0, 1.0)
    ]
    clips = decode([factors, *ends])
    real = valid_steps((len(factors), clips.shape[2]), length)
    for column, attribute in enumerate(attributes):
        if attribute.measure is None:
            continue
        base, *moved = [attribute.measure(x) for x in clips]
        for place in range(len(components)):
            low, high = moved[2 * place : 2 * place + 2]
            if attribute.is_class:
                effects[place, column] = 50.0 * (np.mean(low != base) + np.mean(high != base))
            else:
                change = (high - low)[real[:, : high.shape[1]] if high.ndim == 2 else slice(None)]
                change = change[np.isfinite(change)]  # nothing to track in some frames
                size = np.sqrt(np.mean(change**2)) if len(change) else np.nan
                spread = attribute.spread(known_length)
                effects[place, column] = size / (2 * deviations * spread)
    return effects


@dataclass(frozen=True)
class Meaning:
    """What components mean, by correlation in real clips and by moving decoded ones.

    Attributes:
      attributes: A of them.
      association: r, or eta for classes, of coordinates and attributes ``[K, A]``.
      association_chance: mean of its size for random directions ``[A]``.
      effect: of `measure_effects` ``[K, A]``.
      effect_chance: mean for random directions ``[A]``.
      together: multiple correlation of the first two components, and of all, with each number
        ``[A, 2]``; NaN for classes.
      together_chance: that of two random directions ``[A]``.
      names: one text for each component.
    """

    attributes: Sequence[Attribute]
    association: Float[np.ndarray, "K A"]
    association_chance: Float[np.ndarray, " A"]
    effect: Float[np.ndarray, "K A"]
    effect_chance: Float[np.ndarray, " A"]
    together: Float[np.ndarray, "A 2"]
    together_chance: Float[np.ndarray, " A"]
    names: Sequence[str]


def find_meaning(
    components: Components,
    codes: Codes,
    attributes: Sequence[Attribute],
    moved: Factors,
    decode: Decode,
    *,
    length: Lengths | None = None,
    moved_length: Integer[np.ndarray, " M"] | None = None,
    num_random: int = 8,
    seed: int = 0,
) -> Meaning:
    """Names components by what is known of the data, with random directions as chance.

    Args:
      components: to be named.
      codes: of encoded test clips.
      attributes: of those clips.
      moved: factors of some test clips that are moved and decoded.
      decode: clips from a list of factors.
      length: number of real steps of the test clips.
      moved_length: number of real steps of the clips that are moved.
      num_random: random directions that are decoded; for correlations 8 times as many.
      seed: of the random directions.
    """
    many = random_components(components, codes.values, 8 * num_random, seed)
    few = random_components(components, codes.values, num_random, seed)
    own, drawn = (side.coordinates(codes.values) for side in (components, many))
    count, shape = len(attributes), (len(components), len(attributes))
    association, chance = np.zeros(shape), np.zeros((len(many), count))
    together, together_chance = np.full((count, 2), np.nan), np.full(count, np.nan)
    for place, item in enumerate(attributes):
        values = item.at(codes, length)
        association[:, place] = associations(own, values, item.is_class)
        chance[:, place] = associations(drawn, values, item.is_class)
        if not item.is_class:
            together[place] = [multiple_correlation(own[:, :k], values) for k in (2, None)]
            pairs = [drawn[:, first : first + 2] for first in range(0, len(many) - 1, 2)]
            together_chance[place] = np.mean([multiple_correlation(p, values) for p in pairs])
    effect, effect_chance = (
        measure_effects(side, moved, attributes, decode, length=moved_length, known_length=length)
        for side in (components, few)
    )
    ends = [
        [
            _ends(item, item.at(codes, length), column) if item.is_class else ""
            for item in attributes
        ]
        for column in own.T
    ]
    names = [describe(attributes, *row) for row in zip(association, effect, ends, strict=True)]
    return Meaning(
        attributes=attributes,
        association=association,
        association_chance=np.abs(chance).mean(0),
        effect=effect,
        effect_chance=effect_chance.mean(0),
        together=together,
        together_chance=together_chance,
        names=names,
    )


def _ends(
    item: Attribute, values: Num[np.ndarray, " P"], coordinate: Float[np.ndarray, " P"]
) -> str:
    """The classes with the lowest and the highest mean coordinate, as ``, from 3 to 7``."""
    classes = np.unique(values)
    means = [coordinate[values == value].mean() for value in classes]
    ends = [int(classes[place]) for place in (np.argmin(means), np.argmax(means))]
    low, high = (item.classes[end] if item.classes else end for end in ends)
    return f", from {low} to {high}"


def describe(
    attributes: Sequence[Attribute],
    association: Float[np.ndarray, " A"],
    effect: Float[np.ndarray, " A"],
    ends: Sequence[str] = (),
) -> str:
    """A name such as ``x position (r = 0.97), also moves static label of 3 % of clips``.

    Args:
      attributes: that are known.
      association: of one component with each.
      effect: of moving along that component on each.
      ends: what to add on the classes at both ends of the component, for each; empty adds nothing.
    """
    main, text = None, "nothing that is known"
    if len(association) and np.abs(association).max() >= _KNOWN_FROM:
        main = int(np.abs(association).argmax())
        kind = "eta" if attributes[main].is_class else "r"
        text = f"{attributes[main].name} ({kind} = {association[main]:.2f})"
        text += ends[main] if ends else ""
    told = []
    for place, item in enumerate(attributes):
        least = _TOLD_FROM_PERCENT if item.is_class else _TOLD_FROM
        if place == main or not effect[place] >= least:  # NaN: not measured
            continue
        amount = f"of {effect[place]:.0f} % of clips" if item.is_class else ""
        told.append(f"{item.name} {amount or f'by {effect[place]:.2f} std'}")
    if not told:
        return text
    return f"{text}, {'moves' if main is None else 'also moves'} {' and '.join(told)}"
