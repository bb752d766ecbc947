"""Metrics, pictures and text of a run: TensorBoard events and a JSON-lines file.

The methods have the names and arguments of ``clu.metric_writers.MetricWriter``, whose own
implementations need TensorFlow.
"""

import io
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffsda_jax.audio.wav import encode_wav

METRICS_FILE = "metrics.jsonl"


class MetricWriter:
    """Writes to ``logdir``: event files, and every scalar to ``metrics.jsonl``; process 0 only.

    A run that is resumed appends; where two lines of the JSON file give the same scalar for the
    same step, the later one counts. Events are written by the caller's own thread: tensorboardX's
    ``SummaryWriter`` has one that dies where the disk is full, and then its caller waits for ever.

    Args:
      logdir: local folder; made if missing.
    """

    def __init__(self, logdir: str | Path):
        """Opens the files for appending."""
        self._events: Any = None
        if jax.process_index() != 0:
            return
        from tensorboardX.event_file_writer import EventsWriter  # 0.3 s that --help does not need

        folder = Path(logdir)
        folder.mkdir(parents=True, exist_ok=True)
        # The name has the second; with the process no other start's file is written over.
        self._events = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        self._lines = (folder / METRICS_FILE).open("a+", buffering=1)
        _end_last_line(self._lines)

    def _write(self, step: int, summary: Any) -> None:
        """Writes one ``Summary`` of TensorBoard."""
        from tensorboardX.proto.event_pb2 import Event

        self._events.write_event(Event(step=int(step), wall_time=time.time(), summary=summary))

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes numbers; those that are not finite become text in the JSON file."""
        if self._events is None:
            return
        from tensorboardX.summary import scalar

        values = {name: float(value) for name, value in scalars.items()}
        for name, value in values.items():
            self._write(step, scalar(name, value))
        shown = {name: v if math.isfinite(v) else str(v) for name, v in values.items()}
        record = {"step": int(step), "time": round(time.time(), 3), **shown}
        self._lines.write(json.dumps(record) + "\n")

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes pictures ``[H, W, C]``, or ``[N, H, W, C]`` side by side; uint8 or in [0, 1].

        Raises:
          ValueError: an array of another shape.
        """
        if self._events is None:
            return
        from tensorboardX.summary import image

        for name, value in images.items():
            pixels = np.asarray(value)
            if pixels.ndim not in (3, 4) or pixels.shape[-1] not in (1, 3):
                raise ValueError(
                    f"image {name!r} has shape {list(pixels.shape)}; allowed: [H, W, C] and "
                    "[N, H, W, C] with C of 1 or 3. Add the missing axis or drop the alpha channel."
                )
            grid = _side_by_side(_bytes(pixels if pixels.ndim == 4 else pixels[None]))
            self._write(step, image(name, grid, dataformats="HWC"))

    def write_videos(self, step: int, videos: Mapping[str, np.ndarray], fps: float = 10.0) -> None:
        """Writes videos ``[N, V, H, W, C]`` side by side as an animated GIF, uint8 or [0, 1]."""
        if self._events is None:
            return
        from tensorboardX.proto.summary_pb2 import Summary

        for name, value in videos.items():
            frames = [_side_by_side(frame) for frame in np.swapaxes(_bytes(value), 0, 1)]
            height, width, _ = frames[0].shape
            image = Summary.Image(
                height=height, width=width, colorspace=3, encoded_image_string=_gif(frames, fps)
            )
            self._write(step, Summary(value=[Summary.Value(tag=name, image=image)]))

    def write_audios(
        self, step: int, audios: Mapping[str, np.ndarray], sample_rate_hz: int
    ) -> None:
        """Writes waveforms ``[N]`` in [-1, 1]."""
        if self._events is None:
            return
        from tensorboardX.proto.summary_pb2 import Summary

        for name, samples in audios.items():
            audio = Summary.Audio(
                sample_rate=sample_rate_hz,
                num_channels=1,
                length_frames=len(samples),
                encoded_audio_string=encode_wav(samples, sample_rate_hz),
                content_type="audio/wav",
            )
            self._write(step, Summary(value=[Summary.Value(tag=name, audio=audio)]))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes text, which TensorBoard shows as Markdown."""
        if self._events is None:
            return
        from tensorboardX.summary import text

        for name, value in texts.items():
            self._write(step, text(name, value))

    def write_histograms(
        self,
        step: int,
        arrays: Mapping[str, np.ndarray],
        num_buckets: Mapping[str, int] | None = None,
    ) -> None:
        """Writes the distribution of each array, of any shape, in 30 buckets or as many as told."""
        if self._events is None:
            return
        from tensorboardX.summary import histogram

        for name, value in arrays.items():
            bins = (num_buckets or {}).get(name, 30)
            self._write(step, histogram(name, np.asarray(value), bins))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes hyper-parameters; nested names are joined with dots, other types become text."""
        if self._events is None:
            return
        from tensorboardX.summary import hparams as make_summaries

        for summary in make_summaries(_flatten(hparams), {}):
            self._write(0, summary)

    def flush(self) -> None:
        """Brings everything to disk."""
        if self._events is not None:
            self._events.flush()
            self._lines.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._events is not None:
            self._events.close()
            self._lines.close()
            self._events = None


def _end_last_line(file: Any) -> None:
    """Ends a line that a killed process left unfinished."""
    file.seek(0)
    text = file.read()
    if text and not text.endswith("\n"):
        file.write("\n")


def _bytes(value: np.ndarray) -> np.ndarray:
    """Pixels as uint8 with 3 channels."""
    value = np.asarray(value)
    if value.dtype != np.uint8:
        value = np.round(np.clip(value, 0.0, 1.0) * 255.0).astype(np.uint8)
    return np.repeat(value, 3, axis=-1) if value.shape[-1] == 1 else value


def _side_by_side(images: np.ndarray) -> np.ndarray:
    """``[N, H, W, C]`` to ``[H, N W, C]``."""
    count, height, width, channels = images.shape
    return np.moveaxis(images, 0, 1).reshape(height, count * width, channels)


def _gif(frames: list[np.ndarray], fps: float) -> bytes:
    """An endless animated GIF of uint8 frames ``[H, W, 3]``."""
    from PIL import Image

    first, *others = (Image.fromarray(frame) for frame in frames)
    buffer = io.BytesIO()
    first.save(
        buffer, "GIF", save_all=True, append_images=others, duration=round(1000 / fps), loop=0
    )
    return buffer.getvalue()


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested names joined with dots; values that TensorBoard does not take as text."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            plain = isinstance(value, (bool, int, float, str))
            flat[prefix + name] = value if plain else str(value)
    return flat
