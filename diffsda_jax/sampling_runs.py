"""``--mode=sampling``: which sampler is as good as 63 evaluations of Heun, and costs the least."""

import dataclasses
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffsda_jax import experiment as experiments
from diffsda_jax import runs
from diffsda_jax.diffusion.samplers import SOLVERS, SamplerSpec, can_add_noise
from diffsda_jax.evals import metrics as measure
from diffsda_jax.evals import report
from diffsda_jax.evals import sampling_quality as quality
from diffsda_jax.evals.choices import check_choice
from diffsda_jax.evals.context import Context
from diffsda_jax.evals.interface import Clips
from diffsda_jax.evals.parts import PARTS
from diffsda_jax.evals.pictures import write_png
from diffsda_jax.evals.sampling_quality import Trial
from diffsda_jax.factors import Factors
from diffsda_jax.pipeline import SAMPLER_FILE, DiffSDA

logger = logging.getLogger(__name__)

FOLDER = "sampling"
REFERENCE = SamplerSpec("heun", 32)  # 63 evaluations
_TURNS = 3  # of the reference and the choice, to compare their times


@dataclasses.dataclass(frozen=True)
class SamplingResult:
    """What was measured and chosen.

    Attributes:
      reference: Heun with 63 evaluations.
      trials: the samplers that were tried.
      chosen: one of them, or the reference.
      files: what was written, ``metrics.json`` first and ``sampler.json`` last.
    """

    reference: Trial
    trials: list[Trial]
    chosen: Trial
    files: list[Path]


def run_sampling(config: ConfigDict, workdir: str | Path) -> SamplingResult:
    """Tries samplers on the newest checkpoint of a workdir and makes one of them its default.

    Chosen is the one with the fewest evaluations whose swaps and reconstructions are as good as
    with 63 evaluations of Heun, see ``sampling_quality.losses``; if none is, that stays.

    Args:
      config: of the run; its section ``sampling`` says what is tried.
      workdir: with a trained or converted checkpoint. ``sampler.json`` is written there, which
        ``DiffSDA.from_checkpoint`` reads, and the rest in ``<workdir>/sampling/<step>``.

    Returns:
      What was measured, what was chosen, and the files.

    Raises:
      ValueError, FileNotFoundError: as ``runs.run_eval``; an option that is not allowed.
    """
    samplers = make_samplers(config.sampling)
    experiment, model = runs.load_trained(config, workdir)
    settings = dataclasses.replace(
        experiments.eval_settings(config), start="random", num_swaps=config.sampling.num_clips
    )
    model = model.using(precision=config.eval.precision or None)
    context = runs.EvalRunner(experiment).make_context(model, settings)
    if not len(context.some_clips()):
        raise ValueError(f"split {config.eval.split!r} has no clips to try samplers on.")
    reference, clips = measure_sampler(context, REFERENCE)
    trials = []
    for number, sampler in enumerate(samplers, 1):
        trials.append(measure_sampler(context, sampler, clips)[0])
        name = f"{quality.name_of(sampler)}, {sampler.evaluations} evaluations"
        logger.info("sampler %d of %d measured: %s", number, len(samplers), name)
    num_clips = len(context.some_clips())
    tolerance = config.sampling.tolerance_percent
    chosen = quality.choose(trials, reference, num_clips, tolerance)
    table = quality.format_trials(trials, reference, chosen, num_clips, tolerance)
    seconds = seconds_in_turns(context, (reference.sampler, chosen.sampler))
    text = f"{table}\n\n{_verdict(reference, chosen, tolerance, seconds)}"
    print(text, flush=True)
    result = SamplingResult(reference, trials, chosen, [])
    recorded = dataclasses.asdict(settings) | {"tolerance_percent": tolerance}
    recorded["parts"] = ["swap", "reconstruction"]
    step = int(model.meta.get("step", 0))
    result.files.extend(_write(Path(workdir).expanduser(), step, result, text, recorded))
    for file in result.files:
        logger.info("wrote %s", file)
    return result


def make_samplers(options: ConfigDict) -> list[SamplerSpec]:
    """All samplers of section ``sampling``, each once.

    Raises:
      ValueError: an option that is not allowed.
    """
    for name in ("solvers", "evaluations", "sigma_min", "eta"):
        if not len(options[name]):
            raise ValueError(f"config.sampling.{name} is empty; give one value or more.")
    for solver in options.solvers:
        check_choice("config.sampling.solvers", solver, SOLVERS)
    for name, least in (("num_clips", 1), ("tolerance_percent", 0)):
        if options[name] < least:
            raise ValueError(
                f"config.sampling.{name} is {options[name]}; allowed: {least} or more."
            )
    if min(options.evaluations) < 3:
        raise ValueError(
            f"config.sampling.evaluations names {min(options.evaluations)}; allowed: 3 or more "
            "(--mode=distill is for fewer)."
        )
    found: dict[SamplerSpec, None] = {}
    for solver in options.solvers:
        for eta in options.eta if can_add_noise(solver) else (0.0,):
            for sigma_min in options.sigma_min:
                for count in options.evaluations:
                    steps = (count + 1) // 2 if solver == "heun" else count
                    found[SamplerSpec(solver, steps, float(eta), sigma_min or None)] = None
    return [sampler for sampler in found if sampler != REFERENCE]


