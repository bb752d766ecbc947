"""``--mode=sampling``: which sampler is as good as 63 evaluations of Heun, and costs the least."""

import dataclasses
import json
import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from ml_collections import ConfigDict

from diffsda_jax import experiment as experiments
from diffsda_jax import runs
from diffsda_jax.codec import SAMPLER_FILE
from diffsda_jax.diffusion.samplers import SOLVERS, SamplerSpec, can_add_noise
from diffsda_jax.evals import metrics as measure
from diffsda_jax.evals import report
from diffsda_jax.evals import sampling_quality as quality
from diffsda_jax.evals.choices import check_choice
from diffsda_jax.evals.context import Context
from diffsda_jax.evals.interface import Clips, padded_batches
from diffsda_jax.evals.parts import PARTS
from diffsda_jax.evals.pictures import write_png
from diffsda_jax.evals.sampling_quality import Trial
from diffsda_jax.factors import Factors
from diffsda_jax.pipeline import DiffSDA

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
      confirmed: the same measures on other clips and another seed: the reference, then the
        candidates in the order in which they were tried again; empty where none was within.
      chosen: one of the trials, or the reference.
      files: what was written, ``metrics.json`` first and ``sampler.json`` last.
    """

    reference: Trial
    trials: list[Trial]
    confirmed: list[Trial]
    chosen: Trial
    files: list[Path]


def run_sampling(config: ConfigDict, workdir: str | Path) -> SamplingResult:
    """Tries samplers on the newest checkpoint of a workdir and makes one of them its default.

    Chosen is the one with the fewest evaluations whose swaps and reconstructions are as good as
    with 63 evaluations of Heun, see ``sampling_quality.losses``, on one half of the clips of
    ``eval.split``, and again on the other half with another seed; if none is, Heun stays.

    Args:
      config: of the run; its section ``sampling`` says what is tried.
      workdir: with a trained or converted checkpoint. ``sampler.json`` is written there, which
        ``DiffSDA.from_checkpoint`` reads, and the rest in ``<workdir>/sampling/<step>``.

    Returns:
      What was measured, what was chosen, and the files.

    Raises:
      ValueError, FileNotFoundError: as ``runs.run_eval``; an option that is not allowed; a
        distilled model.
    """
    samplers = make_samplers(config.sampling)
    experiment, model = runs.load_trained(config, workdir)
    if not model.can_invert:
        raise ValueError(
            f"workdir {workdir} holds a distilled model, which has one solver only; "
            "distill.evaluations of --mode=distill says how often it runs."
        )
    settings = dataclasses.replace(
        experiments.eval_settings(config), start="random", num_swaps=config.sampling.num_clips
    )
    model = model.using(precision=config.eval.precision or None)
    context = runs.EvalRunner(experiment).make_context(model, settings)
    if not len(context.some_clips()):
        raise ValueError(f"split {config.eval.split!r} has no clips to try samplers on.")
    tolerance = config.sampling.tolerance_percent
    result, text = _choose(context, samplers, tolerance)
    print(text, flush=True)
    recorded = dataclasses.asdict(settings) | {"tolerance_percent": tolerance}
    recorded["parts"] = ["swap", "reconstruction"]
    step = int(model.meta.get("step", 0))
    result.files.extend(_write(Path(workdir).expanduser(), step, result, text, recorded))
    for file in result.files:
        logger.info("wrote %s", file)
    return result


def _choose(
    context: Context, samplers: Sequence[SamplerSpec], tolerance: float
) -> tuple[SamplingResult, str]:
    """Measures, chooses and confirms; with a report of it."""
    context, other = halves(context)
    reference, clips = measure_sampler(context, REFERENCE)
    trials = []
    for number, sampler in enumerate(samplers, 1):
        trials.append(measure_sampler(context, sampler, clips)[0])
        name = f"{quality.name_of(sampler)}, {sampler.evaluations} evaluations"
        logger.info("sampler %d of %d measured: %s", number, len(samplers), name)
    count = _num_clips(context)
    found = quality.candidates(trials, reference, count, tolerance)
    chosen, confirmed = _confirm(other, found, tolerance)
    chosen = chosen or reference
    text = quality.format_trials(trials, reference, chosen, count, tolerance)
    if confirmed:
        last = confirmed[-1] if chosen is not reference else confirmed[0]
        again = quality.format_trials(
            confirmed[1:], confirmed[0], last, _num_clips(other), tolerance
        )
        same = np.array_equal(other.trial, context.trial)
        text += (
            f"\n\nAgain with another seed, on {'the same' if same else 'other'} clips:\n\n{again}"
        )
    result = SamplingResult(reference, trials, confirmed, chosen, [])
    seconds = seconds_in_turns(context, (reference.sampler, chosen.sampler))
    return result, f"{text}\n\n{_verdict(result, tolerance, seconds)}"


def _confirm(
    context: Context, candidates: Sequence[Trial], tolerance: float
) -> tuple[Trial | None, list[Trial]]:
    """The first candidate that is within on these clips too, and what was measured to find it."""
    if not candidates:
        return None, []
    reference, clips = measure_sampler(context, REFERENCE)
    confirmed = [reference]
    for candidate in candidates:
        trial, _ = measure_sampler(context, candidate.sampler, clips)
        confirmed.append(trial)
        if not quality.losses(trial, reference, _num_clips(context), tolerance):
            return candidate, confirmed
        logger.info("%s is not within on other clips", quality.name_of(candidate.sampler))
    return None, confirmed


def halves(context: Context) -> tuple[Context, Context]:
    """Disjoint halves of the clips, to choose on and to confirm on with another seed.

    Given pairs are halved as well. Fewer than four clips, or two given pairs, stay together; then
    only the seed is another.
    """
    settings, given = context.settings, context.given_pairs
    order = np.random.default_rng(settings.seed).permutation(context.trial)
    found = []
    for half in range(2):
        trial, pairs = context.trial, given
        if len(order) >= 4:
            trial = order[half::2]
        if given is not None and len(given[0]) >= 2:
            pairs = (given[0][half::2], given[1][half::2])
        seeded = dataclasses.replace(settings, seed=settings.seed + half)
        found.append(dataclasses.replace(context, trial=trial, given_pairs=pairs, settings=seeded))
    return found[0], found[1]


def _num_clips(context: Context) -> int:
    """Clips that shares are of: swaps, where there are any."""
    return len(context.some_clips() if context.why_no_swaps() else context.pairs()[1])


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

    def decode(
        self, factors: Factors, start: Any = None, num_steps: int | None = None, seed: int = 0
    ) -> Clips:
        """As the model's, which has run to its end."""
        began = time.perf_counter()
        clips = np.asarray(self._model.decode(factors, start, num_steps, seed))
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
    recorder = _Recorder(cast(DiffSDA, context.model).using(sampler=sampler))
    settings = dataclasses.replace(
        context.settings, num_steps=sampler.num_steps, solver=sampler.solver
    )
    return dataclasses.replace(context, model=recorder, settings=settings), recorder


