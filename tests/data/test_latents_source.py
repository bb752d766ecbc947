import logging

import numpy as np
import pytest

from diffsda_jax.data import pipeline
from diffsda_jax.data.pipeline import load_arrays, make_train_dataset, make_train_iterator
from diffsda_jax.data.records import ClipEntry, LatentIndex, LatentReader, LatentWriter
from diffsda_jax.data.sources import BrokenItemError, make_source
from diffsda_jax.data.sources.video_folder import VideoFolder
from diffsda_jax.data.transforms import Normalizer, fit_normalizer, float16_to_float32

SHAPE = (2, 2, 3)
TRAIN, TEST = (4, 40, 9, 25, 6, 33, 17, 5, 12, 21), (8, 30)
PEOPLE = ("b", "a", "c10", "c9")


def clip_of(split, number, frames):
    """Every frame tells its clip and its own number; both are exact in float16."""
    x = np.zeros((frames, *SHAPE), np.float16)
    x[..., 0], x[..., 1] = 100 * (split == "test") + number, np.arange(frames)[:, None, None]
    x[..., 2] = np.random.default_rng(number).normal(5.0, 3.0, (frames, 2, 2))
    people = PEOPLE[:3] if split == "train" else PEOPLE[3:]
    labels = {"static": people[number % len(people)], "dynamic": f"move {number % 2}"}
    return ClipEntry(f"{split}/{number:02d}", split, "clips", frames, labels), x


