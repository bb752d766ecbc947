"""The loss and the step of distillation, on Gaussian data whose consistency function is known."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import assert_trees_equal, copy

from diffsda_jax import sharding
from diffsda_jax.diffusion import edm
from diffsda_jax.factors import Factors
from diffsda_jax.train.distill_step import make_distill_loss, make_distill_step, only_denoiser
from diffsda_jax.train.optimizer import make_optimizer, make_schedule
from diffsda_jax.train.state import create_state

STD, SIGMA_MIN, SIGMA_MAX = 0.5, 0.002, 80.0
BATCH, STEPS, FEATURES = 8, 4, 3
LEVELS = {"sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX}


class Gaussian(nn.Module):
    """Steps are Gaussian around d; the optimal denoiser, or the end of its ODE as the student.

    The student is right where its parameter ``scale`` is 1, and the identity at the lowest level
    whatever it is.
    """

    student: bool = False

    def setup(self):
        self.encoder = nn.Dense(FEATURES)
        self.denoiser = nn.Dense(1, use_bias=False, kernel_init=nn.initializers.ones)

    def encode(self, x_clean, length=None, mask=None, train=False):
        h = self.encoder(x_clean)
        return Factors(static=h.mean(1), dynamic=h)

    def denoise(self, x_noisy, sigma, factors, train=False):
        copies = len(x_noisy) // len(factors)
        mean = jnp.repeat(factors.dynamic + factors.static[:, None], copies, axis=0)
        scale = self.denoiser(jnp.ones((1, 1)))[0, 0]
        variance = STD**2 / (STD**2 + sigma[..., None] ** 2)
        if self.student:  # dx/dsigma = sigma (x - mean) / (sigma^2 + std^2), solved to SIGMA_MIN
            shrink = jnp.sqrt((STD**2 + SIGMA_MIN**2) / (STD**2 + sigma[..., None] ** 2))
            wrong = (scale - 1) * (1 - shrink)
            return mean + (1 + wrong) * shrink * (x_noisy - mean)
        return mean + variance * (x_noisy - mean)

    def __call__(self, x_clean, sigma):
        return self.denoise(x_clean, sigma, self.encode(x_clean))


@pytest.fixture(scope="module")
def variables():
    x, sigma = jnp.zeros((1, STEPS, FEATURES)), jnp.ones((1, STEPS))
    return copy(Gaussian().init(jax.random.key(0), x, sigma))


@pytest.fixture(scope="module")
def batch():
    x = np.random.default_rng(0).standard_normal((BATCH, STEPS, FEATURES)).astype(np.float32)
    return {"x": jnp.asarray(x)}


@functools.cache
def compiled_loss(**options):
    loss_fn = make_distill_loss(Gaussian(student=True), Gaussian(), **(LEVELS | options))
    return jax.jit(jax.value_and_grad(loss_fn, has_aux=True))


def loss_of(variables, batch, scale=1.0, **options):
    params = variables["params"] | {"denoiser": {"kernel": jnp.full((1, 1), scale)}}
    constants = {"model": {}, "teacher": variables}
    (value, _), grads = compiled_loss(**options)(params, constants, batch, jax.random.key(0))
    return float(value), grads


@pytest.mark.parametrize("horizon", [0, 1])
def test_the_known_consistency_function_has_no_loss(variables, batch, horizon):
    """What is left is the error of the teacher's solver, which falls with its steps."""
    coarse, fine = (loss_of(variables, batch, path_steps=n, horizon=horizon)[0] for n in (8, 32))
    assert fine < coarse / 10 and fine < 1e-3
    wrong, _ = loss_of(variables, batch, scale=1.5, path_steps=32, horizon=horizon)
    assert wrong > 20 * fine


def test_only_the_denoiser_gets_a_gradient(variables, batch):
    _, grads = loss_of(variables, batch, scale=1.5, path_steps=8, horizon=0)
    assert np.abs(grads["denoiser"]["kernel"]).max() > 0.01
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads["encoder"]))


def test_unobserved_values_do_not_count(variables, batch):
    options = {"scale": 1.5, "swap_share": 0.0, "path_steps": 2}
    whole, _ = loss_of(variables, batch, **options)
    none, _ = loss_of(variables, batch | {"mask": jnp.zeros((BATCH, STEPS), bool)}, **options)
    every, _ = loss_of(variables, batch | {"mask": jnp.ones((BATCH, STEPS), bool)}, **options)
    assert none == 0.0 and every == pytest.approx(whole, rel=1e-5)


