import numpy as np
import pytest

from diffsda_jax.evals.enrolment import enrol_unseen


def split(speakers, contents, chunks=2, first_group=0):
    """Chunks of recordings: all speakers say all contents, numbered in that order."""
    speaker, content = (values.ravel() for values in np.meshgrid(speakers, contents, indexing="ij"))
    group = first_group + np.arange(len(speaker))
    return {
        "x": np.random.default_rng(0).normal(size=(chunks * len(group), 3, 2)),
        "length": np.full(chunks * len(group), 3),
        "static_label": np.repeat(speaker, chunks),
        "dynamic_label": np.repeat(content, chunks),
        "group": np.repeat(group, chunks),
    }


def without(data, *names):
    return {key: values for key, values in data.items() if key not in names}


def test_nothing_changes_where_labels_are_known():
    train, test = split(range(4), range(3)), split(range(2, 4), range(3))
    for label in ((), ("static_label",)):
        readers, trial, notes = enrol_unseen(without(train, *label), without(test, *label))
        assert readers.keys() == without(train, *label).keys() and notes == []
        assert readers["x"] is train["x"]
        np.testing.assert_array_equal(trial, np.arange(len(test["x"])))


@pytest.mark.parametrize("by", ["dynamic_label", "group"])
def test_half_of_the_recordings_introduce_new_speakers(by):
    train, test = split(range(4), range(4)), split((4, 5), range(4))
    if by == "group":
        train, test = without(train, "dynamic_label"), without(test, "dynamic_label")
    readers, trial, notes = enrol_unseen(train, test)
    shown = np.setdiff1d(np.arange(16), trial)
    assert len(trial) == len(shown) == 8
    assert not np.intersect1d(test[by][trial], test[by][shown]).size
    assert not np.intersect1d(test["group"][trial], test["group"][shown]).size
    for half in (trial, shown):
        assert set(test["static_label"][half]) == {4, 5}
    for key in train:
        np.testing.assert_array_equal(readers[key], np.concatenate([train[key], test[key][shown]]))
    assert notes == [
        "2 static labels of the test split are not in training: the judge was shown 8 of 16 test "
        "clips, the others are scored"
    ]


def test_clips_without_recordings_are_halved_one_by_one():
    train = without(split(range(2), range(2)), "dynamic_label", "group")
    test = without(split((2, 3), range(3), chunks=1), "dynamic_label", "group")
    _, trial, _ = enrol_unseen(train, test)
    assert trial.tolist() == [0, 2, 4]


def test_arrays_that_only_one_split_has_are_not_joined():
    train, test = split(range(2), range(2)), split((2, 3), range(4))
    readers, _, _ = enrol_unseen(train | {"mask": train["x"] > 0}, test)
    assert "mask" not in readers and readers.keys() == train.keys()


@pytest.mark.parametrize("label", [(), ("dynamic_label",), ("dynamic_label", "group")])
def test_one_recording_of_each_cannot_introduce_anyone(label):
    """Half of the recordings are then half of the speakers, of whom none is left to be scored."""
    train, test = split(range(2), range(2)), split((2, 3, 4, 5), (0,), chunks=1)
    test["dynamic_label"] = np.arange(4)
    readers, trial, notes = enrol_unseen(without(train, *label), without(test, *label))
    assert readers["x"] is train["x"] and len(trial) == 4
    assert notes == [
        "4 static labels of the test split are not in training, and there is one recording of "
        "each: no judge can know them"
    ]


def test_speakers_who_are_in_the_scored_half_only_are_left_out_and_counted():
    train, test = split(range(2), range(4)), split((2, 3), range(4))
    alone = (test["static_label"] == 3) & (test["dynamic_label"] % 2 == 1)
    test = {key: values[~alone] for key, values in test.items()}
    _, trial, (note,) = enrol_unseen(train, test)
    assert set(test["static_label"][trial]) == {2} and len(trial) == 4
    assert note.endswith("are scored, but for 4 with labels that it was not shown")


def test_known_speakers_are_scored_beside_new_ones():
    train, test = split(range(2), range(2)), split((1, 2), range(4))
    _, trial, (note,) = enrol_unseen(train, test)
    assert set(test["static_label"][trial]) == {1, 2} and note.startswith("1 static labels")
