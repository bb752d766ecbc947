"""From a sequence model to a trained prior: encoding, resuming, refusals, what is written."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from test_runs import SMALL, command, run

from diffsda_jax import DiffSDA, Prior, prior_runs, runs, sharding
from diffsda_jax import config as configuration
from diffsda_jax import experiment as experiments
from diffsda_jax.data.factor_cache import FactorCache
from diffsda_jax.data.sources import ElementSpec
from diffsda_jax.data.synthetic import Synthetic
from diffsda_jax.evals.interface import encode_clips
from diffsda_jax.evals.result import EvalResult
from diffsda_jax.model import init_variables
from diffsda_jax.train import checkpoint
from diffsda_jax.train.loop import NonFiniteLossError


def tiny(**prior):
    """Japanese vowels in a model of random weights; a prior of a few steps."""
    config = runs.shrink(configuration.load_config("configs/japanese_vowels.py"))
    config.model.dynamic_dim = 3
    config.prior.update(num_steps=4, sequences_per_shard=100, encode_batch_size=56, **prior)
    config.prior.schedule = "constant"  # does not depend on the length of the run
    config.eval.update(num_clips=24, num_train_clips=24)
    return config


def save_model(workdir, config, seed=0, sources=None):
    """What a training leaves in its workdir, with random weights."""
    experiment = experiments.build(config, sources)
    variables = init_variables(experiment.spec, jax.random.key(seed))
    checkpoint.save_converted(workdir, variables, experiment.meta())
    return workdir


REAL_RUN = runs.EvalRunner.run


@pytest.fixture(autouse=True)
def evaluated(monkeypatch):
    """Evaluations are noted here and not made."""
    calls = []

    def run(self, model, output_dir, prior=None):
        calls.append((tuple(self.experiment.config.eval.parts), output_dir, prior))
        return EvalResult()

    monkeypatch.setattr(runs.EvalRunner, "run", run)
    return calls


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A workdir with a sequence model and no prior; not to be written to."""
    return save_model(tmp_path_factory.mktemp("model"), tiny())


def copy(model, folder):
    return shutil.copytree(model, folder / "run")


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """A workdir with a model and a finished prior; not to be written to."""
    workdir = copy(model, tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs.EvalRunner, "run", lambda *_: EvalResult())
        return workdir, prior_runs.run_prior(tiny(), workdir)


def test_factors_are_those_of_an_evaluation(finished):
    """All training sequences once, in their order, as ``encode`` gives them on one device."""
    workdir, result = finished
    assert int(result.state.step) == 4 and not result.interrupted
    cache = FactorCache.load(workdir / "prior" / "factors")
    model = DiffSDA.from_checkpoint(workdir)
    arrays = experiments.load_split(experiments.build(tiny()), "train", 10**9)
    factors = encode_clips(model, arrays["x"], arrays["length"], arrays["mask"])
    assert len(cache) == len(factors) == 270
    batch = cache.read(np.arange(270))
    for of, normalizer in (("static", cache.static), ("dynamic", cache.dynamic)):
        found, wanted = normalizer.invert(batch[of]), getattr(factors, of)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "element", "num_steps"),
    [
        pytest.param("digits", ElementSpec("video", (4, 4, 1)), 4, marks=pytest.mark.slow),
        ("timit", ElementSpec("audio", (), fps=16_000.0), 743),  # which give 4 mel frames
    ],
)
def test_frames_and_sound_are_encoded_as_in_an_evaluation(tmp_path, name, element, num_steps):
    config = runs.shrink(configuration.load_config(f"configs/{name}.py"))
    config.data.cache_dir = str(tmp_path)
    sources = {split: Synthetic(split, element, 20, num_steps) for split in ("train", "test")}
    save_model(tmp_path, config, sources=sources)
    result = prior_runs.run_prior(config, tmp_path, sources)
    assert int(result.state.step) == 2
    cache = FactorCache.load(tmp_path / "prior" / "factors")
    arrays = experiments.load_split(experiments.build(config, sources), "train", 20)
    model = DiffSDA.from_checkpoint(tmp_path)
    static = model.encode(arrays["x"], arrays["length"], arrays.get("mask")).static
    found = cache.static.invert(cache.read(np.arange(20))["static"])
    np.testing.assert_allclose(found, static, rtol=1e-3, atol=1e-4)


