import numpy as np
import pytest

from diffsda_jax.data.pipeline import load_arrays, make_train_iterator
from diffsda_jax.data.sources import make_source
from diffsda_jax.data.sources.tables import read_table
from diffsda_jax.data.transforms import fit_normalizer

RNG = np.random.default_rng(0)


def write(path, *lines, encoding="utf-8"):
    path.write_bytes("\n".join(lines).encode(encoding) + b"\n")
    return path


def wide_lines(steps, header="time,a,b,note"):
    return [header, *(f"2020-01-{i},{i},{10 * i},ok" for i in range(steps))]


def csv_source(split, path, **options):
    return make_source("csv", split, path=str(path), **options)


def test_wide_file_is_cut_by_time(tmp_path, caplog):
    path = write(tmp_path / "t.csv", *wide_lines(50))
    train = csv_source("train", path, length=5)
    test = csv_source("test", path, length=5)
    assert train.spec.feature_names == ("a", "b") and train.spec.shape == (2,)
    assert "left out: note" in caplog.text
    starts = [
        source.load(i, RNG)["x"][0, 0] for source in (train, test) for i in range(len(source))
    ]
    assert starts == list(range(0, 50, 5)) and len(test) == 2  # the last fifth
    np.testing.assert_array_equal(train.load(1, RNG)["x"], [[i, 10 * i] for i in range(5, 10)])
    assert train.load(0, RNG)["mask"].all() and train.lengths().tolist() == [5] * 8
    assert train.item_name(1) == "csv/train t[5:10]"
    assert train.fingerprint() != test.fingerprint()


def test_strides_and_features(tmp_path):
    path = write(tmp_path / "t.csv", *wide_lines(20))
    source = csv_source("train", path, length=4, stride=2, features=["b"])
    assert len(source) == 7 and source.load(1, RNG)["x"][:, 0].tolist() == [20, 30, 40, 50]


def test_wide_file_with_ids(tmp_path):
    lines = ["who,a,b,kind"]
    for person in range(30):
        lines += [f"p{person},{person},{step},k{person % 3}" for step in range(6)]
    path = write(tmp_path / "t.csv", *lines)
    options = {"length": 3, "id_column": "who", "static_label_column": "kind"}
    train, test = (csv_source(split, path, **options) for split in ("train", "test"))
    people = [{s.load(i, RNG)["x"][0, 0] for i in range(len(s))} for s in (train, test)]
    assert not people[0] & people[1] and people[0] | people[1] == set(range(30))
    assert train.spec.static_names == test.spec.static_names == ("k0", "k1", "k2")
    for index in range(len(train)):
        element = train.load(index, RNG)
        assert element["static_label"] == element["x"][0, 0] % 3
        assert len(set(element["x"][:, 0])) == 1  # no window reaches across ids


