import numpy as np
import pytest

from diffsda_jax.data.pipeline import (
    load_arrays,
    make_train_dataset,
    make_train_iterator,
    num_steps_per_epoch,
)
from diffsda_jax.data.sources import BrokenItemError, ElementSpec, Source, make_source
from diffsda_jax.data.transforms import Normalizer


class Numbers(Source):
    """Element i holds the number i in every step, and a random draw."""

    name = "numbers"
    spec = ElementSpec("series", (2,), feature_names=("number", "draw"))

    def __init__(self, count, steps=4, broken=(), nan=None, known=True, **options):
        super().__init__("train", **options)
        self.count, self.steps, self.broken, self.nan, self.known = count, steps, broken, nan, known

    def __len__(self):
        return self.count

    def lengths(self):
        return np.full(self.count, self.steps) if self.known else None

    def load(self, index, rng):
        if index in self.broken:
            raise BrokenItemError("torn")
        x = np.full((self.steps, 2), index, np.float32)
        x[:, 1] = rng.uniform()
        if index == self.nan:
            x[1, 0] = np.nan
        return {"x": x, "static_id": index}

    def _identity(self):
        return self.count


def iterator(source, batch_size=4, seed=0, **options):
    options = {"length": 4, "normalizer": Normalizer(), **options}
    return make_train_iterator(source, batch_size=batch_size, seed=seed, **options)


def take(batches, count):
    return [next(batches) for _ in range(count)]


def ids(batches):
    return np.concatenate([batch["static_id"] for batch in batches])


def assert_same(one, two):
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_batches_keep_the_contract():
    batch = next(iterator(make_source("digits", "train", num_clips=9), length=8))
    shapes = {key: (value.shape, value.dtype.name) for key, value in batch.items()}
    assert shapes == {
        "x": ((4, 8, 16, 16, 1), "float32"),
        "mask": ((4, 8), "bool"),
        "length": ((4,), "int32"),
        "static_label": ((4,), "int32"),
        "static_id": ((4,), "int32"),
        "dynamic_label": ((4,), "int32"),
        "position": ((4, 8, 2), "float32"),
    }
    batch = next(iterator(make_source("japanese_vowels", "train"), length=29, length_mode="pad"))
    assert batch["x"].shape == batch["mask"].shape == (4, 29, 12)
    np.testing.assert_array_equal(batch["mask"].all(-1).sum(1), batch["length"])
    assert set(batch) == {"x", "mask", "length", "static_label"}


def test_every_epoch_visits_everything_in_a_new_order():
    seen = ids(take(iterator(Numbers(12)), 9)).reshape(3, 12)
    for epoch in seen:
        assert sorted(epoch) == list(range(12))
    assert not np.array_equal(seen[0], seen[1]) and not np.array_equal(seen[1], seen[2])


def test_no_element_is_lost_when_the_batch_does_not_divide_the_epoch():
    seen = ids(take(iterator(Numbers(10)), 5)).reshape(2, 10)
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(10))


def test_a_source_smaller_than_a_batch_works():
    assert sorted(next(iterator(Numbers(3), batch_size=6))["static_id"]) == [0, 0, 1, 1, 2, 2]


def test_batches_of_one_work():
    assert sorted(int(b["static_id"][0]) for b in take(iterator(Numbers(3), batch_size=1), 3)) == [
        *range(3)
    ]


def test_random_draws_differ_between_epochs_and_seeds():
    batches = take(iterator(Numbers(4)), 2)
    first, second = (dict(zip(b["static_id"], b["x"][:, 0, 1], strict=True)) for b in batches)
    assert all(first[index] != second[index] for index in range(4))
    other = take(iterator(Numbers(4), seed=1), 1)
    assert not np.array_equal(other[0]["x"], batches[0]["x"])


@pytest.mark.parametrize("num_threads", [0, 3])
@pytest.mark.parametrize("step", [0, 1, 7, 13])
def test_state_gives_the_following_batches_again(num_threads, step):
    batches = iterator(Numbers(11), num_threads=num_threads)
    take(batches, step)
    state = batches.get_state()
    wanted = take(batches, 6)
    fresh = iterator(Numbers(11), num_threads=0)
    fresh.set_state(state)
    assert_same(take(fresh, 6), wanted)
    batches.set_state(state)
    assert_same(take(batches, 6), wanted)


