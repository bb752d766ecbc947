import functools

import jax
import numpy as np
import pytest

from diffsda_jax.first_stage import nets
from diffsda_jax.first_stage.spec import FirstStageSpec

VQ = FirstStageSpec("vq", 8, (1,), 1, codebook_size=11, embed_dim=3)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def random_variables(shapes):
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda s: generator.standard_normal(s.shape, np.float32), shapes)


def attention_weights(x):
    """Of ``PixelAttention``, without biases."""
    shapes = jax.eval_shape(nets.PixelAttention().init, jax.random.key(0), x)
    weights = random_variables(shapes)["params"]
    for name in ("query", "key", "value", "out"):
        weights[name]["bias"][:] = 0
    return weights


def group_norm(x, weights, num_groups):
    """By numpy, in float64, with the 1e-6 of these networks."""
    groups = x.astype(np.float64).reshape(len(x), -1, num_groups, x.shape[-1] // num_groups)
    mean, variance = (f(groups, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    normed = ((groups - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape)
    return normed * weights["scale"] + weights["bias"]


@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize("brightness", [1.0, 1e-3])  # at 1e-3 the 1e-6 decides
def test_attention_by_hand_whole_and_in_parts(monkeypatch, images, brightness):
    x = brightness * normal(1, 5, 2, 3, 8)
    weights = attention_weights(x)
    monkeypatch.setattr(nets, "_MAX_SCORES", 36 * images)
    got = jax.jit(lambda x: nets.PixelAttention().apply({"params": weights}, x))(x)

    h = group_norm(x, weights["norm"], 8).reshape(5, 6, 8)
    query, key, value = (h @ weights[name]["kernel"] for name in ("query", "key", "value"))
    shares = np.exp(query @ key.swapaxes(1, 2) / np.sqrt(8))
    read = shares / shares.sum(-1, keepdims=True) @ value @ weights["out"]["kernel"]
    np.testing.assert_allclose(got, x + read.reshape(x.shape), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("pixels", [7, 1000])
def test_the_nearest_code_is_found(monkeypatch, pixels):
    monkeypatch.setattr(nets, "_MAX_SCORES", VQ.codebook_size * pixels)
    latents, variables = normal(1, 2, 4, 5, 3), random_variables(nets.variable_shapes(VQ))
    quantized, indices = jax.jit(
        lambda z: nets.make_model(VQ).apply(variables, z, method="quantize")
    )(latents)
    codes = variables["params"]["codebook"]
    distances = np.linalg.norm(latents[..., None, :] - codes, axis=-1)
    np.testing.assert_array_equal(indices, distances.argmin(-1))
    np.testing.assert_array_equal(quantized, codes[indices])


def test_initial_codes_are_small():
    """Only what ``quantize`` reads is drawn."""
    init = functools.partial(nets.make_model(VQ).init, method="quantize")
    codes = jax.jit(init)(jax.random.key(0), normal(1, 1, 1, 1, 3))["params"]["codebook"]
    assert 0.05 < np.abs(codes).max() <= 1 / 11


def test_downsampling_pads_on_the_right_and_below():
    """The first output pixel sees its own 3x3 inputs, the last one a border of zeros."""
    spec = FirstStageSpec("kl", 8, (1, 1), 1, middle_attention=False)
    variables = random_variables(nets.variable_shapes(spec))
    encode = functools.partial(
        nets.make_model(spec).apply, method="encode", capture_intermediates=True
    )
    layers = jax.jit(encode)(variables, normal(1, 1, 6, 6, 3))[1]["intermediates"]["encoder"]
    before, after = (layers[name]["__call__"][0] for name in ("down_0_0", "down_0_conv"))
    weights = variables["params"]["encoder"]["down_0_conv"]
    padded = np.pad(np.asarray(before), ((0, 0), (0, 1), (0, 1), (0, 0)))
    for row, column in ((0, 0), (2, 2)):
        patch = padded[0, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
        expected = np.einsum("hwi,hwio->o", patch, weights["kernel"]) + weights["bias"]
        np.testing.assert_allclose(after[0, row, column], expected, rtol=1e-3, atol=1e-3)
