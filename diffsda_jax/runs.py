"""What the command line starts: training in a workdir, evaluation, and a tiny trial of both."""

import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from diffsda_jax import config as configuration
from diffsda_jax import experiment as experiments
from diffsda_jax import sharding
from diffsda_jax.data import pipeline as data_pipeline
from diffsda_jax.data.sources import ElementSpec, Source
from diffsda_jax.data.synthetic import Synthetic
from diffsda_jax.evals import evaluate as evaluation
from diffsda_jax.evals import report
from diffsda_jax.experiment import Experiment
from diffsda_jax.pipeline import DiffSDA, variable_shapes
from diffsda_jax.train import checkpoint, loop
from diffsda_jax.train.lock import WorkdirLock
from diffsda_jax.train.state import TrainState
from diffsda_jax.train.writers import MetricWriter

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
# What may change between two starts in one workdir: how long, how often, what is measured.
FREE_SECTIONS = ("eval",)
FREE_TRAIN_KEYS = (
    "num_steps",
    "log_every_steps",
    "checkpoint_every_steps",
    "eval_every_steps",
    "keep_checkpoints",
)


def check_workdir(workdir: Path, experiment: Experiment) -> None:
    """Writes ``config.json`` into a new workdir; refuses one that belongs to another run.

    Raises:
      ValueError: names the first option that differs, and the way out.
    """
    file = workdir / CONFIG_FILE
    meta = experiment.meta()
    record = {"config": meta["config"], "data": meta["source"]["fingerprint"]}
    if file.exists():
        known = json.loads(file.read_text())
        found = configuration.difference(_fixed(known["config"]), _fixed(record["config"]))
        if found is None and known["data"] != record["data"]:
            found = f"the data ({experiment.sources['train'].describe()}) changed"
        if found:
            raise ValueError(
                f"workdir {workdir} belongs to another run: {found}. Use a new --workdir, or set "
                "the option back; train.init_from starts a new run from this one's weights."
            )
        if changed := configuration.difference(known["config"], record["config"]):
            logger.info("changed since the last start: %s", changed)
    if jax.process_index() == 0:
        scratch = file.with_suffix(".tmp")
        scratch.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
        scratch.replace(file)


