"""``--mode=zero_shot``: a trained or converted model on data that it never saw."""

import dataclasses
import logging
from pathlib import Path

from ml_collections import ConfigDict

from diffsda_jax import experiment as experiments
from diffsda_jax import runs
from diffsda_jax.evals import evaluate as evaluation
from diffsda_jax.experiment import Experiment
from diffsda_jax.first_stage_api import FirstStage
from diffsda_jax.pipeline import DiffSDA
from diffsda_jax.train.lock import WorkdirLock

logger = logging.getLogger(__name__)

FOLDER = "zero_shot"


def run_zero_shot(
    config: ConfigDict, checkpoint: str | Path, workdir: str | Path
) -> evaluation.EvalResult:
    """Evaluates a model of one data set on the data set of another config.

    The config says what data and how they are evaluated; the model, its frame size and its
    normaliser come from the checkpoint, and what the config says of a model does not count. Frames
    are read at the size that the model takes; a model of latents gets them through
    ``config.first_stage.checkpoint``, which must be the first stage of its training. Sequences may
    have another length than in training.

    Args:
      config: of the data, from a file of ``configs/``.
      checkpoint: workdir, or checkpoint, of the model.
      workdir: for the results, which go to ``<workdir>/zero_shot/<step>``; made if missing.

    Returns:
      Metrics, files and pictures.

    Raises:
      ValueError, FileNotFoundError: no such checkpoint, or data that its model cannot take.
    """
    model = DiffSDA.from_checkpoint(checkpoint, weights=config.eval.weights)
    config = config.copy_and_resolve_references()
    first_stage = _first_stage_for(config, model)
    size = model.spec.shape[0] * (1 if first_stage is None else first_stage.spec.factor)
    if model.spec.kind == "video" and "size" in config.source.options:
        if config.source.options.size != size:
            logger.info("frames are read at %d x %d, as the model takes them", size, size)
        config.source.options.size = size
    experiment = experiments.build(config, normalizer=model.normalizer)
    _check_fits(experiment, model, first_stage)
    experiment = dataclasses.replace(experiment, spec=model.spec)
    workdir = runs.open_workdir(workdir)
    step_number = int(model.meta.get("step", 0))
    with WorkdirLock(workdir):
        runner = runs.EvalRunner(experiment, first_stage)
        return runner.run(model, workdir / FOLDER / f"{step_number:08d}")


def _first_stage_for(config: ConfigDict, model: DiffSDA) -> FirstStage | None:
    """What makes latents of frames, if the model takes latents and the source gives frames."""
    trained_on = model.meta.get("config", {}).get("source", {}).get("name")
    latents = trained_on == "latents" or model.spec.shape[-1] not in (1, 3)
    if model.spec.kind != "video" or not latents or "size" not in config.source.options:
        return None
    if not config.first_stage.checkpoint:
        raise ValueError(
            f"the model takes latents {model.spec.shape} and source {config.source.name!r} gives "
            "frames: set --config.first_stage.checkpoint to the first stage of its training."
        )
    return FirstStage.from_checkpoint(config.first_stage.checkpoint)


def _check_fits(experiment: Experiment, model: DiffSDA, first_stage: FirstStage | None) -> None:
    """Refuses data of another kind or shape than the model's."""
    kind, shape = experiment.element.kind, tuple(experiment.element.shape)
    if first_stage is not None:
        height, width = (side // first_stage.spec.factor for side in shape[:2])
        shape = (height, width, first_stage.spec.embed_dim)
    if (kind, shape) != (model.spec.kind, tuple(model.spec.shape)):
        raise ValueError(
            f"the model takes a {model.spec.kind} with steps {tuple(model.spec.shape)}, source "
            f"{experiment.config.source.name!r} gives a {kind} with steps {shape}: choose a config "
            "of such data, or another --checkpoint."
        )
