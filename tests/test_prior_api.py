"""The public prior: units, what is kept, seeds, blocks, and errors that name the way out."""

import jax
import numpy as np
import pytest

from diffsda_jax import Prior, prior, prior_api
from diffsda_jax.data.transforms import Normalizer
from diffsda_jax.diffusion.samplers import SamplerSpec
from diffsda_jax.evals.interface import FactorPrior
from diffsda_jax.factors import Factors
from diffsda_jax.model import ModelSpec
from diffsda_jax.prior import PriorSpec
from diffsda_jax.train import checkpoint, integrity

NORMALIZERS = (
    Normalizer(np.array([5.0, -3.0, 0.0], np.float32), np.array([2.0, 0.5, 1.0], np.float32), 1.0),
    Normalizer(np.array([1.0, -9.0], np.float32), np.array([0.1, 4.0], np.float32), 1.0),
)
SAMPLER = SamplerSpec("euler", 3)


def make_spec(form="joint"):
    sizes = {"static_dim": 3, "dynamic_dim": 2, "length": 4, "width": 8}
    return PriorSpec(form, **sizes, num_layers=1, num_heads=2, dropout=0.0)


def make():
    """A joint prior whose weights are all random: a new one's last layers are zero."""
    spec, rng = make_spec(), np.random.default_rng(0)
    shapes = prior.variable_shapes(spec)
    return spec, jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def joint():
    return Prior(*make(), NORMALIZERS, SAMPLER)


def test_samples_are_in_the_units_of_the_model(joint):
    factors = joint.sample(5, seed=3)
    key = prior_api.stream(jax.random.key(3), "prior/both", 0)
    plain = prior.sample_factors(
        joint.spec, joint.variables, key, count=5, length=4, sampler=SAMPLER
    )
    for normalizer, ours, theirs in zip(
        NORMALIZERS, (factors.static, factors.dynamic), (plain.static, plain.dynamic), strict=True
    ):
        wanted = np.asarray(theirs) * normalizer.std + normalizer.mean
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-6)
    assert isinstance(joint, FactorPrior)
    np.testing.assert_array_equal(joint.sample(5, seed=3).static, factors.static)
    assert (joint.sample(5, seed=4).static != factors.static).all()


def test_what_is_given_is_kept_and_what_is_sampled_depends_on_it(joint):
    rng = np.random.default_rng(0)
    static = rng.normal(size=(4, 3)).astype(np.float32)
    dynamic = rng.normal(size=(4, 4, 2)).astype(np.float32)
    sampled = joint.sample_dynamic(static)
    np.testing.assert_array_equal(sampled.static, static)
    assert sampled.dynamic.shape == (4, 4, 2)
    moved = joint.sample_dynamic(static + 1)
    assert (moved.dynamic != sampled.dynamic).any()
    sampled = joint.sample_static(jax.numpy.asarray(dynamic))
    np.testing.assert_array_equal(sampled.dynamic, dynamic)
    assert sampled.static.shape == (4, 3)
    lengths = np.array([4, 2, 2, 4])
    padded = dynamic.copy()
    padded[1, 2:] = 1e3  # padding, which nothing may depend on
    a, b = (joint.sample_static(d, lengths=lengths).static for d in (dynamic, padded))
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_joint_prior_samples_other_lengths(joint):
    assert joint.sample(2, 7).dynamic.shape == (2, 7, 2)


def test_samples_have_the_lengths_that_are_asked_for(joint):
    """Padding is the mean, and s and the real steps are those of a sequence without padding."""
    static, lengths = np.ones((3, 3), np.float32), np.array([2, 4, 3])
    for found, full in (
        (joint.sample(3, lengths=lengths), joint.sample(3)),
        (joint.sample_dynamic(static, lengths=lengths), joint.sample_dynamic(static)),
    ):
        real = np.arange(4) < lengths[:, None]
        np.testing.assert_array_equal(found.dynamic[~real], [NORMALIZERS[1].mean] * 3)
        np.testing.assert_allclose(found.dynamic[1], full.dynamic[1], rtol=1e-4)
        assert (found.dynamic[0, :2] != full.dynamic[0, :2]).any()


def test_each_way_of_sampling_has_its_own_noise(joint, monkeypatch):
    keys = []

    def sample(spec, variables, key, *, count, length, static=None, dynamic=None, **_):
        keys.append(tuple(jax.random.key_data(key).tolist()))
        zeros = (np.zeros((count, 3), np.float32), np.zeros((count, length, 2), np.float32))
        return Factors(*zeros)

    monkeypatch.setattr(prior, "sample_factors", sample)
    joint.sample(2)
    joint.sample_dynamic(np.zeros((2, 3)))
    joint.sample_static(np.zeros((2, 4, 2)))
    assert len(set(keys)) == len(keys) == 3


