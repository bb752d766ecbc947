import numpy as np
import pytest
from series_files import OUTCOMES_HEADER, elements, record_lines, write, write_stays

from diffsda_jax.data.pipeline import load_arrays
from diffsda_jax.data.sources.base import hash_split
from diffsda_jax.data.sources.physionet import FEATURES, UNITS, PhysioNet
from diffsda_jax.data.transforms import fit_normalizer

FOUR = [FEATURES.index(name) for name in ("DiasABP", "MAP", "SysABP", "Temp")]


@pytest.fixture
def root(tmp_path):
    return write_stays(tmp_path)


def train_names(root):
    return hash_split([file.stem for file in (root / "set-a").iterdir()], "train", 0.2)


def train_with(root, lines, **options):
    """The training split, and the name of its first record, which now holds `lines`."""
    name = train_names(root)[0]
    write(root / "set-a" / f"{name}.txt", lines(int(name)))
    return PhysioNet("train", str(root), **{"max_skipped_share": 0.1, **options}), name


def test_records_labels_and_splits(root):
    train, test = PhysioNet("train", str(root)), PhysioNet("test", str(root))
    names = [{s.item_name(i) for i in range(len(s))} for s in (train, test)]
    assert len(train) + len(test) == 20 and 1 <= len(test) <= 9 and not names[0] & names[1]
    for part in (train, test):
        assert part.spec.static_names == UNITS and part.spec.feature_names == FEATURES
        for number, element in enumerate(elements(part)):
            record = int(part.item_name(number).split()[-1])
            assert element["static_label"] == record % 4
            assert element["target_mortality"] == int(record % 5 == 0)
            assert element["x"].shape == element["mask"].shape == (80, 10)
            assert element["x"].dtype == np.float32
            assert element["mask"].any(0).nonzero()[0].tolist() == FOUR
    assert train.fingerprint() != test.fingerprint() and train.lengths().tolist() == [80] * len(
        train
    )
    assert [task.name for task in train.tasks] == ["icu_type", "mortality"]


def test_values_are_binned(root):
    def lines(record):
        start = record_lines(record, 2, steps=0)
        extra = ["00:10,Temp,36", "00:35,Temp,38", "00:36,Temp,40", "48:00,Temp,35", "01:12,MAP,-1"]
        whole = [f"{m // 60:02d}:{m % 60:02d},GCS,15" for m in range(0, 2880, 36)]
        return [*start, *extra, *whole, "02:00,Temp,", "03:00,Urine,-1"]

    made, _ = train_with(root, lines, max_missing_share=0.95)
    element = elements(made)[0]
    temp, gcs = FEATURES.index("Temp"), FEATURES.index("GCS")
    assert element["mask"][:, temp].nonzero()[0].tolist() == [0, 1, 79]
    np.testing.assert_allclose(element["x"][[0, 1, 79], temp], [37, 40, 35])
    assert element["mask"][:, gcs].all() and (element["x"][:, gcs] == 15).all()
    assert not element["mask"][:, FEATURES.index("MAP")].any()


def test_steps_can_be_the_distinct_times(root):
    source = PhysioNet("train", str(root), steps="stamps")
    element = elements(source)[0]
    np.testing.assert_array_equal(element["x"][:60, FOUR[0]], 100 + np.arange(60))
    assert element["mask"][:60, FOUR].all() and not element["mask"][60:].any()
    assert source.fingerprint() != PhysioNet("train", str(root)).fingerprint()
    made, _ = train_with(root, lambda r: record_lines(r, 1, steps=100, gap=20), steps="stamps")
    element = elements(made)[0]
    np.testing.assert_array_equal(element["x"][:, FOUR[0]], 100 + np.arange(80))


