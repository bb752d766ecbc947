import datetime

import numpy as np
import pytest
from series_files import ETT_START, HOUR, elements, ett_lines, write

from diffsda_jax.data.pipeline import load_arrays
from diffsda_jax.data.sources.etth1 import FEATURES, Etth1, block_means
from diffsda_jax.data.transforms import fit_normalizer

HOURS = 4000  # 2,400 train, 800 validation, 800 test


def etth1(split, folder, lines=None, **options):
    path = write(folder / "ETTh1.csv", ett_lines(HOURS) if lines is None else lines)
    return Etth1(split, str(path), **options)


def test_windows_and_splits(tmp_path):
    train, test = etth1("train", tmp_path), etth1("test", tmp_path)
    assert len(train) == (2400 - 672) // 24 + 1 and len(test) == (800 - 672) // 24 + 1
    longer = etth1("train", tmp_path, include_validation=True, stride=100)
    assert len(longer) == (3200 - 672) // 100 + 1
    for part, first, stride in ((train, 0, 24), (test, 3200, 24), (longer, 0, 100)):
        for number, element in enumerate(elements(part)):
            start = first + stride * number
            np.testing.assert_array_equal(element["x"][:, 0], start + np.arange(672))
            assert element["x"].shape == (672, 6) and element["mask"].all()
            target = element["target_oil_temperature"]
            assert target.shape == (67,) and target.dtype == np.float32
            np.testing.assert_allclose(target, start + 4.5 + 10 * np.arange(67))
    assert train.spec.feature_names == FEATURES and test.lengths().tolist() == [672] * len(test)
    assert train.item_name(1) == "etth1/train from 2016-07-02 00:00"
    assert len({s.fingerprint() for s in (train, test, longer)}) == 3
    (task,) = train.tasks
    assert task.target in train.load(0, np.random.default_rng(0)) and task.hidden == (32, 8)


def test_whole_file_has_the_published_number_of_hours(tmp_path):
    lines = ett_lines(17420)
    assert lines[-1].startswith("2018-06-26 19:00:00")  # as published
    assert len(etth1("test", tmp_path, lines)) == (3484 - 672) // 24 + 1


def test_reference_labels_are_another_shuffle(tmp_path):
    right, wrong = etth1("train", tmp_path), etth1("train", tmp_path, labels="reference")
    targets = [np.stack([e["target_oil_temperature"] for e in elements(s)]) for s in (right, wrong)]
    assert (targets[0][:, 0] != targets[1][:, 0]).mean() > 0.8
    np.testing.assert_array_equal(targets[0], np.sort(targets[1], axis=0))
    np.testing.assert_array_equal(elements(right)[3]["x"], elements(wrong)[3]["x"])
    assert right.fingerprint() != wrong.fingerprint()
    tests = etth1("test", tmp_path), etth1("test", tmp_path, labels="reference")
    assert tests[0].fingerprint() == tests[1].fingerprint()


@pytest.mark.parametrize("mode", ["corrected", "reference"])
def test_cyclic_shifts_of_signals_masks_and_targets(tmp_path, mode):
    lines = ett_lines(HOURS)
    lines[50] = lines[50].replace(",49,", ",NA,", 1)
    element = elements(etth1("train", tmp_path, lines, cyclic_shift=mode))[0]
    shift = int(np.argmax(element["x"][:, 0] == 0))
    assert shift > 0
    moved = shift if mode == "corrected" else 0
    np.testing.assert_array_equal(np.argwhere(~element["mask"]), [[(49 + moved) % 672, 0]])
    hourly = np.roll(np.arange(672.0), moved)
    np.testing.assert_allclose(element["target_oil_temperature"], block_means(hourly))


