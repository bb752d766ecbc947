import dataclasses
import io
import json
import logging
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from series_files import elements, ett_lines, write

from diffsda_jax import config as configuration
from diffsda_jax import runs
from diffsda_jax.data import tfds_builders
from diffsda_jax.data.pipeline import load_arrays
from diffsda_jax.data.sources import make_source
from diffsda_jax.data.sources.tfds_source import find_prepared
from diffsda_jax.data.tfds_builders import prepare
from diffsda_jax.data.transforms import Normalizer


class Foreign(tfds.core.GeneratorBasedBuilder):
    """What others prepare: frames as images and as a tensor, a series, labels of either kind."""

    name = "foreign"
    VERSION = tfds.core.Version("1.2.0")
    code_path = None

    def _info(self):
        features = tfds.features
        return tfds.core.DatasetInfo(
            builder=self,
            disable_shuffling=True,
            features=features.FeaturesDict(
                {
                    "frames": features.Sequence(features.Image(shape=(None, None, 3))),
                    "clip": features.Tensor(shape=(4, 5, 5, 1), dtype=np.uint8, encoding="bytes"),
                    "signal": features.Sequence(features.Tensor(shape=(2,), dtype=np.float64)),
                    "grey": features.Tensor(
                        shape=(None, 5, 5, 1), dtype=np.float32, encoding="bytes"
                    ),
                    "who": features.ClassLabel(names=["ann", "bob"]),
                    "what": features.Scalar(dtype=np.int32),
                    "seen": features.Tensor(shape=(None, 2), dtype=np.bool_, encoding="bytes"),
                    "title": features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(6), "validation": self._generate_examples(4)}

    def _generate_examples(self, count):
        for index in range(count):
            yield index, foreign(index)


def foreign(index):
    """One example; the fourth has frames of another size, values beyond 1, and no class."""
    rng = np.random.default_rng(index)
    size = 7 if index == 3 else 6
    return {
        "frames": [png(frame) for frame in rgb(index, size)],
        "clip": rng.integers(0, 256, (4, 5, 5, 1), dtype=np.uint8),
        "signal": list(rng.normal(size=(index + 2, 2))),
        "grey": (rng.uniform(size=(3, 5, 5, 1)) * (1.5 if index == 3 else 1.0)).astype(np.float32),
        "who": index % 2,
        "what": -1 if index == 3 else index % 3,
        "seen": rng.uniform(size=(index + 2, 2)) < 0.7,
        "title": f"clip {index}",
    }


def rgb(index, size=6):
    return np.random.default_rng([1, index]).integers(0, 256, (3, size, size, 3), dtype=np.uint8)


def png(frame):
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    file.seek(0)
    return file


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with two of our sets and a foreign one."""
    folder = tmp_path_factory.mktemp("tfds")
    prepare("japanese_vowels", data_dir=folder)
    prepare("digits", {"num_clips": 5}, data_dir=folder)
    Foreign(data_dir=str(folder)).download_and_prepare(file_format="array_record")
    return folder


def source(folder, dataset="foreign", split="train", **options):
    options = {"test_split": "validation"} | options if dataset == "foreign" else options
    return make_source("tfds", split, dataset=dataset, data_dir=str(folder), **options)


def assert_same(ours, theirs):
    """Two sources give the same, element by element."""
    assert len(ours) == len(theirs) and ours.spec == theirs.spec and ours.tasks == theirs.tasks
    for a, b in zip(elements(ours), elements(theirs), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert np.asarray(a[key]).dtype == np.asarray(b[key]).dtype, key
            np.testing.assert_array_equal(a[key], b[key])


def masked_csv(folder):
    rows = [f"p{i // 10},{i},{'' if i % 7 == 3 else i / 2},k{i // 10 % 2}" for i in range(200)]
    path = write(folder / "table.csv", ["who,a,b,kind", *rows])
    return {
        "path": str(path),
        "id_column": "who",
        "static_label_column": "kind",
        "nan_policy": "mask",
        "length": 8,
    }


@pytest.mark.parametrize("name", ["japanese_vowels", "digits", "csv", "etth1"])
def test_a_prepared_source_is_read_back_as_it_was(name, tmp_path, caplog):
    options = {
        "japanese_vowels": lambda: {},
        "digits": lambda: {"num_clips": 6, "num_frames": 5},
        "csv": lambda: masked_csv(tmp_path),
        "etth1": lambda: {
            "path": str(write(tmp_path / "ETTh1.csv", ett_lines(4000))),
            "stride": 300,
        },
    }[name]()
    with caplog.at_level(logging.INFO, "diffsda_jax"):
        dataset = prepare(name, options, tmp_path / "sets")
    assert dataset == f"diffsda_sequences/{name}:1.0.0" and "prepared" in caplog.text
    for split in ("train", "test"):
        original = make_source(name, split, **options)
        read = source(tmp_path / "sets", dataset, split)
        assert_same(read, original)
        assert read.kind == original.kind and "tensorflow" not in sys.modules
        lengths = original.lengths()
        if lengths is not None and len(set(lengths)) == 1:
            np.testing.assert_array_equal(read.lengths(), lengths)
        else:
            assert read.lengths() is None
    if name == "csv":
        assert read.spec.masked and not elements(read)[0]["mask"].all()
        assert not source(tmp_path / "sets", dataset, mask="").spec.masked
    if name == "etth1":
        assert read.tasks[0].target == "target_oil_temperature"


def test_frames_of_images_become_pixels(prepared):
    read = source(prepared, feature="frames", static_label="who", dynamic_label="what")
    assert read.spec.kind == read.kind == "video" and read.spec.shape == (6, 6, 3)
    assert read.spec.static_names == ("ann", "bob") and read.spec.dynamic_names is None
    assert len(read) == 6 and read.lengths() is None and not read.spec.masked
    for index in (0, 1, 2, 4, 5):
        element = read.load(index, np.random.default_rng(0))
        assert element["x"].dtype == np.float32
        np.testing.assert_allclose(element["x"], rgb(index) / 127.5 - 1.0, atol=1e-6)
        assert (element["static_label"], element["dynamic_label"]) == (index % 2, index % 3)


def test_series_and_tensors_of_frames(prepared):
    clip = source(prepared, feature="clip", split="test")
    assert len(clip) == 4 and clip.lengths().tolist() == [4] * 4
    x = clip.load(1, np.random.default_rng(0))["x"]
    np.testing.assert_allclose(x, foreign(1)["clip"] / 127.5 - 1.0, atol=1e-6)
    series = source(prepared, kind="series", mask="seen")
    assert series.spec.kind == "series" and series.spec.masked and series.spec.shape == (2,)
    for index, element in enumerate(elements(series)):
        np.testing.assert_allclose(element["x"], foreign(index)["signal"], rtol=1e-6)
        np.testing.assert_array_equal(element["mask"], foreign(index)["seen"])
        assert element["x"].dtype == np.float32 and element.keys() == {"x", "mask"}


def test_elements_that_do_not_fit_are_counted(prepared):
    """The fourth has frames of another size, values beyond 1, and no class."""
    for options, reason in (
        ({"feature": "frames"}, "3 steps of shape (7, 7, 3), not (6, 6, 3)"),
        ({"feature": "grey"}, "frames need -1 to 1, or integers of 8 bits"),
        ({"feature": "clip", "static_label": "what"}, "what is -1, no class"),
    ):
        read = source(prepared, max_skipped_share=0.2, **options)
        arrays = load_arrays(read, length=3, length_mode="resample", normalizer=Normalizer())
        assert len(arrays["x"]) == 5
        assert reason in read.skipped["tfds/train[3]"]


@pytest.mark.parametrize("damage", ["cut", "empty", "missing"])
def test_a_damaged_file_is_one_message(prepared, tmp_path, damage):
    shutil.copytree(prepared, tmp_path / "sets")
    (shard,) = (tmp_path / "sets").glob("foreign/*/foreign-train.*")
    content = shard.read_bytes()
    shard.unlink()
    if damage != "missing":
        shard.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "sets" / "foreign"))) as caught:
        read = source(tmp_path / "sets", feature="clip")
        load_arrays(read, length=3, length_mode="resample", normalizer=Normalizer())
    assert "\n" not in str(caught.value)


def test_splits_are_those_of_the_data_set(prepared):
    whole = elements(source(prepared, feature="clip"))
    parts = {"train_split": "train[:50%]", "test_split": "train[50%:]+validation[:1]"}
    train, test = (source(prepared, feature="clip", split=s, **parts) for s in ("train", "test"))
    assert (len(train), len(test)) == (3, 4)
    for ours, theirs in zip(elements(train) + elements(test), whole, strict=False):
        np.testing.assert_array_equal(ours["x"], theirs["x"])
    prints = {s.fingerprint() for s in (train, test, source(prepared, feature="clip"))}
    assert len(prints) == 3


def test_labels_can_be_left_out(prepared):
    dataset = "diffsda_sequences/digits"
    read = source(prepared, dataset, static_label="", dynamic_label="static_label")
    element = read.load(0, np.random.default_rng(0))
    assert "static_label" not in element and read.spec.static_names is None
    assert read.spec.dynamic_names == tuple("0123456789")


def test_the_folder_may_come_from_the_environment(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    read = make_source("tfds", "train", dataset="diffsda_sequences/japanese_vowels")
    assert len(read) == 270


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ("mnist", {}, r"'mnist' .* where there is .*digits:1.0.0, .*, foreign:1.2.0: prepare it"),
        ("foreign:9.0.0", {}, r"not prepared in .* where there is foreign:1.2.0: prepare it"),
        ("diffsda_sequences", {}, r"fits .*/digits:1.0.0, .*/japanese_vowels:1.0.0: name one"),
        ("a b", {}, "dataset='a b' of source 'tfds': use 'set', 'set/config'"),
        ("foreign", {"test_split": "test"}, "has the splits train, validation; use one of them"),
        ("foreign", {"test_split": "train[:x]"}, r"test_split='train\[:x\]' .* write it like"),
        (
            "foreign",
            {},
            "has clip, frames, grey, signal with 4 axes .* name the sequence",
        ),
        (
            "foreign",
            {"test_split": "validation[:0]"},
            r"validation\[:0\].* that it holds some",
        ),
        ("foreign", {"feature": "frame"}, "'frame'. Did you mean 'frames'"),
        ("foreign", {"feature": "title"}, r"has shape \(\) .* a sequence has numbers and 4 axes"),
        ("foreign", {"feature": "signal", "kind": "video"}, r"and 4 axes \(video\); there are"),
        ("foreign", {"feature": "clip", "static_label": "title"}, "a ClassLabel or one integer"),
        ("foreign", {"feature": "clip", "mask": "sene"}, "'sene'. Did you mean 'seen'"),
        ("foreign", {"kind": "audio"}, "kind='audio' of source 'tfds': use one of"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(prepared, dataset, options, message):
    options = {"test_split": "validation"} | options
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        make_source("tfds", "test", dataset=dataset, data_dir=str(prepared), **options)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="data_dir .*nowhere of source 'tfds' is no folder"):
        make_source("tfds", "train", dataset="mnist", data_dir=str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="where there is none: prepare it with builder"):
        make_source("tfds", "train", dataset="mnist", data_dir=str(tmp_path))


def changed_copy(prepared, folder, file, change):
    """A copy of the prepared digits with one of its JSON files changed."""
    old = prepared / "diffsda_sequences" / "digits" / "1.0.0"
    new = folder / "digits" / "1.0.0"
    new.mkdir(parents=True)
    for path in old.iterdir():
        (new / path.name).write_bytes(path.read_bytes())
    facts = json.loads((new / file).read_text())
    change(facts)
    (new / file).write_text(json.dumps(facts))
    return folder


def test_tfrecord_is_refused_with_the_way_out(prepared, tmp_path):
    folder = changed_copy(
        prepared, tmp_path, "dataset_info.json", lambda facts: facts.update(fileFormat="tfrecord")
    )
    with pytest.raises(ValueError, match="is prepared as tfrecord, which cannot") as caught:
        source(folder, "digits")
    assert 'builder.download_and_prepare(file_format="array_record")' in str(caught.value)
    assert "\n" not in str(caught.value)


def test_features_that_need_tensorflow_are_refused(prepared, tmp_path):
    video = {
        "pythonClassName": "tensorflow_datasets.core.features.video_feature.Video",
        "video": {"shape": {"dimensions": ["8", "16", "16", "1"]}, "dtype": "uint8"},
    }
    folder = changed_copy(
        prepared,
        tmp_path,
        "features.json",
        lambda facts: facts["featuresDict"]["features"].update(x=video),
    )
    with pytest.raises(ValueError, match="has a feature that needs TensorFlow .*: tfds reads Ten"):
        source(folder, "digits")


def test_the_newest_version_is_read(tmp_path):
    for version in ("1.9.0", "1.10.0"):
        write(tmp_path / "digits" / version / "dataset_info.json", ["{}"])
    assert find_prepared("digits", str(tmp_path)).name == "1.10.0"
    assert find_prepared("digits:1.9.0", str(tmp_path)).name == "1.9.0"


def test_other_data_under_one_name_are_refused(prepared):
    prepare("digits", {"num_clips": 5}, prepared)  # the same once more is nothing new
    with pytest.raises(ValueError, match="was prepared from other data or options: give another"):
        prepare("digits", {"num_clips": 6}, prepared)
    assert prepare("digits", {"num_clips": 6}, prepared, "six") == "diffsda_sequences/six:1.0.0"
    assert len(source(prepared, "diffsda_sequences/six")) == 6


def test_audio_is_refused(tmp_path, monkeypatch):
    quiet = make_source("japanese_vowels", "train")
    quiet.spec = dataclasses.replace(
        quiet.spec, kind="audio", shape=(), feature_names=None, fps=16_000.0
    )
    monkeypatch.setattr(tfds_builders, "make_source", lambda *args, **options: quiet)
    with pytest.raises(ValueError, match="'timit' gives audio, which tfds cannot hold"):
        prepare("timit", data_dir=tmp_path)


def test_tfds_is_imported_when_it_is_needed():
    code = (
        "import sys\nfrom diffsda_jax.data.sources import SOURCES\nSOURCES['tfds']\n"
        "print([m for m in ('tensorflow_datasets', 'tensorflow', 'jax') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_reads_a_prepared_data_set(prepared, tmp_path):
    config = runs.shrink(configuration.load_config("configs/japanese_vowels.py"))
    config.source = configuration.source_config(
        "tfds", dataset="diffsda_sequences/japanese_vowels", data_dir=str(prepared)
    )
    config.data.length = 6
    config.eval.update(num_clips=40, num_train_clips=60, parts=("verification",))
    result = runs.run_train(config, tmp_path)
    assert int(result.state.step) == 2
    metrics = json.loads((tmp_path / "eval" / "00000002" / "metrics.json").read_text())["metrics"]
    assert "verification/static_eer_percent" in metrics
