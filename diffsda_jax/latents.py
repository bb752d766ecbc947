"""From clips on disk to the latents that models of high-resolution video are trained on.

Several workers decode clips a block of frames at a time, all devices encode them in batches, and
the latents of every clip are written as records in the order of the clips.
"""

import contextlib
import dataclasses
import itertools
import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jaxtyping import Float16
from ml_collections import ConfigDict
from tqdm.auto import tqdm

from diffsda_jax import config as configuration
from diffsda_jax import workdirs
from diffsda_jax.data.records import ClipEntry, LatentIndex, LatentWriter
from diffsda_jax.data.sources import SOURCES, BrokenItemError, Source
from diffsda_jax.data.sources.base import hash_of
from diffsda_jax.data.sources.video_folder import VideoFolder
from diffsda_jax.eval_setup import load_first_stage
from diffsda_jax.first_stage_api import FirstStage, FrameEncoder
from diffsda_jax.train.console import progress_bar
from diffsda_jax.train.lock import WorkdirLock

logger = logging.getLogger(__name__)

FOLDER = "latents"  # in a workdir
_BLOCK_FRAMES = 16  # that a worker decodes at a time
_NAMED_SKIPS = 10
# Of a source: where things are, what may be broken, and how windows are cut out of whole clips and
# augmented. Another start may set them anew.
_FREE_OPTIONS = (
    *(workdirs.FREE_OPTIONS["source.options"] or ()),
    *("meta", "info", "max_skipped_share"),
    *("length", "stride", "test_stride", "repeats", "flip", "color_jitter"),
)


@dataclasses.dataclass(frozen=True)
class LatentsResult:
    """What one start did.

    Attributes:
      folder: of the records.
      num_clips: clips encoded and written by this start.
      num_frames: their frames.
      seconds: that encoding and writing took.
      skipped: all clips of each split without a record, as {name: reason}.
    """

    folder: Path
    num_clips: int
    num_frames: int
    seconds: float
    skipped: dict[str, dict[str, str]]


def run_latents(config: ConfigDict, workdir: str | os.PathLike) -> LatentsResult:
    """Encodes all clips of both splits, or those that an earlier start did not finish.

    Args:
      config: from a file of ``configs/``; its source has clips on disk.
      workdir: made if missing; the records go to ``<workdir>/latents``, or to ``latents.folder``.

    Returns:
      What was done, which is logged too.

    Raises:
      ValueError: a source without clips, no first stage, frames that do not fit it, records of
        other data or of another first stage in the folder, too many broken clips, or a bad option.
      FileNotFoundError: the first stage or the data are not where the config says.
    """
    configuration.check_config(config)
    _check_options(config)
    first_stage = load_first_stage(config)
    sources = configuration.make_sources(config)
    _check_frames(first_stage, sources["train"])
    facts = _facts(config, first_stage, sources)
    workdir = workdirs.open_workdir(workdir)
    folder = workdirs.open_workdir(config.latents.folder or workdir / FOLDER)
    encoder = FrameEncoder(
        first_stage,
        configuration.make_mesh(config.mesh),
        config.latents.batch_frames,
        config.first_stage.chunk_frames,
    )
    with contextlib.ExitStack() as stack:
        for place in {workdir.resolve(), folder.resolve()}:
            stack.enter_context(WorkdirLock(place))
        writer = LatentWriter(folder, facts, config.latents.clips_per_shard)
        job = _Job(writer, encoder, config.latents.num_workers)
        began = time.perf_counter()
        job.run(sources)
        seconds = time.perf_counter() - began
    skipped = LatentIndex.load(folder).skipped
    result = LatentsResult(folder, job.num_clips, job.num_frames, seconds, skipped)
    logger.info("%s", _describe(result))
    return result


def _check_options(config: ConfigDict) -> None:
    """Refuses what can be refused before anything is loaded."""
    for section, option in (
        ("first_stage", "chunk_frames"),
        ("latents", "batch_frames"),
        ("latents", "num_workers"),
        ("latents", "clips_per_shard"),
    ):
        if (value := config[section][option]) < 1:
            raise ValueError(f"{section}.{option} is {value}; it must be at least 1.")
    if not issubclass(SOURCES[config.source.name], VideoFolder):
        allowed = [name for name in SOURCES if issubclass(SOURCES[name], VideoFolder)]
        raise ValueError(
            f"source {config.source.name!r} has no clips on disk to encode; --mode=latents takes "
            f"those of {', '.join(allowed)}: give a config with one of these."
        )
    if jax.process_count() > 1:
        raise ValueError(
            f"{jax.process_count()} processes were started; --mode=latents is one process, which "
            "uses all devices of its machine: start it once."
        )