def _recorded(context: Context, recorder: _Recorder) -> tuple[Clips, np.ndarray]:
    """Clips of swaps and reconstructions, without what fills batches, and what counts of them.

    Of a swap that is what is observed of the donor of the dynamics, as its padding is.
    """
    shown = [] if context.why_no_swaps() else [context.pairs()[1]]
    shown.append(context.some_clips())
    counts = [
        count
        for index in shown
        for _, count in padded_batches(len(index), context.settings.batch_size)
    ]
    batches = zip(recorder.clips, counts, strict=True)
    clips = np.concatenate([batch[:count] for batch, count in batches])
    return clips, context.observed(np.concatenate(shown))


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
    found: dict[str, float] = {}
    for part in ("swap", "reconstruction"):
        metrics, _ = PARTS[part](context)
        found |= {name: metrics[name] for name in quality.LEAST_LOSS if name in metrics}
    clips, observed = _recorded(context, recorder)
    found["distance_nmse"] = 0.0
    if reference is not None:
        found["distance_nmse"] = measure.normalized_mse(reference, clips, observed)
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


def _verdict(result: SamplingResult, tolerance: float, seconds: Sequence[float]) -> str:
    """The choice in a few sentences."""
    reference, chosen = result.reference, result.chosen
    before = reference.sampler.evaluations
    left_out = quality.not_compared(reference)
    note = ""
    if left_out:
        note = f" Not compared, as {before} evaluations of Heun give no number: {_named(left_out)}."
    if chosen is reference:
        return (
            f"no sampler is within {tolerance:g} % of {before} evaluations of Heun on every "
            f"measure, so Heun stays; * in the table marks what is lost.{note}"
        )
    pairs = [(chosen, reference), (result.confirmed[-1], result.confirmed[0])]
    beyond = {name: 0 for pair in pairs for name in quality.by_floor(*pair, tolerance)}
    within = "on every measure"
    if beyond:
        within = (
            f"but for {_named(beyond)}, worse by more and still below the least loss that counts "
            f"(0.002 of nmse, 0.05 pixels, one clip)"
        )
    return (
        f"chosen: {quality.name_of(chosen.sampler)}, {chosen.sampler.evaluations} evaluations, "
        f"within {tolerance:g} % of {before} evaluations of Heun {within}, and "
        f"{seconds[0] / seconds[1]:.1f} times as fast ({1e3 * seconds[1]:.3g} ms a clip after "
        f"{1e3 * seconds[0]:.3g}, measured in turns).{note}"
    )


def _named(names: Iterable[str]) -> str:
    """Metrics by the headings of the table."""
    return ", ".join(quality.LEAST_LOSS[name][0] for name in names)


def _write(
    workdir: Path, step: int, result: SamplingResult, text: str, settings: dict[str, Any]
) -> list[Path]:
    """Writes metrics, table and plot and, last of all and in one piece, the choice."""
    folder, reference, chosen = workdir / FOLDER / f"{step:08d}", result.reference, result.chosen
    metrics = {
        f"{prefix}{quality.name_of(trial.sampler)}, {trial.sampler.evaluations}/{name}": value
        for prefix, trials in (
            ("", (reference, *result.trials)),
            ("confirmed: ", result.confirmed),
        )
        for trial in trials
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
