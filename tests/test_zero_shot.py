"""What is not covered by the command-line test in test_high_resolution.py."""

import jax
import numpy as np
import pytest

from diffsda_jax import FirstStage, eval_setup, runs, zero_shot
from diffsda_jax import config as configuration
from diffsda_jax import experiment as experiments
from diffsda_jax.data.sources import ElementSpec
from diffsda_jax.data.synthetic import Synthetic
from diffsda_jax.data.transforms import Normalizer
from diffsda_jax.first_stage.nets import variable_shapes
from diffsda_jax.first_stage.spec import FirstStageSpec
from diffsda_jax.pipeline import DiffSDA

SPEC = FirstStageSpec("vq", 8, (1, 2), 1, codebook_size=6, embed_dim=4)


@pytest.fixture(scope="module")
def first_stage():
    draw = np.random.default_rng(0).standard_normal
    weights = jax.tree.map(lambda leaf: 0.3 * draw(leaf.shape, np.float32), variable_shapes(SPEC))
    return FirstStage(SPEC, weights)


@pytest.fixture
def sources(first_stage):
    element = ElementSpec("video", (8, 8, 3), static_names=("a", "b"))
    return {
        split: zero_shot.EncodedFrames(Synthetic(split, element, 6, 5), first_stage, 4)
        for split in ("train", "test")
    }


def config():
    chosen = runs.shrink(configuration.load_config("configs/video_folder.py"))
    chosen.model.channel_mults, chosen.model.attention_levels = (1,), ()  # of video, quicker
    chosen.data.length = 5
    return chosen


def test_latents_of_a_model_without_statistics_get_those_of_the_new_data(sources, caplog):
    experiment = experiments.build(config(), sources)
    assert experiment.element.shape == (4, 4, 4) and experiment.spec.shape == (4, 4, 4)
    x = experiments.load_split(experiment, "train", 100)["x"]
    flat = x.reshape(-1, 4)
    np.testing.assert_allclose(flat.mean(0), 0.0, atol=1e-3)
    np.testing.assert_allclose(flat.std(0), 0.5, rtol=1e-2)


def test_latents_are_normalised_as_the_model_was_trained(sources):
    trained = Normalizer(np.full(4, 3.0, np.float32), np.full(4, 2.0, np.float32))
    experiment = experiments.build(config(), sources, trained)
    raw = sources["test"].load(0, np.random.default_rng(0))
    x = experiments.load_split(experiment, "test", 100)["x"]
    np.testing.assert_allclose(x[0], (raw["x"] - 3.0) / 4.0, rtol=1e-5, atol=1e-5)


def test_frames_come_back(sources, first_stage):
    experiment = experiments.build(config(), sources)
    x = experiments.load_split(experiment, "test", 100)["x"]
    frames = eval_setup.make_frame_decoder(experiment, first_stage)(x)
    direct = first_stage.decode(sources["test"].load(0, np.random.default_rng(0))["x"])
    assert frames.shape == (6, 5, 8, 8, 3)
    np.testing.assert_allclose(frames[0], np.clip(direct, -1, 1), atol=2e-2)


def test_single_frames_become_clips_as_in_training(first_stage):
    chosen = configuration.load_config("configs/video_folder.py:frames")
    chosen = chosen.copy_and_resolve_references()
    spec = experiments.model_spec(chosen, "video", (32, 32, 4))
    meta = {"config": {"data": {"length": 10}}}
    model = DiffSDA(spec, {}, meta=meta)
    zero_shot._read_as_trained(chosen, model, first_stage)
    assert (chosen.data.length, chosen.source.options.length) == (10, 10)
    assert chosen.source.options.size == 64  # of 32 latents, two pixels each
