"""Schedules in closed form; the optimiser against a NumPy twin of AdamW."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsda_jax.train.optimizer import make_optimizer, make_schedule


def values(schedule, steps):
    return np.array([float(schedule(jnp.int32(step))) for step in steps])


def test_cosine_in_closed_form():
    schedule = make_schedule("cosine", learning_rate=2.0, total_steps=110, warmup_steps=10)
    np.testing.assert_allclose(values(schedule, range(10)), 2 * np.arange(1, 11) / 11, rtol=1e-6)
    np.testing.assert_allclose(
        values(schedule, [10, 35, 60, 110]),
        [2.0, 1 + np.cos(np.pi / 4), 1.0, 0.0],
        rtol=1e-6,
        atol=1e-7,
    )
    rates = values(schedule, range(111))
    assert rates.argmax() == 10 and np.all(np.diff(rates[10:]) < 0)


def test_constant_warms_up_and_stays():
    schedule = make_schedule("constant", learning_rate=3.0, total_steps=9, warmup_steps=2)
    np.testing.assert_allclose(values(schedule, range(6)), [1, 2, 3, 3, 3, 3], rtol=1e-6)


def test_reference_multipliers_are_1_2_1_then_a_cosine_over_all_epochs():
    epochs, per_epoch = 20, 5
    schedule = make_schedule(
        "reference", learning_rate=1.0, total_steps=epochs * per_epoch, steps_per_epoch=per_epoch
    )
    rates = values(schedule, range(epochs * per_epoch)).reshape(epochs, per_epoch)
    assert np.all(rates == rates[:, :1])  # constant within an epoch
    np.testing.assert_allclose(rates[:3, 0], [1, 2, 1])
    places = np.arange(2, epochs) - 2
    np.testing.assert_allclose(rates[2:, 0], (1 + np.cos(np.pi * places / epochs)) / 2, rtol=1e-5)
    assert 0 < rates[-1, 0] < 0.06


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cosin"}, "schedule is 'cosin'; allowed: 'cosine'"),
        ({"total_steps": 0}, "num_steps is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"warmup_steps": 10}, "warmup_steps is 10; allowed: 0 to total_steps - 1 = 9"),
        ({"name": "reference"}, "needs steps_per_epoch"),
        ({"name": "reference", "steps_per_epoch": 2, "warmup_steps": 1}, "warmup_steps=0"),
    ],
)
def test_bad_schedules_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(**({"learning_rate": 1.0, "total_steps": 10} | options))


@pytest.mark.parametrize("scale", [0.01, 10.0])
def test_three_steps_match_adamw_written_out(scale):
    """Decoupled decay of every parameter (Loshchilov and Hutter, algorithm 2), clipping before."""
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)}
    grads = [{k: scale * rng.normal(size=v.shape) for k, v in params.items()} for _ in range(3)]
    decay, clip, b1, b2, eps, rates = 0.1, 1.0, 0.9, 0.99, 1e-8, (0.1, 0.05, 0.2)

    optimizer = make_optimizer(
        lambda step: jnp.asarray(rates)[step], weight_decay=decay, clip_norm=clip, b2=b2
    )
    ours = jax.tree.map(jnp.float32, params)
    opt_state = optimizer.init(ours)
    first = {k: np.zeros_like(v) for k, v in params.items()}
    second = {k: np.zeros_like(v) for k, v in params.items()}
    for i, (rate, grad) in enumerate(zip(rates, grads, strict=True), start=1):
        updates, opt_state = optimizer.update(jax.tree.map(jnp.float32, grad), opt_state, ours)
        ours = jax.tree.map(jnp.add, ours, updates)
        norm = np.sqrt(sum((g**2).sum() for g in grad.values()))
        for k, p in params.items():
            g = grad[k] * min(1.0, clip / norm)
            first[k] = b1 * first[k] + (1 - b1) * g
            second[k] = b2 * second[k] + (1 - b2) * g**2
            adam = first[k] / (1 - b1**i) / (np.sqrt(second[k] / (1 - b2**i)) + eps)
            params[k] = p - rate * decay * p - rate * adam
    for k, p in params.items():
        np.testing.assert_allclose(ours[k], p, rtol=2e-5, atol=1e-6)
