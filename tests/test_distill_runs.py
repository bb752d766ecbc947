"""From a sequence model to one that samples in a few evaluations: training, resuming, refusals."""

import json
import shutil

import jax
import numpy as np
import pytest

from diffsda_jax import DiffSDA, distill_runs, runs, sampling_runs, sharding
from diffsda_jax import config as configuration
from diffsda_jax import experiment as experiments
from diffsda_jax.factors import Factors
from diffsda_jax.model import init_variables
from diffsda_jax.train import checkpoint, distill_step


def tiny(**distill):
    """Japanese vowels in a model of random weights; a student of two steps."""
    config = runs.shrink(configuration.load_config("configs/japanese_vowels.py"))
    config.distill.update(num_steps=2, batch_size=8, path_steps=2, draws=1, schedule="constant")
    config.distill.evaluations = 2
    config.distill.update(distill)
    config.train.update(checkpoint_every_steps=1)
    config.eval.update(num_clips=24, num_train_clips=24, num_swaps=8, judge_steps=2)
    return config


@pytest.fixture(scope="module", autouse=True)
def _few_evaluations():
    """Tiny networks, many samplers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distill_runs, "_TEACHER_STEPS", 2)
        patch.setattr(distill_runs, "EVALUATIONS", (1, 2))
        yield


def save_model(workdir, config, seed=0, **meta):
    """What a training leaves in its workdir, with random weights."""
    experiment = experiments.build(config)
    variables = init_variables(experiment.spec, jax.random.key(seed))
    checkpoint.save_converted(workdir, variables, experiment.meta() | meta)
    return workdir


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One finished run that several tests look at."""
    workdir = save_model(tmp_path_factory.mktemp("run"), tiny())
    return workdir, distill_runs.run_distill(tiny(), workdir)


def test_a_run_leaves_a_student_beside_its_teacher(finished):
    workdir, result = finished
    assert int(result.state.step) == 2
    teacher, student = (DiffSDA.from_checkpoint(path) for path in (workdir, workdir / "distilled"))
    for part, same in (("encoder", True), ("denoiser", False)):
        pairs = zip(
            jax.tree.leaves(teacher.variables["params"][part]),
            jax.tree.leaves(student.variables["params"][part]),
            strict=True,
        )
        assert all(np.array_equal(a, b) for a, b in pairs) == same
    assert student.spec.sigma_identity == student.spec.sigma_min == 0.002
    assert student.meta["distilled"]["teacher"]["step"] == 0


