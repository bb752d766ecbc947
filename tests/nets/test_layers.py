import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsda_jax.nets import layers, unet

pytestmark = pytest.mark.usefixtures("optimised")


def images(channels, batch=2, size=4):
    return jax.random.normal(jax.random.key(0), (batch, size, size, channels)) * 3 + 1


def test_group_norm_equals_flax():
    x = images(64)
    ours, theirs = layers.GroupNorm(), nn.GroupNorm(num_groups=32, epsilon=1e-5)
    variables = ours.init(jax.random.key(1), x)
    np.testing.assert_allclose(
        ours.apply(variables, x), theirs.apply(theirs.init(jax.random.key(1), x), x), atol=2e-5
    )


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_modulations_of_a_norm_follow_it_one_by_one(kind):
    x, net = images(48).astype(kind), layers.GroupNorm()
    variables = net.init(jax.random.key(1), x)
    variables = jax.tree.map(lambda leaf: leaf + 0.3 * jnp.arange(48) / 48, variables)
    given = jax.random.normal(jax.random.key(2), (2, 2, 96))

    def apart(x, given):
        h = net.apply(variables, x.astype(jnp.float32))
        for modulation in given:
            h = layers.scale_shift(h, modulation[:, None, None, :])
        return h

    def together(x, given):
        return net.apply(variables, x, *given)

    found, found_slope = jax.vjp(together, x, given)
    expected, slope = jax.vjp(apart, x, given)
    assert found.dtype == x.dtype
    tolerance = {"float32": 2e-5, "bfloat16": 2e-2}[kind]
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=tolerance, atol=tolerance)
    gradient = jax.random.normal(jax.random.key(3), x.shape).astype(kind)
    pairs = zip(found_slope(gradient), slope(gradient.astype(jnp.float32)), strict=True)
    for ours, theirs in pairs:
        ours, theirs = (np.asarray(values, np.float32) for values in (ours, theirs))
        assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def test_a_norm_loses_no_digits_to_a_large_mean():
    x = np.asarray(images(32)) + 3_000 * np.arange(1, 33, dtype=np.float32)
    net = layers.GroupNorm()
    found = net.apply(net.init(jax.random.key(1), jnp.asarray(x)), jnp.asarray(x))
    exact = x.astype(np.float64)
    exact = exact - exact.mean((1, 2), keepdims=True)
    exact = exact / np.sqrt(exact.var((1, 2), keepdims=True) + layers.NORM_EPSILON)
    np.testing.assert_allclose(found, exact, atol=1e-3)


def test_attention_equals_softmax_attention():
    x = images(32)
    net = layers.Attention()
    variables = net.init(jax.random.key(1), x)
    params = variables["params"]
    h = layers.GroupNorm().apply({"params": params["norm"]}, x).reshape(2, 16, 32)
    q, k, v = (nn.Dense(32).apply({"params": params[n]}, h) for n in ("query", "key", "value"))
    read = jax.nn.softmax(jnp.einsum("nqc,nkc->nqk", q, k) / 32**0.5) @ v
    expected = x + nn.Dense(32).apply({"params": params["out"]}, read).reshape(x.shape)
    np.testing.assert_allclose(net.apply(variables, x), expected, atol=1e-5)


def test_fold_and_unfold_are_inverse():
    x = jnp.arange(24.0).reshape(2, 3, 4)
    folded = layers.fold_sequence(x)
    assert folded.shape == (6, 4)
    np.testing.assert_array_equal(layers.unfold_sequence(folded, 2), x)


def test_fourier_frequencies_are_constants_of_scale_sixteen():
    net = layers.NoiseEmbedding(8, 2000)
    variables = net.init(jax.random.key(0), jnp.zeros((2, 3)))
    frequencies = variables["constants"]["frequencies"]
    assert frequencies.shape == (1000,) and abs(float(frequencies.std()) - 16) < 1.0
    assert "frequencies" not in variables["params"]

    def energy(constants):
        out = net.apply({**variables, "constants": constants}, jnp.ones((2, 3)))
        return (out**2).sum()

    assert float(jnp.abs(jax.grad(energy)(variables["constants"])["frequencies"]).max()) == 0.0


