"""Readers for classes that training never saw: half of the test recordings introduce them."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Integer


def enrol_unseen(
    train: dict[str, Any], test: dict[str, Any], spare: bool = True
) -> tuple[dict[str, Any], Integer[np.ndarray, " P"], list[str]]:
    """What a judge is trained on and scored on, where static labels of the test split are new.

    Speakers of a test split are often never seen in training, so a judge cannot know them. Then
    half of their recordings (by the dynamic label where there is one, so that both halves differ in
    it) join the training clips of the judge, and only the other half is scored. The model itself is
    not trained on any of them. Labels that occur in the other half only are not scored either.

    Args:
      train: arrays of the training split.
      test: arrays of the test split.
      spare: whether recordings may be spared for the judge; not where given pairs swap all of them.

    Returns:
      ``(readers, trial, notes)``: arrays for the judge's training, places of the test clips that
      are scored, and what was done. ``train``, all clips and nothing, where no label is new.
    """
    everything = np.arange(len(test["x"]))
    if "static_label" not in train or "static_label" not in test:
        return train, everything, []
    label = test["static_label"]
    new = np.setdiff1d(label, train["static_label"])
    if not len(new):
        return train, everything, []
    if not spare:
        note = "static labels of the test split are not in training, and given pairs swap all clips"
        return train, everything, [f"{len(new)} {note}: no judge can know them"]
    enrolled = _every_second(test.get("dynamic_label", test.get("group", everything)))
    known = np.isin(label, train["static_label"]) | np.isin(label, label[enrolled])
    scored = known & ~enrolled
    if not np.isin(new, label[scored]).any():
        return (
            train,
            everything,
            [
                f"{len(new)} static labels of the test split are not in training, and there is one "
                "recording of each: no judge can know them"
            ],
        )
    readers = {
        key: np.concatenate([train[key], test[key][enrolled]]) for key in train if key in test
    }
    left_out = int((~known & ~enrolled).sum())
    note = (
        f"{len(new)} static labels of the test split are not in training: the judge was shown "
        f"{int(enrolled.sum())} of {len(enrolled)} test clips, the others are scored"
    )
    if left_out:
        note += f", but for {left_out} with labels that it was not shown"
    return readers, np.flatnonzero(scored), [note]


def _every_second(values: Integer[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
    """True for every second of the distinct values."""
    return np.unique(values, return_inverse=True)[1] % 2 == 1
