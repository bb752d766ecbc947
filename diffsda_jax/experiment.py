"""From a config to a run: builds data, model, optimiser and evaluators, and trains or evaluates."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffsda_jax import config as configuration
from diffsda_jax import sharding
from diffsda_jax.data import pipeline as data_pipeline
from diffsda_jax.data.sources import Source
from diffsda_jax.data.transforms import Normalizer, fit_normalizer
from diffsda_jax.evals import evaluate as evaluation
from diffsda_jax.evals import report
from diffsda_jax.model import ModelSpec, init_variables, make_model
from diffsda_jax.pipeline import DiffSDA, variable_shapes
from diffsda_jax.rngs import stream
from diffsda_jax.train import checkpoint, loop, optimizer, step
from diffsda_jax.train.lock import WorkdirLock
from diffsda_jax.train.state import TrainState, create_state
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


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config stands for.

    Attributes:
      config: checked and locked.
      sources: ``train`` and ``test`` split.
      normalizer: fitted on the training split.
      spec: the model's description.
    """

    config: ConfigDict
    sources: dict[str, Source]
    normalizer: Normalizer
    spec: ModelSpec

    def meta(self) -> dict[str, Any]:
        """What checkpoints say of the run: enough to restore the model without the config file."""
        element = self.sources["train"].spec
        return {
            "model": self.spec.to_dict(),
            "config": configuration.to_json(self.config),
            "normalizer": self.normalizer.to_dict(),
            "source": {
                "name": self.config.source.name,
                "fingerprint": self.sources["train"].fingerprint(),
                "feature_names": element.feature_names and list(element.feature_names),
                "static_names": element.static_names and list(element.static_names),
                "dynamic_names": element.dynamic_names and list(element.dynamic_names),
                "fps": element.fps,
            },
        }


def model_spec(config: ConfigDict, kind: str, shape: tuple[int, ...]) -> ModelSpec:
    """The model's description from the config and the shape of one step of the data.

    Raises:
      ValueError: a value that the model refuses.
    """
    return ModelSpec(kind=kind, shape=shape, **config.model.to_dict())


def build(config: ConfigDict, sources: dict[str, Source] | None = None) -> Experiment:
    """Checks a config and makes what it names.

    Args:
      config: from a file of ``configs/``.
      sources: splits to use instead of the config's own.

    Returns:
      The experiment.

    Raises:
      ValueError, FileNotFoundError: one line that names what is wrong and the way out.
    """
    configuration.check_config(config)
    sources = sources or configuration.make_sources(config)
    data = config.data
    normalizer = fit_normalizer(
        sources["train"],
        target_std=data.target_std,
        length=data.length,
        length_mode=data.length_mode,
    )
    element = sources["train"].spec
    spec = model_spec(config, element.kind, element.shape)
    return Experiment(config, sources, normalizer, spec)


def make_iterator(experiment: Experiment, seed: int) -> Any:
    """Endless training batches of this process, on Grain."""
    config = experiment.config
    return data_pipeline.make_train_iterator(
        experiment.sources["train"],
        length=config.data.length,
        length_mode=config.data.length_mode,
        normalizer=experiment.normalizer,
        batch_size=config.train.batch_size,
        seed=seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=config.data.num_threads,
        prefetch_batches=config.data.prefetch_batches,
    )


def make_training(
    experiment: Experiment, mesh: Mesh
) -> tuple[optax.GradientTransformation, step.StepFn, step.LossFn]:
    """The optimiser, the jitted training step and the loss it minimises."""
    config, spec = experiment.config, experiment.spec
    steps_per_epoch = data_pipeline.num_steps_per_epoch(
        experiment.sources["train"], config.train.batch_size
    )
    schedule = optimizer.make_schedule(
        config.optimizer.schedule,
        learning_rate=config.optimizer.learning_rate,
        total_steps=config.train.num_steps,
        warmup_steps=min(config.optimizer.warmup_steps, config.train.num_steps // 10),
        steps_per_epoch=max(1, round(steps_per_epoch)),
    )
    transformation = optimizer.make_optimizer(
        schedule,
        weight_decay=config.optimizer.weight_decay,
        clip_norm=config.optimizer.clip_norm,
    )
    loss_fn = step.make_loss_fn(
        make_model(spec),
        distribution=config.noise.distribution,
        p_mean=config.noise.p_mean,
        p_std=config.noise.p_std,
        sigma_min=spec.sigma_min,
        sigma_max=spec.sigma_max,
        sigma_data=spec.sigma_data,
        noise_draws=config.loss.noise_draws,
        dynamic_noise=config.loss.dynamic_noise,
    )
    step_fn = step.make_train_step(
        loss_fn,
        transformation,
        schedule=schedule,
        ema_half_life_examples=config.optimizer.ema_half_life_examples,
        batch_size=config.train.batch_size,
        mesh=mesh,
    )
    return transformation, step_fn, loss_fn


def initial_state(
    experiment: Experiment, transformation: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """State at step 0: random weights, or those of ``train.init_from``."""
    config = experiment.config
    if config.train.init_from:
        variables, _ = checkpoint.load_for_inference(config.train.init_from, config.eval.weights)
        checkpoint.check_compatible(variable_shapes(experiment.spec), variables)
    else:
        key = stream(jax.random.key(config.seed), "init")
        model = make_model(experiment.spec)
        variables = jax.jit(lambda k: init_variables(model, k))(key)
    return create_state(variables, transformation, mesh)


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


def run_train(config: ConfigDict, workdir: str | Path) -> loop.TrainResult:
    """Trains, or goes on where the workdir's last checkpoint is.

    Args:
      config: from a file of ``configs/``.
      workdir: made if missing; checkpoints, logs, ``config.json`` and evaluations go there.

    Returns:
      How it ended.

    Raises:
      ValueError, FileNotFoundError: as ``build`` and ``check_workdir``.
      train.loop.NonFiniteLossError: the loss is not finite.
    """
    workdir = Path(workdir).expanduser()
    experiment = build(config)
    mesh = sharding.make_mesh()
    sharding.check_batch_size(config.train.batch_size, mesh)
    workdir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(WorkdirLock(workdir))
        check_workdir(workdir, experiment)
        transformation, step_fn, _ = make_training(experiment, mesh)
        state = initial_state(experiment, transformation, mesh)
        iterator = make_iterator(experiment, config.seed)
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
        logger.info("%s", describe(experiment, mesh))
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


def describe(experiment: Experiment, mesh: Mesh) -> str:
    """A few lines on what is about to be trained on what."""
    shapes = variable_shapes(experiment.spec)["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    return (
        f"{experiment.sources['train'].describe()}\n{experiment.sources['test'].describe()}\n"
        f"model: {count / 1e6:.2f} M parameters, recurrence {experiment.spec.recurrence!r}; "
        f"{mesh.devices.size} {jax.devices()[0].platform} device(s)"
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

    def _load(self, split: str, limit: int) -> dict:
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
        train = self._load("train", options.num_train_clips)
        test = self._load(options.split, options.num_clips)
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
      ValueError, FileNotFoundError: as ``build``; or no checkpoint, or one of another model.
    """
    workdir = Path(workdir).expanduser()
    model = DiffSDA.from_checkpoint(workdir, weights=config.eval.weights)
    experiment = build(config)
    checkpoint.check_compatible(variable_shapes(experiment.spec), model.variables)
    step_number = int(model.meta.get("step", 0))
    return EvalRunner(experiment).run(model, workdir / "eval" / f"{step_number:08d}")
