import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsda_jax.nets.prior_nets import FactorTransformer
from diffsda_jax.nets.skip_mlp import SkipMLP, step_features

COUNT, STEPS, S, D = 2, 5, 3, 2
NET = FactorTransformer(S, D, width=8, num_layers=2, num_heads=2, dropout=0.5)


def inputs(steps=STEPS, seed=0):
    draw = np.random.default_rng(seed).standard_normal
    shapes = ((COUNT, S), (COUNT, steps, D), (COUNT,), (COUNT,))
    return [jnp.asarray(draw(shape), jnp.float32) for shape in shapes]


@pytest.fixture(scope="module")
def variables():
    """Weights all of which matter: those that start at or near zero are drawn, too."""
    shapes = jax.eval_shape(NET.init, jax.random.key(0), *inputs())
    leaves, tree = jax.tree.flatten(shapes)
    draw = np.random.default_rng(1).standard_normal
    return jax.tree.unflatten(tree, [0.4 * draw(x.shape).astype(np.float32) for x in leaves])


@pytest.fixture(scope="module")
def apply(variables):
    return jax.jit(lambda *arguments: NET.apply(variables, *arguments))


def test_padding_changes_nothing(apply):
    static, dynamic, *levels = inputs()
    length = jnp.asarray([STEPS, 3])
    outputs = apply(static, dynamic, *levels, length)
    padded = dynamic.at[1, 3:].set(9.0)
    others = apply(static, padded, *levels, length)
    np.testing.assert_allclose(outputs[0], others[0], atol=1e-6)
    np.testing.assert_allclose(outputs[1][1, :3], others[1][1, :3], atol=1e-6)
    alone = apply(static, dynamic[:, :3], *levels, jnp.asarray([3, 3]))
    np.testing.assert_allclose(outputs[1][1, :3], alone[1][1], atol=1e-5)
    np.testing.assert_allclose(outputs[0][1], alone[0][1], atol=1e-5)
    full = apply(static, padded, *levels, jnp.asarray([STEPS, STEPS]))  # now it is data
    assert np.abs(full[0][1] - outputs[0][1]).max() > 1e-3


def test_everything_reaches_both_outputs(apply):
    arguments, length = inputs(), jnp.full(COUNT, STEPS)
    outputs = apply(*arguments, length)
    for place in range(len(arguments)):
        changed = [a + (0.5 if i == place else 0.0) for i, a in enumerate(arguments)]
        for before, after in zip(outputs, apply(*changed, length), strict=True):
            assert np.abs(before - after).max() > 1e-3


def test_order_of_steps_matters(apply):
    static, dynamic, *levels = inputs()
    length = jnp.full(COUNT, STEPS)
    outputs = apply(static, dynamic, *levels, length)
    turned = apply(static, dynamic[:, ::-1], *levels, length)
    assert np.abs(outputs[1] - turned[1][:, ::-1]).max() > 1e-2


def test_parameters_do_not_depend_on_length():
    shapes = [jax.eval_shape(NET.init, jax.random.key(0), *inputs(steps)) for steps in (1, 9)]
    assert shapes[0] == shapes[1]


def test_dropout_is_for_training_only(variables, apply):
    arguments = inputs()
    length = jnp.full(COUNT, STEPS)

    @jax.jit
    def train(key):
        return NET.apply(variables, *arguments, length, True, rngs={"dropout": key})

    first, second = train(jax.random.key(1)), train(jax.random.key(2))
    assert np.abs(first[1] - second[1]).max() > 1e-3
    np.testing.assert_array_equal(apply(*arguments, length)[1], apply(*arguments, length)[1])


def test_step_features_are_cosines_then_sines():
    features = step_features(jnp.asarray([0, 3]))
    np.testing.assert_allclose(features[0], [1.0] * 32 + [0.0] * 32)
    assert features[1, 0] == pytest.approx(np.cos(3), abs=1e-6)
    assert features[1, 32] == pytest.approx(np.sin(3), abs=1e-6)


def test_flat_network_has_the_released_widths():
    shapes = jax.eval_shape(
        SkipMLP().init, jax.random.key(0), jnp.ones((1, 23)), jnp.ones(1, jnp.int32)
    )["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 113_827
    assert shapes["dense_1"]["kernel"].shape == (115, 92)
