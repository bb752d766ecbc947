"""From a config to what it names: data, normaliser, model, optimiser, training step, state."""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffsda_jax import config as configuration
from diffsda_jax.data import pipeline as data_pipeline
from diffsda_jax.data.sources import ElementSpec, Source
from diffsda_jax.data.sources.base import SPLITS
from diffsda_jax.data.sources.pairs import PairWindows, read_pairs
from diffsda_jax.data.transforms import Normalizer, fit_normalizer
from diffsda_jax.diffusion.samplers import SOLVERS, SamplerSpec
from diffsda_jax.evals.context import EvalSettings, Pairs
from diffsda_jax.evals.swap import INVERTED_STARTS
from diffsda_jax.features import FrontEnd, fit_front_end_normalizer, frames_of_batch, load_frames
from diffsda_jax.model import (
    PRECISIONS,
    ModelSpec,
    init_variables,
    make_model,
    variable_shapes,
)
from diffsda_jax.pipeline import DiffSDA
from diffsda_jax.prior_spec import PriorSpec
from diffsda_jax.rngs import stream
from diffsda_jax.train import optimizer, step
from diffsda_jax.train.state import WEIGHTS, TrainState, create_state


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config stands for.

    Attributes:
      config: checked and locked.
      sources: ``train`` and ``test`` split.
      normalizer: fitted on the training split.
      spec: the model's description.
      element: what one step looks like to the model.
      front_end: turns waveforms into steps; None where the data are sequences already.
    """

    config: ConfigDict
    sources: dict[str, Source]
    normalizer: Normalizer
    spec: ModelSpec
    element: ElementSpec
    front_end: FrontEnd | None = None

    def meta(self) -> dict[str, Any]:
        """What checkpoints say of the run: enough to restore the model without the config file."""
        element = self.element
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
                "facts": getattr(self.sources["train"], "facts", None),  # of latents: their making
            },
            "front_end": self.front_end and dataclasses.asdict(self.front_end),
        }


def model_spec(
    config: ConfigDict, kind: str, shape: tuple[int, ...], masked: bool = False
) -> ModelSpec:
    """The model's description from the config and what a step of the data looks like.

    Args:
      config: only its section ``model`` is read.
      kind: ``video`` or ``series``.
      shape: of one step.
      masked: values may be missing; without this there is no mask for the encoder to see.

    Raises:
      ValueError: a value that the model refuses.
    """
    options = config.model.to_dict()
    options["encoder_sees_mask"] &= masked and kind == "series"
    return ModelSpec(kind=kind, shape=shape, **options)


def prior_spec(config: ConfigDict) -> PriorSpec:
    """The prior's description: sections ``prior``, ``model`` and ``data`` of a config.

    Raises:
      ValueError: a value that the prior refuses.
    """
    fields = {field.name for field in dataclasses.fields(PriorSpec)}
    return PriorSpec(
        static_dim=config.model.static_dim,
        dynamic_dim=config.model.dynamic_dim,
        length=config.data.length,
        **{name: value for name, value in config.prior.items() if name in fields},
    )


def build(
    config: ConfigDict,
    sources: dict[str, Source] | None = None,
    normalizer: Normalizer | None = None,
) -> Experiment:
    """Checks a config and makes what it names.

    Args:
      config: from a file of ``configs/``.
      sources: splits to use instead of the config's own.
      normalizer: one to use instead of fitting it.

    Returns:
      The experiment.

    Raises:
      ValueError, FileNotFoundError: one line that names what is wrong and the way out.
    """
    configuration.check_config(config)
    eval_settings(config)
    sources = sources or configuration.make_sources(config)
    element = sources["train"].spec
    front_end = make_front_end(config, sources["train"])
    if front_end is not None:
        element = front_end.element(element)
    if normalizer is None:
        normalizer = _fit_normalizer(config.data, sources["train"], front_end)
    spec = model_spec(config, element.kind, element.shape, element.masked)
    return Experiment(config, sources, normalizer, spec, element, front_end)


def make_front_end(config: ConfigDict, source: Source) -> FrontEnd | None:
    """What turns the waveforms of an audio source into sequences; None for other sources.

    Raises:
      ValueError: an unknown front end, or a sequence length that it does not give.
    """
    if source.spec.kind != "audio":
        return None
    lengths, rate_hz = source.lengths(), source.spec.fps
    if lengths is None or rate_hz is None:
        raise ValueError(
            f"source {source.name!r} must say lengths and rate (spec.fps) of its sound."
        )
    samples = int(lengths[0])  # the same for all chunks
    front_end = FrontEnd(config.data.front_end, int(rate_hz), samples)
    length, _ = front_end.shape()
    if config.data.length != length:
        raise ValueError(
            f"config.data.length is {config.data.length}, but {samples} samples give {length} "
            f"frames of the front end {front_end.kind!r}; set --config.data.length={length}."
        )
    return front_end


def _fit_normalizer(data: ConfigDict, source: Source, front_end: FrontEnd | None) -> Normalizer:
    """The normaliser of the training split."""
    if front_end is not None:
        return fit_front_end_normalizer(source, front_end, data.target_std, data.cache_dir)
    # Only resampling changes the values; a crop of each sequence would be a worse sample of them.
    length = data.length if data.length_mode == "resample" else None
    return fit_normalizer(source, target_std=data.target_std, length=length)


def eval_settings(config: ConfigDict) -> EvalSettings:
    """The settings of an evaluation.

    Raises:
      ValueError: an option of ``config.eval`` that is not allowed, before anything is trained.
    """
    options = config.eval
    for name, allowed in (("weights", tuple(WEIGHTS)), ("split", SPLITS)):
        if options[name] not in allowed:
            raise ValueError(
                f"config.eval.{name} is {options[name]!r}; allowed: "
                f"{', '.join(map(repr, allowed))}."
            )
    counts = (
        "num_clips",
        "num_train_clips",
        "num_swaps",
        "judge_steps",
        "task_steps",
        "batch_size",
        "num_samples",
    )
    for name in ("num_steps", *counts):
        least = 2 if name == "num_steps" else 1
        if options[name] < least:
            raise ValueError(f"config.eval.{name} is {options[name]}; allowed: {least} or more.")
    for name, allowed in (("solver", SOLVERS), ("precision", PRECISIONS)):
        if options[name] and options[name] not in allowed:
            raise ValueError(
                f"config.eval.{name} is {options[name]!r}; allowed: '' or one of "
                f"{', '.join(map(repr, allowed))}."
            )
    return EvalSettings(
        num_swaps=options.num_swaps,
        num_steps=options.num_steps,
        solver=options.solver or EvalSettings.solver,
        start=options.start,
        seed=options.seed,
        form=options.form,
        parts=tuple(options.parts),
        judge_steps=options.judge_steps,
        task_steps=options.task_steps,
        batch_size=options.batch_size,
        num_samples=options.num_samples,
        interpolation=options.interpolation,
    )


def as_evaluated(config: ConfigDict, model: DiffSDA) -> tuple[DiffSDA, EvalSettings]:
    """A model with the sampler and precision of section ``eval``, and the settings that say so.

    Without ``eval.solver`` the sampler is the model's own, where ``--mode=sampling`` chose one or
    the model was made for one; else Heun with ``eval.num_steps``.

    Raises:
      ValueError: as ``eval_settings``; swaps that start from what is inverted, of a model that
        cannot invert.
    """
    settings = eval_settings(config)
    sampler = model.sampler
    if config.eval.solver or model.chosen_sampler is None:
        sampler = SamplerSpec(settings.solver, settings.num_steps)
    model = model.using(sampler=sampler, precision=config.eval.precision or None)
    if settings.start in INVERTED_STARTS and not model.can_invert:
        raise ValueError(
            f"swaps start from {settings.start!r} noise (config.eval.start, or that of "
            f"config.eval.form={settings.form!r}), which a distilled model cannot find, as it "
            "cannot invert; set --config.eval.start=random."
        )
    settings = dataclasses.replace(settings, solver=sampler.solver, num_steps=sampler.num_steps)
    return model, settings


def make_iterator(experiment: Experiment, seed: int, batch_size: int | None = None) -> Any:
    """Endless training batches of this process, on Grain; of ``train.batch_size`` unless told."""
    config = experiment.config
    return data_pipeline.make_train_iterator(
        experiment.sources["train"],
        length=config.data.length,
        length_mode=config.data.length_mode,
        normalizer=experiment.normalizer,
        batch_size=batch_size or config.train.batch_size,
        seed=seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=config.data.num_threads,
        prefetch_batches=config.data.prefetch_batches,
    )


def make_schedule(experiment: Experiment) -> optax.Schedule:
    """Learning rate over the run, of section ``optimizer``."""
    config = experiment.config
    per_epoch = data_pipeline.num_steps_per_epoch(
        experiment.sources["train"], config.train.batch_size
    )
    return schedule_of(config.optimizer, config.train.num_steps, per_epoch)


def schedule_of(options: ConfigDict, num_steps: int, steps_per_epoch: float) -> optax.Schedule:
    """Learning rate over a run, of a section with ``schedule`` and what belongs to it."""
    warmup_steps = 0 if options.schedule == "reference" else options.warmup_steps
    return optimizer.make_schedule(
        options.schedule,
        learning_rate=options.learning_rate,
        total_steps=num_steps,
        warmup_steps=min(warmup_steps, num_steps // 10),
        steps_per_epoch=max(1, round(steps_per_epoch)),
    )


def make_training(
    experiment: Experiment, mesh: Mesh
) -> tuple[optax.GradientTransformation, step.StepFn, step.LossFn]:
    """The optimiser, the jitted training step and the loss it minimises."""
    config, spec = experiment.config, experiment.spec
    schedule = make_schedule(experiment)
    transformation = optimizer.make_optimizer(
        schedule,
        weight_decay=config.optimizer.weight_decay,
        clip_norm=config.optimizer.clip_norm,
    )
    levels = {name: getattr(spec, name) for name in ("sigma_min", "sigma_max", "sigma_data")}
    options = {**config.noise, **config.loss, **levels}
    loss_fn = on_frames(experiment, step.make_loss_fn(make_model(spec), **options))
    step_fn = step.make_train_step(
        loss_fn,
        transformation,
        schedule=schedule,
        ema_half_life_examples=config.optimizer.ema_half_life_examples,
        batch_size=config.train.batch_size,
        mesh=mesh,
        rules=config.mesh.rules,
        accumulation_steps=config.train.accumulation_steps,
        draw_fn=_draw_on_frames(experiment, step.make_draw_fn(**options)),
    )
    return transformation, step_fn, loss_fn


def on_frames(experiment: Experiment, loss_fn: step.LossFn) -> step.LossFn:
    """The loss of batches as the source gives them: waveforms ``[B, N]`` become frames first."""
    if experiment.front_end is None:
        return loss_fn
    to_frames = frames_of_batch(experiment.front_end, experiment.normalizer)

    def loss(params: Any, constants: Any, batch: dict[str, Array], key: Array):
        return loss_fn(params, constants, to_frames(batch), key)

    return loss


def _draw_on_frames(experiment: Experiment, draw_fn: step.DrawFn) -> step.DrawFn:
    """The draws for batches as the source gives them; only the shapes of frames are needed."""
    if experiment.front_end is None:
        return draw_fn
    to_frames = frames_of_batch(experiment.front_end, experiment.normalizer)
    return lambda batch, key: draw_fn(jax.eval_shape(to_frames, batch), key)


def load_split(experiment: Experiment, split: str, limit: int) -> dict[str, np.ndarray]:
    """A split as the arrays that an evaluation reads: ``x`` ``[N, V, ...]``, labels and more."""
    source, config = experiment.sources[split], experiment.config
    if experiment.front_end is not None:
        return load_frames(source, experiment.front_end, experiment.normalizer, limit)
    return data_pipeline.load_arrays(
        source,
        length=config.data.length,
        length_mode=config.data.length_mode,
        normalizer=experiment.normalizer,
        limit=limit,
        seed=config.eval.seed,
    )


def load_pairs(experiment: Experiment) -> tuple[dict[str, np.ndarray], Pairs]:
    """Clips of the distinct windows of ``eval.pairs``, ``x`` ``[N, V, ...]``, and who is swapped.

    Raises:
      ValueError, FileNotFoundError: a pair file that is missing or does not fit the data.
    """
    config = experiment.config
    source = experiment.sources[config.eval.split]
    windows = PairWindows(source, read_pairs(config.eval.pairs, source))
    sources = experiment.sources | {config.eval.split: windows}
    in_pairs = dataclasses.replace(experiment, sources=sources)
    arrays = load_split(in_pairs, config.eval.split, len(windows))
    return arrays, (windows.pairs[0], windows.pairs[1])


def initial_state(
    experiment: Experiment,
    transformation: optax.GradientTransformation,
    mesh: Mesh,
    use_init_from: bool = True,
) -> TrainState:
    """State at step 0: random weights, or the averaged ones of ``train.init_from``."""
    config = experiment.config
    if use_init_from and config.train.init_from:
        from diffsda_jax.train import checkpoint, integrity  # Orbax takes seconds to import

        variables, _ = checkpoint.load_for_inference(config.train.init_from)
        integrity.check_compatible(variable_shapes(experiment.spec), variables)
    else:
        key = stream(jax.random.key(config.seed), "init")
        variables = init_variables(experiment.spec, key)
    return create_state(variables, transformation, mesh, config.mesh.rules)


def describe(experiment: Experiment, params: Any, mesh: Mesh) -> str:
    """A few lines on what is about to be trained on what; of the parameters only shapes matter."""
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return (
        f"{experiment.sources['train'].describe()}\n{experiment.sources['test'].describe()}\n"
        f"model: {count / 1e6:.2f} M parameters, recurrence {experiment.spec.recurrence!r}; "
        f"{mesh.devices.size} {jax.devices()[0].platform} device(s)"
    )


def parameter_table(params: Any) -> str:
    """Name, shape and size of every parameter, and their sum; only shapes matter."""
    from clu import parameter_overview

    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    return parameter_overview.get_parameter_overview(shapes, include_stats=False)