class _Recorder:
    """A model that keeps what it samples until it is asked to invert, and its shortest time."""

    def __init__(self, model: DiffSDA):
        """Takes a model with the sampler that is to be measured."""
        self._model, self._inverted = model, False
        self.clips: list[Clips] = []
        self.seconds_per_clip = np.inf

    def encode(self, x: Any, length: Any = None, mask: Any = None) -> Factors:
        """As the model's."""
        return self._model.encode(x, length, mask)

    def sample(
        self, factors: Factors, start: Any = None, num_steps: int | None = None, seed: int = 0
    ) -> Clips:
        """As the model's, which has run to its end."""
        began = time.perf_counter()
        clips = np.asarray(self._model.sample(factors, start, num_steps, seed))
        seconds = (time.perf_counter() - began) / len(clips)
        self.seconds_per_clip = min(self.seconds_per_clip, seconds)
        if not self._inverted:
            self.clips.append(clips)
        return clips

    def invert(self, x: Any, factors: Factors, num_steps: int | None = None) -> Any:
        """As the model's; what is sampled from it starts from another noise with each sampler."""
        self._inverted = True
        return self._model.invert(x, factors, num_steps)


def _with_sampler(context: Context, sampler: SamplerSpec) -> tuple[Context, _Recorder]:
    """The context with a sampler, and the recorder that is its model."""
    recorder = _Recorder(context.model.using(sampler=sampler))
    settings = dataclasses.replace(
        context.settings, num_steps=sampler.num_steps, solver=sampler.solver
    )
    return dataclasses.replace(context, model=recorder, settings=settings), recorder


def measure_sampler(
    context: Context, sampler: SamplerSpec, reference: Clips | None = None
) -> tuple[Trial, Clips]:
    """Swaps, reconstructions and time of one sampler.

    Args:
      context: with the model; swaps start from random noise.
      sampler: that is measured. Inversion is by it as well.
      reference: clips of another sampler that the distance is measured to; None: to its own.

    Returns:
      The measures, and the clips sampled from random noise: swaps, and reconstructions.
    """
    context, recorder = _with_sampler(context, sampler)
    found = {}
    for part in ("swap", "reconstruction"):
        metrics, _ = PARTS[part](context)
        found |= {name: metrics[name] for name in quality.LEAST_LOSS if name in metrics}
    clips = np.concatenate(recorder.clips)
    found["distance_nmse"] = 0.0 if reference is None else measure.normalized_mse(reference, clips)
    found["seconds_per_clip"] = recorder.seconds_per_clip
    return Trial(sampler, found), clips


def seconds_in_turns(context: Context, samplers: Sequence[SamplerSpec]) -> list[float]:
    """Seconds a clip of samplers that take turns, so that a busy machine is busy for all of them.

    The shortest of several turns each; programs should be compiled.
    """
    made = [_with_sampler(context, sampler) for sampler in samplers]
    index = context.some_clips()[: context.settings.batch_size]
    for _ in range(_TURNS):
        for turn, _ in made:
            turn.decode(context.test_factors[index], index, index)
    return [recorder.seconds_per_clip for _, recorder in made]


def _verdict(
    reference: Trial, chosen: Trial, tolerance_percent: float, seconds: Sequence[float]
) -> str:
    """The choice in one line."""
    before = reference.sampler.evaluations
    if chosen is reference:
        return (
            f"no sampler is within {tolerance_percent:g} % of {before} evaluations of Heun on "
            "every measure, so Heun stays; * in the table marks what is lost."
        )
    return (
        f"chosen: {quality.name_of(chosen.sampler)}, {chosen.sampler.evaluations} evaluations, "
        f"within {tolerance_percent:g} % of {before} evaluations of Heun on every measure, and "
        f"{seconds[0] / seconds[1]:.1f} times as fast ({1e3 * seconds[1]:.3g} ms a clip after "
        f"{1e3 * seconds[0]:.3g}, measured in turns)."
    )


def _write(
    workdir: Path, step: int, result: SamplingResult, text: str, settings: dict[str, Any]
) -> list[Path]:
    """Writes metrics, table and plot and, last of all and in one piece, the choice."""
    folder, reference, chosen = workdir / FOLDER / f"{step:08d}", result.reference, result.chosen
    metrics = {
        f"{quality.name_of(trial.sampler)}, {trial.sampler.evaluations}/{name}": value
        for trial in (reference, *result.trials)
        for name, value in trial.metrics.items()
    }
    picture = quality.draw_trials(result.trials, reference, chosen)
    files = [report.write_results(metrics, folder, settings=settings)]
    files += [folder / "quality.md", write_png(picture, folder / "quality.png")]
    files[1].write_text(f"{text}\n")
    choice = {
        "sampler": chosen.sampler.to_dict(),
        "evaluations": chosen.sampler.evaluations,
        "step": step,
        "tolerance_percent": settings["tolerance_percent"],
        "metrics": dict(chosen.metrics),
        "reference_metrics": dict(reference.metrics),
    }
    scratch = workdir / f"{SAMPLER_FILE}.tmp"
    scratch.write_text(json.dumps(choice, indent=2) + "\n")
    return [*files, scratch.replace(workdir / SAMPLER_FILE)]
