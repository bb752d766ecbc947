"""``--mode=explore`` on tiny untrained models, through the command line's own function."""

import json
import types

import jax
import numpy as np
import pytest

from diffsda_jax import DiffSDA, Prior, explore_runs, main, runs
from diffsda_jax import config as configuration
from diffsda_jax import experiment as experiments
from diffsda_jax.factors import Factors
from diffsda_jax.model import init_variables
from diffsda_jax.train import checkpoint


def tiny(name="japanese_vowels", **explore):
    config = runs.shrink(configuration.load_config(f"configs/{name}.py"))
    config.model.channel_mults, config.model.attention_levels = (1,), ()  # of video, quicker
    config.data.length = 6
    config.eval.update(num_clips=24, num_train_clips=40)
    config.explore.update(
        num_components=2, num_clips=1, num_alphas=3, num_traversals=4, num_random=2, num_refits=2
    )
    config.explore.update(**explore)
    return config


def save_model(config, workdir, seed):
    experiment = experiments.build(config)
    variables = init_variables(experiment.spec, jax.random.key(seed))
    checkpoint.save_converted(workdir, variables, experiment.meta())


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """Untrained models of two seeds."""
    folders = [tmp_path_factory.mktemp(f"seed_{seed}") for seed in range(2)]
    for seed, folder in enumerate(folders):
        save_model(tiny(), folder, seed)
    return folders


def test_a_run_leaves_what_it_says(workdirs, capsys):
    first, second = workdirs
    config = tiny(other_workdirs=(str(second),))
    main.run_mode("explore", config, str(first))
    folder = first / "explore" / "00000000"
    content = json.loads((folder / "metrics.json").read_text())
    metrics = content["metrics"]
    assert {
        "static/s1_variance_percent",
        "static/s2_static_label_eta",
        "dynamic/d1_static_label_relabelled_percent",
        "dynamic/same_in_samples_chance",
        "static/same_in_models",
    } <= metrics.keys()
    assert all(value is not None for value in metrics.values())
    assert content["settings"]["decomposition"] == "pca"
    assert any("has no prior; --mode=prior trains one" in x for x in content["notes"])
    arrays = np.load(folder / "components.npz")
    assert arrays["static_directions"].shape == (2, 4)
    assert arrays["dynamic_mean"].shape == (2,)
    assert arrays["dynamic_bounded"] and not arrays["static_bounded"]  # as tanh made d
    assert arrays["dynamic_names"][0].startswith("d1: ")
    assert {"static_0.png", "dynamic_0.png"} <= {file.name for file in folder.iterdir()}
    text = (folder / "components.md").read_text()
    assert text.strip() == capsys.readouterr().out.strip() and "## dynamic factor, by step" in text


def test_other_choices_go_to_other_folders(workdirs):
    config = tiny(decomposition="ica", dynamic_over="sequence")
    result = explore_runs.run_explore(config, workdirs[0])
    assert result.files[0].parent.name == "00000000-ica-sequence"
    components = result.reports["dynamic"].components
    assert components.level == "sequence" and components.directions.shape == (2, 12)


def shorten(monkeypatch):
    """Clips have 3 to 6 steps."""
    load = runs.EvalRunner.load

    def load_short(self, split, limit):
        data = load(self, split, limit)
        length = 3 + np.arange(len(data["x"]), dtype=np.int32) % 4
        return data | {"length": np.minimum(data["length"], length)}

    monkeypatch.setattr(runs.EvalRunner, "load", load_short)


def test_codes_come_from_the_prior_where_there_is_one(workdirs, monkeypatch):
    asked = []

    class FakePrior(Prior):
        def __init__(self):
            pass

        def sample(self, count, length=None, *, seed=0, lengths=None):
            asked.append((count, length, lengths))
            draw = np.random.default_rng(seed).standard_normal
            dynamic = draw((count, 6, 2), np.float32)
            dynamic[np.arange(6) >= lengths[:, None]] = 1e3  # padding
            return Factors(static=draw((count, 4), np.float32), dynamic=dynamic)

    def load_prior(workdir, model, weights):
        assert (workdir, weights) == (workdirs[1], "ema")
        return FakePrior(), None

    monkeypatch.setattr(explore_runs.runs, "load_prior", load_prior)
    shorten(monkeypatch)
    result = explore_runs.run_explore(tiny(num_codes=40, num_clips=2), workdirs[1])
    ((count, steps, lengths),) = asked
    assert (count, steps) == (40, 6) and set(lengths) <= set(range(3, 7)) and min(lengths) < 6
    assert any("codes are of 40 sequences from the prior" in note for note in result.notes)
    for report in result.reports.values():  # of the prior's codes, without the padding
        assert np.abs(report.components.mean).max() < 0.6
    result = explore_runs.run_explore(tiny(codes_from="data"), workdirs[1])
    assert any("40 encoded training clips" in note for note in result.notes) and len(asked) == 1


def test_a_prior_that_cannot_be_used_is_named(workdirs, monkeypatch):
    def load(chosen):
        """Loads the prior as an exploration does; gives the notes, too."""
        made = explore_runs.Explorer.__new__(explore_runs.Explorer)
        config = tiny(codes_from=chosen)
        made.options, made.experiment = config.explore, types.SimpleNamespace(config=config)
        made.notes = []
        return made._load_prior(model, workdirs[0]), made.notes

    model, why_not = DiffSDA.from_checkpoint(workdirs[0]), "it is of another model"
    monkeypatch.setattr(explore_runs.runs, "load_prior", lambda *_: (None, why_not))
    assert load("auto") == (None, [f"no codes from a prior: {why_not}"])
    with pytest.raises(ValueError, match=f"codes_from is 'prior', but {why_not}"):
        load("prior")
    assert load("data") == (None, [])
    monkeypatch.setattr(explore_runs.runs, "load_prior", lambda *_: (None, None))
    assert "has no prior; --mode=prior trains one" in load("auto")[1][0]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("num_alphas", 4, "explore.num_alphas is 4; use an odd number"),
        ("num_refits", 1, "explore.num_refits is 1; allowed: 2 or more"),
        ("alpha", -1.0, "explore.alpha is -1.0; allowed: 0"),
        ("codes_from", "air", "explore.codes_from: unknown value 'air'; allowed are auto, prior"),
        ("dynamic_over", "x", "explore.dynamic_over: unknown value 'x'; allowed are step, seq"),
    ],
)
def test_options_are_checked_before_anything_is_loaded(tmp_path, option, value, message):
    with pytest.raises(ValueError, match=message):
        explore_runs.run_explore(tiny(**{option: value}), tmp_path)


def test_models_of_data_in_other_units_are_not_compared(workdirs, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    config = tiny(other_workdirs=(f"~/{tmp_path.name}",))
    config.data.target_std = 0.6
    save_model(config, tmp_path, 0)
    config.data.target_std = 0.5
    with pytest.raises(ValueError, match="other_workdirs names .* other data than this one"):
        explore_runs.run_explore(config, workdirs[0])