def test_swapped_sequences_get_another_d(variables, batch):
    losses = {
        s: loss_of(variables, batch, scale=1.5, swap_share=s, path_steps=2)[0] for s in (0.0, 1.0)
    }
    same = {"x": jnp.repeat(batch["x"][:1], BATCH, axis=0)}  # nothing to swap
    alike = {
        s: loss_of(variables, same, scale=1.5, swap_share=s, path_steps=2)[0] for s in (0.0, 1.0)
    }
    assert losses[0.0] != losses[1.0] and alike[0.0] == pytest.approx(alike[1.0], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"path_steps": 1}, "distill.path_steps is 1; allowed: 2 or more"),
        ({"draws": 0}, "distill.draws is 0"),
        ({"horizon": -1}, "distill.horizon is -1"),
        ({"swap_share": 1.5}, "distill.swap_share is 1.5; allowed: 0 to 1"),
    ],
)
def test_impossible_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        make_distill_loss(Gaussian(student=True), Gaussian(), **options)


@pytest.mark.parametrize(("fsdp", "parts"), [(1, 1), (2, 1), (2, 2)])
def test_a_wrong_student_is_mended_and_its_encoder_keeps_its_bits(variables, batch, fsdp, parts):
    mesh = sharding.make_mesh(jax.devices()[:fsdp], fsdp=fsdp)
    rules = (("", "largest"),) if fsdp > 1 else ()
    schedule = make_schedule("constant", learning_rate=0.05, total_steps=100)
    optimizer = only_denoiser(make_optimizer(schedule, weight_decay=0.1))
    loss_fn = make_distill_loss(Gaussian(student=True), Gaussian(), **LEVELS)
    step_fn = make_distill_step(
        loss_fn,
        optimizer,
        variables,
        mesh=mesh,
        rules=rules,
        schedule=schedule,
        ema_half_life_examples=20.0,
        batch_size=BATCH,
        accumulation_steps=parts,
    )
    start = variables["params"] | {"denoiser": {"kernel": jnp.full((1, 1), 2.0)}}
    state = create_state({"params": start}, optimizer, mesh, rules)
    for _ in range(60):
        state, metrics = step_fn(state, batch, jax.random.key(0))
    assert float(state.params["denoiser"]["kernel"][0, 0]) == pytest.approx(1.0, abs=0.1)
    for weights in (state.params, state.ema):
        assert_trees_equal(weights["encoder"], variables["params"]["encoder"])
    assert state.constants == {} and metrics["loss"] < 0.05


def test_a_student_is_the_identity_at_its_lowest_level():
    from diffsda_jax.model import ModelSpec, init_variables, make_model

    spec = ModelSpec("series", (3,), 2, 2, 4, width=2, encoder_width=2, sigma_identity=SIGMA_MIN)
    variables = init_variables(spec, jax.random.key(0))
    tail = variables["params"]["denoiser"]  # random weights that say something
    variables["params"]["denoiser"] = jax.tree.map(lambda leaf: leaf + 0.3, tail)
    x = jax.random.normal(jax.random.key(1), (2, 4, 3))
    factors = Factors(static=jnp.ones((2, 2)), dynamic=jnp.ones((2, 4, 2)))
    for sigma, same in ((SIGMA_MIN, True), (1.0, False)):
        levels = jnp.full((2, 4), sigma)
        out = make_model(spec).apply(variables, x, levels, factors, method="denoise")
        assert np.array_equal(out, x) == same
    with pytest.raises(ValueError, match="sigma_identity is 0.1; allowed: 0 or sigma_min=0.002"):
        ModelSpec("series", (3,), 2, 2, 4, sigma_identity=0.1)
    assert float(edm.preconditioning(jnp.float32(SIGMA_MIN), STD, SIGMA_MIN).c_out) == 0


def test_the_students_own_target_has_no_gradient(variables, batch, monkeypatch):
    _, grads = loss_of(variables, batch, scale=1.5, path_steps=8, horizon=1)
    monkeypatch.setattr(jax.lax, "stop_gradient", lambda value: value)
    compiled_loss.cache_clear()
    _, through = loss_of(variables, batch, scale=1.5, path_steps=8, horizon=1)
    compiled_loss.cache_clear()
    stopped, passed = (float(tree["denoiser"]["kernel"][0, 0]) for tree in (grads, through))
    assert abs(passed / stopped - 1) > 0.1
