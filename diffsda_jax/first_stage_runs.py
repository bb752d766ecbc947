"""``--mode=first_stage``: training or fine-tuning a frame autoencoder on the frames of a source.

Of a config are read the source and the sections ``data``, ``first_stage``, ``optimizer``, ``train``
and ``first_stage_training``, and of ``eval`` the split, the weights and the number of clips.
"""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict

from diffsda_jax import experiment as experiments
from diffsda_jax import workdirs
from diffsda_jax.data.plug_ins import import_callable
from diffsda_jax.data.sources import Source
from diffsda_jax.evals import metrics as measure
from diffsda_jax.evals import report
from diffsda_jax.evals.pictures import Picture, strips_image
from diffsda_jax.experiment import Experiment
from diffsda_jax.first_stage.nets import make_model, variable_shapes
from diffsda_jax.first_stage.spec import META_KEY, FirstStageSpec
from diffsda_jax.first_stage_api import FirstStage
from diffsda_jax.nets.patch_discriminator import PatchDiscriminator, check_discriminator
from diffsda_jax.rngs import stream
from diffsda_jax.train import first_stage_step, loop, optimizer
from diffsda_jax.train.first_stage_step import Adversary, FirstStageLoss, Perceptual
from diffsda_jax.train.state import WEIGHTS, TrainState
from diffsda_jax.train.step import StepFn
from diffsda_jax.train.writers import MetricWriter

logger = logging.getLogger(__name__)

_SECTION = "first_stage_training"
_BETAS = {"b1": 0.5, "b2": 0.9}  # of Adam, as these autoencoders and their rivals were published
_COLUMNS = 8  # frames in the picture of an evaluation


def run_first_stage(
    config: ConfigDict, workdir: str | Path, sources: dict[str, Source] | None = None
) -> loop.TrainResult:
    """Trains or fine-tunes a frame autoencoder, or goes on where the workdir's checkpoint is.

    Args:
      config: from a file of ``configs/``.
      workdir: made if missing; ``FirstStage.from_checkpoint(workdir)`` loads the result.
      sources: splits to use instead of the config's own.

    Returns:
      How it ended.

    Raises:
      ValueError, FileNotFoundError: an option, source, checkpoint or workdir that does not fit.
      train.loop.NonFiniteLossError: the loss is not finite.
    """
    experiment = experiments.build(config, sources)
    check_frames(experiment)
    if config.train.accumulation_steps != 1:
        raise ValueError(
            f"config.train.accumulation_steps is {config.train.accumulation_steps}, but "
            "--mode=first_stage works on a batch at once; set it to 1 and lower train.batch_size "
            "or data.length where memory is short."
        )
    losses = make_loss(experiment)

    def prepare(place: Path, mesh: Mesh, fresh: bool) -> workdirs.Training:
        # Its own checkpoint tells a run what it trains: that it started from may be gone.
        start = starting_point(experiment, config.first_stage.checkpoint if fresh else place)
        step_fn, state = make_training(experiment, start, *losses, mesh)
        return workdirs.Training(
            step_fn=step_fn,
            state=state,
            iterator=experiments.make_iterator(experiment, config.seed),
            meta=make_meta(experiment, start.spec),
            summary=describe(experiment, start.spec, mesh),
            make_evaluator=functools.partial(make_evaluator, experiment, start.spec, place),
        )

    purpose = workdirs.purpose_of(experiment, init_option="first_stage.checkpoint")
    return workdirs.train_in(workdir, purpose, prepare)


def check_frames(experiment: Experiment) -> None:
    """Refuses sources that have no frames to train on.

    Raises:
      ValueError: another kind of source, latents, or padded windows.
    """
    config, element = experiment.config, experiment.element
    if element.kind != "video" or config.source.name == "latents":
        what = "latents" if config.source.name == "latents" else f"{element.kind} sequences"
        raise ValueError(
            f"config.source.name is {config.source.name!r}, which has {what}; a first stage is "
            "trained on frames: give the config of a video source, such as "
            "--config=configs/video_folder.py."
        )
    if config.data.length_mode == "pad":
        raise ValueError(
            "config.data.length_mode is 'pad', but padding is no frame to learn from; set "
            "--config.data.length_mode=crop (data.length=1 is enough for a first stage)."
        )


def first_stage_spec(options: ConfigDict, image_channels: int) -> FirstStageSpec:
    """The autoencoder that section ``first_stage_training`` describes.

    Raises:
      ValueError: a size that is not allowed.
    """
    names = ("kind", "channels", "channel_mults", "num_res_blocks", "attention_levels", "embed_dim")
    values = {name: getattr(options, name) for name in names}
    tuples = {name: tuple(v) for name, v in values.items() if isinstance(v, (list, tuple))}
    try:
        return FirstStageSpec(
            **values | tuples,
            z_channels=options.embed_dim,
            codebook_size=options.codebook_size if options.kind == "vq" else 0,
            image_channels=image_channels,
        )
    except ValueError as error:
        raise ValueError(str(error).replace("first_stage.", f"config.{_SECTION}.")) from error


