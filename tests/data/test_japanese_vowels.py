import numpy as np
import pytest

from diffsda_jax.data.pipeline import load_arrays
from diffsda_jax.data.sources import make_source
from diffsda_jax.data.transforms import fit_normalizer

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("split", "count"), [("train", 270), ("test", 370)])
def test_counts_and_lengths_as_published(split, count):
    source = make_source("japanese_vowels", split)
    assert len(source) == count
    lengths = source.lengths()
    assert lengths.min() >= 7 and lengths.max() <= 29
    speakers = [source.load(index, RNG)["static_label"] for index in range(count)]
    assert set(speakers) == set(range(9))
    if split == "train":
        assert np.bincount(speakers).tolist() == [30] * 9
    assert all(len(source.load(i, RNG)["x"]) == lengths[i] for i in (0, 5, count - 1))


def test_first_frame_as_in_the_original_file():
    x = make_source("japanese_vowels", "train").load(0, RNG)["x"]
    np.testing.assert_allclose(x[0, :3], [1.860936, -0.207383, 0.261557], rtol=1e-6)


def test_usual_protocol_is_z_scored():
    train = make_source("japanese_vowels", "train")
    normalizer = fit_normalizer(train, length=20)
    x = load_arrays(train, length=20, normalizer=normalizer)["x"]
    assert x.shape == (270, 20, 12) and x.dtype == np.float32
    np.testing.assert_allclose(x.mean((0, 1)), 0.0, atol=1e-6)
    np.testing.assert_allclose(x.std((0, 1)), 0.5, atol=1e-6)
    raw = fit_normalizer(train)
    frames = np.concatenate([train.load(index, RNG)["x"] for index in range(270)])
    np.testing.assert_allclose(raw.mean, frames.mean(0), atol=1e-5)
    np.testing.assert_allclose(raw.std, frames.std(0), rtol=1e-5)


def test_resampling_is_linear_interpolation():
    train = make_source("japanese_vowels", "train")
    normalizer = fit_normalizer(train, length=20)
    x = load_arrays(train, length=20, normalizer=normalizer)["x"]
    for index in (1, 8, 100):
        raw = train.load(index, RNG)["x"]
        places = np.linspace(0, len(raw) - 1, 20)
        twin = np.stack([np.interp(places, np.arange(len(raw)), column) for column in raw.T], -1)
        np.testing.assert_allclose(normalizer.invert(x[index]), twin, atol=1e-5)
