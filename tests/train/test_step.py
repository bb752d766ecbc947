"""The loss and the training step."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import BATCH, STEPS, Batches, Run, copy

from diffsda_jax import sharding
from diffsda_jax.diffusion import edm
from diffsda_jax.rngs import stream
from diffsda_jax.train.state import create_state
from diffsda_jax.train.step import BATCH_KEYS, ema_decay, make_loss_fn, make_train_step


def device_batch(run, index=0):
    data = Batches()
    data.next_index = index
    batch = next(data)
    return sharding.shard_batch({name: batch[name] for name in BATCH_KEYS}, run.mesh)


def test_loss_is_the_formula_written_out():
    run = Run(devices=1)
    loss_fn = make_loss_fn(run.model, p_mean=-1.2, p_std=1.2, noise_draws=3, train=False)
    batch, key = device_batch(run), jax.random.key(3)
    batch["mask"] = batch["mask"].at[:, 3:].set(False)
    variables = {"params": run.state.params, "constants": run.state.constants}
    loss, metrics = jax.jit(loss_fn)(run.state.params, run.state.constants, batch, key)

    x = jnp.repeat(batch["x"], 3, axis=0)
    sigma = jnp.exp(-1.2 + 1.2 * jax.random.normal(stream(key, "sigma"), (3 * BATCH, STEPS)))
    x_noisy = x + sigma[..., None] * jax.random.normal(stream(key, "noise"), x.shape)

    @jax.jit
    def denoise(x, x_noisy, sigma):
        length = jnp.repeat(batch["length"], 3)
        factors = run.model.apply(variables, x, length, method="encode")
        return run.model.apply(variables, x_noisy, sigma, factors, method="denoise")

    error = np.array(edm.loss_weight(sigma)[..., None] * (denoise(x, x_noisy, sigma) - x) ** 2)
    error[:, 3:] = 0
    np.testing.assert_allclose(loss, error.mean(), rtol=1e-5)
    assert metrics.keys() == {"loss"} and metrics["loss"] == loss


def test_noise_reaches_only_what_the_encoder_sees_and_d():
    run, seen = Run(devices=1), {}

    class Spy(nn.Module):
        def apply(self, variables, *args, method, **options):
            out = run.model.apply(variables, *args, method=method, **options)
            seen[method] = (args, out)
            return out

    batch, key = device_batch(run), jax.random.key(0)
    args = (run.state.params, run.state.constants, batch, key)
    for std in (0.0, 0.2):
        make_loss_fn(Spy(), dynamic_noise=std, encoder_noise=2 * std, train=False)(*args)
        (x_seen, *_), encoded = seen["encode"]
        used = seen["denoise"][0][2]
        np.testing.assert_array_equal(used.static, encoded.static)
        for values, clean, expected in (
            (x_seen, batch["x"], 2 * std),
            (used.dynamic, encoded.dynamic, std),
        ):
            found = np.std(values - clean)
            assert found == pytest.approx(expected, rel=0.3) and (std > 0 or found == 0)


@pytest.mark.parametrize("name", ["dynamic_noise", "encoder_noise"])
def test_negative_noise_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} is -1"):
        make_loss_fn(Run(devices=1).model, **{name: -1.0})


def test_encoder_runs_once_for_all_noise_draws():
    run = Run(devices=1)
    seen = []

    class Spy(nn.Module):
        def apply(self, variables, *args, method, **options):
            seen.append((method, args[0].shape[0]))
            return run.model.apply(variables, *args, method=method, **options)

    loss_fn = make_loss_fn(Spy(), noise_draws=4)
    args = (run.state.params, run.state.constants, device_batch(run), jax.random.key(0))
    jax.eval_shape(loss_fn, *args)
    assert seen == [("encode", BATCH), ("denoise", 4 * BATCH)]
    with pytest.raises(ValueError, match="noise_draws is 0; allowed: 1 or more"):
        make_loss_fn(run.model, noise_draws=0)
    with pytest.raises(ValueError, match="loss.weighting is 'snr'; allowed: 'edm'"):
        make_loss_fn(run.model, weighting="snr")


def test_padding_and_missing_values_do_not_change_the_gradient():
    run = Run(devices=1)
    batch = device_batch(run)
    batch["mask"] = batch["mask"].at[:, 4].set(False)
    batch["length"] = jnp.full(BATCH, 4)
    other = batch | {"x": batch["x"].at[:, 4].set(5.0)}
    args = (run.state.params, run.state.constants)
    first, second = (run.gradient(*args, b, jax.random.key(0))[1] for b in (batch, other))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), first, second)


def test_same_key_same_loss_and_other_key_other_loss():
    run = Run(devices=1)
    args = (run.state.params, run.state.constants, device_batch(run))
    losses = [float(run.gradient(*args, jax.random.key(seed))[0][0]) for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_loss_decreases():
    run = Run(devices=1)
    losses = []
    for index in range(60):
        run.state, metrics = run.step_fn(run.state, device_batch(run, index % 4), jax.random.key(0))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-15:]) < 0.8 * np.mean(losses[:5])


def test_eight_devices_give_loss_and_gradient_of_one():
    """Relative 1e-5; the draws must not depend on how the batch lies on the devices."""
    results = {}
    for devices in (1, 8):
        run = Run(devices=devices)
        batch = device_batch(run)
        assert len(batch["x"].sharding.device_set) == devices
        args = (run.state.params, run.state.constants, batch)
        (loss, _), grads = run.gradient(*args, jax.random.key(5))
        _, metrics = run.step_fn(run.state, batch, jax.random.key(5))
        results[devices] = (float(loss), copy(grads), copy(metrics))
    (loss, grads, metrics), (loss8, grads8, metrics8) = results[1], results[8]
    np.testing.assert_allclose(loss8, loss, rtol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * largest), grads8, grads
    )
    for name in ("loss", "grad_norm", "param_norm"):
        np.testing.assert_allclose(metrics8[name], metrics[name], rtol=1e-5)


def test_step_compiles_once_and_gives_its_state_away():
    run = Run()
    first = run.state
    for index in range(3):
        run.state, _ = run.step_fn(run.state, device_batch(run, index), jax.random.key(0))
    assert run.step_fn.num_programs() == 1
    assert int(run.state.step) == 3
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first.params))


def test_metrics_and_moving_average_follow_their_definitions():
    run = Run()
    for index in range(3):
        old = copy(run.state)
        batch = device_batch(run, index)
        key = stream(jax.random.key(0), "train", index)
        _, grads = run.gradient(run.state.params, run.state.constants, batch, key)
        run.state, metrics = run.step_fn(run.state, batch, jax.random.key(0))
        decay = min(0.5 ** (BATCH / 20.0), (1 + index) / (10 + index))
        jax.tree.map(
            lambda before, new, ema, decay=decay: np.testing.assert_allclose(
                ema, decay * before + (1 - decay) * new, rtol=1e-5, atol=1e-7
            ),
            old.ema,
            copy(run.state.params),
            copy(run.state.ema),
        )

        def norm(tree):
            return np.sqrt(sum((np.asarray(leaf) ** 2).sum() for leaf in jax.tree.leaves(tree)))

        np.testing.assert_allclose(metrics["grad_norm"], norm(grads), rtol=1e-4)
        np.testing.assert_allclose(metrics["param_norm"], norm(run.state.params), rtol=1e-5)
        np.testing.assert_allclose(metrics["learning_rate"], run.schedule(index), rtol=1e-6)
        assert sorted(metrics) == ["grad_norm", "learning_rate", "loss", "param_norm"]


def test_half_life_is_in_examples():
    late = [float(ema_decay(10**6, 500.0, size)) for size in (5, 50)]
    np.testing.assert_allclose([late[0] ** 100, late[1] ** 10], [0.5, 0.5], rtol=1e-4)
    assert float(ema_decay(0, 1e9, 8)) == pytest.approx(0.1)
    assert float(ema_decay(10, 0.0, 8)) == 0.0
    with pytest.raises(ValueError, match="ema_half_life_examples is -1.0"):
        ema_decay(0, -1.0, 8)


def test_batch_size_that_cannot_be_split_is_refused_before_compiling():
    run = Run()
    with pytest.raises(ValueError, match="batch_size is 12.*8 devices"):
        make_train_step(
            run.loss_fn,
            run.optimizer,
            schedule=run.schedule,
            ema_half_life_examples=1.0,
            batch_size=12,
            mesh=run.mesh,
        )


def test_state_is_a_copy_and_refuses_unknown_collections():
    run = Run(devices=1)
    variables = {"params": {"w": jnp.ones(3)}}
    state = create_state(variables, run.optimizer)
    state.params["w"].delete()
    np.testing.assert_array_equal(state.ema["w"], variables["params"]["w"])
    assert state.constants == {} and state.step.dtype == jnp.int32
    with pytest.raises(ValueError, match="collections .*batch_stats.*allowed: 'params'"):
        create_state({"params": {}, "batch_stats": {}}, run.optimizer)
