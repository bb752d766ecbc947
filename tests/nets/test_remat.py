"""Blocks that gradients compute again: the same numbers from the same parameters."""

import dataclasses

import jax
import numpy as np
import pytest

from diffsda_jax.model import ModelSpec, init_variables, make_model
from diffsda_jax.train.step import make_loss_fn

pytestmark = pytest.mark.usefixtures("optimised")

SIZES = {"static_dim": 4, "dynamic_dim": 2, "hidden_dim": 8}
SPECS = {
    "series": ModelSpec("series", (5,), **SIZES, width=4, encoder_width=4),
    "video": ModelSpec(
        "video",
        (4, 4, 2),
        **SIZES,
        channels=8,
        encoder_channels=8,
        channel_mults=(1,),
        attention_levels=(0,),
    ),
}
BLOCKS = {"series": 5 + 4, "video": 2 * (2 + 2 + 3)}  # layers or blocks of encoder and denoiser


@pytest.mark.parametrize("kind", ["series", pytest.param("video", marks=pytest.mark.slow)])
def test_remat_changes_no_number_and_covers_every_block(kind):
    spec = SPECS[kind]
    variables = init_variables(spec, jax.random.key(0))
    x = jax.random.normal(jax.random.key(2), (2, 3, *spec.shape))
    results, blocks = [], []
    for remat in (False, True):
        loss_fn = make_loss_fn(make_model(dataclasses.replace(spec, remat=remat)))

        def loss(params, loss_fn=loss_fn):
            return loss_fn(params, variables["constants"], {"x": x}, jax.random.key(1))[0]

        traced = jax.jit(jax.value_and_grad(loss)).trace(variables["params"])
        blocks.append(count(jax.make_jaxpr(loss)(variables["params"]).jaxpr))
        results.append(traced.lower().compile()(variables["params"]))
    assert blocks == [0, BLOCKS[kind]]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


def count(jaxpr):
    """How many calls of a function are checkpoints."""
    return sum(equation.primitive.name in ("checkpoint", "remat2") for equation in jaxpr.eqns)
