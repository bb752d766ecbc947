"""The series configs from published files to the printed table, at their own sequence lengths."""

import contextlib
import functools
import io
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from diffsda_jax import DiffSDA, runs, workdirs
from diffsda_jax import config as configuration
from diffsda_jax import experiment as experiments
from diffsda_jax.data.sources.physionet import FEATURES
from diffsda_jax.evals import evaluate as evaluation
from diffsda_jax.evals.interface import encode_clips

sys.path.insert(0, str(Path(__file__).parent / "data"))
from series_files import (  # noqa: E402
    air_lines,
    ett_lines,
    record_lines,
    write,
    write_air,
    write_stays,
)

FORMS = {"default": "corrected", "reference": "reference"}
VARIANTS = pytest.mark.parametrize(
    "variant", ["default", pytest.param("reference", marks=pytest.mark.slow)]
)
LENGTHS = {"air_quality": 672, "etth1": 672, "physionet": 80, "known_factors": 72}
# Score, its chance level, and how the table prints name and unit.
SCORES = {
    "air_quality": [("month_accuracy_percent", "month_accuracy_chance_percent")],
    "etth1": [("oil_temperature_mae", "oil_temperature_mae_chance")],
    "physionet": [
        ("icu_type_accuracy_percent", "icu_type_accuracy_chance_percent"),
        ("mortality_auprc_percent", "mortality_auprc_chance_percent"),
        ("mortality_auroc_percent", "mortality_auroc_chance_percent"),
    ],
    "known_factors": [("season_accuracy_percent", "season_accuracy_chance_percent")],
}


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Writes the files of each source; its options."""
    root = tmp_path_factory.mktemp("published")
    header, *lines = air_lines("Dongsi")
    write_air(root / "air", "Dongsi", [header, *lines[::12]])  # the other hours are missing
    write(root / "ETTh1.csv", ett_lines(3500))
    for file in (write_stays(root / "stays") / "set-a").iterdir():
        record = int(file.stem)
        write(file, record_lines(record, record % 4 + 1, features=FEATURES))
    return {
        "air_quality": {
            "root": str(root / "air"),
            "stations": ("Dongsi",),
            "max_missing_share": 0.95,
        },
        "etth1": {"path": str(root / "ETTh1.csv")},
        "physionet": {"root": str(root / "stays")},
        "known_factors": {"num_sequences": 40},
    }


def small(name, variant, options):
    """A config as it is but for widths and for what else is evaluated, on the files from above."""
    real = configuration.load_config(f"configs/{name}.py:{variant}")
    config = runs.shrink(real)
    config.data.length = real.data.length
    config.source.options.update(options[name])
    config.eval.update(task_steps=5, num_swaps=2)
    # The other parts are those of every config, and tried with all of them.
    config.eval.parts = ("tasks", "known_factors") if name == "known_factors" else ("tasks",)
    assert set(config.eval.parts) & set(real.eval.parts)
    return config


@pytest.fixture(scope="module")
def finished(options, tmp_path_factory):
    """Trains and evaluates a config, once: workdir, ``metrics.json`` and what was printed."""

    @functools.cache
    def run(name, variant):
        workdir, printed = tmp_path_factory.mktemp(name), io.StringIO()
        evaluate = functools.partial(evaluation.evaluate, pictures=False)
        mesh = workdirs.sharding.make_mesh(jax.devices()[:1])
        with contextlib.redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluation, "evaluate", evaluate)
            patch.setattr(workdirs.configuration, "make_mesh", lambda _: mesh)
            result = runs.run_train(small(name, variant, options), workdir)
        assert int(result.state.step) == 2 and not result.interrupted
        content = json.loads((workdir / "eval" / "00000002" / "metrics.json").read_text())
        return workdir, content, printed.getvalue()

    return run


@VARIANTS
@pytest.mark.parametrize("name", SCORES)
def test_a_run_scores_what_the_data_are_used_for(finished, name, variant):
    workdir, content, printed = finished(name, variant)
    metrics = content["metrics"]
    # The made-up data have no released code, only its recurrence.
    assert content["form"] == ("corrected" if name == "known_factors" else FORMS[variant])
    assert not any("task" in note for note in content["notes"])
    for score, chance in SCORES[name]:
        mean, spread, level = (metrics[f"tasks/{key}"] for key in (score, f"{score}_std", chance))
        assert mean >= 0 and spread >= 0 and level > 0
        words = score.removesuffix("_percent").replace("_", " ")
        (line,) = [line for line in printed.splitlines() if line.strip().startswith(words)]
        cells = line.replace(words, "").split()
        expected = [mean, "±", spread, *["%"] * score.endswith("percent"), level, mean - level]
        assert len(cells) == len(expected)
        for cell, value in zip(cells, expected, strict=True):
            if isinstance(value, str):
                assert cell == value
            else:
                assert float(cell) == pytest.approx(value, abs=0.006)
    assert " std" not in printed


@VARIANTS
def test_known_factors_are_compared_with_the_codes(finished, variant):
    _, content, printed = finished("known_factors", variant)
    metrics = content["metrics"]
    for name in ("disentanglement", "completeness", "informativeness"):
        assert 0 <= metrics[f"known_factors/{name}"] <= 1
    shares = [f"{block}_percent" for block in ("static_on_s", "dynamic_on_d")]
    assert all(0 <= metrics[f"known_factors/{name}"] <= 100 for name in shares)
    assert metrics["known_factors/true_swap_nmse"] > 0
    assert metrics["known_factors/true_swap_nmse_chance"] == 1
    assert "  static on s" in printed and "  true swap nmse" in printed


@VARIANTS
@pytest.mark.parametrize("name", SCORES)
def test_the_checkpoint_is_of_the_form_of_the_config(finished, name, variant):
    spec = DiffSDA.from_checkpoint(finished(name, variant)[0]).spec
    assert spec.recurrence == {"default": "lstm", "reference": "reference"}[variant]
    missing = name in ("air_quality", "physionet") and variant == "default"
    assert spec.encoder_sees_mask == missing


@VARIANTS
def test_what_is_missing_reaches_the_encoder(finished, options, variant):
    model = DiffSDA.from_checkpoint(finished("physionet", variant)[0])
    experiment = experiments.build(small("physionet", variant, options))
    data = experiments.load_split(experiment, "test", 100)
    assert data["x"].shape[1:] == data["mask"].shape[1:] == (80, 10)
    assert not data["mask"].all() and data["mask"].any()
    hidden = data["mask"].copy()
    hidden[:, 40:] = False
    before, after = (
        encode_clips(model, data["x"], data["length"], mask) for mask in (data["mask"], hidden)
    )
    changed = np.abs(before.static - after.static).max(axis=1)
    assert (changed > 1e-6).all() if variant == "default" else (changed == 0).all()


def test_a_load_that_is_missing_shows_the_encoder_the_mask(options, tmp_path):
    lines = ett_lines(3500)
    lines[5] = lines[5].replace("2.0090000629425", "")
    path = str(write(tmp_path / "ETTh1.csv", lines))
    for file, sees in ((options["etth1"]["path"], False), (path, True)):
        config = small("etth1", "default", {"etth1": {"path": file}})
        assert experiments.build(config).spec.encoder_sees_mask == sees


def test_reference_data_are_those_of_the_released_code(options):
    for name in ("air_quality", "etth1", "physionet"):
        plain, reference = (
            experiments.build(small(name, variant, options)).sources["train"] for variant in FORMS
        )
        ours, theirs = (part.load(3, np.random.default_rng(0)) for part in (plain, reference))
        shift = int(np.random.default_rng(0).integers(LENGTHS[name]))
        assert shift and len(ours["x"]) == LENGTHS[name]
        np.testing.assert_array_equal(theirs["x"], np.roll(ours["x"], shift, axis=0))
        np.testing.assert_array_equal(theirs["mask"], ours["mask"])
        if name == "etth1":  # labels of another shuffle than the signals
            first = [
                [
                    part.load(i, np.random.default_rng(0))["target_oil_temperature"][0]
                    for i in range(len(part))
                ]
                for part in (plain, reference)
            ]
            assert sorted(first[0]) == sorted(first[1]) and first[0] != first[1]
