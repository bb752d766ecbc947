"""``--mode=distill``: a trained model made to sample with 1 to 4 evaluations of its network.

The newest model of a workdir teaches a copy of itself, whose encoder stays as it is; the copy
trains in ``<workdir>/distilled``. Of a config are read the source, the sections ``data``,
``distill`` and ``eval``, and of ``train`` how often to report and to save.
"""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffsda_jax import config as configuration
from diffsda_jax import experiment as experiments
from diffsda_jax import runs, sharding, workdirs
from diffsda_jax.data.pipeline import num_steps_per_epoch
from diffsda_jax.data.sources import Source
from diffsda_jax.diffusion.samplers import CONSISTENCY, SamplerSpec
from diffsda_jax.evals import metrics as measure
from diffsda_jax.evals import report
from diffsda_jax.evals.context import Context
from diffsda_jax.evals.interface import Clips
from diffsda_jax.evals.parts import PARTS
from diffsda_jax.experiment import Experiment
from diffsda_jax.model import ModelSpec, make_model
from diffsda_jax.pipeline import DiffSDA
from diffsda_jax.train import checkpoint, distill_step, loop, optimizer
from diffsda_jax.train.integrity import hash_weights
from diffsda_jax.train.state import TrainState, create_state, variables_of
from diffsda_jax.train.step import StepFn
from diffsda_jax.train.writers import MetricWriter

logger = logging.getLogger(__name__)

FOLDER = "distilled"
COMPARISON_FOLDER = "comparison"  # with the teacher; evaluations of a student lie beside it
META_KEY = "distilled"
EVALUATIONS = (1, 2, 4)  # of the student, in the table
_TEACHER_STEPS = 32  # of Heun, 63 evaluations
# Of section distill, what may change between two starts.
_FREE = ("accumulation_steps", "num_steps", "eval_every_steps", "evaluations")
_COLUMNS = {
    "evaluations": "evaluations",
    "random_nmse": "reconstruction nmse",
    "variation": "variation",
    "distance_nmse": "distance to the teacher",
    "static_kept_percent": "s kept %",
    "dynamic_kept_percent": "d kept %",
    "trajectory_error_pixels": "path, pixels",
    "ms_per_clip": "ms a clip",
}


def run_distill(
    config: ConfigDict, workdir: str | Path, sources: dict[str, Source] | None = None
) -> loop.TrainResult:
    """Distils the newest model of a workdir, or goes on where an earlier start stopped.

    Args:
      config: that the model was trained with.
      workdir: of the model; ``DiffSDA.from_checkpoint("<workdir>/distilled")`` loads the result.
      sources: splits to use instead of the config's own.

    Returns:
      How it ended.

    Raises:
      ValueError, FileNotFoundError: no model in the workdir, one of another config or one that is
        distilled itself, a student of another model there, or an option that is not allowed.
      train.loop.NonFiniteLossError: the loss is not finite.
    """
    sampler = check_options(config)
    experiment, teacher = runs.load_trained(config, workdir, sources)
    if META_KEY in teacher.meta:
        raise ValueError(
            f"workdir {workdir} holds a distilled model, which cannot teach another; give the "
            "workdir of the model that it was made from."
        )
    folder = Path(workdir).expanduser() / FOLDER
    facts = {
        "step": int(teacher.meta.get("step", 0)),
        "weights": hash_weights(repr(teacher.spec), teacher.variables),
    }
    spec = dataclasses.replace(teacher.spec, sigma_identity=teacher.spec.sigma_min)
    about = {"teacher": facts, "sampler": sampler.to_dict()}
    comparison = Comparison(runs.EvalRunner(experiment), teacher)

    def prepare(place: Path, mesh: Mesh, fresh: bool) -> workdirs.Training:
        if not fresh:
            _check_teacher(place, facts)
        step_fn, state = make_training(experiment, teacher, spec, mesh)
        return workdirs.Training(
            step_fn=step_fn,
            state=state,
            iterator=experiments.make_iterator(experiment, config.seed, config.distill.batch_size),
            meta=experiment.meta() | {"model": spec.to_dict(), META_KEY: about},
            summary=describe(experiment, teacher, mesh),
            make_evaluator=functools.partial(make_evaluator, comparison, spec, place),
        )

    # How its teacher was trained is the teacher's matter.
    purpose = workdirs.purpose_of_section(
        experiment,
        "distill",
        folder,
        data=experiment.meta()["source"]["fingerprint"],
        free={**workdirs.FREE_OPTIONS, "train": None, "distill": _FREE},
        data_changed="its data were others",
    )
    return workdirs.train_in(folder, purpose, prepare)


