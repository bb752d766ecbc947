import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffsda_jax import DiffSDA, Factors
from diffsda_jax.codec import load_sampler
from diffsda_jax.data.transforms import Normalizer
from diffsda_jax.diffusion.samplers import SamplerSpec
from diffsda_jax.model import ModelSpec, init_variables
from diffsda_jax.train import checkpoint

SPEC = ModelSpec("series", (3,), 4, 2, 8, width=4, encoder_width=4)


@pytest.fixture(scope="module")
def model():
    return DiffSDA(SPEC, init_variables(SPEC, jax.random.key(0)))


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(1), (2, 5, 3)) * 0.5


def test_encode_takes_numpy_and_lengths(model, x):
    factors = model.encode(np.asarray(x))
    assert factors.static.shape == (2, 4) and factors.dynamic.shape == (2, 5, 2)
    padded = np.concatenate([np.asarray(x), np.ones((2, 2, 3), np.float32)], axis=1)
    same = model.encode(padded, length=np.array([5, 5], np.int32))
    np.testing.assert_allclose(same.static, factors.static, atol=1e-6)


@pytest.mark.parametrize("sigma", [1.5, [1.5, 1.5], [[1.5] * 5] * 2])
def test_denoise_takes_sigma_of_every_shape(model, x, sigma):
    factors = model.encode(x)
    expected = model.denoise(x, np.full((2, 5), 1.5, np.float32), factors)
    np.testing.assert_array_equal(model.denoise(x, jnp.asarray(sigma), factors), expected)


def test_one_static_factor_a_step_is_for_models_that_have_them(model, x):
    spec = dataclasses.replace(SPEC, static_per_step=True)
    factors = DiffSDA(spec, model.variables).encode(x)
    assert factors.static.shape == (2, 5, 4)
    shared = factors.replace(static=factors.static.mean(1))
    for ours in (factors, shared):
        assert DiffSDA(spec, model.variables).decode(ours, num_steps=2).shape == x.shape
    with pytest.raises(ValueError, match=r"static \(2, 5, 4\).*expected \(2, 4\)"):
        model.decode(factors, num_steps=2)


def test_samples_depend_on_the_seed_only(model, x):
    factors = model.encode(x)
    first, again = model.decode(factors, num_steps=3), model.decode(factors, num_steps=3, seed=0)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, model.decode(factors, num_steps=3, seed=1))


def test_inversion_and_sampling_undo_each_other(model, x):
    factors = model.encode(x)
    noise = model.invert(x, factors, num_steps=100)
    back = model.decode(factors, start=noise, num_steps=100)
    np.testing.assert_allclose(back, x, atol=0.02)


@pytest.mark.parametrize("solver", ["dpmpp_2m", "ab2"])
def test_solvers_agree_where_steps_are_many_and_undo_themselves(model, x, solver):
    factors = model.encode(x)
    noise = model.invert(x, factors, num_steps=100)
    back = model.decode(factors, start=noise, num_steps=100, solver=solver)
    np.testing.assert_allclose(back, x, atol=0.02)
    own = model.invert(x, factors, num_steps=100, solver=solver)
    np.testing.assert_allclose(own, noise, atol=0.02)


def test_the_models_own_sampler_is_the_default(model, x):
    factors = model.encode(x)
    chosen = SamplerSpec("euler", 4, sigma_min=0.02, sigma_max=10.0)
    ours = model.using(sampler=chosen)
    start = jax.random.normal(jax.random.key(3), x.shape)
    default = ours.decode(factors, start=start)
    given = model.using("euler", 4).decode(factors, start=start)
    assert not np.allclose(default, given)  # the levels are the sampler's own
    np.testing.assert_array_equal(ours.decode(factors, start=start, num_steps=4), default)
    # Another solver starts from the model's levels.
    other = ours.decode(factors, start=start, solver="dpmpp_2m", num_steps=3)
    expected = model.decode(factors, start=start, solver="dpmpp_2m", num_steps=3)
    np.testing.assert_array_equal(other, expected)
    assert not np.allclose(ours.invert(x, factors), model.invert(x, factors, 4, "euler"))