def test_another_model_is_refused():
    spec, variables = ModelSpec("series", (2,), 3, 2, 8), {"params": {"w": np.zeros(2, np.float32)}}
    facts = {
        prior_api.HASH_KEY: integrity.hash_weights(repr(spec), variables),
        prior_api.WEIGHTS_KEY: "ema",
    }
    ours = Prior(make_spec(), {}, NORMALIZERS, meta={"made_from": facts})
    ours.check_model(spec, variables, "ema")
    with pytest.raises(ValueError, match="with eval.weights 'ema', and this model's are 'raw'"):
        ours.check_model(spec, variables, "raw")
    with pytest.raises(ValueError, match="with weights of the hash .*--mode=prior"):
        ours.check_model(spec, {"params": {"w": np.ones(2, np.float32)}}, "ema")
    with pytest.raises(ValueError, match="with weights of the hash"):
        ours.check_model(ModelSpec("series", (3,), 3, 2, 8), variables, "ema")
    Prior(make_spec(), {}, NORMALIZERS).check_model(spec, variables, "raw")  # does not say


def test_blocks_are_the_samples_of_one_size(joint, monkeypatch):
    static = np.linspace(0, 1, 15, dtype=np.float32).reshape(5, 3)
    monkeypatch.setattr(prior_api, "_BLOCK", 2)
    parts = joint.sample_dynamic(static, seed=1)
    assert parts.dynamic.shape == (5, 4, 2)
    assert len(np.unique(parts.dynamic[:, 0, 0])) == 5
    root = jax.random.key(1)
    last = prior.sample_factors(
        joint.spec,
        joint.variables,
        prior_api.stream(root, "prior/dynamic", 2),
        count=2,
        length=4,
        static=NORMALIZERS[0].apply(static[[4, 4]]),
        sampler=SAMPLER,
    )
    wanted = NORMALIZERS[1].invert(np.asarray(last.dynamic)[:1])
    np.testing.assert_allclose(parts.dynamic[4:], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("do", "words"),
    [
        (lambda p: p.sample(0), "count is 0"),
        (lambda p: p.sample(1, 0), "length is 0"),
        (lambda p: p.sample_dynamic(np.zeros((2, 4))), r"static has shape \(2, 4\).* \[B, 3\]"),
        (lambda p: p.sample_static(np.zeros((2, 4, 3))), r"dynamic has shape .* \[B, V, 2\]"),
        (
            lambda p: p.sample(2, lengths=np.array([4, 5])),
            "lengths has .* from 4 to 5; needed.* 1 to 4",
        ),
        (lambda p: p.sample_dynamic(np.full((2, 3), np.nan)), "static has values that are not fin"),
    ],
)
def test_what_does_not_fit_is_named(joint, do, words):
    with pytest.raises(ValueError, match=words):
        do(joint)


def test_a_form_of_one_length_says_so():
    fixed = Prior(make_spec("reference"), {}, NORMALIZERS)
    with pytest.raises(ValueError, match="length is 9, .* 'reference' samples 4 steps only.*joint"):
        fixed.sample(2, 9)


def test_loading_names_what_is_missing(tmp_path):
    spec, variables = make()
    meta = prior_api.make_meta(spec, NORMALIZERS, SAMPLER, model_step=0)
    model = {"params": {"w": np.zeros(2, np.float32)}}
    checkpoint.save_converted(tmp_path / "run", model, {"model": {}})
    with pytest.raises(
        FileNotFoundError, match=r"sequence model and no prior.*main --workdir=.*run --mode=prior,"
    ):
        Prior.from_checkpoint(tmp_path / "run")
    checkpoint.save_converted(tmp_path / "run" / "prior", variables, meta)
    for path in ("run", "run/prior", "run/prior/checkpoints", "run/prior/checkpoints/0"):
        loaded = Prior.from_checkpoint(tmp_path / path)
        assert loaded.spec == spec and loaded.sampler == SAMPLER and loaded.meta["step"] == 0
    np.testing.assert_array_equal(loaded.normalizers[1].std, NORMALIZERS[1].std)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Prior.from_checkpoint(tmp_path / "no")
    checkpoint.save_converted(tmp_path / "other", model, {"config": {}})
    with pytest.raises(FileNotFoundError, match="is no checkpoint of a prior: train one with"):
        Prior.from_checkpoint(tmp_path / "other")
