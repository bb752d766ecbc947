"""`--mode=latents`: from clips on disk to records, with kills, broken clips and wrong options."""

import functools
import itertools
import logging
import os
import subprocess
import sys
import time
from collections import Counter

import jax
import numpy as np
import pytest
from PIL import Image

from diffsda_jax import FirstStage, latents, sharding
from diffsda_jax import config as configuration
from diffsda_jax.data.records import LatentIndex, LatentReader, LatentWriter
from diffsda_jax.data.sources.video_folder import VideoFolder
from diffsda_jax.first_stage.nets import variable_shapes
from diffsda_jax.first_stage.spec import FirstStageSpec
from diffsda_jax.first_stage_api import FrameEncoder
from diffsda_jax.train import checkpoint
from diffsda_jax.train.lock import WorkdirLock

SPEC = FirstStageSpec("vq", 8, (1, 1), 1, codebook_size=6, embed_dim=3)
LENGTHS = [3, 45, 4, 20, 33, 3, 7, 5, 16, 18, 3, 2]  # frames of the clips, training clips first
NUM_TRAIN = 9
SIZE = 8


def first_stage(seed):
    generator = np.random.default_rng(seed)
    weights = jax.tree.map(
        lambda leaf: 0.3 * generator.standard_normal(leaf.shape, np.float32), variable_shapes(SPEC)
    )
    return FirstStage(SPEC, weights, {"first_stage": SPEC.to_dict()})


def write_clip(folder, frames, seed):
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, SIZE, SIZE, 3), np.uint8)
    for number, frame in enumerate(pixels):
        Image.fromarray(frame).save(folder / f"{number}.png")


@pytest.fixture(scope="module", autouse=True)
def _read_first_stages_once():
    """Checkpoints take longer to read than these clips to encode."""
    read = FirstStage.from_checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FirstStage, "from_checkpoint", functools.cache(read))
        yield