def test_long_file_is_sorted_by_time_and_keeps_lengths(tmp_path):
    lines = ["id,hour,v"]
    for person, steps in [(1, 4), (2, 7), (3, 5), (4, 12)]:
        order = np.random.default_rng(person).permutation(steps)
        lines += [f"{person},{step},{100 * person + step}" for step in order]
    path = write(tmp_path / "t.csv", *lines)
    train, test = (csv_source(split, path, layout="long") for split in ("train", "test"))
    assert len(train) + len(test) == 4
    for source in (train, test):
        for index in range(len(source)):
            x = source.load(index, RNG)["x"][:, 0]
            assert (np.diff(x) == 1).all() and x[0] % 100 == 0
            assert len(x) == source.lengths()[index] == {1: 4, 2: 7, 3: 5, 4: 12}[x[0] // 100]
    arrays = load_arrays(train, length=6, length_mode="pad", normalizer=fit_normalizer(train))
    np.testing.assert_array_equal(arrays["length"], np.minimum(train.lengths(), 6))
    windows = csv_source("train", path, layout="long", length=4)
    assert windows.lengths().tolist() == [4] * len(windows)


def test_long_file_sorts_text_times(tmp_path):
    rows = [f"x,2020-03-{day:02d},{day}" for day in (7, 2, 9, 4)]
    path = write(tmp_path / "t.csv", "who,date,v", *rows)
    source = csv_source("train", path, layout="long", test_share=0.25)
    assert source.load(0, RNG)["x"][:, 0].tolist() == [2, 4, 7]


def test_folder_of_files_is_one_id_each(tmp_path):
    for name in range(6):
        write(tmp_path / f"s{name}.csv", *wide_lines(4 + name))
    (tmp_path / "readme.txt").write_text("other")
    options = {"length": 4, "stride": 1}
    train, test = (csv_source(split, tmp_path, **options) for split in ("train", "test"))
    assert len(train) + len(test) == sum(range(1, 7))
    names = {s.item_name(i).split()[1].split("[")[0] for s in (train, test) for i in range(len(s))}
    assert names == {f"s{name}" for name in range(6)}
    write(tmp_path / "s9.csv", "time,a,c", "1,2,3")
    with pytest.raises(ValueError, match="s9.csv and file .*s0.csv differ in column 'b'"):
        csv_source("train", tmp_path, length=4)


def test_missing_values_are_masked_and_counted(tmp_path, caplog):
    lines = wide_lines(10)
    lines[3] = "2020-01-2,,20,ok"
    lines[5] = "2020-01-4,4,NaN,ok"
    path = write(tmp_path / "t.csv", *lines)
    source = csv_source("train", path, length=4)
    first = f"the first in file {path}, line 4, column 'a' (most in column 'a': 1)"
    assert f"2 of 20 values are missing and masked, {first}" in caplog.text
    assert "nan_policy='error'" in caplog.text
    one, two = source.load(0, RNG), source.load(1, RNG)
    assert one["mask"].tolist() == [[True, True]] * 2 + [[False, True], [True, True]]
    assert two["mask"][0].tolist() == [True, False]
    assert np.isfinite(one["x"]).all()
    normalizer = fit_normalizer(source)
    np.testing.assert_allclose(normalizer.mean[0], np.mean([0, 1, 3, 4, 5, 6, 7]), rtol=1e-6)
    batch = next(make_train_iterator(source, length=4, normalizer=normalizer, batch_size=2, seed=0))
    assert (~batch["mask"]).sum() == 2 and (batch["x"][~batch["mask"]] == 0).all()
    message = r"t.csv, line 4, column 'a': value '' is missing .*nan_policy='mask'"
    with pytest.raises(ValueError, match=message):
        csv_source("train", path, length=4, nan_policy="error")


@pytest.mark.parametrize(
    ("line", "options", "message"),
    [
        ("2020,x7,1,ok", {}, r"line 6, column 'a': value 'x7' is no number: correct it"),
        ("2020,inf,1,ok", {}, r"line 6, column 'a': value 'inf' is not a finite"),
        ("2020,1,1e300,ok", {}, r"line 6, column 'b': value '1e300' is not a finite"),
        ("2020,1,1", {}, r"line 6: 3 cells, but the header names 4"),
        ("2020,1,1,ok", {"features": ["note"]}, r"line 2, column 'note': value 'ok' is no number"),
        ("2020,1,1,ok", {"features": ["c"]}, r"column 'c' is not in .*use one of time, a, b, note"),
        ("2020,1,1,", {"id_column": "note"}, r"line 6, column 'note': value '' is missing: every"),
        (
            "2020,1,1,no",
            {"static_label_column": "note"},
            r"label changes within t\[4:8\] \(no, ok\)",
        ),
        ("2020,1,1,ok", {"length": 17}, r"t has 16 steps, shorter than length=17 \(after"),
        ("2020,1,1,ok", {"length": None}, "needs the option 'length', steps .*set --config"),
        ("2020,1,1,ok", {"layout": "tall"}, "layout='tall' of source 'csv': use one of"),
        ("2020,1,1,ok", {"nan_policy": "drop"}, "nan_policy='drop' of source 'csv': use one of"),
        ("2020,1,1,ok", {"stride": 0}, "stride=0 of source 'csv': use 1 or more"),
        ("2020,1,1,ok", {"test_share": 0.0}, "test_share=0.0: use a share"),
        ("2020,1,1,ok", {"delimiter": ";"}, r"one column .* set delimiter=','"),
    ],
)
def test_bad_cells_and_options(tmp_path, line, options, message):
    lines = wide_lines(20)
    lines[5] = line
    path = write(tmp_path / "t.csv", *lines)
    with pytest.raises(ValueError, match=message) as caught:
        csv_source("train", path, **{"length": 4, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a,b"], "t.csv has no rows"),
        (["1,2", "3,4"], r"starts with numbers \(1, 2"),
        (["a,a", "3,4"], "column 'a' occurs twice"),
        (["a,b", "x,y"], "no number column"),
        (["a;b", "1;2"], "set delimiter=';'"),
    ],
)
def test_bad_files(tmp_path, lines, message):
    with pytest.raises(ValueError, match=message):
        csv_source("train", write(tmp_path / "t.csv", *lines), length=1)


def test_encodings(tmp_path):
    lines = wide_lines(10, "time,ä,b,note")
    path = write(tmp_path / "t.csv", *lines, encoding="utf-8-sig")
    assert csv_source("train", path, length=2).spec.feature_names == ("ä", "b")
    with pytest.raises(ValueError, match="not UTF-8"):
        csv_source("train", write(tmp_path / "u.csv", *lines, encoding="latin-1"), length=2)


def test_missing_places(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.csv of source 'csv' is missing: set path"):
        csv_source("train", tmp_path / "none.csv", length=2)
    with pytest.raises(ValueError, match=r"holds no \*.csv file: set path"):
        csv_source("train", tmp_path, length=2)
    with pytest.raises(ValueError, match="path of source 'csv' is not set"):
        csv_source("train", "", length=2)


def test_short_ids_are_skipped_counted_and_capped(tmp_path, caplog):
    lines = ["id,time,v"]
    for person in range(40):
        lines += [f"{person},{step},{step}" for step in range(2 if person == 7 else 5)]
    path = write(tmp_path / "t.csv", *lines)
    sources = [csv_source(split, path, layout="long", length=4) for split in ("train", "test")]
    assert [name for source in sources for name in source.skipped] == ["7"]
    assert "skipped 7 (2 steps, shorter than length=4)" in caplog.text
    assert sum(map(len, sources)) == 39
    with pytest.raises(
        ValueError, match="items had to be skipped, more than max_skipped_share=0.05"
    ):
        csv_source("train", path, layout="long", length=6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n1,\0\0\0\n1,2\n", "table.csv, line 3: bytes of zero"),
        ('a,b\n1,2\n1,"2\n1,2\n', "table.csv is not a CSV file .unexpected end of data"),
    ],
)
def test_damage_that_swallows_rows_is_named(tmp_path, text, message):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_table(path)
