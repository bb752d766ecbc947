"""From mp4 files to swapped ones by way of latents, all through the command line, at tiny sizes."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from processes import one_device_environment

from diffsda_jax import FirstStage, eval_setup
from diffsda_jax import config as configuration
from diffsda_jax import experiment as experiments
from diffsda_jax.data import video_io
from diffsda_jax.data.records import LatentIndex
from diffsda_jax.data.sources.digits import Digits
from diffsda_jax.data.sources.pairs import Pair, write_pairs
from diffsda_jax.data.video_writer import write_video
from diffsda_jax.evals.pictures import enlarge, to_uint8

pytest.importorskip("av")

LENGTH, SIZE = 6, 64
NETWORKS = '''
import numpy as np

def identity(frames):
    """The mean picture of a coarse grid."""
    n, h, w, c = frames.shape
    return frames.reshape(n, 4, h // 4, 4, w // 4, c).mean((2, 4)).reshape(n, -1)

def landmarks(frames):
    """Where the light is: its mean and its right edge."""
    light = np.clip(frames.mean(-1) + 1, 1e-3, None)
    total = light.sum((1, 2))
    y, x = np.mgrid[: frames.shape[1], : frames.shape[2]]
    centre = np.stack([(light * x).sum((1, 2)) / total, (light * y).sum((1, 2)) / total], -1)
    return np.stack([centre, centre + 1], 1)
'''
TINY_MODEL = (
    "model.static_dim=8",
    "model.dynamic_dim=2",
    "model.hidden_dim=8",
    "model.channels=8",
    "model.encoder_channels=8",
    "model.channel_mults=(1,)",
    "model.attention_levels=()",
)
SHORT = (
    f"data.length={LENGTH}",
    "train.batch_size=4",
    "train.num_steps=4",
    "train.checkpoint_every_steps=4",
    "train.eval_every_steps=0",
)
TINY_EVAL = ("eval.num_steps=2", "eval.num_swaps=3", "eval.num_clips=8", "eval.judge_steps=5")


def main(config, workdir, *overrides, mode, flags=()):
    """Runs the command line; it must succeed."""
    command = [sys.executable, "-m", "diffsda_jax.main", f"--config=configs/{config}"]
    command += [f"--workdir={workdir}", f"--mode={mode}", *flags]
    command += [f"--config.{override}" for override in overrides]
    environment = one_device_environment()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def see_faces(place):
    """Options of an evaluation with the networks above."""
    return (
        "eval.parts=('faces','face_reconstruction')",
        f"eval.networks.identity.path={place / 'networks.py'}:identity",
        "eval.networks.identity.alignment=none",
        f"eval.networks.landmarks.path={place / 'networks.py'}:landmarks",
        "eval.networks.landmarks.units=pixels",
    )


def metrics_of(folder):
    """Those of the one evaluation in a folder."""
    (file,) = folder.glob("*/metrics.json")
    return json.loads(file.read_text())["metrics"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Clips, a first stage trained on their frames, their latents, and a model of these."""
    place = tmp_path_factory.mktemp("high")
    for split, count in (("train", 10), ("test", 4)):
        source = Digits(split, num_clips=count, num_frames=9)
        for number in range(count):
            element = source.load(number, np.random.default_rng(number))
            frames = enlarge(to_uint8(element["x"]), SIZE)
            path = place / "videos" / split / f"digit{element['static_label']}" / f"{number}.mp4"
            write_video(frames[:, :SIZE, :SIZE], path)
    (place / "videos" / "test" / "broken.mp4").write_bytes(b"no video")
    (place / "networks.py").write_text(NETWORKS)
    data = (f"source.options.root={place / 'videos'}", "source.options.max_skipped_share=0.3")
    frames = (*data, f"source.options.size={SIZE}")
    log = main(
        "video_folder.py:frames",
        place / "first_stage",
        *frames,
        "train.batch_size=8",
        "train.num_steps=6",
        "train.checkpoint_every_steps=6",
        "train.eval_every_steps=0",
        "first_stage_training.channels=32",
        "first_stage_training.channel_mults=(1,1,1)",
        "first_stage_training.num_res_blocks=1",
        "first_stage_training.attention_levels=()",
        "first_stage_training.codebook_size=16",
        "eval.num_clips=4",
        mode="first_stage",
    )
    first_stage = f"first_stage.checkpoint={place / 'first_stage'}"
    log += main("video_folder.py:frames", place / "made", *frames, first_stage, mode="latents")
    latents = (f"source.options.root={place / 'made' / 'latents'}", first_stage)
    log += main(
        "video_folder.py:latents",
        place / "run",
        *latents,
        "source.options.max_skipped_share=0.3",
        *TINY_MODEL,
        *SHORT,
        *TINY_EVAL,
        *see_faces(place),
        mode="train",
    )
    return place, log, latents, frames, first_stage