def test_noise_on_the_way_depends_on_the_seed(model, x):
    factors, start = model.encode(x), jax.random.normal(jax.random.key(3), x.shape)
    first, again, other = (
        model.decode(factors, start=start, num_steps=4, seed=seed, solver="euler", eta=1.0)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_half_precision_is_for_the_network_only(model, x):
    factors, start = model.encode(x), jax.random.normal(jax.random.key(3), x.shape)
    exact = model.decode(factors, start=start, num_steps=8, solver="dpmpp_2m")
    half = model.decode(factors, start=start, num_steps=8, solver="dpmpp_2m", precision="bfloat16")
    error = np.linalg.norm(half - exact) / np.linalg.norm(exact)
    assert half.dtype == np.float32 and 0 < error < 0.02
    again = model.using(precision="bfloat16").decode(
        factors, start=start, num_steps=8, solver="dpmpp_2m"
    )
    np.testing.assert_array_equal(half, again)


def test_a_chosen_sampler_is_read_from_every_path(model, tmp_path, caplog):
    meta = {"model": SPEC.to_dict(), "step": 0}
    checkpoint.save_converted(tmp_path / "run", model.variables, meta)
    assert DiffSDA.from_checkpoint(tmp_path / "run").sampler == SamplerSpec("heun", 32)
    chosen, file = SamplerSpec("dpmpp_2m", 12), tmp_path / "run" / "sampler.json"
    file.write_text(json.dumps({"sampler": chosen.to_dict(), "step": 0}))
    for path in (".", "checkpoints", "checkpoints/0"):
        assert DiffSDA.from_checkpoint(tmp_path / "run" / path).sampler == chosen
    assert not caplog.records
    file.write_text(json.dumps({"sampler": chosen.to_dict(), "step": 7}))
    assert DiffSDA.from_checkpoint(tmp_path / "run").sampler == chosen
    assert "was chosen at step 7 and is used at step 0" in caplog.text
    file.write_text('{"solver": "dpmpp_2m"}')
    with pytest.raises(ValueError, match="sampler.json cannot be read.*--mode=sampling again"):
        DiffSDA.from_checkpoint(tmp_path / "run")


def test_a_workdir_inside_a_folder_named_checkpoints_has_its_own_sampler(model, tmp_path):
    workdir, chosen = tmp_path / "checkpoints" / "run", SamplerSpec("dpmpp_2m", 12)
    checkpoint.save_converted(workdir, model.variables, {"model": SPEC.to_dict(), "step": 0})
    (tmp_path / "sampler.json").write_text(json.dumps({"sampler": SamplerSpec("ab2").to_dict()}))
    assert load_sampler(workdir) is None
    (workdir / "sampler.json").write_text(json.dumps({"sampler": chosen.to_dict()}))
    for path in (".", "checkpoints", "checkpoints/0"):
        assert load_sampler(workdir / path) == chosen


def test_a_choice_of_the_default_is_still_a_choice(model):
    assert model.chosen_sampler is None and model.using(precision="float32").chosen_sampler is None
    assert model.using("heun").chosen_sampler == SamplerSpec()
    assert model.using(num_steps=32).chosen_sampler == model.sampler == SamplerSpec()


def test_what_distilled_models_cannot_do_and_others_cannot(model, x):
    factors = model.encode(x)
    with pytest.raises(ValueError, match="'consistency', but this model was not distilled"):
        model.decode(factors, solver="consistency", num_steps=3)
    with pytest.raises(ValueError, match="this model was not distilled; choose one of 'heun'"):
        model.using(sampler=SamplerSpec("consistency", 3))
    one = model.decode(factors, solver="consistency", num_steps=2)  # one evaluation is anyone's
    assert one.shape == x.shape
    student = DiffSDA(dataclasses.replace(SPEC, sigma_identity=SPEC.sigma_min), model.variables)
    assert student.using("consistency", 3).sampler.evaluations == 2
    assert model.can_invert and not student.can_invert and not student.using("heun").can_invert
    with pytest.raises(ValueError, match="a distilled model cannot invert"):
        student.invert(x, factors, num_steps=2)


def test_a_checkpoint_restores_the_model(model, x, tmp_path):
    normalizer = Normalizer(np.ones(3, np.float32), np.full(3, 2.0, np.float32))
    meta = {"model": SPEC.to_dict(), "normalizer": normalizer.to_dict()}
    checkpoint.save_converted(tmp_path, model.variables, meta)
    restored = DiffSDA.from_checkpoint(tmp_path)
    np.testing.assert_array_equal(restored.encode(x).static, model.encode(x).static)
    np.testing.assert_array_equal(restored.normalizer.mean, normalizer.mean)


def test_a_checkpoint_of_another_architecture_is_refused(model, tmp_path):
    meta = {"model": {**SPEC.to_dict(), "hidden_dim": 9}}
    checkpoint.save_converted(tmp_path, model.variables, meta)
    with pytest.raises(ValueError, match="another architecture.*encoder/"):
        DiffSDA.from_checkpoint(tmp_path)


def test_wrong_directories_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing does not exist"):
        DiffSDA.from_checkpoint(tmp_path / "nothing")
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(ValueError, match="not a checkpoint.*file.txt"):
        DiffSDA.from_checkpoint(tmp_path)


def test_missing_values_need_a_mask(model, x):
    x = np.array(x)
    x[0, 1, 2] = np.nan
    with pytest.raises(ValueError, match="x holds 1 values that are not finite; .*mask="):
        model.encode(x)


def test_wrong_shapes_are_named(model, x):
    factors = model.encode(x)
    with pytest.raises(ValueError, match=r"x has shape \(2, 5, 4\).*\[B, V, 3\]"):
        model.encode(np.zeros((2, 5, 4), np.float32))
    with pytest.raises(ValueError, match=r"sigma has shape \(3,\)"):
        model.denoise(x, jnp.ones(3), factors)
    with pytest.raises(ValueError, match=r"start has shape \(2, 4, 3\)"):
        model.decode(factors, start=jnp.zeros((2, 4, 3)))
    with pytest.raises(ValueError, match="factors have shapes"):
        model.decode(Factors(static=factors.static[:, :1], dynamic=factors.dynamic))
    with pytest.raises(ValueError, match="num_steps is 1"):
        model.decode(factors, num_steps=1)
    with pytest.raises(ValueError, match="solver is 'rk4'; allowed: 'heun', 'euler'"):
        model.decode(factors, solver="rk4")
    with pytest.raises(ValueError, match="precision is 'half'; allowed: 'float32', 'bfloat16'"):
        model.decode(factors, precision="half")
