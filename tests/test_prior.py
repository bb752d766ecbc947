import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffsda_jax import prior
from diffsda_jax.diffusion import schedules
from diffsda_jax.diffusion.samplers import SamplerSpec
from diffsda_jax.prior import PriorSpec
from diffsda_jax.rngs import stream

COUNT, STEPS, S, D = 4, 5, 2, 1
SHORT = SamplerSpec(num_steps=3)
JOINT = PriorSpec("joint", S, D, STEPS, width=16, num_layers=1, num_heads=2, dropout=0.0)
FLAT = [PriorSpec(form, S, D, STEPS, diffusion_steps=8) for form in ("reference", "independent")]


def drawn(spec):
    """Weights all of which matter: those that start at zero are drawn, too."""
    leaves, tree = jax.tree.flatten(prior.variable_shapes(spec))
    draw = np.random.default_rng(1).standard_normal
    return jax.tree.unflatten(tree, [0.3 * draw(x.shape).astype(np.float32) for x in leaves])


@pytest.fixture(scope="module")
def joint():
    return drawn(JOINT)


def data(count, rng, steps=STEPS):
    """Factors that depend on each other: the steps are ramps that follow the first of s."""
    static = rng.standard_normal((count, S)).astype(np.float32)
    ramp = np.linspace(0.8, 1.2, steps, dtype=np.float32)
    dynamic = static[:, :1] * ramp + 0.1 * rng.standard_normal((count, steps)).astype(np.float32)
    return {"static": static, "dynamic": dynamic[..., None]}


@pytest.mark.parametrize(("sizes", "width"), [((16, 2, 4), 128), ((1022, 4, 4), 1024)])
def test_a_token_holds_the_widest_factor(sizes, width):
    static_dim, dynamic_dim, num_heads = sizes
    spec = PriorSpec("joint", static_dim, dynamic_dim, STEPS, num_heads=num_heads)
    assert spec.token_width == width
    assert dataclasses.replace(spec, width=8).token_width == 8


def test_specs_survive_json():
    for spec in (JOINT, *FLAT):
        assert PriorSpec.from_dict(spec.to_dict()) == spec
    with pytest.raises(ValueError, match="prior.depth is unknown"):
        PriorSpec.from_dict(JOINT.to_dict() | {"depth": 3})
    with pytest.raises(ValueError, match="prior.length is missing"):
        PriorSpec.from_dict({k: v for k, v in JOINT.to_dict().items() if k != "length"})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"form": "both"}, "prior.form is 'both'"),
        ({"chain": "heun"}, "prior.chain is 'heun'"),
        ({"static_dim": 0}, "prior.static_dim is 0"),
        ({"num_heads": 3}, "num_heads=3"),
        ({"dropout": 1.0}, "prior.dropout is 1.0"),
        ({"sigma_min": 0.0}, "prior.sigma_min is 0.0"),
        ({"sigma_max": 0.001}, "prior.sigma_max is 0.001"),
        ({"diffusion_steps": 1}, "prior.diffusion_steps is 1"),
        ({"beta_end": 1.0}, "beta_end 1.0"),
    ],
)
def test_impossible_specs_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(JOINT, **change)


@pytest.mark.parametrize("spec", [JOINT, *FLAT], ids=prior.FORMS)
def test_variables_have_the_shapes_that_are_told(spec):
    shapes = prior.variable_shapes(spec)
    variables = prior.init_variables(spec, jax.random.key(0))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    assert set(variables) == ({"params", "constants"} if spec is JOINT else {"params"})


def test_a_new_joint_prior_samples_a_unit_normal():
    """Its output starts near zero, where D is the best denoiser of a unit normal."""
    variables = prior.init_variables(JOINT, jax.random.key(0))
    found = prior.sample_factors(JOINT, variables, jax.random.key(1), count=500, length=STEPS)
    assert np.std(found.static) == pytest.approx(1.0, abs=0.06)
    assert np.std(found.dynamic) == pytest.approx(1.0, abs=0.06)