def test_a_finished_prior_can_be_loaded_and_sampled(finished):
    workdir, result = finished
    prior = Prior.from_checkpoint(workdir)
    for ours, theirs in zip(
        jax.tree.leaves(prior.variables["params"]), jax.tree.leaves(result.state.ema), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    factors = prior.sample(3, seed=1)
    assert factors.static.shape == (3, 4) and factors.dynamic.shape == (3, 4, 3)
    assert np.isfinite(factors.static).all() and np.isfinite(factors.dynamic).all()
    assert prior.meta["made_from"]["data.length"] == 4 and prior.meta["step"] == 4
    model = DiffSDA.from_checkpoint(workdir, precision="bfloat16").using(num_steps=2)
    assert model.decode(factors).shape == (3, 4, 12)
    made = model.sample(3, seed=1)  # of the model that the prior is of, in another precision
    np.testing.assert_array_equal(made.x, model.reconstruct(factors, seed=1).x)


def test_a_resumed_prior_ends_with_the_bits_of_an_unbroken_one(model, finished, tmp_path):
    workdir = copy(model, tmp_path)
    first = tiny()
    first.prior.num_steps = 2
    prior_runs.run_prior(first, workdir)
    result = prior_runs.run_prior(tiny(), workdir)
    assert int(result.state.step) == 4
    for a, b in zip(jax.tree.leaves(finished[1].state), jax.tree.leaves(result.state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_batch_may_be_worked_on_in_parts():
    mesh, draw = sharding.make_mesh(jax.devices()[:1]), np.random.default_rng(0).standard_normal
    spec = experiments.prior_spec(tiny())
    batch = {
        "static": draw((8, spec.static_dim)).astype(np.float32),
        "dynamic": draw((8, spec.length, spec.dynamic_dim)).astype(np.float32),
    }
    losses = []
    for parts in (1, 2):
        step_fn, state = prior_runs.make_training(tiny(accumulation_steps=parts), spec, 100, mesh)
        _, metrics = step_fn(state, sharding.shard_batch(batch, mesh), jax.random.key(0))
        losses.append(float(metrics["loss"]))
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.5)  # other draws


def test_a_kill_while_encoding_loses_and_doubles_nothing(model, finished, tmp_path, monkeypatch):
    workdir = copy(model, tmp_path)
    encode, calls = prior_runs._encode_block, []

    def killed(*args):
        calls.append(args)
        if len(calls) == 4:  # in the second of three shards
            raise KeyboardInterrupt
        return encode(*args)

    monkeypatch.setattr(prior_runs, "_encode_block", killed)
    with pytest.raises(KeyboardInterrupt):
        prior_runs.run_prior(tiny(), workdir)
    folder = workdir / "prior" / "factors"
    assert {path.name for path in folder.iterdir()} == {"facts.json", "factors-00000.npy"}
    with pytest.raises(FileNotFoundError, match="prior holds no checkpoint yet: train one with"):
        Prior.from_checkpoint(workdir)
    prior_runs.run_prior(tiny(), workdir)
    assert len(calls) == 4 + 2 + 2  # of the second and third shard, not of the first
    for file in (finished[0] / "prior" / "factors").iterdir():
        assert file.read_bytes() == (folder / file.name).read_bytes()


def test_a_finished_prior_is_evaluated_again(finished, tmp_path, evaluated):
    workdir = copy(finished[0], tmp_path)
    config = tiny()
    config.prior.sample_steps, config.eval.num_clips = 3, 30  # may change
    result = prior_runs.run_prior(config, workdir)
    assert "--config.prior.num_steps above 4 goes on" in result.message
    ((parts, folder, prior),) = evaluated
    assert parts == ("generation",) and prior.sampler.num_steps == 3
    assert folder == workdir / "prior" / "eval" / "00000004"


def test_another_option_model_or_data_is_refused(finished, tmp_path):
    workdir = copy(finished[0], tmp_path)
    with pytest.raises(ValueError, match="config.prior.width was 8 and is now 16. Set the option"):
        prior_runs.run_prior(tiny(width=16), workdir)
    with pytest.raises(ValueError, match="prior.windows_per_item 1, which is now 2; .* move .*pri"):
        prior_runs.run_prior(tiny(windows_per_item=2), workdir)
    other = tiny()
    other.eval.weights = "raw"  # the same numbers here, and yet not those that were averaged
    with pytest.raises(ValueError, match="made with eval.weights 'ema', which is now 'raw'"):
        prior_runs.run_prior(other, workdir)
    shutil.rmtree(workdir / "checkpoints")
    save_model(workdir, tiny(), seed=1)
    with pytest.raises(
        ValueError, match="made with weights of the hash .* encodes and trains anew"
    ):
        prior_runs.run_prior(tiny(), workdir)
    shutil.rmtree(workdir / "prior" / "factors")
    with pytest.raises(ValueError, match="its factors were of another sequence model"):
        prior_runs.run_prior(tiny(), workdir)


def test_a_model_trained_further_is_noticed(finished, tmp_path):
    workdir = copy(finished[0], tmp_path)
    (workdir / "checkpoints" / "0").rename(workdir / "checkpoints" / "7")
    with pytest.raises(ValueError, match="model of step 0, but the newest in .* is of step 7"):
        Prior.from_checkpoint(workdir)
    assert Prior.from_checkpoint(workdir / "prior").meta["step"] == 4
    prior, why_not = runs.load_prior(workdir, DiffSDA.from_checkpoint(workdir), "ema")
    assert prior is None and "prior cannot be used: " in why_not and "of step 7" in why_not


def test_a_prior_of_another_model_of_the_same_step_is_not_used(finished, tmp_path, monkeypatch):
    workdir = copy(finished[0], tmp_path)
    load = runs.load_prior
    model = DiffSDA.from_checkpoint(workdir)
    prior, why_not = load(workdir, model, "ema")
    assert prior is not None and why_not is None
    assert load(tmp_path, model, "ema") == (None, None)
    prior, why_not = load(workdir, model, "raw")
    assert prior is None and "model with eval.weights 'ema'" in why_not
    shutil.rmtree(workdir / "checkpoints")
    save_model(workdir, tiny(), seed=1)
    seen = []

    def run(self, model, output_dir, prior=None):
        seen.append((prior, self.domain.why_no_prior))
        return EvalResult()

    monkeypatch.setattr(runs.EvalRunner, "run", run)
    runs.run_eval(tiny(), workdir)
    ((prior, why_not),) = seen
    assert prior is None and "with weights of the hash" in why_not


@pytest.mark.parametrize(
    ("section", "option", "value", "words"),
    [
        ("prior", "form", "flat", "prior.form is 'flat'; allowed: 'joint'"),
        ("prior", "num_heads", 3, "prior.width is 8, which prior.num_heads=3 does not divide"),
        ("prior", "encode_batch_size", 12, "prior.encode_batch_size is 12, but it is split"),
        ("prior", "accumulation_steps", 3, "8 devices and 3 prior.accumulation_steps"),
        ("prior", "accumulation_steps", 0, "prior.accumulation_steps is 0; allowed: 1 or more"),
        ("prior", "sequences_per_shard", 0, "prior.sequences_per_shard is 0"),
        ("prior", "solver", "magic", "magic"),
        ("prior", "solver", "consistency", "prior.solver is 'consistency', which is for distilled"),
        ("model", "static_per_step", True, "a prior samples one static factor"),
    ],
)
def test_an_option_that_cannot_be_is_refused_first(tmp_path, section, option, value, words):
    config = tiny()
    config[section][option] = value
    with pytest.raises(ValueError, match=re.escape(words)):
        prior_runs.run_prior(config, tmp_path)


def test_without_a_model_there_is_no_prior(tmp_path):
    with pytest.raises(ValueError, match="is not a checkpoint: it holds nothing"):
        prior_runs.run_prior(tiny(), tmp_path)
    assert not (tmp_path / "prior").exists()


def test_a_loss_that_is_not_finite_names_the_options_of_this_mode(model, tmp_path, monkeypatch):
    workdir = copy(model, tmp_path)
    read = FactorCache.read

    def broken(self, indices):
        batch = read(self, indices)
        return batch | {"static": batch["static"] * np.nan}

    monkeypatch.setattr(FactorCache, "read", broken)
    with pytest.raises(NonFiniteLossError, match=r"Lower --config.prior.learning_rate and move"):
        prior_runs.run_prior(tiny(), workdir)


@pytest.mark.slow
def test_samples_are_evaluated_and_by_mode_eval_too(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(runs.EvalRunner, "run", REAL_RUN)
    workdir = copy(finished[0], tmp_path)
    config = tiny()
    config.eval.update(num_samples=8, num_swaps=4, judge_steps=2)
    prior_runs.run_prior(config, workdir)
    file = workdir / "prior" / "eval" / "00000004" / "metrics.json"
    metrics = json.loads(file.read_text())["metrics"]
    assert metrics and all(name.startswith("generation/") for name in metrics)
    config.eval.parts = ("generation",)
    again = runs.run_eval(config, workdir).metrics
    assert again.keys() == metrics.keys()
    for name, value in metrics.items():
        assert again[name] == pytest.approx(value, rel=1e-3, abs=1e-3), name


@pytest.mark.slow
def test_from_the_command_line(tmp_path):
    sizes = ("prior.width=8", "prior.num_layers=1", "prior.num_heads=2", "prior.num_steps=3")
    options = (*SMALL, *sizes, "train.num_steps=2", "eval.num_samples=8")
    for mode in ("train", "prior", "prior"):
        done = run(command(tmp_path, *options, mode=mode))
        assert done.returncode == 0, done.stderr
    assert "finished already: 3 steps are done" in done.stderr
    assert Prior.from_checkpoint(tmp_path).sample(2).dynamic.shape == (2, 20, 2)
    done = run(command(tmp_path, *options, "prior.form=reference", mode="prior"))
    assert done.returncode == 2 and done.stderr.count("error:") == 1
    assert "config.prior.form was 'joint' and is now 'reference'" in done.stderr
