"""What `--mode=latents` holds against the folder that it goes on in."""

import inspect

import numpy as np
import pytest
from PIL import Image

from diffsda_jax import FirstStage, latents
from diffsda_jax import config as configuration
from diffsda_jax.data.sources import SOURCES
from diffsda_jax.data.sources.video_folder import VideoFolder
from diffsda_jax.first_stage.spec import FirstStageSpec


@pytest.fixture
def facts(tmp_path):
    """Facts of the clips in a folder, read by a source with the given options."""
    for name, frames in (("train/a", 2), ("train/b", 3), ("test/c", 2)):
        (tmp_path / name).mkdir(parents=True)
        for number in range(frames):
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name / f"{number}.png")
    model = FirstStage(FirstStageSpec("vq", 8, (1, 1), 1, codebook_size=6, embed_dim=3), {}, {})

    def make(**options):
        config = configuration.load_config("configs/video_folder.py")
        options = {"root": str(tmp_path), "length": 2, "size": 8} | options
        config.source = configuration.source_config("taichi", **options)
        return latents._facts(config, model, configuration.make_sources(config))

    return make


def test_how_windows_are_cut_and_augmented_does_not_matter(facts):
    other = facts(length=1, stride=1, repeats=2, flip=False, color_jitter=0.0)
    assert other == facts() and other["data_train"].startswith("2 clips, ")
    assert other.keys() >= {"config.source.name", "config.source.options.size", "first_stage"}


def test_clips_and_their_frames_matter(facts, tmp_path):
    before = facts()
    (tmp_path / "train" / "b" / "2.png").unlink()
    after = facts()
    assert [key for key in before if before[key] != after[key]] == ["data_train"]


def test_all_other_options_of_sources_matter():
    """A new option is refused on a later start until it is known to matter only to windows."""
    sources = [source for source in SOURCES.values() if issubclass(source, VideoFolder)]
    options = {name for source in sources for name in inspect.signature(source).parameters}
    assert options - {*latents._FREE_OPTIONS} == {
        *("split", "size", "test_share", "label_from", "split_seed", "split_by", "detector")
    }
