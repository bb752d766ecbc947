"""``--mode=zero_shot``: a trained or converted model on data that it never saw."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffsda_jax import config as configuration
from diffsda_jax import experiment as experiments
from diffsda_jax import runs, workdirs
from diffsda_jax.data.sources import Source
from diffsda_jax.eval_setup import load_first_stage
from diffsda_jax.evals.result import EvalResult
from diffsda_jax.experiment import Experiment
from diffsda_jax.first_stage_api import FirstStage
from diffsda_jax.pipeline import DiffSDA
from diffsda_jax.train.lock import WorkdirLock

logger = logging.getLogger(__name__)

FOLDER = "zero_shot"
_CLIPS_FOR_STATISTICS = 200


class EncodedFrames(Source):
    """A video source whose clips are encoded as they are read: frames of one are held at a time."""

    kind = "video"

    def __init__(self, source: Source, first_stage: FirstStage, chunk_frames: int):
        """See ``FirstStage.encode`` for what frames it takes."""
        super().__init__(source.split, source.max_skipped_share)
        self.name = source.name
        self._source: Any = source  # those of video cut windows by methods of their own
        self._first_stage, self._chunk_frames = first_stage, chunk_frames
        height, width = (side // first_stage.spec.factor for side in source.spec.shape[:2])
        shape = (height, width, first_stage.spec.embed_dim)
        self.spec = dataclasses.replace(source.spec, shape=shape)

    def __len__(self) -> int:
        """Number of clips."""
        return len(self._source)

    def item_name(self, index: int) -> str:
        """Name of a clip."""
        return self._source.item_name(index)

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A clip with latents for frames, not normalised."""
        return self._encoded(self._source.load(index, rng))

    def load_window(self, index: int, start: int) -> dict[str, Any]:
        """The window of a clip from a given frame on, likewise."""
        return self._encoded(self._source.load_window(index, start))

    def last_start(self, index: int) -> int:
        """The largest first frame of a window of a clip."""
        return self._source.last_start(index)

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation ``[E]`` of the channels, over some clips of this split.

        For weights that were released without the statistics of their latents.
        """
        count = min(len(self), _CLIPS_FOR_STATISTICS)
        chosen = np.linspace(0, len(self) - 1, count).round().astype(int)
        logger.info("the model has no statistics of its latents: those of %d clips here", count)
        clips = [self.load(int(index), np.random.default_rng(0))["x"] for index in chosen]
        values = np.concatenate([x.reshape(-1, x.shape[-1]) for x in clips]).astype(np.float64)
        return values.mean(0), values.std(0)

    def _encoded(self, element: dict[str, Any]) -> dict[str, Any]:
        return element | {"x": self._first_stage.encode(element["x"], self._chunk_frames)}

    def _identity(self) -> Any:
        return [self._source.fingerprint(), self._first_stage.fingerprint()]


def run_zero_shot(config: ConfigDict, checkpoint: str | Path, workdir: str | Path) -> EvalResult:
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
    configuration.check_config(config)
    model = DiffSDA.from_checkpoint(checkpoint, weights=config.eval.weights)
    config = config.copy_and_resolve_references()
    first_stage = _first_stage_for(config, model)
    _read_as_trained(config, model, first_stage)
    sources = configuration.make_sources(config)
    if first_stage is not None:
        chunk_frames = config.first_stage.chunk_frames
        sources = {
            split: EncodedFrames(source, first_stage, chunk_frames)
            for split, source in sources.items()
        }
    experiment = experiments.build(config, sources, model.normalizer)
    _check_fits(experiment, model)
    experiment = dataclasses.replace(experiment, spec=model.spec)
    workdir = workdirs.open_workdir(workdir)
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
    return load_first_stage(config)


def _read_as_trained(config: ConfigDict, model: DiffSDA, first_stage: FirstStage | None) -> None:
    """Sets the frame size that the model takes, and the length where the config has one frame."""
    options = config.source.options
    if model.spec.kind == "video" and "size" in options:
        size = model.spec.shape[0] * (1 if first_stage is None else first_stage.spec.factor)
        if options.size != size:
            logger.info("frames are read at %d x %d, as the model takes them", size, size)
        options.size = size
    length = model.meta.get("config", {}).get("data", {}).get("length", 1)
    if config.data.length == 1 < length:  # a config for training first stages
        logger.info("clips of %d frames, as in training; data.length sets another number", length)
        config.data.length = length
        if "length" in options:
            options.length = length


def _check_fits(experiment: Experiment, model: DiffSDA) -> None:
    """Refuses data of another kind or shape than the model's."""
    kind, shape = experiment.element.kind, tuple(experiment.element.shape)
    if (kind, shape) != (model.spec.kind, tuple(model.spec.shape)):
        raise ValueError(
            f"the model takes a {model.spec.kind} with steps {tuple(model.spec.shape)}, source "
            f"{experiment.config.source.name!r} gives a {kind} with steps {shape}: choose a config "
            "of such data, or another --checkpoint."
        )
