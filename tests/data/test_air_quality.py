import datetime

import numpy as np
import pytest
from series_files import AIR_START, air_file, air_lines, elements, write, write_air

from diffsda_jax.data.pipeline import load_arrays
from diffsda_jax.data.sources.air_quality import FEATURES, STATIONS, AirQuality
from diffsda_jax.data.transforms import fit_normalizer

STATION = "Dingling"


def source(split, root, **options):
    return AirQuality(split, str(root), **{"stations": [STATION], **options})


def short(tmp_path, hours=24 * 62, change=lambda lines: lines, split="train", **options):
    """A source on a file of the first hours, its lines changed; all March to May."""
    write_air(tmp_path, STATION, change(air_lines(STATION, hours)))
    options = {"max_skipped_share": 1.0, "include_validation": True, **options}
    return source(split, tmp_path, **options)


def names(part):
    return [part.item_name(index) for index in range(len(part))]


def test_splits(tmp_path):
    write_air(tmp_path / "PRSA_Data_20130301-20170228", STATION, air_lines(STATION, 3))
    options = {"max_missing_share": 1.0}  # so that the months need no rows
    train, test = (source(split, tmp_path, **options) for split in ("train", "test"))
    both = source("train", tmp_path, include_validation=True, **options)
    assert len(test) == 12 and len(both) == 36 and 24 <= len(train) < 36
    assert all("Dingling 2016-" in name for name in names(test))
    assert not any("Dingling 2016-" in name for name in names(both))
    assert set(names(train)) < set(names(both)) and len(set(names(both))) == 36
    assert len({part.fingerprint() for part in (train, test, both)}) == 3
    reseeded = source("train", tmp_path, split_seed=1, **options)
    assert names(reseeded) != names(train)
    others = source("test", tmp_path, test_years=(2014, 2015), **options)
    assert len(others) == 24


def test_months_begin_with_their_first_hour(tmp_path):
    lines = air_lines(STATION)
    write_air(tmp_path, STATION, [lines[0], *lines[1::3]])  # every third hour
    for split, count in (("train", 36), ("test", 12)):
        part = source(split, tmp_path, max_missing_share=0.7, include_validation=True)
        assert len(part) == count and part.lengths().tolist() == [672] * count
        assert part.spec.feature_names == FEATURES and part.spec.static_names[1] == "February"
        for element, name in zip(elements(part), names(part), strict=True):
            assert element["x"].shape == (672, 10) and element["x"].dtype == np.float32
            seen = element["mask"].all(1).nonzero()[0]
            np.testing.assert_array_equal(seen, np.arange(0, 672, 3))
            assert element["static_id"] == STATIONS.index(STATION)
            assert set(element["x"][seen, 0]) == {element["static_label"] + 1}  # all of its month
            hours = element["x"][seen, 1]
            start = AIR_START + datetime.timedelta(hours=int(hours[0]))
            assert (np.diff(hours) == 3).all() and (start.day, start.hour) == (1, 0)
            assert name == f"air_quality/{split} {STATION} {start:%Y-%m}"
    (task,) = part.tasks
    assert (task.name, task.target, task.num_classes) == ("month", "static_label", 12)


def test_missing_values_are_masked_and_hold_the_mean(tmp_path):
    def change(lines):
        cells = lines[5].split(",")
        cells[6] = "NA"
        return [*lines[:5], ",".join(cells), *lines[6:]]

    made = short(tmp_path, change=change)
    element = next(e for e in elements(made) if e["static_label"] == 2)
    np.testing.assert_array_equal(np.argwhere(~element["mask"]), [[4, 1]])
    known = np.concatenate([e["x"][e["mask"][:, 1], 1] for e in elements(made)])
    assert element["x"][4, 1] == pytest.approx(known.mean())
    arrays = load_arrays(made, length=672, normalizer=fit_normalizer(made))
    assert np.abs(arrays["x"][~arrays["mask"]]).max() == 0


def test_absent_repeated_and_unsorted_rows(tmp_path, caplog):
    def change(lines):
        return [lines[0], *lines[1:10], *lines[13:], lines[30].replace("300", "999"), lines[10]]

    element = elements(short(tmp_path, change=change))[0]
    np.testing.assert_array_equal(np.flatnonzero(~element["mask"].all(1)), [10, 11])
    assert element["x"][9, 1] == 9  # moved to the end of the file
    assert (element["x"][:, 4][element["mask"][:, 4]] == 300).all()  # the first of two rows
    assert "1 rows repeat the time of an earlier one and are left out" in caplog.text
    assert "hours have no row and are masked, first 2013-03-01 10:00" in caplog.text


