import jax
import numpy as np

from diffsda_jax.rngs import stream


def draw(*args):
    return float(jax.random.normal(stream(*args)))


def test_same_name_and_step_give_the_same_key():
    assert draw(jax.random.key(0), "noise", 3) == draw(jax.random.key(0), "noise", 3)


def test_names_steps_and_roots_give_other_keys():
    draws = [
        draw(jax.random.key(root), name, step)
        for root in (0, 1)
        for name in ("noise", "dropout")
        for step in (0, 1)
    ]
    assert len(set(draws)) == len(draws)


def test_step_may_be_traced():
    traced = jax.jit(lambda i: jax.random.normal(stream(jax.random.key(0), "noise", i)))(5)
    np.testing.assert_array_equal(traced, draw(jax.random.key(0), "noise", 5))