def test_sampling_is_the_loop(joint):
    key, module = jax.random.key(3), prior.make_prior(JOINT)
    found = prior.sample_factors(
        JOINT, joint, key, count=COUNT, length=STEPS, sampler=SamplerSpec("euler", 4)
    )
    grid = schedules.sigma_grid(4)
    x = grid[0] * np.asarray(jax.random.normal(stream(key, "start"), (COUNT, JOINT.flat_dim)))
    denoise = jax.jit(lambda x, sigma: prior.pack(*module.apply(joint, *split(x), sigma, sigma)))

    def split(x):
        return prior.unpack(x, S, D)

    for sigma, following in zip(grid[:-1], grid[1:], strict=True):
        x_denoised = denoise(x.astype(np.float32), np.full(COUNT, sigma, np.float32))
        x = x + (following - sigma) / sigma * (x - np.asarray(x_denoised))
    static, dynamic = split(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found.static, static, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.dynamic, dynamic, rtol=1e-3, atol=1e-3)


def test_what_is_given_is_kept_and_read(joint):
    given = data(COUNT, np.random.default_rng(0), steps=7)

    def sample(**of):
        options = {"count": COUNT, "length": 7, "sampler": SHORT}
        return prior.sample_factors(JOINT, joint, jax.random.key(1), **options, **of)

    dynamic = sample(static=given["static"])
    np.testing.assert_array_equal(dynamic.static, given["static"])
    assert not np.allclose(dynamic.dynamic, sample(static=given["static"] + 1).dynamic, atol=1e-2)
    static = sample(dynamic=given["dynamic"])
    np.testing.assert_array_equal(static.dynamic, given["dynamic"])
    assert not np.allclose(static.static, sample(dynamic=given["dynamic"] + 1).static, atol=1e-2)


def test_levels_and_noise_of_the_sampler_count(joint):
    def sample(**fields):
        how = SamplerSpec("euler", 3, **fields)
        return prior.sample_factors(
            JOINT, joint, jax.random.key(3), count=COUNT, length=STEPS, sampler=how
        ).static

    plain = sample()
    np.testing.assert_allclose(sample(sigma_max=JOINT.sigma_max, rho=JOINT.rho), plain, rtol=1e-5)
    for fields in ({"sigma_max": 5.0}, {"eta": 1.0}):
        assert np.abs(sample(**fields) - plain).max() > 1e-2, fields


def test_padding_is_zero_and_read_by_nothing(joint):
    def sample(length, lengths):
        return prior.sample_factors(
            JOINT, joint, key, count=1, length=length, static=static, lengths=lengths, sampler=SHORT
        ).dynamic

    key, static = jax.random.key(1), np.ones((1, S), np.float32)
    padded = sample(6, np.asarray([4]))
    assert padded[:, 4:].tolist() == [[[0.0]] * 2] and np.abs(padded[:, :4]).min() > 0


@pytest.mark.parametrize("spec", FLAT, ids=("reference", "independent"))
@pytest.mark.parametrize("chain", ["ddim", "ddpm"])
def test_flat_forms_sample_their_length_only(spec, chain):
    spec = dataclasses.replace(spec, chain=chain)
    variables, options = drawn(spec), {"count": COUNT, "length": STEPS}
    both = prior.sample_factors(spec, variables, jax.random.key(1), **options)
    assert both.static.shape == (COUNT, S) and both.dynamic.shape == (COUNT, STEPS, D)
    static = np.ones((COUNT, S), np.float32)
    part = prior.sample_factors(spec, variables, jax.random.key(1), **options, static=static)
    np.testing.assert_array_equal(part.dynamic, both.dynamic)
    np.testing.assert_array_equal(part.static, static)
    with pytest.raises(ValueError, match="length is 6"):
        prior.sample_factors(spec, variables, jax.random.key(1), count=COUNT, length=6)