def check_options(config: ConfigDict) -> SamplerSpec:
    """What can be refused before anything is read; the sampler that the student will have.

    Raises:
      ValueError: names the option, its value and what is allowed.
    """
    options = config.distill
    for name, least in (("num_steps", 1), ("batch_size", 1), ("evaluations", 1)):
        if options[name] < least:
            raise ValueError(f"distill.{name} is {options[name]}; allowed: {least} or more.")
    distill_step.DistillOptions(**_loss_options(options))
    mesh, parts = configuration.make_mesh(config.mesh), options.accumulation_steps
    sharding.check_batch_size(options.batch_size, mesh, "distill.batch_size", parts)
    if options.swap_share and parts > 1 and options.batch_size == parts:
        raise ValueError(
            f"distill.batch_size is {parts} and so is distill.accumulation_steps: sequences are "
            "learnt from one by one, so that none can get the d of another; set fewer "
            "accumulation_steps, or --config.distill.swap_share=0."
        )
    return few_steps(options.evaluations)


def few_steps(evaluations: int) -> SamplerSpec:
    """The sampler of a student; the last step of its grid is free."""
    return SamplerSpec(CONSISTENCY, evaluations + 1)


def _loss_options(options: ConfigDict) -> dict[str, Any]:
    """What section ``distill`` says of the loss; levels are the model's."""
    names = {field.name for field in dataclasses.fields(distill_step.DistillOptions)}
    return {name: value for name, value in options.items() if name in names}


def _check_teacher(place: Path, facts: Mapping[str, Any]) -> None:
    """Refuses to go on with the student of another model."""
    _, meta = checkpoint.load_for_inference(place)
    known = meta.get(META_KEY, {}).get("teacher", {})
    if known != facts:
        raise ValueError(
            f"{place} was distilled from other weights (step {known.get('step')}) than those of "
            f"step {facts['step']} that are the newest now: move {place} away to distil these."
        )


def make_training(
    experiment: Experiment, teacher: DiffSDA, spec: ModelSpec, mesh: Mesh
) -> tuple[StepFn, TrainState]:
    """The jitted step, and the state at step 0, which has the teacher's weights."""
    options, rules = experiment.config.distill, experiment.config.mesh.rules
    per_epoch = num_steps_per_epoch(experiment.sources["train"], options.batch_size)
    schedule = experiments.schedule_of(options, options.num_steps, per_epoch)
    transformation = distill_step.only_denoiser(
        optimizer.make_optimizer(
            schedule, weight_decay=options.weight_decay, clip_norm=options.clip_norm
        )
    )
    loss_fn = distill_step.make_distill_loss(
        make_model(spec),
        make_model(teacher.spec),
        sigma_min=spec.sigma_min,
        sigma_max=spec.sigma_max,
        rho=spec.rho,
        **_loss_options(options),
    )
    step_fn = distill_step.make_distill_step(
        experiments.on_frames(experiment, loss_fn),
        transformation,
        teacher.variables,
        mesh=mesh,
        rules=rules,
        schedule=schedule,
        ema_half_life_examples=options.ema_half_life_examples,
        batch_size=options.batch_size,
        accumulation_steps=options.accumulation_steps,
    )
    return step_fn, create_state(teacher.variables, transformation, mesh, rules)


def describe(experiment: Experiment, teacher: DiffSDA, mesh: Mesh) -> str:
    """A few lines on what is about to be distilled on what."""
    trained = teacher.variables["params"][distill_step.TRAINED]
    count = sum(leaf.size for leaf in jax.tree.leaves(trained))
    return (
        f"{experiment.sources['train'].describe()}\n{experiment.sources['test'].describe()}\n"
        f"distilling step {teacher.meta.get('step', 0)}: {count / 1e6:.2f} M parameters of the "
        f"denoiser; {mesh.devices.size} {jax.devices()[0].platform} device(s)"
    )