def _check_frames(first_stage: FirstStage, source: Source) -> None:
    """Refuses frames that the first stage does not take."""
    spec, (height, width, channels) = first_stage.spec, source.spec.shape
    if channels != spec.image_channels:
        raise ValueError(
            f"frames have {channels} colours and the first stage takes {spec.image_channels}; use "
            "another one (--config.first_stage.checkpoint)."
        )
    if height % spec.factor or width % spec.factor:
        raise ValueError(
            f"frames are {height}x{width}, which the first stage cannot divide by {spec.factor}; "
            f"set --config.source.options.size to a multiple of {spec.factor}."
        )


def _facts(
    config: ConfigDict, first_stage: FirstStage, sources: dict[str, VideoFolder]
) -> dict[str, Any]:
    """What makes the records what they are; an option that differs says more than a hash.

    Not the fingerprints of the sources, which depend on how windows are cut.
    """
    facts: dict[str, Any] = {"config.source.name": config.source.name}
    for option, value in config.source.options.to_dict().items():
        if option not in _FREE_OPTIONS:
            facts[f"config.source.options.{option}"] = value
    for split, source in sources.items():
        clips = [(source.clip(i), source.clip_labels(i)) for i in range(source.num_clips)]
        listed = [[clip.name, clip.frames, labels] for clip, labels in clips]
        facts[f"data_{split}"] = f"{len(listed)} clips, {hash_of(listed)}"
    return {**facts, "first_stage": first_stage.fingerprint()}


def _describe(result: LatentsResult) -> str:
    """The line at the end of a run."""
    rate = result.num_frames / max(result.seconds, 1e-9)
    skipped = [
        f"{name} ({reason})" for clips in result.skipped.values() for name, reason in clips.items()
    ]
    return (
        f"latents in {result.folder}: wrote {result.num_clips:,} clips, {result.num_frames:,} "
        f"frames in {result.seconds:.1f} s ({rate:.1f} frames/s); skipped {len(skipped)}"
        f"{': ' if skipped else ''}{'; '.join(skipped[:_NAMED_SKIPS])}"
        f"{f'; and {len(skipped) - _NAMED_SKIPS} more' if len(skipped) > _NAMED_SKIPS else ''}"
    )


class _Clip:
    """A clip under way: workers decode it block by block, and its latents gather here.

    Attributes:
      index: place in the source.
      name: of the clip.
      latents: those of its frames so far, in order.
      reason: why it cannot be used; empty if nothing is wrong.
    """

    def __init__(self, source: VideoFolder, index: int, pool: ThreadPoolExecutor):
        """Has a worker decode the first block."""
        self.index, self.name = index, source.clip(index).name
        self.latents: list[np.ndarray] = []
        self.reason = ""
        self._missing, self._at_end = 0, False
        self._pool, self._blocks = pool, source.iter_clip(index, _BLOCK_FRAMES)
        self._next = pool.submit(next, self._blocks, None)

    def read(self) -> np.ndarray | None:
        """The next block, while a worker starts on the one after it; None at the end."""
        try:
            block = self._next.result()
        except BrokenItemError as error:
            self.reason, block = str(error).removeprefix(f"clip {self.name}: "), None
        if block is None:
            self._at_end = True
            return None
        self._missing += len(block)
        self._next = self._pool.submit(next, self._blocks, None)
        return block

    def add(self, latents: np.ndarray) -> None:
        """Takes the latents of the frames that come next."""
        if not np.isfinite(latents).all():
            self.reason = "its latents are not finite in float16 (at most 65504)"
        self.latents.append(latents)
        self._missing -= len(latents)

    @property
    def complete(self) -> bool:
        """Whether all frames are read, or all that can be, and their latents are here."""
        return self._at_end and self._missing == 0


_Batch = list[tuple[_Clip, np.ndarray]]  # consecutive frames of clips


def _started_ahead(clips: Iterable[_Clip], count: int) -> Iterator[_Clip]:
    """The clips in order; those that follow have been started, so that no worker is without."""
    started: deque[_Clip] = deque()
    for clip in clips:
        started.append(clip)
        if len(started) > count:
            yield started.popleft()
    yield from started