def test_resume_of_a_real_source_with_random_windows():
    def fresh():
        return iterator(make_source("japanese_vowels", "train"), length=7, length_mode="crop")

    batches = fresh()
    take(batches, 70)  # into the second epoch
    state = batches.get_state()
    wanted = take(batches, 3)
    again = fresh()
    again.set_state(state)
    assert_same(take(again, 3), wanted)


def test_processes_share_the_global_batches():
    whole = take(iterator(Numbers(11), batch_size=6), 8)
    parts = [
        take(iterator(Numbers(11), batch_size=6, process_index=i, process_count=2), 8)
        for i in range(2)
    ]
    for step in range(8):
        for key in whole[step]:
            for i in range(2):
                np.testing.assert_array_equal(
                    parts[i][step][key], whole[step][key][3 * i : 3 * i + 3]
                )


def test_random_access_equals_iteration():
    options = {"length": 4, "normalizer": Normalizer(), "batch_size": 4, "seed": 3}
    dataset = make_train_dataset(Numbers(11), **options)
    wanted = take(make_train_iterator(Numbers(11), **options), 5)
    assert_same([dataset[step] for step in range(5)], wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 5, "process_count": 2}, "batch_size=5 .*process_count=2"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"process_index": 2, "process_count": 2}, "process_index=2: use 0 to 1"),
        ({"seed": -1}, "seed=-1 of the data: use 0 to"),
        ({"length_mode": "tile"}, "length_mode 'tile': use one of"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        iterator(Numbers(6), **options)


def test_an_empty_source_is_refused():
    with pytest.raises(ValueError, match="numbers/train has no elements"):
        iterator(Numbers(0))
    with pytest.raises(ValueError, match="numbers/train has no elements to load"):
        load_arrays(Numbers(0), length=4, normalizer=Normalizer())


def test_a_crop_too_short_is_refused_before_training():
    message = r"6 of 6 sequences are shorter than length=5, .*numbers/train\[0\] with 4 steps"
    with pytest.raises(ValueError, match=message):
        iterator(Numbers(6), length=5, length_mode="crop")
    with pytest.raises(ValueError, match=message):
        load_arrays(Numbers(6), length=5, length_mode="crop", normalizer=Normalizer())
    unknown = iterator(Numbers(6, known=False), length=5, length_mode="crop", num_threads=0)
    with pytest.raises(ValueError, match=r"numbers/train\[\d\]: the sequence has 4 steps"):
        next(unknown)


def test_nan_stops_with_item_and_feature():
    message = r"numbers/train\[2\]: value nan at step 1, feature 'number'"
    with pytest.raises(ValueError, match=message):
        load_arrays(Numbers(5, nan=2), length=4, normalizer=Normalizer())
    with pytest.raises(ValueError, match=message):
        take(iterator(Numbers(5, nan=2)), 2)


def test_broken_items_are_replaced_in_training_and_left_out_in_evaluation():
    source = Numbers(30, broken=(4,))
    seen = ids(take(iterator(source, batch_size=6), 5))
    assert sorted(seen) == sorted([*range(4), 5, *range(5, 30)])
    assert source.skipped == {"numbers/train[4]": "torn"}
    source = Numbers(30, broken=(4,))
    arrays = load_arrays(source, length=4, normalizer=Normalizer())
    assert arrays["static_id"].tolist() == [*range(4), *range(5, 30)]
    assert source.skipped == {"numbers/train[4]": "torn"}


def test_too_many_broken_items_stop_the_run():
    with pytest.raises(ValueError, match=r"2 of 30 items had to be skipped.*torn"):
        take(iterator(Numbers(30, broken=(4, 5)), batch_size=6), 5)
    with pytest.raises(ValueError, match="no element can be read"):
        next(iterator(Numbers(3, broken=(0, 1, 2), max_skipped_share=1.0), num_threads=0))


def test_load_arrays_is_repeatable_and_spreads_its_limit():
    options = {"length": 4, "normalizer": Normalizer()}
    one, two = (load_arrays(Numbers(20), **options) for _ in range(2))
    assert_same([one], [two])
    assert one["static_id"].tolist() == list(range(20))
    few = load_arrays(Numbers(20), limit=3, **options)
    assert few["static_id"].tolist() == [0, 10, 19]
    np.testing.assert_array_equal(few["x"], one["x"][[0, 10, 19]])


def test_steps_per_epoch():
    assert num_steps_per_epoch(Numbers(10), 4) == 2.5
