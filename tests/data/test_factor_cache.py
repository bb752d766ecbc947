"""Factors on disk: shards that survive a kill, statistics over real steps, exact resume."""

import re

import numpy as np
import pytest

from diffsda_jax.data.factor_cache import FactorCache, FactorWriter, check_facts
from diffsda_jax.data.sources import ElementSpec, Source
from diffsda_jax.data.sources.windows import Windows, list_windows

FACTS = {"model.step": 5, "data": "abc"}


def factors(count=10, steps=4):
    rng = np.random.default_rng(0)
    static = rng.normal(3.0, 2.0, (count, 3)).astype(np.float32)
    dynamic = rng.normal(-1.0, 0.5, (count, steps, 2)).astype(np.float32)
    dynamic[..., 1] = 0.25  # a coordinate that says nothing
    return static, dynamic, rng.integers(1, steps + 1, count).astype(np.int32)


def write(folder, length=None, shards=None, per_shard=4):
    static, dynamic, _ = factors()
    writer = FactorWriter(folder, FACTS, len(static), per_shard)
    for shard in writer.missing() if shards is None else shards:
        span = writer.span(shard)
        part = slice(span.start, span.stop)
        writer.write(shard, static[part], dynamic[part], None if length is None else length[part])
    return writer


def test_what_was_written_is_read_normalised(tmp_path):
    static, dynamic, _ = factors()
    write(tmp_path).finish()
    cache = FactorCache.load(tmp_path)
    assert (len(cache), cache.length, cache.padded) == (10, 4, False)
    order = np.array([9, 0, 5, 4, 4])
    batch = cache.read(order)
    assert batch.keys() == {"static", "dynamic"} and batch["static"].dtype == np.float32
    np.testing.assert_allclose(cache.static.invert(batch["static"]), static[order], rtol=1e-5)
    np.testing.assert_allclose(cache.dynamic.invert(batch["dynamic"]), dynamic[order], rtol=1e-5)
    whole = cache.read(np.arange(10))
    for values in (whole["static"], whole["dynamic"][..., :1].reshape(-1, 1)):
        np.testing.assert_allclose(values.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(values.std(0), 1, rtol=1e-4)
    assert not whole["dynamic"][..., 1].any()  # constant: 0, not a division by 0


def test_padding_counts_for_nothing_and_is_zero(tmp_path):
    _, dynamic, length = factors()
    write(tmp_path, length).finish()
    cache = FactorCache.load(tmp_path)
    real = np.arange(4) < length[:, None]
    np.testing.assert_allclose(cache.dynamic.mean[0], dynamic[real][:, 0].mean(), rtol=1e-5)
    np.testing.assert_allclose(cache.dynamic.std[0], dynamic[real][:, 0].std(), rtol=1e-5)
    batch = cache.read(np.arange(10))
    np.testing.assert_array_equal(batch["length"], length)
    assert not batch["dynamic"][~real].any() and batch["dynamic"][real][:, 0].all()


def test_a_kill_costs_one_shard(tmp_path):
    write(tmp_path / "whole").finish()
    write(tmp_path / "parts", shards=[0, 2])
    (tmp_path / "parts" / "factors-00001.npy.part").write_bytes(b"half")  # killed while writing
    with pytest.raises(ValueError, match="shard 1 in .* is not written"):
        FactorWriter(tmp_path / "parts", FACTS, 10, 4).finish()
    with pytest.raises(FileNotFoundError, match="run --mode=prior"):
        FactorCache.load(tmp_path / "parts")
    again = FactorWriter(tmp_path / "parts", FACTS, 10, 4)
    assert again.missing() == [1] and not list((tmp_path / "parts").glob("*.part"))
    write(tmp_path / "parts").finish()
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "parts").iterdir())
    for name in names:
        whole, parts = ((tmp_path / run / name).read_bytes() for run in ("whole", "parts"))
        assert whole == parts


def test_sequences_that_could_not_be_read_are_left_out(tmp_path):
    static, dynamic, _ = factors()
    writer = FactorWriter(tmp_path, FACTS, 10, 4)
    writer.write(0, static[1:4], dynamic[1:4])
    writer.write(1, static[:0], dynamic[:0])  # a shard of which nothing could be read
    writer.write(2, static[8:], dynamic[8:])
    writer.finish()
    cache = FactorCache.load(tmp_path)
    assert len(cache) == 5
    found = cache.static.invert(cache.read(np.arange(5))["static"])
    np.testing.assert_allclose(found, static[[1, 2, 3, 8, 9]], rtol=1e-5)


