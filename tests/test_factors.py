import jax.numpy as jnp
import numpy as np
import pytest

from diffsda_jax import Factors, mix


def make(batch, offset=0.0):
    return Factors(
        static=jnp.arange(batch * 3.0).reshape(batch, 3) + offset,
        dynamic=jnp.arange(batch * 8.0).reshape(batch, 4, 2) + offset,
    )


def test_mix_takes_each_factor_from_its_donor():
    first, second = make(2), make(2, 100.0)
    mixed = mix(static_from=first, dynamic_from=second)
    np.testing.assert_array_equal(mixed.static, first.static)
    np.testing.assert_array_equal(mixed.dynamic, second.dynamic)


def test_mix_repeats_a_single_donor():
    mixed = mix(static_from=make(1), dynamic_from=make(3))
    assert mixed.static.shape == (3, 3) and mixed.dynamic.shape == (3, 4, 2)
    np.testing.assert_array_equal(mixed.static[2], make(1).static[0])


def test_mix_refuses_unequal_batches():
    with pytest.raises(ValueError, match="holds 2 sequences.*3"):
        mix(static_from=make(2), dynamic_from=make(3))


def test_mix_keeps_one_static_factor_a_step():
    steps = Factors(static=jnp.arange(24.0).reshape(2, 4, 3), dynamic=make(2).dynamic)
    mixed = mix(static_from=steps, dynamic_from=make(2, 100.0))
    np.testing.assert_array_equal(mixed.static, steps.static)
    assert mix(static_from=steps[:1], dynamic_from=make(3)).static.shape == (3, 4, 3)
    short = Factors(static=steps.static[:, :3], dynamic=steps.dynamic[:, :3])
    with pytest.raises(ValueError, match="each of 3 steps.*4 steps"):
        mix(static_from=short, dynamic_from=make(2))


def test_shapes_of_both_factors_belong_together():
    dynamic = make(2).dynamic
    for static in (np.zeros((2, 3), np.float32), jnp.zeros((2, 4, 3))):
        assert Factors(static=static, dynamic=dynamic).static.shape == static.shape
    for static in (np.zeros((3, 3), np.float32), np.zeros((2, 3, 3), np.float32)):
        with pytest.raises(TypeError, match="static|dynamic"):
            Factors(static=static, dynamic=dynamic)


def test_index_keeps_the_batch_axis():
    assert make(3)[1:2].static.shape == (1, 3)
    assert len(make(3)[[0, 2]]) == 2
    with pytest.raises(TypeError, match="batch axis"):
        make(3)[0]