def test_upsampling_repeats_pixels():
    x = images(3)
    up = unet.upsample_nearest(x)
    np.testing.assert_array_equal(up, np.repeat(np.repeat(x, 2, axis=1), 2, axis=2))


def test_the_gradient_of_upsampling_is_the_sum_over_the_copies():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
    gradient = jax.random.normal(jax.random.key(1), (2, 6, 10, 4))
    _, pull_back = jax.vjp(unet.upsample_nearest, x)
    expected = np.asarray(gradient).reshape(2, 3, 2, 5, 2, 4).sum((2, 4))
    np.testing.assert_allclose(pull_back(gradient)[0], expected, rtol=1e-5, atol=1e-6)


def test_scale_shift():
    h = jnp.array([[2.0, 3.0]])
    out = layers.scale_shift(h, jnp.array([[1.0, 0.0, 5.0, -1.0]]))
    np.testing.assert_allclose(out, [[9.0, 2.0]])


def test_bfloat16_product_is_that_of_rounded_numbers_and_so_are_its_gradients():
    x, kernel, gradient = (
        jax.random.normal(jax.random.key(seed), shape)
        for seed, shape in enumerate(((2, 3, 16), (16, 8), (2, 3, 8)))
    )
    rounded = [np.asarray(v.astype(jnp.bfloat16), np.float64) for v in (x, kernel, gradient)]
    found, pull_back = jax.vjp(layers.bfloat16_product, x, kernel)
    of_x, of_kernel = pull_back(gradient)
    assert {v.dtype for v in (found, of_x, of_kernel)} == {np.dtype(np.float32)}
    for ours, expected in (
        (found, np.einsum("bvk,km->bvm", rounded[0], rounded[1])),
        (of_x, np.einsum("bvm,km->bvk", rounded[2], rounded[1])),
        (of_kernel, np.einsum("bvk,bvm->km", rounded[0], rounded[2])),
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    assert 1e-4 < np.abs(found - exact).max() < 0.1  # bfloat16 has 8 bits


def test_dense_in_half_precision_has_the_same_parameters():
    x = jax.random.normal(jax.random.key(0), (4, 16))
    plain, half = (layers.dense(8, "d", bfloat16=bfloat16) for bfloat16 in (False, True))
    variables = plain.init(jax.random.key(1), x)
    same = half.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, variables, same)
    np.testing.assert_allclose(half.apply(variables, x), plain.apply(variables, x), atol=0.05)


def test_dropout_drops_its_share_and_keeps_the_mean():
    x, net = jnp.full((333, 101), 2.0), layers.Dropout(0.25)  # an odd number of values

    def drop(seed):
        return np.asarray(net.apply({}, x, True, rngs={"dropout": jax.random.key(seed)}))

    kept = drop(0)
    assert set(np.unique(kept)) == {np.float32(0), np.float32(2 / 0.75)}
    assert abs((kept == 0).mean() - 0.25) < 0.01 and abs(kept.mean() - 2.0) < 0.03
    np.testing.assert_array_equal(drop(0), kept)
    # Neighbours come from one random word: they must not go together.
    assert abs((kept[:, :-1] == 0)[kept[:, 1:] == 0].mean() - 0.25) < 0.02
    assert (drop(1) != kept).any()
    np.testing.assert_array_equal(net.apply({}, x, False), x)
    rarely = layers.Dropout(1e-4).apply({}, x, True, rngs={"dropout": jax.random.key(0)})
    assert 0 < (np.asarray(rarely) == 0).mean() < 0.01  # never none in silence


def test_repeated_items_stand_in_a_row_and_their_gradients_add_up():
    h = jax.random.normal(jax.random.key(0), (2, 3, 4))
    gradient = jax.random.normal(jax.random.key(1), (6, 3, 4))
    found, pull_back = jax.vjp(lambda h: layers.repeat_each(h, 6), h)
    expected, pull_back_of_repeat = jax.vjp(lambda h: jnp.repeat(h, 3, axis=0), h)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(
        pull_back(gradient)[0], pull_back_of_repeat(gradient)[0], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(layers.repeat_each(h, 2), h)
    with pytest.raises(ValueError, match="5 sequences cannot share 2 factors"):
        layers.repeat_each(h, 5)
