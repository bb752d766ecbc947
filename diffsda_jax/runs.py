"""What the command line starts: training in a workdir, evaluation, and a tiny trial of both."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffsda_jax import experiment as experiments
from diffsda_jax.codec import load_sampler
from diffsda_jax.data.sources import SOURCES, ElementSpec, Source
from diffsda_jax.data.sources.pairs import read_pairs
from diffsda_jax.data.synthetic import Synthetic
from diffsda_jax.eval_setup import make_domain
from diffsda_jax.evals import report
from diffsda_jax.evals.context import Context, Domain, EvalSettings
from diffsda_jax.evals.enrolment import enrol_unseen
from diffsda_jax.evals.interface import encode_clips
from diffsda_jax.evals.judges import Judge, make_judge
from diffsda_jax.evals.result import EvalResult
from diffsda_jax.experiment import Experiment
from diffsda_jax.first_stage_api import FirstStage
from diffsda_jax.model import variable_shapes
from diffsda_jax.pipeline import DiffSDA
from diffsda_jax.prior_api import FOLDER, Prior
from diffsda_jax.train import integrity, loop
from diffsda_jax.train.state import TrainState, variables_of
from diffsda_jax.train.writers import MetricWriter
from diffsda_jax.workdirs import Training, check_workdir, open_workdir, purpose_of, train_in

logger = logging.getLogger(__name__)


def run_train(
    config: ConfigDict, workdir: str | Path, sources: dict[str, Source] | None = None
) -> loop.TrainResult:
    """Trains, or goes on where the workdir's last checkpoint is.

    Args:
      config: from a file of ``configs/``.
      workdir: made if missing; checkpoints, logs, ``config.json`` and evaluations go there.
      sources: splits to use instead of the config's own.

    Returns:
      How it ended.

    Raises:
      ValueError, FileNotFoundError: as ``experiment.build`` and ``check_workdir``.
      train.loop.NonFiniteLossError: the loss is not finite.
    """
    experiment = experiments.build(config, sources)
    runner = EvalRunner(experiment)

    def prepare(place: Path, mesh: Mesh, fresh: bool) -> Training:
        transformation, step_fn, _ = experiments.make_training(experiment, mesh)
        state = experiments.initial_state(experiment, transformation, mesh, use_init_from=fresh)
        return Training(
            step_fn=step_fn,
            state=state,
            iterator=experiments.make_iterator(experiment, config.seed),
            meta=experiment.meta(),
            summary=experiments.describe(experiment, state.params, mesh),
            make_evaluator=functools.partial(make_evaluator, runner, place),
            parameters=experiments.parameter_table(state.params),
        )

    return train_in(workdir, purpose_of(experiment), prepare)


def make_evaluator(
    runner: "EvalRunner", workdir: Path, writer: MetricWriter
) -> Callable[[int, TrainState], None]:
    """What the training loop calls to evaluate; data and judge are made once, at the first call."""

    def evaluate(step_number: int, state: TrainState) -> None:
        variables = variables_of(state, runner.experiment.config.eval.weights)
        spec, normalizer = runner.experiment.spec, runner.experiment.normalizer
        sampler = load_sampler(workdir, step_number)  # as --mode=eval would at this step
        model = DiffSDA(spec, variables, normalizer, sampler=sampler)
        result = runner.run(model, workdir / "eval" / f"{step_number:08d}")
        write_result(writer, step_number, result, runner.domain)

    return evaluate


def write_result(
    writer: MetricWriter, step_number: int, result: EvalResult, domain: Domain
) -> None:
    """Writes what an evaluation gave to TensorBoard and the file of metrics."""
    writer.write_scalars(step_number, {f"eval/{k}": v for k, v in result.metrics.items()})
    writer.write_images(step_number, {f"eval/{k}": v[None] for k, v in result.images.items()})
    if result.sounds and domain.sound is not None:
        sounds = {f"eval/{name}": samples for name, samples in result.sounds.items()}
        writer.write_audios(step_number, sounds, domain.sound.sample_rate_hz)
    videos = {f"eval/{name}": video[None] for name, video in result.videos.items()}
    writer.write_videos(step_number, videos, fps=domain.fps)


class EvalRunner:
    """Evaluates models of one experiment; keeps data and judge between calls."""

    def __init__(self, experiment: Experiment, first_stage: FirstStage | None = None):
        """No data are loaded before the first ``run``, but a bad network or pair file shows here.

        Args:
          experiment: whose data are used.
          first_stage: that made latents of the data; None takes the config's.
        """
        self.experiment = experiment
        self._data: dict[tuple[str, int], dict] = {}
        self._judge: Judge | None = None
        self.domain = make_domain(experiment, first_stage)
        options = experiment.config.eval
        if options.pairs:
            read_pairs(options.pairs, experiment.sources[options.split])

    def load(self, split: str, limit: int) -> dict:
        """Arrays of one split, loaded once."""
        if (split, limit) not in self._data:
            self._data[split, limit] = experiments.load_split(self.experiment, split, limit)
        return self._data[split, limit]

    def load_test(self) -> dict:
        """Arrays of what is evaluated, loaded once: clips of a split, or the windows of pairs."""
        options = self.experiment.config.eval
        if not options.pairs:
            return self.load(options.split, options.num_clips)
        if self.domain.given_pairs is None:
            arrays, pairs = experiments.load_pairs(self.experiment)
            self._data["pairs", 0] = arrays
            self.domain = dataclasses.replace(self.domain, given_pairs=pairs)
        return self._data["pairs", 0]

    def make_context(
        self, model: DiffSDA, settings: EvalSettings, with_judge: bool = True
    ) -> Context:
        """What the parts of an evaluation see, for measures beside an evaluation.

        Args:
          model: encodes; others with its encoder may take its place in the result.
          settings: of the parts.
          with_judge: whether to train one.

        Returns:
          Data, factors and, where there are labels, a judge.
        """
        options = self.experiment.config.eval
        train, test = self.load("train", options.num_train_clips), self.load_test()
        readers, trial, _ = enrol_unseen(train, test, spare=self.domain.given_pairs is None)
        factors = [
            encode_clips(
                model,
                data["x"],
                data.get("length"),
                data.get("mask"),
                batch_size=settings.batch_size,
            )
            for data in (train, test)
        ]
        return Context(
            model=model,
            kind=self.experiment.element.kind,
            train=train,
            test=test,
            train_factors=factors[0],
            test_factors=factors[1],
            judge=make_judge(readers, settings.judge_steps, settings.seed) if with_judge else None,
            settings=settings,
            readers=readers,
            trial=trial,
            **vars(self.domain),
        )

    def run(self, model: DiffSDA, output_dir: Path, prior: Prior | None = None) -> EvalResult:
        """Evaluates one model, writes tables and pictures, prints the table.

        Args:
          model: with the weights to evaluate.
          output_dir: made if missing.
          prior: over its factors, for the parts that sample them.

        Returns:
          Metrics, the files written, and pictures for TensorBoard.
        """
        # Its libraries take seconds to import, which the first step should not wait for.
        from diffsda_jax.evals.evaluate import evaluate

        options = self.experiment.config.eval
        element = self.experiment.element
        model, settings = experiments.as_evaluated(self.experiment.config, model)
        train = self.load("train", options.num_train_clips)
        test = self.load_test()
        result = evaluate(
            model,
            train,
            test,
            kind=element.kind,
            static_names=element.static_names,
            dynamic_names=element.dynamic_names,
            feature_names=element.feature_names,
            denormalize=self.experiment.normalizer.invert,
            domain=dataclasses.replace(self.domain, prior=prior),
            judge=self._judge,
            output_dir=output_dir,
            **dataclasses.asdict(settings),
        )
        self._judge = result.judge
        print(
            f"form {settings.form!r}, swaps start from {settings.start!r} noise, sampled with "
            f"{model.sampler.evaluations} evaluations of {model.sampler.solver!r}"
        )
        print(report.format_table(result.metrics), flush=True)
        for file in result.files:
            logger.info("wrote %s", file)
        return result


def run_eval(config: ConfigDict, workdir: str | Path) -> EvalResult:
    """Evaluates the newest checkpoint of a workdir.

    Args:
      config: of the run.
      workdir: with a trained or converted checkpoint.

    Returns:
      Metrics, files and pictures; they also lie in ``<workdir>/eval/<step>``.

    Raises:
      ValueError, FileNotFoundError: as ``experiment.build``; no checkpoint, or of another model.
    """
    experiment, model = load_trained(config, workdir)
    step_number = int(model.meta.get("step", 0))
    place = Path(workdir).expanduser()
    output_dir = place / "eval" / f"{step_number:08d}"
    prior, why_not = load_prior(place, model, config.eval.weights)
    runner = EvalRunner(experiment)
    runner.domain = dataclasses.replace(runner.domain, why_no_prior=why_not)
    return runner.run(model, output_dir, prior)


def load_trained(
    config: ConfigDict, workdir: str | Path, sources: dict[str, Source] | None = None
) -> tuple[Experiment, DiffSDA]:
    """The newest model of a workdir, and the experiment that it was trained in.

    Args:
      config: of the run.
      workdir: with a trained or converted checkpoint.
      sources: splits to use instead of the config's own.

    Raises:
      ValueError, FileNotFoundError: as ``experiment.build``; no checkpoint, or of another model.
    """
    model = DiffSDA.from_checkpoint(workdir, weights=config.eval.weights)
    experiment = experiments.build(config, sources, model.normalizer)
    integrity.check_compatible(variable_shapes(experiment.spec), model.variables)
    check_workdir(open_workdir(workdir), experiment)
    return experiment, model


def load_prior(workdir: Path, model: DiffSDA, weights: str) -> tuple[Prior | None, str | None]:
    """The prior over the factors of a workdir's model.

    Args:
      workdir: of the model.
      model: as it was loaded, with the weights ``weights``.
      weights: ``"ema"`` or ``"raw"``, of the model and of the prior.

    Returns:
      The prior and None; or None, and why the one that there is cannot be used (None: there is
      none).
    """
    if not (workdir / FOLDER).is_dir():
        return None, None
    try:
        prior = Prior.from_checkpoint(workdir, weights)
        prior.check_model(model.spec, model.variables, weights)
    except (FileNotFoundError, ValueError) as error:
        return None, f"the prior in {workdir / FOLDER} cannot be used: {error}"
    return prior, None


def smoke(config: ConfigDict, workdir: str | Path) -> loop.TrainResult:
    """Tries a configuration without its data: same structure, tiny widths, two steps, one eval.

    Args:
      config: from a file of ``configs/``; it is not changed.
      workdir: an empty folder.

    Returns:
      How the two steps ended.

    Raises:
      ValueError: whatever is wrong with the configuration.
    """
    config = shrink(config)
    kind, num_steps, rate = SOURCES[config.source.name].kind or "series", config.data.length, None
    shape = {"video": (4, 4, 1 if config.source.name == "digits" else 3), "series": (5,)}
    if kind == "audio":
        num_steps, rate = 743, 16_000.0  # that many samples give 4 mel frames
    element = ElementSpec(
        kind, shape.get(kind, ()), static_names=("a", "b"), dynamic_names=("c", "d"), fps=rate
    )
    sources: dict[str, Source] = {
        split: Synthetic(split, element, num_items=16, num_steps=num_steps)
        for split in ("train", "test")
    }
    config.data.cache_dir = str(workdir)
    return run_train(config, workdir, sources)


def shrink(config: ConfigDict) -> ConfigDict:
    """A copy of a config with all choices kept and all sizes made as small as they can be."""
    config = config.copy_and_resolve_references()
    model = config.model
    model.update(static_dim=4, dynamic_dim=2, hidden_dim=8, width=4, encoder_width=4)
    model.update(channels=32, encoder_channels=32, channel_mults=(1, 1))
    if model.attention_levels:
        model.attention_levels = (1,)
    config.data.length = 4
    config.train.update(
        batch_size=8, num_steps=2, log_every_steps=1, checkpoint_every_steps=2, eval_every_steps=0
    )
    config.eval.update(num_steps=2, num_swaps=8, num_samples=8)
    config.eval.update(judge_steps=5, task_steps=5, batch_size=16)
    config.eval.num_clips = min(config.eval.num_clips, 64)
    config.eval.num_train_clips = min(config.eval.num_train_clips, 128)
    config.loss.noise_draws = min(config.loss.noise_draws, 2)
    config.prior.update(width=8, num_layers=1, num_heads=2, batch_size=8, num_steps=2)
    config.prior.update(encode_batch_size=16, sample_steps=2)
    return config
