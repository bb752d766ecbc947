"""Every file of studies/ is one that can be run: its options exist and its metrics are made."""

import json
from pathlib import Path

import pytest

from diffsda_jax import config as configuration
from diffsda_jax import explore_runs, prior_runs, runs
from diffsda_jax.study.description import load_study
from diffsda_jax.study.runs import make_runs

STUDIES = sorted(Path("studies").glob("*.py"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_has_known_options_and_three_seeds(path):
    study = load_study(path)
    assert len(study.seeds) >= 3 and len(study.variants) >= 2 and study.question.endswith("?")
    text = path.read_text()
    command = f"python -m diffsda_jax.study --study=studies/{path.name} --out=runs/{path.stem}"
    assert f"Command: {command}\n" in text
    computed = {"generation"} if "prior" in study.modes else set(study.common["eval.parts"])
    assert {metric.name.partition("/")[0] for metric in study.metrics} <= computed


def test_studies_of_what_follows_training_train_one_model_a_seed():
    for path in STUDIES:
        study = load_study(path)
        keys = set().union(*study.variants.values())
        shared = all(key.startswith(("eval.", "prior.")) for key in keys)
        models = len(study.seeds) * (1 if shared else len(study.variants))
        runs_of_study = make_runs(study, Path("out"))
        assert len({run.workdir for run in runs_of_study}) == models
        assert len({run.folder for run in runs_of_study}) == len(study.seeds) * len(study.variants)
        assert shared == (path.stem in ("start_noise", "evaluations", "prior", "prior_digits"))


@pytest.mark.slow
def test_options_of_studies_go_through_training_and_evaluation(tmp_path):
    config = configuration.load_config("configs/japanese_vowels.py")
    config.model.static_per_step, config.loss.weighting = True, "min_snr"
    config.eval.parts = ("verification", "probes")
    runs.smoke(config, tmp_path)
    file = tmp_path / "eval" / "00000002" / "metrics.json"
    metrics = json.loads(file.read_text())["metrics"]
    assert {name.partition("/")[0] for name in metrics} == set(config.eval.parts)
    assert (file.parent / "factors_static.png").exists()


def test_what_needs_one_static_factor_a_sequence_refuses_one_for_each_step(tmp_path):
    config = configuration.load_config("configs/japanese_vowels.py")
    config.model.static_per_step = True
    for run in (explore_runs.run_explore, prior_runs.run_prior):
        with pytest.raises(ValueError, match="model.static_per_step is True.*one static factor"):
            run(config, tmp_path)
