import itertools
import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from diffsda_jax.data import record_files
from diffsda_jax.data.record_files import FRAMES_PER_RECORD
from diffsda_jax.data.records import ClipEntry, LatentIndex, LatentReader, LatentWriter
from diffsda_jax.data.sources import BrokenItemError

FACTS = {"source": "numbers", "size": 8}
SHAPE = (2, 3, 4)
LENGTHS = (5, FRAMES_PER_RECORD, FRAMES_PER_RECORD + 1, 1, 3 * FRAMES_PER_RECORD - 2, 7, 2)


def clips_of(split):
    """Clips whose values are their own, of lengths below, at and above those of a record."""
    for number, frames in enumerate(LENGTHS if split == "train" else LENGTHS[:3]):
        rng = np.random.default_rng([number, split == "test"])
        latents = rng.normal(3.0, 2.0, (frames, *SHAPE)).astype(np.float16)
        yield ClipEntry(f"{split}/{number}", split, "numbers", frames, {"static": "a"}), latents


def run(folder, clips_per_shard=2):
    """What a job does: writes what is not done, finds one clip broken, and finishes."""
    writer = LatentWriter(folder, FACTS, clips_per_shard)
    for split in ("train", "test"):
        done = writer.done(split)
        for entry, latents in clips_of(split):
            if entry.name not in done:
                writer.write(entry, latents)
        if "broken" not in done:
            writer.skip("broken", split, "torn")
    writer.finish()


def contents(folder):
    return {
        path.name: path.read_bytes()
        if path.suffix == ".arrayrecord"
        else json.loads(path.read_text())
        for path in sorted(folder.iterdir())
    }


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    run(folder)
    return folder


def test_every_frame_of_every_clip_comes_back(unbroken):
    index = LatentIndex.load(unbroken)
    assert (index.facts, index.frame_shape) == (FACTS, SHAPE)
    assert index.skipped == {"train": {"broken": "torn"}, "test": {"broken": "torn"}}
    for split in ("train", "test"):
        reader = LatentReader(index, split)
        wanted = list(clips_of(split))
        assert [place.entry for place in index.clips[split]] == [entry for entry, _ in wanted]
        for number, (_, latents) in enumerate(wanted):
            read = reader.read(number, range(len(latents)))
            assert read.dtype == np.float16
            np.testing.assert_array_equal(read, latents)


def test_a_batch_reads_any_frames_of_any_clips(unbroken):
    reader = LatentReader(LatentIndex.load(unbroken), "train")
    latents = [values for _, values in clips_of("train")]
    rng = np.random.default_rng(0)
    clips = rng.integers(len(LENGTHS), size=20)
    frames = np.stack([rng.integers(LENGTHS[clip], size=6) for clip in clips])  # in any order
    read = reader.read_batch(clips, frames)
    for got, clip, numbers in zip(read, clips, frames, strict=True):
        np.testing.assert_array_equal(got, latents[clip][numbers])


def test_a_window_reads_only_the_records_that_it_touches(unbroken, monkeypatch):
    reader = LatentReader(LatentIndex.load(unbroken), "train")
    read, asked = reader._read_records, []
    monkeypatch.setattr(
        reader, "_read_records", lambda *place: asked.append(place[1]) or read(*place)
    )
    reader.read(4, range(FRAMES_PER_RECORD + 3, FRAMES_PER_RECORD + 9))
    first = LatentIndex.load(unbroken).clips["train"][4].first
    assert asked == [[first + 1]]


def test_frames_that_a_clip_does_not_have_are_refused(unbroken):
    reader = LatentReader(LatentIndex.load(unbroken), "train")
    for frames in ([5], [-1]):
        with pytest.raises(ValueError, match=f"frames {frames[0]} to .* have 5 or more"):
            reader.read(0, frames)