def write(folder, lengths, skipped=(), clips_per_shard=3, labels=None):
    writer = LatentWriter(folder, {"source": "clips"}, clips_per_shard)
    for split, numbers in lengths.items():
        for number, frames in enumerate(numbers):
            entry, x = clip_of(split, number, frames)
            if labels is not None:
                entry = ClipEntry(entry.name, split, "clips", frames, labels(number))
            writer.write(entry, x)
    for name in skipped:
        writer.skip(name, "train", "torn")
    writer.finish()
    return str(folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write(tmp_path_factory.mktemp("latents"), {"train": TRAIN, "test": TEST})


def source_of(root, split="train", **options):
    return make_source("latents", split, root=root, **{"length": 4, **options})


def frames_of(x):
    """Clip and frame numbers of a window."""
    assert (x[..., :2] == x[:, :1, :1, :2]).all()
    return int(x[0, 0, 0, 0]), x[:, 0, 0, 1].astype(int).tolist()


def test_elements_are_windows_with_labels(root):
    source = source_of(root, stride=3)
    assert len(source) == source.num_items() == 10 and source.kind == "video"
    assert source.spec.shape == SHAPE and source.spec.kind == "video"
    assert source.spec.static_names == ("a", "b", "c9", "c10")  # of both splits
    assert source.spec.dynamic_names == ("move 0", "move 1")
    assert source.lengths().tolist() == [4] * 10 and source.item_name(3) == "train/03"
    for index in range(10):
        element = source.load(index, np.random.default_rng(index))
        assert element["x"].dtype == np.float32 and element["x"].shape == (4, *SHAPE)
        number, frames = frames_of(element["x"])
        assert number == index and set(np.diff(frames)) == {source._strides[index]}
        assert source.spec.static_names[element["static_label"]] == PEOPLE[:3][index % 3]
        assert element["dynamic_label"] == index % 2


@pytest.mark.parametrize("stride", [1, 2, 3, 20])
@pytest.mark.parametrize("length", [1, 2, 4])
def test_strides_shrink_as_those_of_a_video_folder(root, stride, length):
    twin = VideoFolder.__new__(VideoFolder)
    twin.stride, twin.length = stride, length
    source = source_of(root, stride=stride, length=length)
    assert source._strides.tolist() == [twin.clip_stride(frames) for frames in TRAIN]


def test_training_windows_are_random_and_reach_everything(root):
    source, starts = source_of(root, stride=2), set()
    for seed in range(200):
        starts.add(frames_of(source.load(2, np.random.default_rng(seed))["x"])[1][0])
    assert starts == {0, 1, 2}  # nine frames, of which a window spans seven


def test_test_windows_are_the_first_ones(root):
    for options, step in (({"stride": 2}, 2), ({"stride": 2, "test_stride": 5}, 5)):
        source = source_of(root, "test", **options)
        for seed in range(3):
            _, frames = frames_of(source.load(1, np.random.default_rng(seed))["x"])
            assert frames == [0, step, 2 * step, 3 * step]
    assert source_of(root, "train", test_stride=5).stride == 1


def test_repeats_belong_to_training(root):
    source = source_of(root, repeats=3)
    assert len(source) == 30 and source.item_name(23) == "train/03"
    assert frames_of(source.load(23, np.random.default_rng(0))["x"])[0] == 3
    assert len(source_of(root, "test", repeats=3)) == 2


def test_short_and_unencoded_clips_are_counted_and_named(tmp_path, caplog):
    root = write(tmp_path, {"train": TRAIN}, skipped=["train/bad"])
    with caplog.at_level(logging.WARNING):
        source = source_of(root, length=6, max_skipped_share=0.3)
    assert (len(source), source.num_items()) == (8, 11)
    assert source.skipped == {
        "train/bad": "not encoded: torn",
        "train/00": "4 frames, shorter than length=6 even at stride 1",
        "train/07": "5 frames, shorter than length=6 even at stride 1",
    }
    assert "skipped train/07" in caplog.text and "3 skipped" in source.describe()
    assert frames_of(source.load(0, np.random.default_rng(0))["x"])[0] == 1
    with pytest.raises(ValueError, match="3 of 11 items had to be skipped, more than max_skipped_"):
        source_of(root, length=6)
    with pytest.raises(ValueError, match="latents/train: .* has no clip of this split to read"):
        source_of(root, length=99, max_skipped_share=1.0)
    with pytest.raises(ValueError, match="latents/test: .* has no clip of this split to read"):
        source_of(root, "test")


def test_labels_are_all_or_none(tmp_path):
    root = write(tmp_path / "none", {"train": (5, 6)}, labels=lambda number: {})
    source = source_of(root)
    assert source.spec.static_names is source.spec.dynamic_names is None
    assert set(source.load(0, np.random.default_rng(0))) == {"x"}
    some = lambda number: {"static": "a"} if number else {}  # noqa: E731
    root = write(tmp_path / "some", {"train": (5, 6, 7)}, labels=some)
    with pytest.raises(
        ValueError, match="1 of 3 clips in .* have no static label, such as train/00"
    ):
        source_of(root)


def test_bad_options(root, tmp_path):
    for option in ("length", "stride", "repeats"):
        with pytest.raises(ValueError, match=f"{option}=0 of source 'latents': use 1 or more"):
            source_of(root, **{option: 0})
    with pytest.raises(ValueError, match="stride=0 of source 'latents'"):
        source_of(root, "test", test_stride=0)
    with pytest.raises(ValueError, match="root of source 'latents' is not set: make latents by"):
        source_of("")
    with pytest.raises(FileNotFoundError, match="no latents in .*nowhere"):
        source_of(str(tmp_path / "nowhere"))


def test_the_fingerprint_tells_windows_and_data_apart(root, tmp_path):
    prints = [
        source_of(root, **o).fingerprint()
        for o in ({}, {"length": 3}, {"stride": 2}, {"repeats": 2})
    ]
    prints += [source_of(write(tmp_path / "a", {"train": TRAIN[:9]})).fingerprint()]
    assert len(set(prints)) == 5
    same = write(tmp_path / "b", {"train": TRAIN, "test": TEST}, clips_per_shard=64)
    assert source_of(same).fingerprint() == prints[0]


def test_the_normaliser_is_that_of_the_index(root, tmp_path, caplog):
    normalizer = fit_normalizer(source_of(root), target_std=0.5)
    frames = np.concatenate([clip_of("train", i, n)[1] for i, n in enumerate(TRAIN)])
    values = normalizer.apply(frames.astype(np.float32)).astype(np.float64)
    np.testing.assert_allclose(values.mean((0, 1, 2)), 0.0, atol=1e-6)
    np.testing.assert_allclose(values.std((0, 1, 2)), 0.5, rtol=1e-6)
    one = write(tmp_path, {"train": (5,)})  # its first channel is the clip's number
    assert fit_normalizer(source_of(one)).std[0] == 1.0
    assert "latents/train: constant features: 0" in caplog.text


def batches(source, count, element_by_element=False, **options):
    """The first batches; by the twin, they are made element by element."""
    options = {"length": 4, "batch_size": 6, "seed": 3, "num_threads": 0, **options}
    options.setdefault("normalizer", fit_normalizer(source))
    with pytest.MonkeyPatch.context() as patch:
        if element_by_element:
            patch.setattr(pipeline, "BatchedSource", type(None))
        iterator = make_train_iterator(source, **options)
    return [next(iterator) for _ in range(count)]


def assert_same(one, two):
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize("options", [{}, {"stride": 3}, {"repeats": 3}])
def test_batches_are_those_made_element_by_element(root, options, monkeypatch):
    calls = []
    load_batch = LatentReader.read_batch
    monkeypatch.setattr(
        LatentReader,
        "read_batch",
        lambda self, c, f: calls.append(len(c)) or load_batch(self, c, f),
    )
    by_batch = batches(source_of(root, **options), 7)
    assert calls == [6] * 7
    assert_same(by_batch, batches(source_of(root, **options), 7, element_by_element=True))
    assert set(by_batch[0]) == {"x", "mask", "length", "static_label", "dynamic_label"}
    assert by_batch[0]["x"].shape == (6, 4, *SHAPE) and by_batch[0]["x"].dtype == np.float32


def test_another_length_is_resampled_element_by_element(root):
    batch = batches(source_of(root), 1, length=3)[0]
    assert batch["x"].shape == (6, 3, *SHAPE)


def numbers(found):
    """Numbers of the clips of batches that were not normalised."""
    return np.concatenate([batch["x"][:, 0, 0, 0, 0] for batch in found]).astype(int)


def test_every_epoch_visits_everything_in_a_new_order(root):
    seen = numbers(batches(source_of(root), 5, normalizer=Normalizer())).reshape(3, 10)
    for epoch in seen:
        assert sorted(epoch) == list(range(10))
    assert not np.array_equal(seen[0], seen[1])


@pytest.mark.parametrize("num_threads", [0, 3])
@pytest.mark.parametrize("step", [0, 1, 6])
def test_state_gives_the_following_batches_again(root, num_threads, step):
    def fresh(threads=num_threads):
        source = source_of(root)
        options = {"length": 4, "batch_size": 4, "seed": 1, "normalizer": fit_normalizer(source)}
        return make_train_iterator(source, num_threads=threads, **options)

    iterator = fresh()
    for _ in range(step):
        next(iterator)
    state = iterator.get_state()
    wanted = [next(iterator) for _ in range(4)]
    again = fresh(0)
    again.set_state(state)
    assert_same([next(again) for _ in range(4)], wanted)
    iterator.set_state(state)
    assert_same([next(iterator) for _ in range(4)], wanted)


def test_processes_share_the_global_batches(root):
    whole = batches(source_of(root), 5)
    for i in range(2):
        part = batches(source_of(root), 5, process_index=i, process_count=2)
        assert_same(
            part, [{key: np.split(values, 2)[i] for key, values in b.items()} for b in whole]
        )


def test_random_access_equals_iteration(root):
    source = source_of(root)
    options = {"length": 4, "batch_size": 6, "seed": 3, "normalizer": fit_normalizer(source)}
    dataset = make_train_dataset(source, **options)
    assert_same([dataset[step] for step in range(3)], batches(source, 3))


def damage(root, number):
    """Flips a bit of a clip's second frame."""
    index = LatentIndex.load(root)
    path = index.folder / (index.clips["train"][number].shard + ".arrayrecord")
    data = bytearray(path.read_bytes())
    data[data.index(clip_of("train", number, TRAIN[number])[1].tobytes()) + 30] ^= 1
    path.write_bytes(data)


def test_broken_clips_are_replaced_in_training_and_left_out_in_evaluation(tmp_path):
    root = write(tmp_path, {"train": TRAIN})
    damage(root, 4)
    options = {"max_skipped_share": 0.1}
    with pytest.raises(BrokenItemError, match="is damaged"):
        source_of(root).load(4, np.random.default_rng(0))
    source = source_of(root, **options)
    seen = numbers(batches(source, 2, batch_size=5, normalizer=Normalizer()))
    assert sorted(seen) == [0, 1, 2, 3, 5, 5, 6, 7, 8, 9]
    assert list(source.skipped) == ["train/04"] and "is damaged" in source.skipped["train/04"]
    twin = batches(
        source_of(root, **options),
        2,
        batch_size=5,
        normalizer=Normalizer(),
        element_by_element=True,
    )
    np.testing.assert_array_equal(numbers(twin), seen)
    source = source_of(root, **options)
    arrays = load_arrays(source, length=4, normalizer=Normalizer())
    assert arrays["x"][:, 0, 0, 0, 0].tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    with pytest.raises(ValueError, match="1 of 10 items had to be skipped.*is damaged"):
        batches(source_of(root), 2, batch_size=5)


def test_values_that_are_not_finite_are_named(root, monkeypatch):
    source = source_of(root)
    load_batch = source.load_batch

    def poisoned(indices, draws):
        batch = load_batch(indices, draws)
        batch["x"][indices == 7, 1, 0, 0, 2] = np.nan
        return batch

    monkeypatch.setattr(source, "load_batch", poisoned)
    with pytest.raises(ValueError, match="train/07: value nan at step 1, feature 2"):
        batches(source, 2)


def test_float16_to_float32_is_exact():
    everything = np.arange(2**16).astype(np.uint16).view(np.float16)
    for numbers in (everything, everything[np.isfinite(everything)], everything[:0]):
        wanted = numbers.astype(np.float32)
        got = float16_to_float32(numbers)
        np.testing.assert_array_equal(got.view(np.uint32), wanted.view(np.uint32))
