import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsda_jax.model import ModelSpec, init_variables, make_model

SERIES = ModelSpec("series", (3,), 4, 2, 8, width=4, encoder_width=4)
VIDEO = ModelSpec(
    "video",
    (8, 8, 1),
    4,
    2,
    8,
    channels=32,
    encoder_channels=32,
    channel_mults=(1, 1),
    attention_levels=(1,),
)


@pytest.fixture(scope="module", params=[SERIES, VIDEO], ids=["series", "video"])
def spec_and_variables(request):
    return request.param, init_variables(request.param, jax.random.key(0))


def test_shapes_and_near_zero_start(spec_and_variables):
    spec, variables = spec_and_variables
    model = make_model(spec)
    x = jax.random.normal(jax.random.key(1), (2, 3, *spec.shape))
    sigma = jnp.array([[0.1, 1.0, 10.0], [0.5, 0.5, 0.5]])

    @jax.jit
    def run(x, sigma):
        factors = model.apply(variables, x, method="encode")
        return factors, model.apply(variables, x, sigma, factors, method="denoise")

    factors, denoised = run(x, sigma)
    assert factors.static.shape == (2, 4) and factors.dynamic.shape == (2, 3, 2)
    c_skip = (0.25 / (sigma**2 + 0.25)).reshape((2, 3) + (1,) * len(spec.shape))
    # The last layer starts near zero, so D starts as the optimal denoiser of Gaussian data.
    np.testing.assert_allclose(denoised, c_skip * x, atol=1e-3)


def test_copies_of_a_sequence_may_share_its_factors(spec_and_variables):
    spec, variables = spec_and_variables
    # The last layer starts near zero: without this the factors would hardly show.
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)
    model = make_model(spec)
    x = jax.random.normal(jax.random.key(1), (2, 3, *spec.shape))
    x_noisy = jax.random.normal(jax.random.key(2), (6, 3, *spec.shape))
    sigma = jnp.exp(jax.random.normal(jax.random.key(3), (6, 3)))

    @jax.jit
    def run():
        shared = model.apply(variables, x, method="encode")
        own = jax.tree.map(lambda leaf: jnp.repeat(leaf, 3, axis=0), shared)
        return [
            model.apply(variables, x_noisy, sigma, factors, method="denoise")
            for factors in (shared, own, jax.tree.map(jnp.flip, own))
        ]

    of_shared, of_own, of_others = run()
    np.testing.assert_allclose(of_shared, of_own, atol=1e-5)
    assert np.abs(of_shared - of_others).max() > 1e-3


@pytest.mark.parametrize("recurrence", ["lstm", "reference"])
def test_static_factor_of_each_step(recurrence):
    spec = dataclasses.replace(SERIES, recurrence=recurrence)
    per_step = dataclasses.replace(spec, static_per_step=True)
    model, variables = make_model(per_step), init_variables(per_step, jax.random.key(0))
    # The last layer starts near zero: without this the factors would hardly show.
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)
    x = jax.random.normal(jax.random.key(1), (2, 5, 3))
    encode = jax.jit(lambda m: m.apply(variables, x, method="encode"), static_argnums=0)
    factors, shared = encode(model), encode(make_model(spec))
    assert factors.static.shape == (2, 5, 4)
    np.testing.assert_array_equal(factors.dynamic, shared.dynamic)
    if recurrence == "lstm":  # the shared one is what the last step sees
        np.testing.assert_allclose(factors.static[:, -1], shared.static, rtol=1e-5)

    @jax.jit
    def denoise(factors):
        return model.apply(variables, x, jnp.ones((2, 5)), factors, method="denoise")

    # A step depends on its own s, and one s serves for all steps.
    moved = factors.replace(static=factors.static.at[:, 2].add(1.0))
    changed = np.abs(denoise(moved) - denoise(factors)).max((0, 2))
    assert changed[2] > 1e-4 and np.delete(changed, 2).max() == 0
    repeated = shared.replace(static=jnp.repeat(shared.static[:, None], 5, axis=1))
    np.testing.assert_allclose(denoise(shared), denoise(repeated), atol=1e-6)


def test_half_precision_changes_little_and_keeps_the_parameters():
    spec = dataclasses.replace(SERIES, recurrence="reference")
    half = dataclasses.replace(spec, precision="bfloat16")
    variables = init_variables(spec, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, variables, init_variables(half, jax.random.key(0)))
    x = jax.random.normal(jax.random.key(1), (2, 5, 3))
    found, expected = (make_model(s).apply(variables, x, method="encode") for s in (half, spec))
    difference = np.abs(found.dynamic - expected.dynamic).max()
    assert found.dynamic.dtype == np.float32 and 0 < difference < 0.05


def test_half_precision_of_the_u_nets_gives_float32_close_by():
    half = dataclasses.replace(VIDEO, precision="bfloat16")
    variables = init_variables(VIDEO, jax.random.key(0))
    kernel = variables["params"]["denoiser"]["unet"]["conv_out"]["kernel"]
    kernel *= 1e4  # starts at almost nothing
    variables["params"]["denoiser"]["unet"]["conv_out"]["kernel"] = kernel
    x = jax.random.normal(jax.random.key(1), (1, 2, *VIDEO.shape))
    found, expected = (
        make_model(spec).apply(variables, x, jnp.full((1, 2), 0.5)) for spec in (half, VIDEO)
    )
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert found.dtype == np.float32 and 1e-5 < error < 0.02
    traced = jax.make_jaxpr(lambda x: make_model(half).apply(variables, x, jnp.ones((1, 2))))(x)
    products = [
        [v.aval.dtype for v in equation.invars]
        for equation in _equations(traced.jaxpr)
        if equation.primitive.name == "conv_general_dilated"
    ]
    halves = [kinds for kinds in products if kinds == [jnp.bfloat16] * 2]
    assert len(products) - len(halves) == 2  # the last convolution of either U-Net