def test_months_with_too_much_missing_are_counted(tmp_path):
    hours = 24 * 31 + 400  # 60 % of the 672 hours of April
    assert [e["static_label"] for e in elements(short(tmp_path, hours))] == [2, 3]
    made = short(tmp_path, hours, max_missing_share=0.3)
    assert [e["static_label"] for e in elements(made)] == [2] and made.num_items() == 36
    assert made.skipped["Dingling 2013-04"] == "40% missing, over max_missing_share=0.3"
    with pytest.raises(ValueError, match="34 of 36 items had to be skipped.*Dingling 2013-05"):
        short(tmp_path, hours, max_skipped_share=0.1)
    assert len(short(tmp_path, hours, split="test")) == 0


@pytest.mark.parametrize("mode", ["none", "corrected", "reference"])
def test_cyclic_shifts(tmp_path, mode):
    def change(lines):
        return [*lines[:101], *lines[151:]]  # hours 100 to 149

    plain = short(tmp_path, change=change)
    made = short(tmp_path, change=change, cyclic_shift=mode)
    assert (made.fingerprint() == plain.fingerprint()) == (mode == "none")
    before, after = elements(plain)[0], elements(made)[0]
    shift = int(np.argmax(after["x"][:, 1] == 0))
    assert (shift > 0) == (mode != "none")
    np.testing.assert_array_equal(np.roll(before["x"], shift, 0), after["x"])
    moved = shift if mode == "corrected" else 0
    np.testing.assert_array_equal(np.roll(before["mask"], moved, 0), after["mask"])
    assert elements(made, seed=1)[0]["x"][0, 1] != after["x"][0, 1] or mode == "none"


def test_cyclic_shifts_are_for_training_alone(tmp_path):
    options = {"split": "test", "test_years": (2013,)}
    moved = short(tmp_path, cyclic_shift="corrected", **options)
    np.testing.assert_array_equal(
        elements(moved)[0]["x"], elements(short(tmp_path, **options))[0]["x"]
    )


def replaced(line, old, new):
    return lambda lines: [*lines[:line], lines[line].replace(old, new), *lines[line + 1 :]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replaced(0, '"PRES"', '"P"'), "has no column 'PRES' but No, .*use the published file"),
        (replaced(7, "300", "much"), "line 8, column 'CO': value 'much' is no number"),
        (replaced(7, "2013", "NA"), "line 8, columns year, month, day, hour: values NA, 3, 1, 6"),
        (replaced(7, "2013,3", "2013,13"), "values 2013, 13, 1, 6 are no date and hour"),
        (replaced(7, "2013,3", f"{10**20},3"), f"values {10**20}, 3, 1, 6 are no date and hour"),
        (replaced(7, "2013,3", "2031,3"), "line 8: 2031-03-01 06:00 is outside 2013-03-01 00:00"),
        (replaced(7, STATION, "Tiantan"), "line 8, column 'station': value 'Tiantan' is not"),
        (lambda lines: [*lines[:50], lines[50][:30]], "line 51: 12 cells, but the header names 18"),
        (lambda lines: lines[:1], "has no rows"),
        (lambda lines: [], "has no rows"),
    ],
)
def test_bad_files(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as error:
        short(tmp_path, 60, change)
    assert "\n" not in str(error.value) and STATION in str(error.value)


def test_bad_options_and_places(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder: set it to the folder"):
        AirQuality("train", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="is no folder"):
        AirQuality("train", "")
    write_air(tmp_path, STATION, air_lines(STATION, 5))
    with pytest.raises(FileNotFoundError, match=r"Aotizhongxin_.*missing \(11 of 12 stations\)"):
        AirQuality("train", str(tmp_path))
    with pytest.raises(ValueError, match="Did you mean 'Dingling'"):
        source("train", tmp_path, stations=["Dinglin"])
    with pytest.raises(ValueError, match=r"test_years=\(2012,\)"):
        source("train", tmp_path, test_years=(2012,))
    with pytest.raises(ValueError, match="cyclic_shift='some'.*'reference'"):
        source("train", tmp_path, cyclic_shift="some")
    with pytest.raises(ValueError, match=r"max_missing_share=2.*use a share in \[0, 1\]"):
        source("train", tmp_path, max_missing_share=2.0)
    write(air_file(tmp_path, STATION), ["a;b", "1;2"])
    with pytest.raises(ValueError, match="has one column 'a;b'"):
        source("train", tmp_path)