def test_threads_read_at_once(unbroken):
    reader = LatentReader(LatentIndex.load(unbroken), "train")
    latents, wrong = [values for _, values in clips_of("train")], []

    def work(seed):
        for clip in np.random.default_rng(seed).integers(len(LENGTHS), size=50):
            if not np.array_equal(reader.read(int(clip), range(LENGTHS[clip])), latents[clip]):
                wrong.append(clip)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_mean_and_variance_are_those_of_the_training_split(unbroken):
    index = LatentIndex.load(unbroken)
    values = np.concatenate([latents for _, latents in clips_of("train")]).astype(np.float64)
    np.testing.assert_allclose(index.mean, values.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(index.variance, values.var((0, 1, 2)), rtol=1e-12)


def test_the_summary_counts(unbroken):
    summary = json.loads((unbroken / "latents.json").read_text())
    assert summary["train"] == {"clips": len(LENGTHS), "frames": sum(LENGTHS)}
    assert summary["test"] == {"clips": 3, "frames": sum(LENGTHS[:3])}
    assert summary["shards"] == [
        *(f"test-0000{i}" for i in range(2)),
        *(f"train-0000{i}" for i in range(4)),
    ]


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the package catches it."""


def die_at(monkeypatch, at, after):
    """Dies before or after the rename number `at`."""
    real, numbers = os.replace, itertools.count()

    def replace(source, target):
        number = next(numbers)
        if number == at and not after:
            raise Killed
        real(source, target)
        if number == at:
            raise Killed

    monkeypatch.setattr(record_files.os, "replace", replace)


NUM_RENAMES = 1 + 2 * 6 + 2 + 1  # facts, six shards, two skipped, summary


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_commit_point_changes_nothing(tmp_path, monkeypatch, unbroken, after):
    for at in range(NUM_RENAMES):
        folder = tmp_path / f"{at}"
        with monkeypatch.context() as patch, pytest.raises(Killed):
            die_at(patch, at, after)
            run(folder)
        if at + after < NUM_RENAMES and at + after > 0:
            with pytest.raises(
                ValueError, match=r"not finished \(\d shards so far\).*goes on there"
            ):
                LatentIndex.load(folder)
        run(folder)
        assert contents(folder) == contents(unbroken), at


def test_kills_one_after_another(tmp_path, monkeypatch, unbroken):
    """Every start gets one rename further than what it finds done."""
    starts = 0
    while not (tmp_path / "latents.json").is_file():
        starts += 1
        with monkeypatch.context() as patch, pytest.raises(Killed):
            die_at(patch, 1, after=True)
            run(tmp_path)
            raise Killed
    assert starts > 5
    assert contents(tmp_path) == contents(unbroken)


CHILD = """
import os, pathlib, runpy, signal, sys
job, left = runpy.run_path(sys.argv[1]), int(sys.argv[3])
write = job["LatentWriter"].write

def write_and_die(self, entry, latents):
    global left
    write(self, entry, latents)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

job["LatentWriter"].write = write_and_die
job["run"](pathlib.Path(sys.argv[2]))
"""


def test_sigkill_between_clips(tmp_path, unbroken):
    for writes in (1, 3):
        argv = [sys.executable, "-c", CHILD, __file__, str(tmp_path), str(writes)]
        assert subprocess.run(argv, check=False).returncode == -signal.SIGKILL
        assert list(tmp_path.glob("*.part"))
    run(tmp_path)
    assert contents(tmp_path) == contents(unbroken)


def test_done_names_what_counts_already(tmp_path):
    writer = LatentWriter(tmp_path, FACTS, 2)
    (one, a), (two, b), (three, c), *_ = clips_of("train")
    writer.write(one, a)
    assert writer.done("train") == frozenset()
    writer.write(two, b)
    writer.write(three, c)
    writer.skip("broken", "train", "torn")
    assert writer.done("train") == {one.name, two.name, "broken"} and not writer.done("test")
    assert LatentWriter(tmp_path, FACTS, 2).done("train") == {one.name, two.name, "broken"}


def test_a_finished_folder_takes_more_clips(tmp_path, unbroken):
    first = LatentWriter(tmp_path, FACTS)
    first.write(*next(clips_of("train")))
    first.finish()
    assert len(LatentIndex.load(tmp_path).clips["train"]) == 1
    run(tmp_path)
    assert LatentIndex.load(tmp_path).fingerprint() == LatentIndex.load(unbroken).fingerprint()


def test_the_fingerprint_tells_facts_and_clips_apart(tmp_path, unbroken):
    wanted = LatentIndex.load(unbroken).fingerprint()
    run(tmp_path / "whole", clips_per_shard=50)  # other shards, the same data
    assert LatentIndex.load(tmp_path / "whole").fingerprint() == wanted
    for name, facts, count in (("facts", {"source": "other"}, 7), ("fewer", FACTS, 3)):
        writer = LatentWriter(tmp_path / name, facts)
        for entry, latents in list(clips_of("train"))[:count]:
            writer.write(entry, latents)
        writer.finish()
        assert LatentIndex.load(tmp_path / name).fingerprint() != wanted


def test_other_facts_are_refused_by_name(unbroken, tmp_path):
    for facts, message in (
        ({**FACTS, "size": 16}, "made with size=8, not 16: use another folder"),
        ({**FACTS, "kind": "vq"}, "made with kind=None, not 'vq'"),
        ({"source": "numbers"}, "made with size=8, not None"),
    ):
        with pytest.raises(ValueError, match=message):
            LatentWriter(unbroken, facts)
    (tmp_path / "train-00000.arrayrecord").write_bytes(b"of somebody else")
    with pytest.raises(
        ValueError, match=r"holds train-00000.arrayrecord but no facts.json: use an"
    ):
        LatentWriter(tmp_path, FACTS)
    assert (tmp_path / "train-00000.arrayrecord").is_file()


def test_only_leftovers_are_removed(tmp_path):
    LatentWriter(tmp_path, FACTS)
    kept = ("notes.txt", "other.part", "other.arrayrecord")
    leftovers = ("train-00000.arrayrecord", "test-00001.arrayrecord.part", "latents.json.part")
    for name in (*kept, *leftovers):
        (tmp_path / name).write_text("x")
    LatentWriter(tmp_path, FACTS)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(("facts.json", *kept))


def test_bad_clips_are_refused(tmp_path):
    writer = LatentWriter(tmp_path, FACTS)
    entry, latents = next(clips_of("train"))
    writer.write(entry, latents)
    with pytest.raises(ValueError, match="clip train/0 of split 'train' was written or skipped"):
        writer.write(entry, latents)
    with pytest.raises(ValueError, match="clip train/0 of split 'train' was written or skipped"):
        writer.skip(entry.name, "train", "torn")
    other = ClipEntry("other", "train", "numbers", 5, {})
    with pytest.raises(ValueError, match=r"clip other have shape \(4, 2, 3, 4\): use frames of"):
        writer.write(other, latents[:4])
    with pytest.raises(ValueError, match=r"clip other have shape \(5, 2, 3, 2\): use frames of"):
        writer.write(other, latents[..., :2])
    with pytest.raises(ValueError, match="clip other are not finite in float16"):
        writer.write(other, np.full_like(latents, np.inf))
    with pytest.raises(ValueError, match="split 'val' of clip x: use one of"):
        ClipEntry("x", "val", "numbers", 5, {})
    with pytest.raises(ValueError, match="clip x has 0 frames"):
        ClipEntry("x", "train", "numbers", 0, {})
    with pytest.raises(ValueError, match=r"labels \['speaker'\] of clip x: use"):
        ClipEntry("x", "train", "numbers", 5, {"speaker": "a"})
    with pytest.raises(ValueError, match="clips_per_shard=0: use 1 or more"):
        LatentWriter(tmp_path, FACTS, 0)


def test_statistics_need_training_clips(tmp_path):
    writer = LatentWriter(tmp_path, FACTS)
    writer.write(*next(clips_of("test")))
    writer.skip("broken", "train", "torn")
    with pytest.raises(ValueError, match="no clip of the split 'train'.*1 of it were skipped"):
        writer.finish()


def test_missing_folders_and_other_versions_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no latents in .*nowhere.*make them by --mode=lat"):
        LatentIndex.load(tmp_path / "nowhere")
    run(tmp_path)
    path = tmp_path / "latents.json"
    record_files.save_json(path, {**record_files.read_json(path), "format": 9})
    with pytest.raises(ValueError, match="have format 9, this version reads 1"):
        LatentIndex.load(tmp_path)


@pytest.mark.parametrize("damage", ["shorter", "gone", "index gone", "index torn"])
def test_a_damaged_shard_is_named_and_made_anew(tmp_path, unbroken, damage):
    run(tmp_path)
    data, part = (tmp_path / f"train-00001{suffix}" for suffix in (".arrayrecord", ".json"))
    if damage == "shorter":
        os.truncate(data, data.stat().st_size // 2)
        message = (
            r"train-00001.arrayrecord has \d+ bytes, written were \d+: remove train-00001.json"
        )
    elif damage == "gone":
        data.unlink()
        message = r"train-00001.arrayrecord is missing, written were \d+: remove train-00001.json"
    elif damage == "index gone":
        part.unlink()
        message = "train-00001.json is missing: run --mode=latents again"
    else:
        part.write_text("{")
        message = "train-00001.json is no JSON: remove it and run --mode=latents again"
    with pytest.raises(ValueError, match=message):
        LatentIndex.load(tmp_path)
    part.unlink(missing_ok=True)  # as the message says
    run(tmp_path)
    assert LatentIndex.load(tmp_path).fingerprint() == LatentIndex.load(unbroken).fingerprint()
    reader = LatentReader(LatentIndex.load(tmp_path), "train")
    for number, (_, latents) in enumerate(clips_of("train")):
        np.testing.assert_array_equal(reader.read(number, range(len(latents))), latents)


def test_a_flipped_bit_breaks_its_clip_only(tmp_path):
    run(tmp_path)
    _, latents = list(clips_of("train"))[2]
    data = bytearray((tmp_path / "train-00001.arrayrecord").read_bytes())
    data[data.index(latents[:4].tobytes()) + 9] ^= 1
    (tmp_path / "train-00001.arrayrecord").write_bytes(data)
    reader = LatentReader(LatentIndex.load(tmp_path), "train")
    with pytest.raises(
        BrokenItemError, match=r"train-00001.arrayrecord is damaged .*remove train-"
    ):
        reader.read(2, [0, 1])
    np.testing.assert_array_equal(reader.read(3, [0]), list(clips_of("train"))[3][1])