def _equations(jaxpr):
    """All equations of a program, those of the functions it calls too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            if hasattr(value, "jaxpr"):
                yield from _equations(value.jaxpr)


def test_centred_dynamics_do_not_know_what_all_steps_share():
    spec = dataclasses.replace(SERIES, center_dynamic=True)
    model, variables = make_model(spec), init_variables(spec, jax.random.key(0))
    rng, length = np.random.default_rng(1), jnp.array([4, 5])
    x = 5 * rng.standard_normal((2, 5, 3)).astype(np.float32)
    mask = np.ones((2, 5, 3), bool)
    mask[:, 1, 0] = mask[1, 4] = False
    real = mask & (np.arange(5)[None, :] < np.asarray(length)[:, None])[:, :, None]

    @jax.jit
    def encode(x):
        factors = model.apply(variables, x, length, jnp.asarray(mask), method="encode")
        return factors.static, jnp.concatenate([factors.dynamic[0, :4], factors.dynamic[1]])

    static, dynamic = encode(x)
    np.testing.assert_allclose(dynamic[:4].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(dynamic[4:].mean(0), 0, atol=1e-6)
    # A level and a gain of each sensor: s sees them, d does not but for the least spread.
    level = rng.standard_normal((2, 1, 3)).astype(np.float32)
    for moved, tolerance in ((x + level, 1e-5), (20 * x, 2e-3)):
        s, d = encode(moved)
        np.testing.assert_allclose(d, dynamic, atol=tolerance)
        assert np.abs(s - static).max() > 0.05
    # What was not observed or is padding is not in d, the order of steps is.
    np.testing.assert_allclose(
        encode(np.where(real, x, 9).astype(np.float32))[1], dynamic, atol=1e-6
    )
    assert np.abs(encode(x[:, ::-1])[1] - dynamic).max() > 0.01


def test_encoder_is_told_what_is_missing_and_reads_nothing_there():
    spec = dataclasses.replace(SERIES, encoder_sees_mask=True)
    model, variables = make_model(spec), init_variables(spec, jax.random.key(0))
    x = np.asarray(jax.random.normal(jax.random.key(1), (2, 3, 3)))
    mask = np.ones(x.shape, bool)
    mask[0, 1, 2] = mask[1, 2, 0] = False

    def encode(x, mask):
        x, mask = jnp.asarray(x), None if mask is None else jnp.asarray(mask)
        return jax.tree.leaves(model.apply(variables, x, None, mask, method="encode"))

    garbage = np.where(mask, x, 7.0)
    for a, b in zip(encode(x, mask), encode(garbage, mask), strict=True):
        np.testing.assert_array_equal(a, b)
    zeroed = np.where(mask, x, 0.0)
    for a, b in zip(encode(x, mask), encode(zeroed, None), strict=True):
        assert np.abs(a - b).max() > 1e-4  # a missing value is not a zero
    without, blind = make_model(SERIES), init_variables(SERIES, jax.random.key(0))
    factors = [
        without.apply(blind, jnp.asarray(x), None, m, method="encode")
        for m in (jnp.asarray(mask), None)
    ]
    np.testing.assert_array_equal(factors[0].static, factors[1].static)


def test_spec_survives_json():
    assert ModelSpec.from_dict(VIDEO.to_dict()) == VIDEO


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"kind": "audio"}, "model.kind is 'audio'"),
        ({"recurrence": "gru"}, "model.recurrence is 'gru'"),
        ({"dynamic_dim": 0}, "model.dynamic_dim is 0"),
        ({"shape": (8, 8, 1)}, "needs? kind 'video'|need kind 'video'"),
    ],
)
def test_bad_series_values_are_named(changes, match):
    with pytest.raises(ValueError, match=match):
        ModelSpec.from_dict({**SERIES.to_dict(), **changes})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"shape": (9, 8, 1)}, "cannot be halved"),
        ({"channels": 20}, "model.channels is 20.*multiple of 8"),
        ({"attention_levels": (2,)}, "names level 2.*0 to 1"),
        ({"shape": (8,)}, "must be \\(H, W, C\\)"),
        ({"center_dynamic": True}, "center_dynamic is True for kind 'video'.*set it to False"),
        ({"precision": "float16"}, "precision is 'float16'; allowed: 'float32', 'bfloat16'"),
    ],
)
def test_bad_video_values_are_named(changes, match):
    with pytest.raises(ValueError, match=match):
        ModelSpec.from_dict({**VIDEO.to_dict(), **changes})


def test_unknown_and_missing_fields_are_named():
    with pytest.raises(ValueError, match="model.depth is unknown"):
        ModelSpec.from_dict({**SERIES.to_dict(), "depth": 3})
    with pytest.raises(ValueError, match="model.static_dim is missing"):
        ModelSpec.from_dict({k: v for k, v in SERIES.to_dict().items() if k != "static_dim"})