def _in_turns(clips: Iterator[_Clip], count: int, opened: deque[_Clip]) -> Iterator:
    """``(clip, block)`` of so many clips in turns: one block of each is held, however long it is.

    Args:
      clips: in order.
      count: of clips that take turns; the next one takes the place of one that ends.
      opened: every clip is appended to it when its turns begin.
    """
    turns: deque[_Clip] = deque()
    while True:
        for clip in itertools.islice(clips, count - len(turns)):
            opened.append(clip)
            turns.append(clip)
        if not turns:
            return
        clip = turns.popleft()
        if (block := clip.read()) is not None:
            turns.append(clip)
            yield clip, block


def _batches(blocks: Iterator[tuple[_Clip, np.ndarray]], size: int) -> Iterator[_Batch]:
    """Blocks cut and joined to batches of ``size`` frames; only the last one has fewer."""
    batch: _Batch = []
    room = size
    for clip, frames in blocks:
        while len(frames):
            part, frames = frames[:room], frames[room:]
            batch.append((clip, part))
            room -= len(part)
            if room == 0:
                yield batch
                batch, room = [], size
    if batch:
        yield batch


class _Job:
    """Encodes splits and writes their records.

    Attributes:
      num_clips: written so far.
      num_frames: of these clips.
    """

    def __init__(self, writer: LatentWriter, encoder: FrameEncoder, num_workers: int):
        """Nothing is read yet."""
        self._writer, self._encoder, self._num_workers = writer, encoder, num_workers
        self.num_clips, self.num_frames = 0, 0

    def run(self, sources: dict[str, VideoFolder]) -> None:
        """Encodes what is missing of every split, then finishes the records."""
        done = {split: self._writer.done(split) for split in sources}
        left = {
            split: [i for i in range(source.num_clips) if source.clip(i).name not in done[split]]
            for split, source in sources.items()
        }
        total = sum(source.num_clips for source in sources.values())
        missing = sum(map(len, left.values()))
        with progress_bar("latents", "clip", total, total - missing) as bar:
            for split, source in sources.items():
                self._encode_split(source, left[split], bar)
        for split, source in sources.items():
            # Only now: until all is done, a later start tries broken clips again and counts them.
            for name, reason in source.skipped.items():
                if name not in done[split]:
                    self._writer.skip(name, split, reason)
        self._writer.finish()

    def _encode_split(self, source: VideoFolder, indices: list[int], bar: tqdm) -> None:
        """Encodes clips of one split and writes them in their order."""
        opened: deque[_Clip] = deque()
        with ThreadPoolExecutor(self._num_workers) as pool:
            try:
                clips = (_Clip(source, index, pool) for index in indices)
                started = _started_ahead(clips, self._num_workers)
                blocks = _in_turns(started, self._num_workers, opened)
                for batch, latents in self._encode(_batches(blocks, self._encoder.batch_frames)):
                    _hand_out(batch, latents)
                    self._write_complete(source, opened, bar)
                self._write_complete(source, opened, bar)  # broken before their first frame
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _encode(self, batches: Iterator[_Batch]) -> Iterator[tuple[_Batch, np.ndarray]]:
        """Batches with their latents; while one is handed out the devices work on the next."""
        ahead: deque[tuple[_Batch, list[Array]]] = deque()
        for batch in batches:
            ahead.append((batch, self._encoder.start(np.concatenate([part for _, part in batch]))))
            if len(ahead) > 1:
                yield self._fetch(*ahead.popleft())
        while ahead:
            yield self._fetch(*ahead.popleft())

    def _fetch(self, batch: _Batch, chunks: list[Array]) -> tuple[_Batch, np.ndarray]:
        return batch, self._encoder.fetch(chunks, sum(len(part) for _, part in batch))

    def _write_complete(self, source: VideoFolder, opened: deque[_Clip], bar: tqdm) -> None:
        """Writes the clips that are complete, as long as no clip before them is missing."""
        while opened and opened[0].complete:
            clip = opened.popleft()
            if clip.reason:
                source.skip(clip.name, clip.reason)
            else:
                latents, labels = np.concatenate(clip.latents), source.clip_labels(clip.index)
                entry = ClipEntry(clip.name, source.split, source.name, len(latents), labels)
                self._writer.write(entry, latents)
                self.num_clips, self.num_frames = self.num_clips + 1, self.num_frames + len(latents)
            bar.update()


def _hand_out(batch: _Batch, latents: Float16[np.ndarray, "N h w E"]) -> None:
    """Gives every clip of a batch its latents."""
    first = 0
    for clip, part in batch:
        clip.add(latents[first : first + len(part)])
        first += len(part)