def test_what_does_not_fit_is_refused(joint):
    def sample(**of):
        prior.sample_factors(JOINT, joint, jax.random.key(1), count=COUNT, length=STEPS, **of)

    static, dynamic = np.ones((COUNT, S)), np.ones((COUNT, STEPS, D))
    with pytest.raises(ValueError, match="nothing is left"):
        sample(static=static, dynamic=dynamic)
    with pytest.raises(ValueError, match="static has shape"):
        sample(static=static[1:])
    with pytest.raises(ValueError, match="lengths has shape"):
        sample(lengths=np.ones(2, int))
    with pytest.raises(ValueError, match="solver is 'consistency', which is for distilled models"):
        sample(sampler=SamplerSpec("consistency", 2))


@pytest.mark.parametrize("spec", [JOINT, *FLAT], ids=prior.FORMS)
def test_loss_does_not_see_padding(spec):
    batch = data(COUNT, np.random.default_rng(0))
    variables = drawn(spec)
    loss = jax.jit(prior.make_loss_fn(spec, train=False))

    def of(dynamic, length):
        values = batch | {"dynamic": dynamic, "length": jnp.asarray(length)}
        return loss(variables["params"], variables.get("constants", {}), values, jax.random.key(2))

    padded = batch["dynamic"].copy()
    padded[1, 2:] = 5.0
    if spec is JOINT:  # the flat networks read it, but need not give it back
        short = [STEPS, 2, STEPS, 1]
        assert of(batch["dynamic"], short)[0] == pytest.approx(float(of(padded, short)[0]), 1e-5)
    full = [STEPS] * COUNT
    assert of(batch["dynamic"], full)[0] != pytest.approx(float(of(padded, full)[0]), 1e-3)
    assert of(padded, full)[1]["loss"] == of(padded, full)[0]


def test_shares_of_noise_levels():
    use = prior.LossOptions(equal_share=0.5, clean_share=0.2)
    (static, dynamic), given = jax.jit(
        lambda key: prior._draw_levels(JOINT, use, key, 4000)  # noqa: SLF001
    )(jax.random.key(0))
    assert np.mean(static == dynamic) == pytest.approx(0.5, abs=0.03)
    assert np.mean(given[0]) == pytest.approx(0.2, abs=0.03)
    assert np.mean(given[1]) == pytest.approx(0.2, abs=0.03)
    assert not np.any(given[0] & given[1]) and not np.any((static == dynamic) & given[0])
    with pytest.raises(ValueError, match="clean_share 0.3"):
        prior.LossOptions(equal_share=0.5, clean_share=0.3)


@pytest.fixture(scope="module")
def trained():
    """A joint prior that has seen factors which follow each other."""
    variables = prior.init_variables(JOINT, jax.random.key(0))
    constants, optimizer = variables["constants"], optax.adam(3e-3)
    loss = prior.make_loss_fn(JOINT)
    batch = jax.tree.map(jnp.asarray, data(512, np.random.default_rng(0)))

    def step(carry, i):
        params, state = carry
        gradient, metrics = jax.grad(loss, has_aux=True)(
            params, constants, batch, stream(jax.random.key(1), "train", i)
        )
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), metrics["loss"]

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(600)))
    (params, _), losses = run((variables["params"], optimizer.init(variables["params"])))
    assert losses[-20:].mean() < 0.8 * losses[:20].mean()
    return {"params": params, "constants": constants}


def test_a_trained_joint_prior_knows_all_three_distributions(trained):
    def sample(**of):
        found = prior.sample_factors(
            JOINT,
            trained,
            jax.random.key(5),
            count=300,
            length=STEPS,
            sampler=SamplerSpec(num_steps=12),
            **of,
        )
        middle = np.asarray(found.dynamic)[:, :, 0].mean(1)
        return np.corrcoef(np.asarray(found.static)[:, 0], middle)[0, 1]

    test = data(300, np.random.default_rng(9))
    assert sample() > 0.9
    assert sample(static=test["static"]) > 0.9
    assert sample(dynamic=test["dynamic"]) > 0.9
