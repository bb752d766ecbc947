"""What is known of the clips of a set as classes, and who reads it from decoded clips."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer

from diffsda_jax.evals.context import Context
from diffsda_jax.evals.interface import Clips, Labels, Lengths, mean_over_steps
from diffsda_jax.evals.judges import Judge, train_judge
from diffsda_jax.evals.metrics import centre_of_mass

_NUM_PLACES = 2  # classes that the mean place of an object is cut into, along each axis
_AXES = ("row", "column")


@dataclass(frozen=True)
class Label:
    """One labelled factor of a set.

    Attributes:
      name: in reports, such as ``static``, ``dynamic`` or the name of a task.
      block: ``static`` or ``dynamic``, the factor that should tell it.
      train: classes of the training clips, int ``[N]``.
      test: classes of the test clips, int ``[M]``.
      readers: classes of the clips that judges are trained on ``[R]``, see ``enrolment``.
      axis: 0 or 1 for the mean place of the object (row, column), which is tracked; None is judged.
      borders: of the places, in pixels; empty for what is judged.
      whole: False for a label that others tell together, as places tell the motion; it is not
        intervened on alone.
    """

    name: str
    block: str
    train: Integer[np.ndarray, " N"]
    test: Integer[np.ndarray, " M"]
    readers: Integer[np.ndarray, " R"]
    axis: int | None = None
    borders: tuple[float, ...] = ()
    whole: bool = True

    @property
    def chance_percent(self) -> float:
        """What a random reader gets."""
        return 100.0 / len(np.unique(self.readers))


def collect_labels(context: Context) -> tuple[list[Label], list[str]]:
    """All labels that vary in the training clips and in the test clips.

    These are ``static_label`` and ``dynamic_label``; the classes that tasks read from s alone
    (``target_*``, one a clip); ``static_id`` where it says something that ``static_label`` does not
    follow from; and the mean ``position`` over the steps, cut into halves along each axis.

    Returns:
      ``(labels, notes)``: static ones first; and what is left out and why.
    """
    keys = {"static": ("static_label", "static")}
    for task in context.tasks:
        if task.factors == "static" and task.kind != "regression":
            keys.setdefault(task.name, (task.target, "static"))
    if _adds(context.train):
        keys["id"] = ("static_id", "static")
    keys["dynamic"] = ("dynamic_label", "dynamic")
    found, notes, seen = [], [], set()
    places = _places(context)
    for name, (key, block) in keys.items():
        if key in seen or any(key not in data for data in (context.train, context.test)):
            continue
        seen.add(key)
        values = [data[key] for data in (context.train, context.test, context.readers)]
        if any(value.ndim != 1 for value in values):
            continue
        train, test, readers = (value.astype(np.int64) for value in values)
        label = Label(
            name,
            block,
            train,
            test,
            readers,
            whole=name != "dynamic" or not places,
        )
        if min(len(np.unique(label.train)), len(np.unique(label.test))) < 2:
            notes.append(f"label {name} left out: all clips of a split have the same {key}")
        else:
            found.append(label)
    return found + places, notes


def train_readers(context: Context, labels: Sequence[Label]) -> dict[str, Judge]:
    """A judge for each label that the judge of the context does not read and nothing tracks."""
    known = {"static", "dynamic"} if context.judge is not None else set()
    return {
        label.name: train_judge(
            context.readers["x"],
            static_label=label.readers if label.block == "static" else None,
            dynamic_label=label.readers if label.block == "dynamic" else None,
            length=context.readers.get("length"),
            mask=context.readers.get("mask"),
            num_steps=context.settings.judge_steps,
            seed=context.settings.seed,
        )
        for label in labels
        if label.axis is None and label.name not in known
    }


def read_labels(
    context: Context,
    labels: Sequence[Label],
    judges: Mapping[str, Judge],
    x: Clips,
    length: Lengths | None = None,
    mask: Bool[np.ndarray, "B V *maskdims"] | None = None,
) -> dict[str, Labels]:
    """Labels of clips as judges and the tracker see them.

    Args:
      context: whose judge reads the labels ``static`` and ``dynamic``.
      labels: what is read.
      judges: of `train_readers`.
      x: clips.
      length: number of real steps.
      mask: True = observed.
    """
    judged = {} if context.judge is None else context.judge.predict(x, length, mask)
    for label in labels:
        if label.name in judges:
            judged[label.name] = judges[label.name].predict(x, length, mask)[label.block]
        elif label.axis is not None:
            place = centre_of_mass(context.to_frames(x))[..., label.axis, None]
            # A frame with nothing to see counts as far out, as no object is where it should be.
            middle = mean_over_steps(np.nan_to_num(place, nan=-1e3), length)[:, 0]
            judged[label.name] = np.searchsorted(label.borders, middle)
    return {label.name: judged[label.name] for label in labels}


def _adds(data: Mapping[str, Any]) -> bool:
    """Whether the ids repeat and do not already say what the static label is."""
    if "static_id" not in data:
        return False
    ids = data["static_id"]
    pairs = np.stack([ids, data.get("static_label", ids)], axis=1)
    num_ids, num_pairs = len(np.unique(ids)), len(np.unique(pairs, axis=0))
    return 2 * num_ids <= len(ids) and (num_pairs > num_ids or "static_label" not in data)


def _places(context: Context) -> list[Label]:
    """The mean place of the object as a class along each axis, where frames show it."""
    if context.kind != "video" or "position" not in context.train or context.why_no_frames():
        return []
    sides = (context.train, context.test, context.readers)
    middles = [mean_over_steps(data["position"], data.get("length")) for data in sides]
    return [_place(axis, [middle[:, axis] for middle in middles]) for axis in range(len(_AXES))]


def _place(axis: int, middles: Sequence[Float[np.ndarray, " _"]]) -> Label:
    """Halves of the training clips along one axis."""
    borders = np.quantile(middles[0], np.arange(1, _NUM_PLACES) / _NUM_PLACES)
    train, test, readers = (np.searchsorted(borders, middle) for middle in middles)
    return Label(_AXES[axis], "dynamic", train, test, readers, axis=axis, borders=tuple(borders))