def test_protocol_drops_are_counted_but_not_capped(root, caplog):
    caplog.set_level("INFO")
    options = {"max_skipped_share": 0.0}
    whole = PhysioNet("train", str(root))
    made, name = train_with(root, lambda r: record_lines(r, 1, steps=39), **options)
    assert made.dropped == {name: "39 steps, under min_steps=40"} and not made.skipped
    assert len(made) == len(whole) - 1 and made.num_items() == len(whole)
    assert f"1 of {len(whole)} records dropped by the protocol: 1 under" in caplog.text
    made, name = train_with(root, lambda r: record_lines(r, 1, features=("Temp",)), **options)
    assert made.dropped == {name: "90% missing, over max_missing_share=0.6"}
    with pytest.raises(ValueError, match="no record is left, .* loosen these"):
        PhysioNet("train", str(root), max_missing_share=0.1)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (lambda r: [], "has no rows"),
        (lambda r: ["Time,Parameter,Value"], "has no rows"),
        (lambda r: ["Time,Name,Value", "00:00,Temp,3"], "has no column 'Parameter'"),
        (lambda r: [*record_lines(r, 1), "47:00,Te"], "2 cells, but the header names 3"),
        (lambda r: [*record_lines(r, 1), "47:00,Temp,hot"], "Temp 'hot' is no finite number"),
        (lambda r: [*record_lines(r, 1), "47:00,Temp,inf"], "Temp 'inf' is no finite number"),
        (lambda r: [*record_lines(r, 1), "48:01,Temp,37"], "time '48:01' is not one of"),
        (lambda r: [*record_lines(r, 1), "noon,Temp,37"], "time 'noon' is not one of"),
        (lambda r: record_lines(r, -1), "ICUType '-1', not 1 to 4"),
        (lambda r: [x for x in record_lines(r, 1) if "ICUType" not in x], "ICUType None"),
        (lambda r: record_lines(99, 1), "holds record 99"),
    ],
)
def test_unreadable_records_are_skipped(root, lines, reason):
    made, name = train_with(root, lines)
    assert list(made.skipped) == [name] and reason in made.skipped[name] and not made.dropped
    with pytest.raises(ValueError, match="physionet/train: 1 of .* items had to be skipped"):
        PhysioNet("train", str(root), max_skipped_share=0.0)


def test_outcomes_and_files_must_fit(root):
    first, second = train_names(root)[:2]
    (root / "set-a" / f"{first}.txt").unlink()
    outcomes = root / "Outcomes-a.txt"
    lines = [line for line in outcomes.read_text().split() if not line.startswith(second)]
    write(outcomes, lines)
    made = PhysioNet("train", str(root), max_skipped_share=0.2)
    assert made.skipped == {
        first: "listed among the outcomes, but has no file",
        second: "not among the outcomes",
    }


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "has no rows"),
        (["RecordID,SOFA", "1,2"], "has no column 'In-hospital_death'"),
        ([OUTCOMES_HEADER, "1,6,1,5,-1,NA"], "line 2: record '1' has In-hospital_death 'NA', not"),
        ([OUTCOMES_HEADER, *["1,6,1,5,-1,0"] * 2], "line 3: record '1' is listed twice"),
    ],
)
def test_bad_outcomes(root, lines, message):
    write(root / "Outcomes-a.txt", lines)
    with pytest.raises(ValueError, match=message):
        PhysioNet("train", str(root))


def test_bad_options_and_places(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="set-a of source 'physionet' is missing: set root"):
        PhysioNet("train", str(tmp_path / "none"))
    for options, message in (
        ({"steps": "hours"}, "steps='hours'.*'bins', 'stamps'"),
        ({"min_steps": 81}, "min_steps=81.* 1 to 80"),
        ({"cyclic_shift": "x"}, "cyclic_shift='x'"),
        ({"max_missing_share": -1.0}, "max_missing_share=-1"),
        ({"test_share": 1.5}, "test_share=1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            PhysioNet("train", str(root), **options)
    (root / "Outcomes-a.txt").unlink()
    with pytest.raises(FileNotFoundError, match="Outcomes-a.txt of source"):
        PhysioNet("train", str(root))


@pytest.mark.parametrize("mode", ["corrected", "reference"])
def test_cyclic_shifts(root, mode):
    plain = PhysioNet("train", str(root))
    made = PhysioNet("train", str(root), cyclic_shift=mode)
    for before, after in list(zip(elements(plain), elements(made), strict=True))[:3]:
        shifts = [s for s in range(80) if np.array_equal(np.roll(before["x"], s, 0), after["x"])]
        assert len(shifts) == 1
        moved = shifts[0] if mode == "corrected" else 0
        np.testing.assert_array_equal(np.roll(before["mask"], moved, 0), after["mask"])
        assert before["static_label"] == after["static_label"]


def test_features_that_are_never_measured_are_refused_by_name(root):
    source = PhysioNet("train", str(root))
    with pytest.raises(ValueError, match="feature 'GCS' has no observed value"):
        fit_normalizer(source)


def test_pipeline_makes_arrays(root):
    for file in (root / "set-a").iterdir():
        write(file, record_lines(file.stem, int(file.stem) % 4 + 1, features=FEATURES))
    source = PhysioNet("train", str(root))
    arrays = load_arrays(source, length=80, normalizer=fit_normalizer(source))
    assert arrays["x"].shape == (len(source), 80, 10) and not arrays["mask"].all()
    assert (arrays["x"][~arrays["mask"]] == 0).all()