def test_latents_are_those_of_the_first_stage(folder):
    place, log, *_ = folder
    index = LatentIndex.load(place / "made" / "latents")
    assert [len(index.clips[split]) for split in ("train", "test")] == [10, 4]
    assert index.frame_shape == (16, 16, 4)
    assert "broken.mp4" in log and "wrote 14 clips" in log
    stage = FirstStage.from_checkpoint(place / "first_stage")
    assert stage.spec.factor == 4 and stage.spec.codebook_size == 16


def test_swaps_are_videos_of_the_full_size(folder):
    place, *_ = folder
    (evaluation,) = (place / "run" / "eval").iterdir()
    metrics = metrics_of(evaluation.parent)
    assert {"faces/aed", "faces/akd_pixels", "face_reconstruction/inverted_ssim"} <= metrics.keys()
    assert np.isfinite(list(metrics.values())).all()
    for name in ("static", "dynamic", "result"):
        video = evaluation / "videos" / f"swap_0_{name}.mp4"
        assert video_io.count_frames(video) == LENGTH
        shown = video_io.read_frames(video, range(LENGTH), 2 * SIZE)  # enlarged to 128 pixels
        assert shown.shape == (LENGTH, 2 * SIZE, 2 * SIZE, 3)


@pytest.mark.slow
def test_faces_and_given_pairs_of_a_trained_model(folder):
    place, _, latents, *_ = folder
    index = LatentIndex.load(place / "made" / "latents")
    names = [clip.entry.name for clip in index.clips["test"]]
    pairs = [Pair(names[0], names[1], 2, 0), Pair(names[2], names[3])]
    write_pairs(place / "pairs.csv", pairs)
    main(
        "video_folder.py:latents",
        place / "run",
        *latents,
        "source.options.max_skipped_share=0.3",
        *TINY_MODEL,
        *SHORT,
        *TINY_EVAL,
        f"eval.pairs={place / 'pairs.csv'}",
        *see_faces(place),
        mode="eval",
    )
    metrics = metrics_of(place / "run" / "eval")
    (videos,) = (place / "run" / "eval").glob("*/videos")
    assert video_io.count_frames(videos / "swap_1_result.mp4") == LENGTH
    for name in ("faces/aed", "faces/akd_pixels", "face_reconstruction/inverted_ssim"):
        assert np.isfinite(metrics[name])
    assert not any(name.startswith("swap/") for name in metrics)


@pytest.mark.slow
def test_a_model_goes_over_to_other_data(folder):
    """Frames of another size are read as the model takes them, and encoded on the way."""
    place, _, _, frames, first_stage = folder
    (place / "more").symlink_to(place / "videos")
    main(
        "video_folder.py:frames",
        place / "zero",
        frames[0].replace("videos", "more"),
        "source.options.max_skipped_share=0.3",
        "source.options.size=256",
        "source.options.stride=1",
        first_stage,
        *TINY_EVAL,
        "eval.parts=('reconstruction','swap')",
        "eval.batch_size=4",
        mode="zero_shot",
        flags=(f"--checkpoint={place / 'run'}",),
    )
    (evaluation,) = (place / "zero" / "zero_shot").iterdir()
    assert np.isfinite(metrics_of(evaluation.parent)["reconstruction/random_nmse"])
    assert video_io.count_frames(evaluation / "videos" / "swap_0_result.mp4") == LENGTH


def test_another_first_stage_than_that_of_the_latents_is_refused(folder):
    place, *_ = folder
    config = configuration.load_config("configs/video_folder.py:latents")
    config.source.options.update(root=str(place / "made" / "latents"), length=LENGTH)
    config.source.options.max_skipped_share = 0.3
    config.data.length = LENGTH
    experiment = experiments.build(config)
    stage = FirstStage.from_checkpoint(place / "first_stage")
    eval_setup.make_frame_decoder(experiment, stage)
    other = FirstStage(stage.spec, jax.tree.map(lambda leaf: leaf + 0.1, stage.variables))
    with pytest.raises(ValueError, match="were made with another first stage: give that one"):
        eval_setup.make_frame_decoder(experiment, other)
