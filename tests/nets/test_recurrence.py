import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsda_jax.nets.recurrence import LSTM, Recurrence, TanhRNN, valid_steps


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_by_hand(params, x, lengths, reverse=False):
    """Plain-loop twin: one item and one step at a time, stopping at the item's length."""
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    bias = p["bias"] + p.get("bias_hidden", 0.0)
    size = p["kernel_hidden"].shape[0]
    x = np.asarray(x)
    outputs, last = np.zeros((*x.shape[:2], size)), []
    for i, length in enumerate(lengths):
        h = c = np.zeros(size)
        for v in reversed(range(length)) if reverse else range(length):
            gates = x[i, v] @ p["kernel_input"] + h @ p["kernel_hidden"] + bias
            gate_in, forget, cell, out = np.split(gates, 4)
            c = sigmoid(forget) * c + sigmoid(gate_in) * np.tanh(cell)
            h = sigmoid(out) * np.tanh(c)
            outputs[i, v] = h
        last.append(h)
    return np.stack(last), outputs


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(7), (3, 5, 4))


LENGTHS = np.array([5, 2, 4], np.int32)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("two_biases", [False, True])
def test_lstm_equals_its_plain_loop_twin(x, reverse, two_biases):
    net = LSTM(6, reverse=reverse, two_biases=two_biases)
    valid = valid_steps(jnp.asarray(LENGTHS), 3, 5)
    variables = net.init(jax.random.key(0), x, valid)
    last, outputs = net.apply(variables, x, valid)
    expected_last, expected = lstm_by_hand(variables["params"], x, LENGTHS, reverse)
    np.testing.assert_allclose(last, expected_last, atol=1e-5)
    for i, length in enumerate(LENGTHS):
        np.testing.assert_allclose(outputs[i, :length], expected[i, :length], atol=1e-5)


def loss_by_hand(params, x, lengths, reverse, weights):
    """A number from all outputs of the LSTM, as a loop that jax differentiates itself."""
    total = 0.0
    for i, length in enumerate(lengths):
        h = c = jnp.zeros(params["kernel_hidden"].shape[0])
        for v in reversed(range(length)) if reverse else range(length):
            gates = x[i, v] @ params["kernel_input"] + h @ params["kernel_hidden"] + params["bias"]
            gate_in, forget, cell, out = jnp.split(gates, 4)
            c = jax.nn.sigmoid(forget) * c + jax.nn.sigmoid(gate_in) * jnp.tanh(cell)
            h = jax.nn.sigmoid(out) * jnp.tanh(c)
            total += (weights[i, v] * h).sum()
        total += (h**2).sum()
    return total


@pytest.mark.parametrize("reverse", [False, True])
def test_gradient_of_the_recurrence_equals_that_of_a_plain_loop(x, reverse):
    net = LSTM(6, reverse=reverse)
    valid = valid_steps(jnp.asarray(LENGTHS), 3, 5)
    params = net.init(jax.random.key(0), x, valid)["params"]
    weights = jax.random.normal(jax.random.key(1), (3, 5, 6)) * valid.T[:, :, None]

    def loss(params, x):
        last, outputs = net.apply({"params": params}, x, valid)
        return (outputs * weights).sum() + (last**2).sum()

    found = jax.grad(loss, (0, 1))(params, x)
    expected = jax.grad(loss_by_hand, (0, 1))(params, x, LENGTHS, reverse, weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)


def test_gradient_of_the_plain_recurrence_equals_that_of_a_plain_loop(x):
    net, valid = TanhRNN(6), valid_steps(jnp.asarray(LENGTHS), 3, 5)
    params = net.init(jax.random.key(0), x, valid)["params"]
    weights = jax.random.normal(jax.random.key(1), (3, 5, 6)) * valid.T[:, :, None]

    def by_hand(p, x):
        h, total, bias = jnp.zeros((3, 6)), 0.0, (p["bias"] + p["bias_hidden"])[None]
        for v in range(5):
            h = jnp.tanh(x[:, v] @ p["kernel_input"] + h @ p["kernel_hidden"] + bias)
            total += (weights[:, v] * h).sum()
        return total

    def loss(p, x):
        return (net.apply({"params": p}, x, valid) * weights).sum()

    for found, expected in zip(
        jax.tree.leaves(jax.grad(loss, (0, 1))(params, x)),
        jax.tree.leaves(jax.grad(by_hand, (0, 1))(params, x)),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, atol=2e-5)
    # Many at once, as studies and probes run them, are the same as one by one.
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    together = jax.vmap(jax.grad(loss), (0, None))(both, x)
    second = jax.grad(loss)(jax.tree.map(lambda leaf: 2 * leaf, params), x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, atol=2e-5), together, second)


def test_rnn_equals_its_plain_loop_twin(x):
    net = TanhRNN(6)
    valid = valid_steps(None, 3, 5)
    variables = net.init(jax.random.key(0), x, valid)
    p = variables["params"]
    h = np.zeros((3, 6))
    outputs = net.apply(variables, x, valid)
    for v in range(5):
        h = np.tanh(
            x[:, v] @ p["kernel_input"]
            + h @ p["kernel_hidden"]
            + (p["bias"] + p["bias_hidden"])[None]
        )
        np.testing.assert_allclose(outputs[:, v], h, atol=1e-5)


@pytest.mark.parametrize("kind", ["lstm", "reference"])
def test_padding_changes_nothing(x, kind):
    net = Recurrence(6, kind)
    variables = net.init(jax.random.key(0), x)
    static, dynamic = net.apply(variables, x[:, :3])
    padded = jnp.concatenate([x[:, :3], jnp.full((3, 2, 4), 9.0)], axis=1)
    length = jnp.full((3,), 3, jnp.int32)
    static_padded, dynamic_padded = net.apply(variables, padded, length)
    np.testing.assert_allclose(static_padded, static, atol=1e-6)
    np.testing.assert_allclose(dynamic_padded[:, :3], dynamic, atol=1e-6)


def test_the_papers_recurrence_is_causal_and_the_reference_is_not(x):
    changed = x.at[:, -1].add(1.0)
    moved = {}
    for kind in ("lstm", "reference"):
        net = Recurrence(6, kind)
        variables = net.init(jax.random.key(0), x)
        before, after = net.apply(variables, x)[1], net.apply(variables, changed)[1]
        moved[kind] = np.abs(after - before)[:, :-1].max()
    assert moved["lstm"] == 0.0 and moved["reference"] > 1e-4


def test_unknown_kind_is_refused(x):
    with pytest.raises(ValueError, match="'gru'.*'lstm'.*'reference'"):
        Recurrence(6, "gru").init(jax.random.key(0), x)