def test_daylight_saving_gap_repeat_and_missing_cells(tmp_path, caplog):
    lines = ett_lines(HOURS)
    hour = "2016-07-03 02:00:00"
    gap = next(i for i, line in enumerate(lines) if line.startswith(hour))
    again = "2016-07-10 03:00:00"
    repeat = next(i for i, line in enumerate(lines) if line.startswith(again))
    lines.insert(repeat + 1, again + ",7,7,7,7,7,7,7")
    lines[100] = lines[100].replace(",99,", ",,", 1).replace(",99.0", ",nan")
    del lines[gap]
    first = elements(etth1("train", tmp_path, lines))[0]
    np.testing.assert_array_equal(np.flatnonzero(~first["mask"].all(1)), [50, 99])
    np.testing.assert_array_equal(first["x"][[49, 51, 219, 220], 0], [49, 51, 219, 220])
    hourly = np.arange(672.0)
    hourly[[50, 99]] = np.nan
    np.testing.assert_allclose(first["target_oil_temperature"], block_means(hourly))
    assert "1 rows repeat the time" in caplog.text and f"line {repeat + 1}" in caplog.text
    assert "1 of 4000 hours have no row and are masked, first 2016-07-03 02:00" in caplog.text


def test_windows_without_values_are_counted(tmp_path):
    lines = ett_lines(HOURS)
    for row in range(801, 811):
        lines[row] = lines[row].rpartition(",")[0] + ","
    made = etth1("train", tmp_path, lines, max_skipped_share=0.5)
    hit = [s for s in range(0, 2400 - 671, 24) if s <= 800 and 810 <= s + 672]
    assert len(made.skipped) == len(hit) and made.num_items() == len(made) + len(hit)
    assert made.skipped["window from 2016-07-08 00:00"].startswith("no oil temperature (OT) for 10")
    for element in elements(made):
        assert np.isfinite(element["target_oil_temperature"]).all()
    with pytest.raises(ValueError, match="etth1/train: .* items had to be skipped"):
        etth1("train", tmp_path, lines)
    made = etth1("train", tmp_path, [lines[0], *ett_lines(HOURS)[501:]], max_missing_share=0.0)
    assert not made.skipped  # a file that starts later has no gap


def test_pipeline_makes_batches(tmp_path):
    made = etth1("test", tmp_path)
    arrays = load_arrays(made, length=672, normalizer=fit_normalizer(etth1("train", tmp_path)))
    assert arrays["x"].shape == (len(made), 672, 6) and arrays["mask"].all()


def replaced(line, old, new):
    return lambda lines: [*lines[:line], lines[line].replace(old, new, 1), *lines[line + 1 :]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replaced(0, ",OT", ",oil"), "has no column 'OT' but date, HUFL"),
        (replaced(4, "2016-", "16/"), "line 5, column 'date': value '16/07-01.* is no date and"),
        (replaced(4, ":00:00", ":15:00"), "line 5.* is not a full hour: use the hourly file"),
        (replaced(4, ":00:00", ":00:00+02:00"), "line 5.* has a UTC offset"),
        (replaced(4, "2016-", "2216-"), "wrong time stamps"),
        (replaced(4, ",2.009", ",bad"), "line 5, column 'HULL': value 'bad.* is no number"),
        (replaced(4, ",2.009", ",1,2.009"), "line 5: 9 cells, but the header names 8"),
        (lambda lines: lines[:300], "train part has 179 hours, fewer than the 672 of a window"),
        (lambda lines: lines[:1], "has no rows"),
        (lambda lines: [], "has no rows"),
        (
            lambda lines: [
                lines[0],
                *(
                    f"{ETT_START + 24 * day * HOUR:%Y-%m-%d %H:%M:%S},1,1,1,1,1,1,1"
                    for day in range(60)
                ),
            ],
            "60 rows for the 1417 hours",
        ),
    ],
)
def test_bad_files(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as error:
        etth1("train", tmp_path, change(ett_lines(HOURS)))
    assert "\n" not in str(error.value) and "ETTh1.csv" in str(error.value)


def test_bad_options_and_places(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no file: set it to ETTh1.csv"):
        Etth1("train", str(tmp_path))
    for options, message in (
        ({"stride": 0}, "stride=0"),
        ({"labels": "shuffled"}, "labels='shuffled'.*'aligned', 'reference'"),
        ({"train_share": 0.9}, "train_share=0.9 and test_share=0.2"),
        ({"cyclic_shift": "yes"}, "cyclic_shift='yes'"),
    ):
        with pytest.raises(ValueError, match=message):
            etth1("train", tmp_path, **options)


def test_starts_are_always_at_the_same_hour(tmp_path):
    made = etth1("train", tmp_path, ett_lines(HOURS, ETT_START + datetime.timedelta(hours=5)))
    assert {made.item_name(i)[-5:] for i in range(len(made))} == {"05:00"}
