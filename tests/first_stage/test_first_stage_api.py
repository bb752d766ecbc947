import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsda_jax import FirstStage, first_stage_api
from diffsda_jax.first_stage.nets import variable_shapes
from diffsda_jax.first_stage.spec import FirstStageSpec
from diffsda_jax.train import checkpoint

SPEC = FirstStageSpec("vq", 8, (1, 1, 2), 1, codebook_size=6, embed_dim=3)


@pytest.fixture(scope="module")
def model():
    """With random weights drawn by numpy, which compiles nothing."""
    generator = np.random.default_rng(0)
    weights = jax.tree.map(
        lambda leaf: 0.3 * generator.standard_normal(leaf.shape, np.float32), variable_shapes(SPEC)
    )
    return FirstStage(SPEC, weights)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).uniform(-1, 1, (7, 8, 12, 3)).astype(np.float32)


def test_shapes_and_any_leading_axes(model, images):
    latents = model.encode(images, chunk_frames=7)
    assert latents.shape == (7, 2, 3, 3) and latents.dtype == np.float32
    video = model.encode(jnp.asarray(images[None, :, None]), chunk_frames=7)
    np.testing.assert_array_equal(video[0, :, 0], latents)
    assert model.decode(video, chunk_frames=7).shape == (1, 7, 1, 8, 12, 3)
    one = model.encode(images[2])
    np.testing.assert_allclose(one, latents[2], rtol=1e-3, atol=1e-4)


def test_odd_chunks_equal_the_whole_and_are_one_program(model, images):
    latents = model.encode(images, chunk_frames=7)
    programs = first_stage_api._encode._cache_size()
    for chunk_frames in (3, 3, 100):
        parts = model.encode(images, chunk_frames=chunk_frames)
        np.testing.assert_allclose(parts, latents, rtol=1e-3, atol=1e-4)
    assert first_stage_api._encode._cache_size() == programs + 1
    whole = model.decode(latents, chunk_frames=7)
    parts = model.decode(latents, chunk_frames=2)
    np.testing.assert_allclose(parts, whole, rtol=1e-3, atol=1e-4)


def test_decoding_uses_the_codes(model):
    codes = np.asarray(model.variables["params"]["codebook"])
    latents = np.broadcast_to(codes[2], (2, 2, 2, 3))
    near = latents + 1e-4 * np.abs(codes[2]).min()
    np.testing.assert_array_equal(model.decode(near), model.decode(latents))


def test_half_precision_is_taken(model, images):
    latents = model.encode(images).astype(np.float16)
    decoded = model.decode(latents)
    assert decoded.dtype == np.float32
    wide = model.decode(latents.astype(np.float64))
    np.testing.assert_array_equal(decoded, wide)


def test_a_checkpoint_restores_it(model, images, tmp_path):
    meta = {"first_stage": SPEC.to_dict()}
    checkpoint.save_converted(tmp_path, model.variables, meta)
    restored = FirstStage.from_checkpoint(tmp_path)
    assert restored.spec == SPEC
    np.testing.assert_array_equal(restored.encode(images), model.encode(images))


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({}, "does not hold a first stage .*convert or train"),
        ({"model": {}}, "has a sequence model, which DiffSDA.from_checkpoint loads"),
        ({"first_stage": SPEC.to_dict() | {"embed_dim": 4}}, "another architecture"),
    ],
)
def test_other_checkpoints_are_refused(model, tmp_path, meta, message):
    checkpoint.save_converted(tmp_path, model.variables, meta)
    with pytest.raises(ValueError, match=message):
        FirstStage.from_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("method", "array", "message"),
    [
        ("encode", np.zeros((1, 8, 8, 4), np.float32), r"images have shape .*width, 3\], channels"),
        ("encode", np.zeros((1, 3, 8, 8), np.float32), r"shape \(1, 3, 8, 8\).*channels last"),
        ("encode", np.zeros((0, 8, 8, 3), np.float32), "at least one frame"),
        ("encode", np.zeros((8, 10, 3), np.float32), "images are 8x10; .* divisible by 4; resize"),
        ("encode", np.zeros((1, 8, 8, 3), np.uint8), r"type uint8; .*x / 127\.5 - 1"),
        ("encode", np.full((1, 8, 8, 3), np.nan, np.float32), "images hold 192 values that are"),
        (
            "decode",
            np.zeros((1, 2, 2, 4), np.float32),
            r"latents have shape .*width, 3\], channels",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_named(model, method, array, message):
    with pytest.raises(ValueError, match=message) as error:
        getattr(model, method)(array)
    assert "\n" not in str(error.value)


def test_chunks_hold_at_least_one_frame(model, images):
    with pytest.raises(ValueError, match="chunk_frames is 0; it must be at least 1"):
        model.encode(images, chunk_frames=0)