def starting_point(experiment: Experiment, folder: str | Path) -> FirstStage:
    """The autoencoder that training starts from.

    Args:
      experiment: its frames must fit.
      folder: of a checkpoint, of which the averaged weights are taken; empty = random weights.

    Raises:
      ValueError, FileNotFoundError: as ``FirstStage.from_checkpoint``; or frames that do not fit.
    """
    if str(folder):
        first_stage = FirstStage.from_checkpoint(folder)
        logger.info("weights and sizes from %s", folder)
        _check_fit(first_stage.spec, experiment, str(folder))
        return first_stage
    channels = experiment.element.shape[-1]
    spec = first_stage_spec(experiment.config[_SECTION], channels)
    _check_fit(spec, experiment, "")
    key = stream(jax.random.key(experiment.config.seed), "init")
    frame = jax.ShapeDtypeStruct((1, spec.factor, spec.factor, channels), jnp.float32)
    # Outside jit, as in model.init_variables: drawing costs a fraction of compiling it.
    return FirstStage(spec, make_model(spec).lazy_init(key, frame))


def _check_fit(spec: FirstStageSpec, experiment: Experiment, folder: str) -> None:
    """Refuses frames that an autoencoder does not take."""
    height, width, channels = experiment.element.shape
    if spec.image_channels != channels:
        raise ValueError(
            f"first stage {folder} takes frames of {spec.image_channels} channels; those of "
            f"{experiment.config.source.name!r} have {channels}: choose another "
            "config.first_stage.checkpoint, or leave it empty to start from random weights."
        )
    if height % spec.factor or width % spec.factor:
        raise ValueError(
            f"frames are {height}x{width}, but this first stage makes them {spec.factor} times "
            f"smaller; choose a size divisible by {spec.factor}, or fewer levels "
            f"(config.{_SECTION}.channel_mults)."
        )


def make_loss(experiment: Experiment) -> tuple[FirstStageLoss, Adversary | None]:
    """What is minimised, and the discriminator if there is one.

    Raises:
      ValueError: an option that is not allowed.
    """
    options, shape = experiment.config[_SECTION], experiment.element.shape
    weights = ("l2_weight", "perceptual_weight", "commitment_weight", "kl_weight")
    loss = FirstStageLoss(
        perceptual=load_perceptual(options.perceptual, shape),
        **{name: float(options[name]) for name in weights},
    )
    if not options.discriminator_weight:
        return loss, None
    network = PatchDiscriminator(options.discriminator_channels, options.discriminator_layers)
    check_discriminator(network, *shape[:2])
    schedule, late = experiments.make_schedule(experiment), options.discriminator_start_step
    # Its optimiser counts from its own first step; the rate is the autoencoder's at that step.
    rival = make_adam(experiment.config, lambda count: schedule(count + late))
    return loss, Adversary(network, rival, float(options.discriminator_weight), late)