def test_the_student_samples_with_few_evaluations_by_default(finished):
    student = DiffSDA.from_checkpoint(finished[0] / "distilled")
    assert student.sampler == distill_runs.few_steps(2) and student.sampler.evaluations == 2
    factors = Factors(static=np.ones((2, 4), np.float32), dynamic=np.ones((2, 4, 2), np.float32))
    start = np.random.default_rng(0).standard_normal((2, 4, 12)).astype(np.float32)
    first, again, other = (student.decode(factors, start, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    with pytest.raises(ValueError, match="a distilled model cannot invert"):
        student.invert(start, factors)


def test_a_student_is_evaluated_without_what_is_inverted(finished, tmp_path):
    config, workdir = tiny(), tmp_path / "distilled"
    shutil.copytree(finished[0] / "distilled", workdir)
    config.eval.parts = ("reconstruction", "swap")
    result = runs.run_eval(config, workdir)
    assert {"reconstruction/random_nmse", "swap/static_kept_percent"} <= result.metrics.keys()
    assert not [name for name in result.metrics if "inverted" in name]
    assert "reconstruction from x_T skipped: a distilled model cannot invert" in result.notes
    with pytest.raises(ValueError, match="holds a distilled model, which has one solver only"):
        sampling_runs.run_sampling(config, workdir)
    config.eval.form = "reference"
    with pytest.raises(ValueError, match="start from 'target' noise .*--config.eval.start=random"):
        runs.run_eval(config, workdir)
    config.eval.start = "random"
    student = DiffSDA.from_checkpoint(workdir)
    assert experiments.as_evaluated(config, student)[0].sampler == distill_runs.few_steps(2)


def test_the_table_compares_student_and_teacher(finished):
    place = finished[0] / "distilled" / "comparison" / "00000002"
    table = (place / "quality.md").read_text().splitlines()
    assert len(table) == 2 + 5 and "s kept %" in table[0]
    metrics = json.loads((place / "metrics.json").read_text())["metrics"]
    assert metrics["teacher/variation"] == 1.0 and metrics["teacher/distance_nmse"] == 0.0
    assert metrics["student_2/evaluations"] == 2 and metrics["student_1/ms_per_clip"] > 0
    assert metrics["student_1/variation"] > 0 and "student_2/variation" not in metrics


def test_a_resumed_run_ends_with_the_bits_of_an_unbroken_one(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(distill_runs, "make_evaluator", lambda *_: lambda step, state: None)
    shutil.copytree(finished[0] / "checkpoints", tmp_path / "checkpoints")
    distill_runs.run_distill(tiny(num_steps=1), tmp_path)
    resumed = distill_runs.run_distill(tiny(), tmp_path)
    assert int(resumed.state.step) == 2
    for a, b in zip(
        jax.tree.leaves(finished[1].state), jax.tree.leaves(resumed.state), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="config.distill.draws was 1 and is now 2. Set the option"):
        distill_runs.run_distill(tiny(draws=2), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    save_model(tmp_path, tiny(), seed=1)
    with pytest.raises(ValueError, match=r"was distilled from other weights \(step 0\)"):
        distill_runs.run_distill(tiny(), tmp_path)


def test_the_step_gets_the_number_of_parts(finished, monkeypatch):
    given = {}

    def make_distill_step(*_, **options):
        given.update(options)
        return lambda *_: None

    monkeypatch.setattr(distill_step, "make_distill_step", make_distill_step)
    teacher = DiffSDA.from_checkpoint(finished[0])
    mesh, config = sharding.make_mesh(jax.devices()[:1]), tiny(accumulation_steps=4)
    distill_runs.make_training(experiments.build(config), teacher, teacher.spec, mesh)
    assert given["accumulation_steps"] == 4 and given["batch_size"] == 8


def test_what_cannot_be_distilled_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        distill_runs.run_distill(tiny(), tmp_path / "nowhere")
    for options, match in (
        ({"num_steps": 0}, "distill.num_steps is 0; allowed: 1 or more"),
        ({"start_share": 2.0}, "distill.start_share is 2.0; allowed: 0 to 1"),
        ({"batch_size": 12}, "distill.batch_size is 12, but it is split"),
        ({"batch_size": 16, "accumulation_steps": 4}, "8 devices and 4 distill.accumulation_steps"),
        ({"evaluations": 0}, "distill.evaluations is 0"),
    ):
        with pytest.raises(ValueError, match=match):
            distill_runs.run_distill(tiny(**options), tmp_path)
    save_model(tmp_path, tiny(), distilled={"sampler": distill_runs.few_steps(1).to_dict()})
    with pytest.raises(ValueError, match="holds a distilled model, which cannot teach"):
        distill_runs.run_distill(tiny(), tmp_path)
    other = tiny()
    other.model.dynamic_dim = 3
    with pytest.raises(ValueError, match="of another architecture"):
        distill_runs.run_distill(other, tmp_path)


def test_parts_of_one_sequence_have_no_d_to_swap(monkeypatch):
    mesh = sharding.make_mesh(jax.devices()[:1])
    monkeypatch.setattr(configuration, "make_mesh", lambda _: mesh)
    with pytest.raises(ValueError, match="none can get the d of another"):
        distill_runs.check_options(tiny(accumulation_steps=8))
    distill_runs.check_options(tiny(accumulation_steps=8, swap_share=0.0))
    distill_runs.check_options(tiny(accumulation_steps=4))
    distill_runs.check_options(tiny(batch_size=1))


def test_columns_without_a_measure_are_left_out():
    rows = {"teacher": {"evaluations": 63.0}, "student_2": {"evaluations": 2.0}}
    assert distill_runs.format_rows(rows).splitlines() == [
        "|  | evaluations |",
        "| --- | --- |",
        "| teacher | 63 |",
        "| student | 2 |",
    ]