@pytest.fixture(scope="module")
def first_stages(tmp_path_factory):
    """Folders of two first stages with the same sizes and other weights."""
    root = tmp_path_factory.mktemp("first_stages")
    for seed in range(2):
        model = first_stage(seed)
        checkpoint.save_converted(root / str(seed), model.variables, model.meta)
    return [root / str(seed) for seed in range(2)]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Folders of PNG files in split folders, each within a folder named by its label."""
    root = tmp_path_factory.mktemp("clips")
    for number, frames in enumerate(LENGTHS):
        split = "train" if number < NUM_TRAIN else "test"
        write_clip(root / split / f"id{number % 2}" / f"clip{number:02d}", frames, number)
    return root


def config_of(root, first_stage):
    config = configuration.load_config("configs/video_folder.py")
    config.source = configuration.source_config(
        "video_folder", root=str(root), length=2, size=SIZE, label_from="parent"
    )
    config.first_stage.update(checkpoint=str(first_stage), chunk_frames=2)
    config.latents.update(batch_frames=16, num_workers=3, clips_per_shard=2)
    return config


@pytest.fixture
def config(clips, first_stages):
    return config_of(clips, first_stages[0])


@pytest.fixture
def with_broken(clips, config, tmp_path):
    """The config with a corrupt clip among the others."""
    root = tmp_path / "with_broken"
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        for folder in (clips / split).iterdir():
            (root / split / folder.name).symlink_to(folder)
    write_clip(root / "train" / "id2" / "bad", 20, 0)
    (root / "train" / "id2" / "bad" / "17.png").write_bytes(b"no image")
    config.source.options.root = str(root)
    return config


def records(folder):
    """Everything that a folder holds: clip -> (labels, latents) of each split."""
    index = LatentIndex.load(folder)
    found = {}
    for split, placed in index.clips.items():
        reader = LatentReader(index, split)
        for number, place in enumerate(placed):
            entry = place.entry
            assert (entry.split, entry.source) == (split, "video_folder")
            assert entry.name not in found
            found[entry.name] = entry.labels, reader.read(number, range(entry.frames))
    return found


def check_same(folder, expected):
    found = records(folder)
    assert found.keys() == expected.keys()
    for name, (labels, values) in expected.items():
        assert found[name][0] == labels
        np.testing.assert_array_equal(found[name][1], values)


@pytest.fixture(scope="module")
def unbroken(clips, first_stages, tmp_path_factory):
    """Result and folder of a run that nothing disturbs."""
    workdir = tmp_path_factory.mktemp("unbroken")
    return latents.run_latents(config_of(clips, first_stages[0]), workdir), workdir / "latents"


def test_every_clip_becomes_a_record(config, clips, unbroken):
    result, folder = unbroken
    assert (result.folder, result.num_clips, result.num_frames) == (folder, 12, sum(LENGTHS))
    assert result.skipped == {"train": {}, "test": {}}
    found, frames, values = records(folder), [], []
    assert len(found) == 12
    for source in configuration.make_sources(config).values():
        for i in range(source.num_clips):
            clip, (labels, own) = source.clip(i), found[source.clip(i).name]
            assert labels == source.clip_labels(i) and labels["static"] in ("id0", "id1")
            assert own.dtype == np.float16 and own.shape == (clip.frames, 4, 4, 3)
            frames.append(source.read_clip(i, 0, clip.frames))
            values.append(own)
    images = np.concatenate(frames) / np.float32(127.5) - 1
    expected = first_stage(0).encode(images, chunk_frames=20)
    np.testing.assert_allclose(np.concatenate(values), expected, rtol=2e-3, atol=2e-3)


def test_clips_share_batches_that_are_full(config, tmp_path, monkeypatch):
    sizes, start = [], FrameEncoder.start
    monkeypatch.setattr(
        FrameEncoder, "start", lambda self, frames: sizes.append(len(frames)) or start(self, frames)
    )
    latents.run_latents(config, tmp_path)
    train, test = sum(LENGTHS[:NUM_TRAIN]), sum(LENGTHS[NUM_TRAIN:])
    assert sizes == [16] * (train // 16) + [train % 16] + [16] * (test // 16) + [test % 16]


def test_few_blocks_are_held_however_long_the_clips(config, tmp_path, monkeypatch):
    held, most = Counter(), []
    blocks, add = VideoFolder._blocks, latents._Clip.add

    def counted(self, clip, block_frames):
        for block in blocks(self, clip, 1):
            held["frames"] += 1
            most.append(held["frames"])
            yield block

    def counted_add(self, values):
        held["frames"] -= len(values)
        add(self, values)

    monkeypatch.setattr(VideoFolder, "_blocks", counted)
    monkeypatch.setattr(latents._Clip, "add", counted_add)
    latents.run_latents(config, tmp_path)
    assert held["frames"] == 0 and len(most) == sum(LENGTHS)
    assert max(most) <= 2 * 16 + 16 + 2 * 3 + 1  # two batches, a third one growing, two blocks each


def test_a_frame_is_encoded_alike_in_any_place_and_on_any_number_of_devices():
    frames = np.random.default_rng(0).integers(0, 256, (37, SIZE, SIZE, 3), np.uint8)
    model, found = first_stage(0), {}
    for devices in (1, 8):
        mesh = sharding.make_mesh(jax.devices()[:devices])
        encoder = FrameEncoder(model, mesh, batch_frames=17, chunk_frames=2)
        assert encoder.chunk == 2 * devices and encoder.batch_frames % encoder.chunk == 0
        chunks = encoder.start(frames)
        assert len(chunks[0].sharding.device_set) == devices
        found[devices] = encoder.fetch(chunks, 37)
        for first in (0, 3, 20):
            part = encoder.fetch(encoder.start(frames[first:]), 37 - first)
            np.testing.assert_array_equal(part, found[devices][first:])
    np.testing.assert_allclose(found[1], found[8], rtol=2e-3, atol=2e-3)


class Killed(BaseException):
    """Stands for the end of a process."""


def die_at(call, original):
    """`original`, save that its call of this number, from 1 on, never happens."""
    calls = itertools.count(1)

    def maybe(*args):
        if next(calls) == call:
            raise Killed
        return original(*args)

    return maybe


@pytest.mark.parametrize(
    ("method", "calls"),
    [("write", (4, 5, 5, 3, 1)), ("_commit", (2, 1, 3)), ("skip", (1, 1)), ("finish", (1,))],
)
def test_killed_anywhere_ends_with_the_records_of_an_unbroken_run(
    method, calls, with_broken, unbroken, tmp_path
):
    with_broken.source.options.max_skipped_share = 0.1
    for call in calls:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            patch.setattr(LatentWriter, method, die_at(call, getattr(LatentWriter, method)))
            latents.run_latents(with_broken, tmp_path)
        with pytest.raises(ValueError, match="not finished"):
            LatentIndex.load(tmp_path / "latents")
    result = latents.run_latents(with_broken, tmp_path)
    assert result.skipped["train"].keys() == {"train/id2/bad"}
    check_same(tmp_path / "latents", records(unbroken[1]))


def command(config, workdir):
    options = {"source.options": config.source.options, "latents": config.latents}
    options["first_stage"] = config.first_stage
    words = [
        f"--config.{section}.{name}={value}"
        for section, values in options.items()
        for name, value in values.items()
        if value not in (None, "")
    ]
    main = [sys.executable, "-m", "diffsda_jax.main", "--config=configs/video_folder.py"]
    return [*main, "--mode=latents", f"--workdir={workdir}", *words]


def environment():
    """Eight CPU devices, as these tests have, and their compilation cache."""
    return {**os.environ, "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}


def start(config, workdir):
    return subprocess.Popen(
        command(config, workdir), stderr=subprocess.PIPE, text=True, env=environment()
    )


@pytest.mark.slow
def test_sigkill_at_random_moments_ends_with_the_records_of_an_unbroken_run(
    config, unbroken, tmp_path
):
    generator, folder = np.random.default_rng(0), tmp_path / "latents"
    config.latents.clips_per_shard = 1

    def files():
        return {path.name for path in folder.glob("*")}

    for _ in range(5):
        with start(config, tmp_path) as process:
            before, limit = files(), time.monotonic() + 300
            while files() <= before and process.poll() is None and time.monotonic() < limit:
                time.sleep(0.002)
            time.sleep(generator.uniform(0, 0.03))
            process.kill()
        assert not files() <= before
    with start(config, tmp_path) as process:
        _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "latents: 100%" in said and "wrote" in said and "skipped 0" in said
    check_same(folder, records(unbroken[1]))


def test_a_second_start_has_nothing_to_do(config, unbroken, caplog):
    config.source.options.update(length=1, stride=3)  # of windows, which are no matter of records
    with caplog.at_level(logging.INFO, "diffsda_jax"):
        result = latents.run_latents(config, unbroken[1].parent)
    assert result.num_clips == result.num_frames == 0
    assert "wrote 0 clips, 0 frames" in caplog.text and len(records(unbroken[1])) == 12


def test_a_corrupt_clip_is_named_and_counted(with_broken, unbroken, tmp_path, caplog):
    with_broken.source.options.max_skipped_share = 0.1
    with caplog.at_level(logging.INFO, "diffsda_jax"):
        result = latents.run_latents(with_broken, tmp_path)
    assert result.num_clips == 12 and result.skipped["test"] == {}
    ((name, reason),) = result.skipped["train"].items()
    assert name == "train/id2/bad" and reason.startswith("cannot be decoded: 17.png")
    assert f"skipped 1: {name} ({reason})" in caplog.text
    check_same(tmp_path / "latents", records(unbroken[1]))
    assert latents.run_latents(with_broken, tmp_path).skipped == result.skipped


def test_too_many_corrupt_clips_stop_and_the_finished_records_stay(with_broken, tmp_path):
    with_broken.source.options.max_skipped_share = 0.05
    with pytest.raises(ValueError, match=r"1 of 10 items .*id2/bad .*raise max_skipped_share"):
        latents.run_latents(with_broken, tmp_path)
    assert len(list((tmp_path / "latents").glob("train-*.arrayrecord"))) == 4
    with_broken.source.options.max_skipped_share = 0.1
    assert latents.run_latents(with_broken, tmp_path).num_clips == 4


def test_clips_whose_latents_are_not_finite_are_skipped(config, unbroken, tmp_path, monkeypatch):
    """As of a first stage whose values are too large for float16."""
    add, name = latents._Clip.add, "train/id1/clip01"

    def spoilt(self, values):
        add(self, np.where(values == values.max(), np.inf, values) if self.name == name else values)

    monkeypatch.setattr(latents._Clip, "add", spoilt)
    config.source.options.max_skipped_share = 0.1
    with pytest.raises(ValueError, match=rf"1 of 9 items .*{name} .its latents are not finite in"):
        latents.run_latents(config, tmp_path)
    config.source.options.max_skipped_share = 0.2
    result = latents.run_latents(config, tmp_path)
    reason = "its latents are not finite in float16 (at most 65504)"
    assert result.skipped == {"train": {name: reason}, "test": {}}
    expected = records(unbroken[1])
    del expected[name]
    check_same(tmp_path / "latents", expected)


def test_records_of_something_else_are_refused(config, first_stages, unbroken):
    config.first_stage.checkpoint = str(first_stages[1])
    with pytest.raises(ValueError, match="were made with first_stage=.*: use another") as caught:
        latents.run_latents(config, unbroken[1].parent)
    assert "\n" not in str(caught.value)
    config.first_stage.checkpoint = str(first_stages[0])
    config.source.options.size = 16
    with pytest.raises(ValueError, match="made with config.source.options.size=8, not 16: use"):
        latents.run_latents(config, unbroken[1].parent)


def test_records_go_where_the_config_says_and_one_run_writes_them(config, tmp_path):
    config.latents.folder = str(tmp_path / "elsewhere")
    for place in ("elsewhere", "run"):
        with WorkdirLock(tmp_path / place), pytest.raises(ValueError, match="in use by another"):
            latents.run_latents(config, tmp_path / "run")
    assert latents.run_latents(config, tmp_path / "run").folder == tmp_path / "elsewhere"
    assert len(records(tmp_path / "elsewhere")) == 12


def other_source(config):
    config.source = configuration.source_config("digits")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"source.name": "foo"}, ValueError, "unknown config.source.name 'foo'.*video_folder"),
        (other_source, ValueError, "source 'digits' has no clips on disk.*video_folder, mug"),
        ({"first_stage.checkpoint": ""}, ValueError, "is empty; set --config.first_stage.checkp"),
        (
            {"first_stage.checkpoint": "nowhere"},
            FileNotFoundError,
            r"nowhere does not exist; .*first_stage\.checkpoint .*python -m diffsda_jax\.convert",
        ),
        ({"source.options.size": 9}, ValueError, "frames are 9x9, .* by 2; set --config.source.op"),
        ({"latents.batch_frames": 0}, ValueError, "latents.batch_frames is 0; it must be at least"),
        ({"first_stage.chunk_frames": -1}, ValueError, "first_stage.chunk_frames is -1; it must"),
    ],
)
def test_mistakes_are_one_line_before_any_clip_is_read(
    change, error, message, config, tmp_path, monkeypatch
):
    monkeypatch.setattr(VideoFolder, "iter_clip", lambda *_: pytest.fail("read"))
    if callable(change):
        change(config)
    else:
        config.update_from_flattened_dict(change)
    with pytest.raises(error, match=message) as caught:
        latents.run_latents(config, tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_old_configs_get_the_new_options_and_several_processes_are_refused(config, monkeypatch):
    old = configuration.to_json(config)
    for section in ("first_stage", "latents"):
        del old[section]
    assert configuration.with_defaults(old)["latents"]["batch_frames"] == 64
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="2 processes were started.*start it once"):
        latents.run_latents(config, "nowhere")


def test_the_fingerprint_of_a_first_stage_is_that_of_its_weights(first_stages):
    loaded = [FirstStage.from_checkpoint(path).fingerprint() for path in first_stages]
    assert loaded == [first_stage(0).fingerprint(), first_stage(1).fingerprint()]
    assert loaded[0] != loaded[1] and len(loaded[0]) == 16
