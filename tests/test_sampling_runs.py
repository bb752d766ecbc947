"""``--mode=sampling`` on a tiny untrained model, through the command line's own function."""

import json

import jax
import numpy as np
import optax
import pytest

from diffsda_jax import DiffSDA, main, runs, sampling_runs
from diffsda_jax import config as configuration
from diffsda_jax import experiment as experiments
from diffsda_jax.diffusion.samplers import SamplerSpec
from diffsda_jax.evals.context import Context, EvalSettings
from diffsda_jax.evals.result import EvalResult
from diffsda_jax.evals.sampling_quality import Trial
from diffsda_jax.factors import Factors
from diffsda_jax.model import ModelSpec, init_variables
from diffsda_jax.sharding import make_mesh
from diffsda_jax.train import checkpoint
from diffsda_jax.train.state import create_state
from diffsda_jax.train.writers import MetricWriter


def tiny(**sampling):
    config = runs.shrink(configuration.load_config("configs/japanese_vowels.py"))
    config.data.length = 6
    config.eval.update(num_clips=24, num_train_clips=40, parts=("reconstruction",))
    config.sampling.update(
        solvers=("heun", "dpmpp_2m"), evaluations=(9, 16), sigma_min=(0.05,), num_clips=12
    )
    config.sampling.update(**sampling)
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A workdir with an untrained model, whose denoiser is smooth."""
    config, folder = tiny(), tmp_path_factory.mktemp("run")
    experiment = experiments.build(config)
    variables = init_variables(experiment.spec, jax.random.key(0))
    checkpoint.save_converted(folder, variables, experiment.meta())
    return folder


def test_the_cheapest_sampler_becomes_the_default(workdir, capsys, caplog):
    main.run_mode("sampling", tiny(), str(workdir))
    printed = capsys.readouterr().out
    assert "dpmpp_2m, sigma_min 0.05" in printed and "times as fast (" in printed
    folder = workdir / "sampling" / "00000000"
    content = json.loads((folder / "metrics.json").read_text())
    assert content["settings"]["tolerance_percent"] == 2
    assert content["metrics"]["heun, 63/random_nmse"] > 0
    assert content["metrics"]["heun, 63/distance_nmse"] == 0
    assert content["metrics"]["dpmpp_2m, sigma_min 0.05, 9/distance_nmse"] > 0
    assert (folder / "quality.png").stat().st_size
    assert (folder / "quality.md").read_text() == printed
    choice = json.loads((workdir / "sampler.json").read_text())
    assert choice["step"] == 0 and choice["evaluations"] < 63
    chosen = SamplerSpec.from_dict(choice["sampler"])
    assert DiffSDA.from_checkpoint(workdir).sampler == chosen
    # An evaluation takes it, unless it is told another.
    runs.run_eval(tiny(), workdir)
    text = f"{chosen.evaluations} evaluations of {chosen.solver!r}"
    assert text in capsys.readouterr().out
    config = tiny()
    config.eval.update(solver="ab2", num_steps=5, precision="bfloat16")
    file = runs.run_eval(config, workdir).files[0]
    assert "5 evaluations of 'ab2'" in capsys.readouterr().out
    settings = json.loads(file.read_text())["settings"]
    assert (settings["solver"], settings["num_steps"]) == ("ab2", 5)


def test_heun_stays_where_nothing_is_as_good(workdir, capsys):
    config = tiny(evaluations=(3,), solvers=("euler",), sigma_min=(0.0,), tolerance_percent=0.0)
    result = sampling_runs.run_sampling(config, workdir)
    assert "no sampler is within 0 %" in capsys.readouterr().out
    assert result.chosen is result.reference
    assert json.loads((workdir / "sampler.json").read_text())["evaluations"] == 63
    assert DiffSDA.from_checkpoint(workdir).sampler == SamplerSpec()


def test_evaluations_take_what_was_chosen_even_if_it_is_heun():
    config = tiny()
    config.eval.num_steps = 5
    spec = experiments.model_spec(config, "series", (12,))
    model = DiffSDA(spec, {})
    assert experiments.as_evaluated(config, model)[0].sampler == SamplerSpec("heun", 5)
    evaluated, settings = experiments.as_evaluated(config, model.using(sampler=SamplerSpec()))
    assert evaluated.sampler == SamplerSpec("heun", 32) and settings.num_steps == 32


def test_an_evaluation_at_the_end_of_a_training_takes_the_workdirs_sampler(
    tmp_path, monkeypatch, caplog
):
    experiment, chosen = experiments.build(tiny()), SamplerSpec("dpmpp_2m", 7)
    choice = {"sampler": chosen.to_dict(), "step": 6}
    (tmp_path / "sampler.json").write_text(json.dumps(choice))
    variables = init_variables(experiment.spec, jax.random.key(0))
    state = create_state(variables, optax.identity(), make_mesh())
    evaluated = []

    def run(self, model, output_dir):
        evaluated.append(model.sampler)
        return EvalResult()

    monkeypatch.setattr(runs.EvalRunner, "run", run)
    monkeypatch.setattr(runs, "write_result", lambda *_: None)
    writer = MetricWriter(tmp_path / "logs")
    evaluate = runs.make_evaluator(runs.EvalRunner(experiment), tmp_path, writer)
    evaluate(6, state)
    assert evaluated == [chosen] and not caplog.records
    evaluate(8, state)
    assert "was chosen at step 6 and is used at step 8" in caplog.text
    writer.close()


def test_what_is_tried_is_each_sampler_once():
    options = tiny(
        solvers=("heun", "euler", "unipc"), evaluations=(8, 9, 63), sigma_min=(0.0, 0.1), eta=(0, 1)
    ).sampling
    found = sampling_runs.make_samplers(options)
    assert len(found) == len(set(found)) == (2 + 1 + 2) + 2 * 2 * 3 + 2 * 3
    assert SamplerSpec("heun", 32) not in found  # the reference itself
    assert SamplerSpec("euler", 8, 1.0, 0.1) in found
    assert all(sampler.eta == 0 for sampler in found if sampler.solver == "unipc")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"solvers": ("rk4",)}, "config.sampling.solvers='rk4'|sampling.solvers.*rk4"),
        ({"evaluations": (2,)}, "sampling.evaluations names 2; allowed: 3 or more"),
        ({"solvers": ()}, "sampling.solvers is empty"),
        ({"num_clips": 0}, "sampling.num_clips is 0"),
        ({"tolerance_percent": -1.0}, "tolerance_percent is -1.0"),
        ({"sigma_min": (-1.0,)}, "sigma_min is -1.0"),
        ({"eta": (2.0,)}, "eta is 2.0"),
    ],
)
def test_bad_options_are_named_before_anything_is_read(options, match):
    with pytest.raises(ValueError, match=match):
        sampling_runs.run_sampling(tiny(**options), "nowhere")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"solver": "rk4"}, "config.eval.solver is 'rk4'; allowed: '' or one of 'heun'"),
        ({"precision": "half"}, "config.eval.precision is 'half'; allowed: '' or one of"),
    ],
)
def test_bad_samplers_of_evaluations_are_named(options, match):
    config = tiny()
    config.eval.update(options)
    with pytest.raises(ValueError, match=match):
        experiments.eval_settings(config)


def test_a_sampler_is_measured_on_the_same_noise(workdir):
    experiment, model = runs.load_trained(tiny(), workdir)
    settings = experiments.eval_settings(tiny())
    context = runs.EvalRunner(experiment).make_context(model, settings)
    few = SamplerSpec("dpmpp_2m", 4)
    first, clips = sampling_runs.measure_sampler(context, few)
    again, _ = sampling_runs.measure_sampler(context, few, clips)
    assert again.metrics["distance_nmse"] == 0 and again.metrics["seconds_per_clip"] > 0
    np.testing.assert_equal(
        {k: v for k, v in first.metrics.items() if k != "seconds_per_clip"},
        {k: v for k, v in again.metrics.items() if k != "seconds_per_clip"},
    )
    assert len(clips) == 2 * settings.num_swaps  # swaps and reconstructions


class Padded(DiffSDA):
    """A model whose clips are its static factors, and differ between samplers where they end."""

    def using(self, *_, sampler=None, **__):
        return Padded(self.spec, {}, sampler=sampler)

    def decode(self, factors, start=None, num_steps=None, seed=0):
        x = np.repeat(np.asarray(factors.static)[:, None, :3], 4, axis=1)
        x[:, 2:] += self.sampler.num_steps
        return x

    def invert(self, x, factors, num_steps=None):
        return np.asarray(x)


def made_context(num_clips=10, **given):
    """Clips of four steps, two of which are padding."""
    rng = np.random.default_rng(0)
    data = {
        "x": rng.standard_normal((num_clips, 4, 3)).astype(np.float32),
        "length": np.full(num_clips, 2, np.int32),
    }
    factors = Factors(
        static=rng.standard_normal((num_clips, 4)).astype(np.float32),
        dynamic=np.zeros((num_clips, 4, 2), np.float32),
    )
    return Context(
        model=Padded(ModelSpec("series", (3,), 4, 2, 8, width=4, encoder_width=4), {}),
        kind="series",
        train=data,
        test=data,
        train_factors=factors,
        test_factors=factors,
        judge=None,
        settings=EvalSettings(num_swaps=num_clips, batch_size=4),
        readers={},
        trial=np.arange(num_clips),
        **given,
    )


def test_padding_is_no_distance():
    context = made_context()
    _, clips = sampling_runs.measure_sampler(context, SamplerSpec("euler", 4))
    trial, others = sampling_runs.measure_sampler(context, SamplerSpec("euler", 9), clips)
    assert len(clips) == 20 and np.abs(clips - others).max() > 4
    assert trial.metrics["distance_nmse"] == 0


def test_what_is_chosen_is_confirmed_on_other_clips():
    first, second = sampling_runs.halves(made_context(11))
    assert len(first.trial) + len(second.trial) == 11
    assert not set(first.trial) & set(second.trial)
    assert second.settings.seed == first.settings.seed + 1
    few = sampling_runs.halves(made_context(3))
    assert [len(half.trial) for half in few] == [3, 3]
    given = (np.arange(5), np.arange(5, 10))
    first, second = sampling_runs.halves(made_context(given_pairs=given))
    assert first.given_pairs[0].tolist() == [0, 2, 4] and second.given_pairs[1].tolist() == [6, 8]


@pytest.mark.parametrize(("lost", "expected"), [((), 4), ((4,), 6), ((4, 6), None)])
def test_the_next_cheapest_is_tried_where_the_first_is_not_confirmed(monkeypatch, lost, expected):
    def measured(context, sampler, reference=None):
        error = 0.3 if sampler.num_steps in lost else 0.1
        metrics = {"random_nmse": error, "distance_nmse": 0.0, "seconds_per_clip": 1.0}
        metrics["trajectory_error_pixels"] = np.nan
        if sampler.num_steps == 6:
            metrics["random_nmse"] += 0.0019 if 6 not in lost else 0.0
            metrics["distance_nmse"] = 0.01
        if context.settings.seed == 0:  # to choose on
            metrics["random_nmse"] = 0.01 if sampler == sampling_runs.REFERENCE else 0.0119
        return Trial(sampler, metrics), np.zeros((1, 4, 3), np.float32)

    monkeypatch.setattr(sampling_runs, "measure_sampler", measured)
    monkeypatch.setattr(sampling_runs, "seconds_in_turns", lambda *_: [2.0, 1.0])
    samplers = [SamplerSpec("euler", steps) for steps in (6, 4)]
    result, text = sampling_runs._choose(made_context(), samplers, 2.0)
    assert "give no number: path, pixels" in text
    assert len(result.confirmed) == 2 + (4 in lost)
    if expected is None:
        assert result.chosen is result.reference and "so Heun stays" in text
    else:
        assert result.chosen.sampler.num_steps == expected
        assert "Heun but for rec. nmse, worse by more and still below the least" in text
        assert "every measure" not in text and "on other clips" in text