def make_adam(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimiser of either network."""
    options = config.optimizer
    return optimizer.make_optimizer(
        schedule, weight_decay=options.weight_decay, clip_norm=options.clip_norm, **_BETAS
    )


def make_training(
    experiment: Experiment,
    start: FirstStage,
    loss: FirstStageLoss,
    adversary: Adversary | None,
    mesh: Mesh,
) -> tuple[StepFn, TrainState]:
    """The jitted step, and the state at step 0."""
    config, schedule = experiment.config, experiments.make_schedule(experiment)
    transformation = make_adam(config, schedule)
    step_fn = first_stage_step.make_first_stage_step(
        start.spec,
        loss,
        transformation,
        adversary,
        schedule=schedule,
        ema_half_life_examples=config.optimizer.ema_half_life_examples,
        batch_size=config.train.batch_size,
        mesh=mesh,
        rules=config.mesh.rules,
    )
    state = first_stage_step.create_first_stage_state(
        start.variables,
        transformation,
        adversary,
        image_shape=experiment.element.shape,
        key=stream(jax.random.key(config.seed), "discriminator"),
        mesh=mesh,
        rules=config.mesh.rules,
    )
    return step_fn, state


def load_perceptual(name: str, shape: tuple[int, ...]) -> Perceptual | None:
    """The user's distance of frames, tried on shapes; None where there is none.

    Args:
      name: such as "my_networks:lpips"; may be empty.
      shape: (H, W, C) of a frame; the network sees three channels.

    Raises:
      ValueError: it cannot be imported, fails, or gives something else than a number per image.
    """
    if not name:
        return None
    option = f"config.{_SECTION}.perceptual"
    perceptual = import_callable(name, option)
    frames = jax.ShapeDtypeStruct((2, *shape[:2], 3), jnp.float32)
    needed = f"it must take two JAX arrays {frames.shape} in [-1, 1] and return floats (2,)"
    try:
        found = jax.eval_shape(perceptual, frames, frames)
    except Exception as error:  # whatever a user's function does; the cause stays chained
        what = " ".join(str(error).split())[:200] or repr(error)
        raise ValueError(f"{option}={name!r} fails: {what}; {needed}.") from error
    if getattr(found, "shape", None) != (2,) or not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(f"{option}={name!r} returns {found}; {needed}.")
    return perceptual


def make_meta(experiment: Experiment, spec: FirstStageSpec) -> dict[str, Any]:
    """What checkpoints say of the run: enough for ``FirstStage.from_checkpoint``."""
    known = experiment.meta()
    return {META_KEY: spec.to_dict(), "config": known["config"], "source": known["source"]}


def describe(experiment: Experiment, spec: FirstStageSpec, mesh: Mesh) -> str:
    """A few lines on what is about to be trained on what, and what the loss leaves out."""
    config, options = experiment.config, experiment.config[_SECTION]
    count = sum(leaf.size for leaf in jax.tree.leaves(variable_shapes(spec)))
    perceptual = options.perceptual or f"none (config.{_SECTION}.perceptual is empty)"
    discriminator = f"none (config.{_SECTION}.discriminator_weight is 0)"
    if options.discriminator_weight:
        discriminator = f"after {options.discriminator_start_step} steps"
    return (
        f"{experiment.sources['train'].describe()}\n{experiment.sources['test'].describe()}\n"
        f"first stage: {spec.kind} f{spec.factor}, {count / 1e6:.2f} M parameters; perceptual "
        f"distance: {perceptual}; discriminator: {discriminator}\n"
        f"{config.train.batch_size * config.data.length} frames a step; {mesh.devices.size} "
        f"{jax.devices()[0].platform} device(s)"
    )


def make_evaluator(
    experiment: Experiment, spec: FirstStageSpec, workdir: Path, writer: MetricWriter
) -> Callable[[int, TrainState], None]:
    """What the training loop calls to evaluate; the frames are loaded once, at the first call."""
    options = experiment.config.eval

    @functools.cache
    def load() -> np.ndarray:
        x = experiments.load_split(experiment, options.split, options.num_clips)["x"]
        return x.reshape(-1, *x.shape[2:])

    def evaluate(step: int, state: TrainState) -> None:
        weights = getattr(state, WEIGHTS[options.weights])
        variables = jax.device_put({"params": weights}, jax.local_devices()[0])
        first_stage = FirstStage(spec, variables)
        metrics, picture, notes = evaluate_first_stage(
            first_stage, load(), experiment.config.first_stage.chunk_frames
        )
        folder = workdir / "eval" / f"{step:08d}"
        settings = {"split": options.split, "weights": options.weights, "num_frames": len(load())}
        files = [report.write_results(metrics, folder, settings=settings, notes=notes)]
        files += report.write_pictures({"reconstruction": picture}, folder)
        print(report.format_table(metrics), flush=True)
        for line in [*notes, *(f"wrote {file}" for file in files)]:
            logger.info("%s", line)
        writer.write_scalars(step, {f"eval/{name}": value for name, value in metrics.items()})
        writer.write_images(step, {"eval/reconstruction": picture[None]})

    return evaluate


def evaluate_first_stage(
    first_stage: FirstStage, frames: Float[np.ndarray, "N H W C"], chunk_frames: int
) -> tuple[dict[str, float], Picture, list[str]]:
    """Errors of reconstructed frames, and what a VQ makes of its codebook.

    Args:
      first_stage: with the weights to evaluate.
      frames: in [-1, 1].
      chunk_frames: frames that the device holds at once.

    Returns:
      Metrics: L1 (of values in [-1, 1]) and PSNR over all frames; for a VQ the perplexity of the
      codes and the share of them used at all. A picture of some originals and reconstructions.
      Notes.
    """
    latents = first_stage.encode(frames, chunk_frames)
    decoded = np.clip(first_stage.decode(latents, chunk_frames), -1.0, 1.0)  # as a picture shows it
    metrics = {
        "reconstruction/l1": float(np.abs(frames - decoded).mean(dtype=np.float64)),
        "reconstruction/psnr_db": measure.psnr(frames[:, None], decoded[:, None]),
    }
    notes, size = [], first_stage.spec.codebook_size
    if first_stage.spec.kind == "vq":
        quantize = functools.partial(make_model(first_stage.spec).apply, method="quantize")
        _, indices = jax.jit(quantize)(first_stage.variables, latents)
        used = len(np.unique(indices))
        metrics["codebook/perplexity"] = float(first_stage_step.perplexity(indices, size))
        metrics["codebook/used_percent"] = 100.0 * used / size
        notes.append(f"{size - used} of {size} codes are used by none of {len(frames)} frames")
    shown = np.linspace(0, len(frames) - 1, min(_COLUMNS, len(frames))).round().astype(int)
    rows = [("original", frames[shown, None]), ("reconstruction", decoded[shown, None])]
    return metrics, strips_image(rows), notes
