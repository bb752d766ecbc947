"""Every file of studies/ is one that can be run: its options exist and its metrics are made."""

from pathlib import Path

import pytest

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


def test_studies_of_the_evaluation_train_one_model_a_seed():
    for name in ("start_noise",):
        study = load_study(f"studies/{name}.py")
        runs = make_runs(study, Path("out"))
        assert len({run.workdir for run in runs}) == len(study.seeds)
        assert len({run.folder for run in runs}) == len(study.seeds) * len(study.variants)
