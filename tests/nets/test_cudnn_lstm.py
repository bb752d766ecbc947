"""The arguments given to cuDNN's LSTM, and what is made of its results, against our own scan.

cuDNN itself needs an NVIDIA GPU: ``benchmarks/lstm_backends.py`` compares it there. Here the twin
that ``jax.experimental.rnn`` has of it stands in.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn

from diffsda_jax.nets import cudnn_lstm
from diffsda_jax.nets.recurrence import LSTM, valid_steps


def twin(x, h, c, weights, length, features, hidden, layers, dropout, bidirectional, precision):
    """``rnn.lstm`` in plain JAX."""
    assert (h.shape, layers, dropout, bidirectional) == ((1, len(x), hidden), 1, 0.0, False)
    assert precision == (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)
    parts = rnn.unpack_lstm_weights(weights, features, hidden, layers, bidirectional)
    return rnn.lstm_ref(x, h, c, *parts, length, features, hidden, layers, dropout, bidirectional)


@pytest.mark.parametrize("reverse", [False, True])
def test_equals_the_scan_with_padding_and_in_both_directions(reverse):
    x = jax.random.normal(jax.random.key(0), (3, 5, 4))
    valid = valid_steps(jnp.array([5, 2, 3]), 3, 5)
    net = LSTM(6, reverse=reverse)
    params = net.init(jax.random.key(1), x, valid)["params"]
    params = params | {"bias": jax.random.normal(jax.random.key(2), (24,))}

    def by_cudnn(params, x):
        weights = params["kernel_input"], params["kernel_hidden"], params["bias"]
        return cudnn_lstm.run_lstm(*weights, x, valid, reverse, tf32=False, lstm=twin)

    def by_scan(params, x):
        return net.apply({"params": params}, x, valid)

    for found, expected in zip(by_cudnn(params, x), by_scan(params, x), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)

    def loss(run, params, x):
        final, outputs = run(params, x)
        return jnp.sum(jnp.sin(outputs)) + jnp.sum(final**2)

    found, expected = (jax.grad(loss, (1, 2))(run, params, x) for run in (by_cudnn, by_scan))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_without_a_gpu_the_scan_runs():
    assert not cudnn_lstm.is_available()
    x = jax.random.normal(jax.random.key(0), (2, 3, 4))
    valid = valid_steps(None, 2, 3)
    nets = [LSTM(6, cudnn=cudnn) for cudnn in (False, True)]
    variables = nets[0].init(jax.random.key(1), x, valid)
    for found, expected in zip(*(net.apply(variables, x, valid) for net in nets), strict=True):
        np.testing.assert_array_equal(found, expected)
