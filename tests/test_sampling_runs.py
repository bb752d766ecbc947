"""``--mode=sampling`` on a tiny untrained model, through the command line's own function."""

import json

import jax
import numpy as np
import pytest

from diffsda_jax import DiffSDA, main, runs, sampling_runs
from diffsda_jax import config as configuration
from diffsda_jax import experiment as experiments
from diffsda_jax.diffusion.samplers import SamplerSpec
from diffsda_jax.model import init_variables
from diffsda_jax.train import checkpoint


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
