import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsda_jax.nets.hifigan import Hifigan, HifiganSpec, ResBlock, Upsample

SMALL = HifiganSpec(
    num_mels=5,
    channels=8,
    upsample_rates=(4, 2),
    upsample_kernels=(8, 4),
    resblock_kernels=(3, 5),
    resblock_dilations=((1, 3), (1, 2)),
)


def leaky(x, slope=0.1):
    return np.where(x > 0, x, slope * x)


def conv_by_hand(params, x, dilation=1):
    """Plain-loop twin of a convolution with zeros outside."""
    kernel, bias = np.asarray(params["kernel"]), np.asarray(params["bias"])
    out = np.zeros((*x.shape[:2], kernel.shape[2])) + bias
    for n in range(x.shape[1]):
        for tap in range(kernel.shape[0]):
            source = n + (tap - kernel.shape[0] // 2) * dilation
            if 0 <= source < x.shape[1]:
                out[:, n] += x[:, source] @ kernel[tap]
    return out


def upsample_by_hand(params, x, rate):
    """Plain-loop twin: every input adds the whole kernel where it lands."""
    kernel, bias = np.asarray(params["kernel"]), np.asarray(params["bias"])
    full = np.zeros((x.shape[0], (x.shape[1] - 1) * rate + kernel.shape[0], kernel.shape[2]))
    for n in range(x.shape[1]):
        for tap in range(kernel.shape[0]):
            full[:, n * rate + tap] += x[:, n] @ kernel[tap]
    cut = (kernel.shape[0] - rate) // 2
    return full[:, cut : full.shape[1] - cut] + bias


def block_by_hand(params, x, dilations):
    for i, dilation in enumerate(dilations):
        h = conv_by_hand(params[f"dilated_{i}"], leaky(x), dilation)
        x = x + conv_by_hand(params[f"plain_{i}"], leaky(h))
    return x


def drawn(module, x):
    """Variables with every bias and weight large enough to be seen in the output."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    random = np.random.RandomState(0)
    return jax.tree.map(
        lambda leaf: 0.3 * random.standard_normal(leaf.shape).astype(np.float32), shapes
    )


@pytest.mark.parametrize(("kernel", "rate"), [(16, 8), (4, 2), (11, 5), (7, 3), (3, 3)])
def test_upsample_equals_its_plain_loop_twin(kernel, rate):
    x = np.random.RandomState(1).standard_normal((2, 6, 3)).astype(np.float32)
    module = Upsample(4, kernel, rate)
    variables = drawn(module, x)
    got = jax.jit(module.apply)(variables, x)
    assert got.shape == (2, 6 * rate, 4)
    np.testing.assert_allclose(got, upsample_by_hand(variables["params"], x, rate), atol=1e-5)


def test_upsample_equals_the_transposed_convolution_of_linen():
    x = jax.random.normal(jax.random.key(1), (2, 6, 3))
    variables = drawn(Upsample(4, 8, 4), x)
    # linen's kernel runs backwards, and its padding is that of the spread-out input.
    params = {**variables["params"], "kernel": variables["params"]["kernel"][::-1]}
    usual = nn.ConvTranspose(4, (8,), (4,), padding=((5, 5),))
    np.testing.assert_allclose(
        Upsample(4, 8, 4).apply(variables, x), usual.apply({"params": params}, x), atol=1e-5
    )


def test_block_equals_its_plain_loop_twin():
    x = np.random.RandomState(2).standard_normal((2, 20, 4)).astype(np.float32)
    module = ResBlock(5, (1, 3, 5))
    variables = drawn(module, x)
    expected = block_by_hand(variables["params"], x, module.dilations)
    np.testing.assert_allclose(jax.jit(module.apply)(variables, x), expected, atol=1e-4)


def test_generator_equals_its_plain_loop_twin():
    x = np.random.RandomState(3).standard_normal((2, 7, 5)).astype(np.float32)
    module = Hifigan(SMALL)
    variables = drawn(module, x)
    params = variables["params"]
    h = conv_by_hand(params["conv_pre"], x)
    for i, rate in enumerate(SMALL.upsample_rates):
        h = upsample_by_hand(params[f"up_{i}"], leaky(h), rate)
        blocks = [
            block_by_hand(params[f"block_{i}_{j}"], h, dilations)
            for j, dilations in enumerate(SMALL.resblock_dilations)
        ]
        h = np.mean(blocks, axis=0)
    expected = np.tanh(conv_by_hand(params["conv_post"], leaky(h, 0.01)))[..., 0]
    got = jax.jit(module.apply)(variables, x)
    assert got.shape == (2, 7 * SMALL.hop)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_published_size():
    """13.92 million parameters in the paper's table of v1, weight norm's gains included."""
    x = jax.ShapeDtypeStruct((1, 68, 80), jnp.float32)
    out, variables = jax.eval_shape(Hifigan().init_with_output, jax.random.key(0), x)
    assert out.shape == (1, 68 * 256)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert abs(count / 13.92e6 - 1) < 0.002


def test_wrong_mels_are_refused():
    with pytest.raises(ValueError, match="has 4 mels, but this HiFi-GAN takes 80"):
        jax.eval_shape(Hifigan().init, jax.random.key(0), jnp.zeros((1, 3, 4)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"upsample_rates": (8, 8)}, "one kernel for each rate"),
        ({"upsample_kernels": (16, 16, 4, 3)}, "larger by an even number"),
        ({"channels": 40}, "cannot be halved 4 times; give a multiple of 16"),
        ({"resblock_kernels": (3, 4, 5)}, "give odd kernels"),
        ({"resblock_kernels": (3, 7)}, "a tuple of dilations for each"),
    ],
)
def test_wrong_specs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(HifiganSpec(), **change)