def test_resuming_gives_the_batches_of_an_unbroken_run(tmp_path):
    write(tmp_path).finish()
    options = {"batch_size": 4, "seed": 3}
    unbroken = FactorCache.load(tmp_path).iterate(**options)
    batches = [next(unbroken) for _ in range(6)]
    first = FactorCache.load(tmp_path).iterate(**options, num_threads=0)
    for _ in range(3):
        next(first)
    resumed = FactorCache.load(tmp_path).iterate(**options)
    resumed.set_state(first.get_state())
    for batch in batches[3:]:
        np.testing.assert_array_equal(next(resumed)["static"], batch["static"])
    seen = np.concatenate([batch["static"] for batch in batches[:5]])
    assert len(np.unique(seen, axis=0)) == 10  # two epochs, each sequence in both
    halves = [
        next(FactorCache.load(tmp_path).iterate(**options, process_index=i, process_count=2))
        for i in range(2)
    ]
    together = np.concatenate([half["static"] for half in halves])
    np.testing.assert_array_equal(together, batches[0]["static"])


def test_refusals_name_what_differs_and_the_way_out(tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match=re.escape("model.step 5, which is now 9; move it away.")):
        check_facts(tmp_path, FACTS | {"model.step": 9}, "move it away")
    with pytest.raises(ValueError, match="sequences a shard 4, which is now 5"):
        FactorWriter(tmp_path, FACTS, 10, 5)
    static, dynamic, _ = factors()
    static[1] = np.nan
    writer = FactorWriter(tmp_path / "nan", FACTS, 10, 10)
    with pytest.raises(ValueError, match="some factors are not finite"):
        writer.write(0, static, dynamic)


def test_a_damaged_shard_is_named(tmp_path):
    write(tmp_path).finish()
    file = tmp_path / "factors-00002.npy"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ValueError, match="factors-00002.npy is damaged .* run --mode=prior again"):
        FactorCache.load(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match="factors-00002.npy is missing"):
        FactorCache.load(tmp_path)


class Ramps(Source):
    """Item i counts up from 100 i; some items are longer than others."""

    name = "ramps"
    spec = ElementSpec("series", (1,))

    def __len__(self):
        return 3

    def load(self, index, rng):
        return {"x": np.arange(100.0 * index, 100 * index + self.lengths()[index])[:, None]}

    def lengths(self):
        return np.array([5, 9, 30])

    def _identity(self):
        return None


def test_long_items_have_several_windows_and_each_is_always_the_same():
    source = Ramps("train")
    assert list_windows(source, 5, "crop", 1) == [(0, 0), (1, 0), (2, 0)]
    assert list_windows(source, 5, "resample", 3) == [(0, 0), (1, 0), (2, 0)]
    chosen = list_windows(source, 5, "crop", 3)
    assert [item for item, _ in chosen] == [0, 1, 1, 1, 2, 2, 2]
    windows = Windows(source, chosen, 5, "crop", seed=0)
    again = Windows(source, chosen[4:], 5, "crop", seed=0)
    rng = np.random.default_rng(0)
    for index, (item, number) in enumerate(chosen):
        x = windows.load(index, rng)["x"][:, 0]
        if number == 0:
            assert len(x) == source.lengths()[item]  # cut by whoever reads it: the first window
        else:
            assert len(x) == 5 and (np.diff(x) == 1).all() and x[0] // 100 == item
        if index >= 4:
            np.testing.assert_array_equal(x, again.load(index - 4, rng)["x"][:, 0])
    starts = {int(windows.load(index, rng)["x"][0, 0]) for index in (4, 5, 6)}
    assert len(starts) == 3
    with pytest.raises(ValueError, match="windows_per_item=0"):
        list_windows(source, 5, "crop", 0)


@pytest.mark.parametrize("place", [30, 40, 200])  # of the header, and of the values
def test_a_flipped_bit_is_seen_and_the_shard_is_made_anew(tmp_path, place):
    write(tmp_path).finish()
    file = tmp_path / "factors-00001.npy"
    data = bytearray(file.read_bytes())
    data[place] ^= 2
    file.write_bytes(data)
    with pytest.raises(ValueError, match="factors-00001.npy is damaged .*run --mode=prior again"):
        FactorCache.load(tmp_path)
    file.unlink()
    write(tmp_path).finish()
    assert len(FactorCache.load(tmp_path)) == 10
