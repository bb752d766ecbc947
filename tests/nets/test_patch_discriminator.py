import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsda_jax.nets.patch_discriminator import (
    BatchNorm,
    PatchDiscriminator,
    check_discriminator,
)


def scores_of(side, layers, channels=2):
    model = PatchDiscriminator(channels, layers)
    frame = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    return jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x)[0], frame)


@pytest.mark.parametrize(("side", "layers"), [(24, 3), (25, 3), (12, 2), (6, 1), (11, 1)])
def test_frames_that_are_taken_have_a_patch_and_more_layers_leave_none(side, layers):
    check_discriminator(PatchDiscriminator(2, layers), side, side + 9)
    assert scores_of(side, layers).shape == (1,) + (side // 2**layers - 2,) * 2
    with pytest.raises(ValueError, match=f"layers is {layers + 1} for frames of {side}x{side}; "):
        check_discriminator(PatchDiscriminator(2, layers + 1), side, side)


@pytest.mark.parametrize(
    ("channels", "layers", "side", "message"),
    [
        (2, 0, 64, "discriminator_layers is 0 for frames of 64x64; allowed: 1 to 4"),
        (2, 1, 5, "discriminator_layers is 1 for frames of 5x5; the smallest frames are 6x6"),
        (0, 1, 64, "discriminator_channels is 0; it must be at least 1"),
    ],
)
def test_sizes_that_are_not_allowed(channels, layers, side, message):
    with pytest.raises(ValueError, match=message):
        check_discriminator(PatchDiscriminator(channels, layers), side, side)


def test_a_patch_of_the_published_size_sees_70_pixels():
    """Without the statistics of the batch, which join all pixels."""
    model, generator = PatchDiscriminator(1, 3), np.random.default_rng(0)
    frame = generator.standard_normal((1, 24, 128, 1), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), frame)
    weights = jax.tree.map(lambda s: generator.uniform(0.5, 1, s.shape).astype("f4"), shapes)

    def without_norm(next_function, args, kwargs, context):
        norm = isinstance(context.module, BatchNorm)
        return args[0] if norm else next_function(*args, **kwargs)

    def middle(x):
        with nn.intercept_methods(without_norm):
            return model.apply(weights, x)[0, 0, 7]

    columns = np.flatnonzero(jax.jit(jax.grad(middle))(frame)[0, :, :, 0].any(0))
    assert columns[-1] - columns[0] + 1 == 70 == len(columns)


def test_batch_norm_by_hand():
    x = np.random.default_rng(0).normal(3, 2, (4, 5, 6, 3)).astype(np.float32)
    weights = {"scale": np.float32([1, 2, 3]), "bias": np.float32([0, 1, -1])}
    got = BatchNorm().apply({"params": weights}, jnp.asarray(x))
    standard = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(got, standard * weights["scale"] + weights["bias"], atol=1e-4)