def _fixed(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that may not change within a workdir."""
    fixed = {key: value for key, value in config.items() if key not in FREE_SECTIONS}
    train = {k: v for k, v in config["train"].items() if k not in FREE_TRAIN_KEYS}
    return {**fixed, "train": train}


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
    workdir = Path(workdir).expanduser()
    experiment = experiments.build(config, sources)
    mesh = sharding.make_mesh()
    sharding.check_batch_size(config.train.batch_size, mesh)
    workdir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            stack.enter_context(WorkdirLock(workdir))
        check_workdir(workdir, experiment)
        transformation, step_fn, _ = experiments.make_training(experiment, mesh)
        state = experiments.initial_state(experiment, transformation, mesh)
        iterator = experiments.make_iterator(experiment, config.seed)
        checkpointer = stack.enter_context(
            contextlib.closing(
                checkpoint.Checkpointer(
                    workdir / checkpoint.FOLDER, keep=config.train.keep_checkpoints
                )
            )
        )
        state, meta = loop.resume(checkpointer, state, iterator)
        writer = stack.enter_context(contextlib.closing(MetricWriter(workdir / "logs")))
        if meta is None:
            writer.write_hparams(configuration.to_json(config))
        logger.info("%s", experiments.describe(experiment, mesh))
        every = config.train.eval_every_steps or config.train.num_steps
        return loop.train(
            state=state,
            step_fn=step_fn,
            data_iterator=iterator,
            mesh=mesh,
            root_key=jax.random.key(config.seed),
            total_steps=config.train.num_steps,
            checkpointer=checkpointer,
            writer=writer,
            meta=experiment.meta(),
            log_every_steps=config.train.log_every_steps,
            checkpoint_every_steps=config.train.checkpoint_every_steps,
            evaluators=[(every, make_evaluator(experiment, workdir, writer))],
        )


def make_evaluator(
    experiment: Experiment, workdir: Path, writer: MetricWriter
) -> Callable[[int, TrainState], None]:
    """What the training loop calls to evaluate; data and judge are made once, at the first call."""
    runner = EvalRunner(experiment)

    def evaluate(step_number: int, state: TrainState) -> None:
        weights = state.ema if experiment.config.eval.weights == "ema" else state.params
        variables = jax.device_get({"params": weights, "constants": state.constants})
        model = DiffSDA(experiment.spec, variables, experiment.normalizer)
        result = runner.run(model, workdir / "eval" / f"{step_number:08d}")
        writer.write_scalars(step_number, {f"eval/{k}": v for k, v in result.metrics.items()})
        writer.write_images(step_number, {f"eval/{k}": v[None] for k, v in result.images.items()})

    return evaluate


class EvalRunner:
    """Evaluates models of one experiment; keeps data and judge between calls."""

    def __init__(self, experiment: Experiment):
        """Nothing is loaded before the first ``run``."""
        self._experiment = experiment
        self._data: dict[str, dict] = {}
        self._judge: evaluation.Judge | None = None

    def load(self, split: str, limit: int) -> dict:
        """Arrays of one split, loaded once."""
        if split not in self._data:
            config = self._experiment.config
            self._data[split] = data_pipeline.load_arrays(
                self._experiment.sources[split],
                length=config.data.length,
                length_mode=config.data.length_mode,
                normalizer=self._experiment.normalizer,
                limit=limit,
                seed=config.eval.seed,
            )
        return self._data[split]

    def run(self, model: DiffSDA, output_dir: Path) -> evaluation.EvalResult:
        """Evaluates one model, writes tables and pictures, prints the table.

        Args:
          model: with the weights to evaluate.
          output_dir: made if missing.

        Returns:
          Metrics, the files written, and pictures for TensorBoard.
        """
        options = self._experiment.config.eval
        element = self._experiment.sources["train"].spec
        train = self.load("train", options.num_train_clips)
        test = self.load(options.split, options.num_clips)
        result = evaluation.evaluate(
            model,
            train,
            test,
            kind=element.kind,
            num_swaps=options.num_swaps,
            num_steps=options.num_steps,
            start=options.start or None,
            seed=options.seed,
            form=options.form,
            parts=options.parts,
            static_names=element.static_names,
            dynamic_names=element.dynamic_names,
            feature_names=element.feature_names,
            denormalize=self._experiment.normalizer.invert,
            judge=self._judge,
            judge_steps=options.judge_steps,
            batch_size=options.batch_size,
            output_dir=output_dir,
        )
        self._judge = result.judge
        logger.info("%s", report.format_table(result.metrics))
        for file in result.files:
            logger.info("wrote %s", file)
        return result


def run_eval(config: ConfigDict, workdir: str | Path) -> evaluation.EvalResult:
    """Evaluates the newest checkpoint of a workdir.

    Args:
      config: of the run.
      workdir: with a trained or converted checkpoint.

    Returns:
      Metrics, files and pictures; they also lie in ``<workdir>/eval/<step>``.

    Raises:
      ValueError, FileNotFoundError: as ``experiment.build``; no checkpoint, or of another model.
    """
    workdir = Path(workdir).expanduser()
    model = DiffSDA.from_checkpoint(workdir, weights=config.eval.weights)
    experiment = experiments.build(config)
    checkpoint.check_compatible(variable_shapes(experiment.spec), model.variables)
    step_number = int(model.meta.get("step", 0))
    return EvalRunner(experiment).run(model, workdir / "eval" / f"{step_number:08d}")


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
    size = config.source.options.get("size")
    channels = 1 if config.source.name == "digits" else 3
    if size or config.source.name == "digits":
        size = min(size or config.source.options.canvas, 2 ** len(config.model.channel_mults))
        shape, kind = (size, size, channels), "video"
    else:
        shape, kind = (5,), "series"
    element = ElementSpec(kind, shape, static_names=("a", "b"), dynamic_names=("c", "d"))
    sources: dict[str, Source] = {
        split: Synthetic(split, element, num_items=16, num_steps=config.data.length)
        for split in ("train", "test")
    }
    return run_train(config, workdir, sources)


def shrink(config: ConfigDict) -> ConfigDict:
    """A copy of a config with all choices kept and all sizes made as small as they can be."""
    config = config.copy_and_resolve_references()
    model = config.model
    model.update(static_dim=4, dynamic_dim=2, hidden_dim=8, width=4, encoder_width=4)
    model.update(channels=32, encoder_channels=32, channel_mults=(1,) * len(model.channel_mults))
    config.data.length = 4
    config.train.update(
        batch_size=8, num_steps=2, log_every_steps=1, checkpoint_every_steps=2, eval_every_steps=0
    )
    config.eval.update(num_steps=2, num_swaps=8, judge_steps=5, batch_size=16)
    return config