class Comparison:
    """Teacher and student on the same factors, noise, swaps and judge."""

    def __init__(self, runner: runs.EvalRunner, teacher: DiffSDA):
        """No data are loaded before the first ``rows``."""
        self.runner, self.teacher = runner, teacher

    @functools.cached_property
    def context(self) -> Context:
        """Data, factors (of the encoder that both have) and judge."""
        settings = experiments.eval_settings(self.runner.experiment.config)
        return self.runner.make_context(self.teacher, settings)

    @functools.cached_property
    def of_teacher(self) -> tuple[dict[str, dict[str, float]], Clips, float]:
        """Rows of the teacher, its clips with many evaluations, and how much these vary."""
        many = SamplerSpec("heun", _TEACHER_STEPS)
        clips, variation, _ = self._decode(self.teacher, many)
        found = {"teacher": self._row(self.teacher, many, clips, variation)}
        for number in reversed(EVALUATIONS):
            # One step from noise to data is the same with all solvers of one evaluation a step.
            few = SamplerSpec("dpmpp_2m", number) if number > 1 else few_steps(1)
            found[f"teacher_{number}"] = self._row(self.teacher, few, clips, variation)
        return found, clips, variation

    def rows(self, student: DiffSDA) -> dict[str, dict[str, float]]:
        """Measures by model and number of evaluations.

        Args:
          student: the distilled model.

        Returns:
          Rows ``teacher`` (63 evaluations), ``teacher_4``, ``teacher_2`` and ``teacher_1``
          (DPM-Solver++ 2M with so few), and the same of ``student``. ``random_nmse``: of
          reconstructions from random noise; ``variation``: mean squared difference of decodes from
          two start noises, as a share of the teacher's; ``distance_nmse``: of the reconstructions
          to the teacher's from the same noise (these two only where no noise is added on the way);
          swaps as in the part ``swap``; ``ms_per_clip``: of sampling.
        """
        found, clips, variation = self.of_teacher
        students = {
            f"student_{number}": self._row(student, few_steps(number), clips, variation)
            for number in reversed(EVALUATIONS)
        }
        return found | students

    def _row(
        self, model: DiffSDA, sampler: SamplerSpec, clips: Clips, variation: float
    ) -> dict[str, float]:
        """Measures of one model with one sampler, beside the teacher's clips."""
        context, index = self._with(model, sampler), self.context.some_clips()
        decoded, spread, seconds = self._decode(model, sampler)
        x, mask = context.test["x"][index], context.observed(index)
        swaps, _ = PARTS["swap"](context)
        row = {
            "evaluations": float(sampler.evaluations),
            "random_nmse": measure.normalized_mse(x, decoded, mask),
            **swaps,
            "ms_per_clip": 1e3 * seconds / len(index),
        }
        if sampler.solver == CONSISTENCY and sampler.evaluations > 1:
            return row  # its noise on the way is the same for both starts, and not the teacher's
        return row | {
            "variation": spread / variation,
            "distance_nmse": measure.normalized_mse(clips, decoded, mask),
        }

    def _decode(self, model: DiffSDA, sampler: SamplerSpec) -> tuple[Clips, float, float]:
        """Reconstructions from random noise, their variation over two noises, and seconds."""
        index = self.context.some_clips()
        clips = []
        for seed in (self.context.settings.seed, self.context.settings.seed + 1):
            context, began = self._with(model, sampler, seed), time.perf_counter()
            factors = context.test_factors[index]
            clips.append(context.decode(factors, index, index, start="random"))
            seconds = time.perf_counter() - began  # of the second, which is compiled
        first, second = clips
        return first, measure.masked_mse(first, second, context.observed(index)), seconds

    def _with(self, model: DiffSDA, sampler: SamplerSpec, seed: int | None = None) -> Context:
        """The context with another model and sampler, and maybe another start noise."""
        settings = self.context.settings
        settings = dataclasses.replace(
            settings,
            num_steps=sampler.num_steps,
            start="random",
            seed=settings.seed if seed is None else seed,
        )
        model = model.using(sampler=sampler)
        return dataclasses.replace(self.context, model=model, settings=settings)


def make_evaluator(
    comparison: Comparison, spec: ModelSpec, workdir: Path, writer: MetricWriter
) -> Callable[[int, TrainState], None]:
    """What the training loop calls to evaluate: prints and writes the table."""
    experiment = comparison.runner.experiment

    def evaluate(step_number: int, state: TrainState) -> None:
        variables = variables_of(state, experiment.config.eval.weights)
        rows = comparison.rows(DiffSDA(spec, variables, experiment.normalizer))
        metrics = {
            f"{name}/{measured}": value
            for name, row in rows.items()
            for measured, value in row.items()
        }
        folder = workdir / COMPARISON_FOLDER / f"{step_number:08d}"
        settings = dataclasses.asdict(comparison.context.settings)
        settings["parts"] = list(settings["parts"])
        files = [report.write_results(metrics, folder, settings=settings)]
        table = format_rows(rows)
        files.append(folder / "quality.md")
        files[-1].write_text(table + "\n")
        print(table, flush=True)
        for file in files:
            logger.info("wrote %s", file)
        writer.write_scalars(step_number, {f"eval/{k}": v for k, v in metrics.items()})

    return evaluate


def format_rows(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Measures as a Markdown table, one line a model and number of evaluations.

    Args:
      rows: of ``Comparison.rows``.

    Returns:
      Lines joined, without one at the end; a measure that no row has is left out.
    """
    names = [name for name in _COLUMNS if any(name in row for row in rows.values())]
    lines = [["", *(_COLUMNS[name] for name in names)], ["---"] * (len(names) + 1)]
    for model, row in rows.items():
        cells = [f"{row[name]:.4g}" if name in row else "" for name in names]
        lines.append([model.partition("_")[0], *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
