"""Plug-in networks: who is in a frame, where parts of it are, what frames and clips are like.

A network is an ONNX file, run by onnxruntime, or a Python function. Frames are RGB in [-1, 1];
points are (x, y) in pixels of the frame, pixel centres at whole numbers.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from diffsda_jax.data.plug_ins import import_callable
from diffsda_jax.data.sources.base import unknown_name_message
from diffsda_jax.evals.alignment import box_map, face_maps, find_peaks, move_points, warp
from diffsda_jax.evals.choices import check_choice
from diffsda_jax.evals.network_options import DEFAULTS, READINGS, ROLES, NetworkOptions
from diffsda_jax.evals.onnx_file import OnnxFile

Frames = Float[np.ndarray, "N H W 3"]
Video = Float[np.ndarray, "N V H W 3"]
Embeddings = Float[np.ndarray, "N E"]
Points = Float[np.ndarray, "N K 2"]
Found = Bool[np.ndarray, " N"]

_PUBLISHED = {
    "identity": "a network that embeds faces, near each other for one person, such as "
    "w600k_r50.onnx of InsightFace's buffalo_l pack (github.com/deepinsight/insightface) or "
    "arcfaceresnet100-8.onnx of the ONNX model zoo (github.com/onnx/models)",
    "landmarks": "a network that finds points of a face or body, such as pfld.onnx with 68 points "
    "(github.com/cunjian/pytorch_face_landmark), 2d106det.onnx of InsightFace's buffalo_l pack, an "
    "export of 2D-FAN (github.com/1adrianb/face-alignment), or for the 18 points of a body "
    "github.com/Daniil-Osokin/lightweight-human-pose-estimation.pytorch",
    "body": "a network that embeds persons for re-identification, such as an export of "
    "osnet_x1_0 by torchreid (github.com/KaiyangZhou/deep-person-reid)",
    "features": "a network that embeds pictures, for the Frechet distance such as an export of the "
    "Inception network pt_inception-2015-12-05-6726825d.pth, 2048 features "
    "(github.com/mseitzer/pytorch-fid)",
    "clip_features": "a Python function that embeds clips, for the Frechet distance such as one "
    "around i3d_torchscript.pt, 400 features (github.com/universome/stylegan-v)",
}


@runtime_checkable
class FrameNetwork(Protocol):
    """Any object that embeds frames, or finds points in them.

    Where ``found`` is False there is nothing in a frame and its values mean nothing. Single points
    that were not found are NaN.
    """

    def identity(self, frames: Frames) -> tuple[Embeddings, Found]:
        """Embeddings of N frames."""

    def landmarks(self, frames: Frames) -> tuple[Points, Found]:
        """Points in N frames, (x, y) in pixels."""


@runtime_checkable
class ClipNetwork(Protocol):
    """Any object that embeds whole clips."""

    def embed(self, clips: Video) -> Embeddings:
        """Embeddings of N clips."""


def load_networks(
    sections: Mapping[str, Mapping[str, Any]],
) -> dict[str, FrameNetwork | ClipNetwork]:
    """The networks that a config names.

    Args:
      sections: options by role (``identity``, ``landmarks``, ``body``, ``features``; of whole
        clips: ``clip_features``), see `NetworkOptions`; what is left out is as in
        `network_defaults`.

    Returns:
      Networks by role, without the roles whose path is empty.

    Raises:
      FileNotFoundError: there is no such file; the message says which ones fit.
      ValueError: an unknown role or option, or a network that does not fit its role.
      ImportError: an ONNX file without onnxruntime.
    """
    for role in sections:
        if role not in ROLES:
            raise ValueError(unknown_name_message("eval.networks", role, ROLES))
    networks: dict[str, Any] = {}
    # Landmarks first: they align faces for the others.
    for role in sorted(ROLES, key=lambda role: role != "landmarks"):
        section = sections.get(role, {})
        for option in section:
            if option not in NetworkOptions.__dataclass_fields__:
                known = tuple(NetworkOptions.__dataclass_fields__)
                raise ValueError(unknown_name_message(f"eval.networks.{role}", option, known))
        options = dataclasses.replace(DEFAULTS[role], **section)
        if options.path and role == "clip_features":
            networks[role] = load_clip_network(options)
        elif options.path:
            networks[role] = load_network(options, role, networks.get("landmarks"))
    return networks


def load_network(
    options: NetworkOptions, role: str, aligner: FrameNetwork | None = None
) -> FrameNetwork:
    """One network, from an ONNX file or a Python function.

    Args:
      options: where it is and what it takes.
      role: what it is for, one of the names of `load_networks`.
      aligner: network of landmarks, for those that see aligned faces.

    Returns:
      The network.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: an option that is not allowed, or a network that does not fit them.
    """
    name = f"eval.networks.{role}"
    wanted = READINGS[1:] if role == "landmarks" else READINGS[:1]
    check_choice(f"{name}.reading", options.reading, wanted)
    if options.path.lower().endswith(".onnx"):
        return OnnxNetwork(options, role, aligner)
    if ":" in options.path:
        return CallableNetwork(_load_function(options.path, role), options, role)
    raise ValueError(
        f"{name}.path={options.path!r}: give an .onnx file, or a Python function as "
        f"'module:function' or 'file.py:function'."
    )


def load_clip_network(options: NetworkOptions) -> ClipNetwork:
    """A Python function that embeds clips.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: an option that is not allowed, or no such function.
    """
    name = "eval.networks.clip_features"
    options.check(name)
    if ":" not in options.path:
        raise ValueError(
            f"{name}.path={options.path!r}: give a Python function of clips [N, V, H, W, 3] as "
            f"'module:function' or 'file.py:function'; one of your own may run any file."
        )
    return ClipFunction(_load_function(options.path, "clip_features"), options)


class ClipFunction:
    """A Python function of clips ``[N, V, H, W, 3]``, RGB in [-1, 1], to embeddings ``[N, E]``."""

    def __init__(self, function: Callable[[Video], Any], options: NetworkOptions):
        """Takes the function; of the options it heeds ``batch_size``."""
        self._function, self._options = function, options

    def embed(self, clips: Video) -> Embeddings:
        """Embeddings of N clips, N >= 1, asked block by block.

        Raises:
          ValueError: the function returns another shape, or values that are not finite.
        """
        parts = []
        for first in range(0, len(clips), self._options.batch_size):
            block = np.asarray(clips[first : first + self._options.batch_size], np.float32)
            values = np.asarray(self._function(block), np.float32)
            if values.ndim != 2 or len(values) != len(block) or not np.isfinite(values).all():
                raise ValueError(
                    f"eval.networks.clip_features.path: for {len(block)} clips the function "
                    f"returned shape {list(values.shape)}, {int((~np.isfinite(values)).sum())} "
                    f"values of it not finite; allowed is [N, E], all finite; correct the function."
                )
            parts.append(values)
        return np.concatenate(parts)


class _Network:
    """What both kinds share: blocks of frames, and the two methods of a `FrameNetwork`."""

    def __init__(self, options: NetworkOptions, role: str):
        self.name = f"eval.networks.{role}"
        self.options = options
        self.batch_size, self.is_fixed = options.batch_size, False
        options.check(self.name)

    def identity(self, frames: Frames) -> tuple[Embeddings, Found]:
        """Embeddings of N frames, N >= 1, and which of them show somebody."""
        self._check_use("embeddings", self.options.reading == "embedding")
        return self._see(frames)

    def landmarks(self, frames: Frames) -> tuple[Points, Found]:
        """Points in N frames, N >= 1, NaN where one was not found, and which have any."""
        self._check_use("points", self.options.reading != "embedding")
        return self._see(frames)

    def _check_use(self, wanted: str, given: bool) -> None:
        if not given:
            raise ValueError(
                f"{self.name}.reading={self.options.reading!r} gives no {wanted}; allowed are "
                f"{', '.join(READINGS)}; choose one that does or ask another network."
            )

    def _see(self, frames: Frames) -> tuple[np.ndarray, Found]:
        """The answers of all blocks; a fixed batch is filled up with its last frame."""
        parts = []
        for first in range(0, len(frames), self.batch_size):
            block = np.asarray(frames[first : first + self.batch_size], np.float32)
            padding = self.batch_size - len(block) if self.is_fixed else 0
            filled = np.concatenate([block, np.repeat(block[-1:], padding, 0)])
            parts.append([answer[: len(block)] for answer in self._see_block(filled)])
        values, found = zip(*parts, strict=True)
        return np.concatenate(values), np.concatenate(found)

    def _see_block(self, frames: Frames) -> tuple[np.ndarray, Found]:
        raise NotImplementedError


class CallableNetwork(_Network):
    """A Python function of frames ``[N, H, W, 3]``, RGB in [-1, 1].

    It returns embeddings ``[N, E]`` or points ``[N, K, 2]`` ((x, y) in pixels, NaN for a point
    that was not found), alone or with a second array, bool ``[N]``: whether anything was found.
    """

    def __init__(
        self, function: Callable[[Frames], Any], options: NetworkOptions, role: str = "identity"
    ):
        """Takes the function; of the options it heeds ``reading`` and ``batch_size``."""
        super().__init__(options, role)
        self._function = function

    def _see_block(self, frames: Frames) -> tuple[np.ndarray, Found]:
        answer = self._function(frames)
        values, found = answer if isinstance(answer, tuple) else (answer, np.ones(len(frames)))
        values, found = np.asarray(values, np.float32), np.asarray(found, bool)
        is_embedding = self.options.reading == "embedding"
        fits = values.ndim == (2 if is_embedding else 3) and len(values) == len(frames)
        if not fits or found.shape != (len(frames),) or not (is_embedding or values.shape[2] == 2):
            raise ValueError(
                f"{self.name}.path: for {len(frames)} frames the function returned shapes "
                f"{list(values.shape)} and {list(found.shape)}; allowed are "
                f"{'[N, E]' if is_embedding else '[N, K, 2]'} and, if there is a second one, [N]; "
                f"correct the function."
            )
        finite = np.isfinite(values)
        return values, found & (finite.all(1) if is_embedding else finite.all(2).any(1))


class OnnxNetwork(_Network):
    """A network in an ONNX file."""

    def __init__(
        self, options: NetworkOptions, role: str = "identity", aligner: FrameNetwork | None = None
    ):
        """Opens the file and tries it on black frames.

        Args:
          options: how it is fed and read.
          role: what it is for; in messages.
          aligner: finds the points for the alignment ``landmarks5``.

        Raises:
          FileNotFoundError, ValueError, ImportError: see `load_networks`.
        """
        super().__init__(options, role)
        path = str(Path(options.path).expanduser())
        if not Path(path).is_file():
            raise FileNotFoundError(_missing(path, role))
        if options.alignment == "landmarks5" and aligner is None:
            raise ValueError(
                f"{self.name}.alignment='landmarks5' needs points of the face: set "
                f"eval.networks.landmarks.path, or choose none or crop."
            )
        self._aligner = aligner
        outputs = [name for name in (options.output, options.score_output) if name]
        self._file = OnnxFile(path, self.name, outputs, options.layout, options.size)
        if self._file.batch_size:
            self.batch_size, self.is_fixed = self._file.batch_size, True
        black = np.full((self.batch_size if self.is_fixed else 1, *self._file.size, 3), -1.0)
        self._ask(black.astype(np.float32))

    def _see_block(self, frames: Frames) -> tuple[np.ndarray, Found]:
        options, size = self.options, self._file.size
        aligned = np.ones(len(frames), bool)
        if options.alignment == "landmarks5":
            assert self._aligner is not None  # or it would not have been opened
            points, found = self._aligner.landmarks(frames)
            maps, aligned = face_maps(points, found, size)
        else:
            box = options.box if options.alignment == "crop" else (0.0, 0.0, 1.0, 1.0)
            maps = np.repeat(box_map(box, frames.shape[1:3], size)[None], len(frames), 0)
        values, score = self._ask(warp(frames, maps, size))
        sure = aligned[:, None] & (score >= options.min_score)
        if options.reading == "embedding":
            return values, sure[:, 0] & np.isfinite(values).all(1)
        seen = sure & np.isfinite(values).all(2)
        points = np.where(seen[..., None], move_points(values, maps), np.nan)
        return points.astype(np.float32), seen.any(1)

    def _ask(self, images: Frames) -> tuple[np.ndarray, Float[np.ndarray, "N S"]]:
        """Embeddings, or points in pixels of the input; and scores, one a frame or a point."""
        options = self.options
        pixels = (images + 1.0) * 127.5
        pixels = pixels[..., ::-1] if options.color == "BGR" else pixels
        mean, std = (np.asarray(value, np.float32) for value in (options.mean, options.std))
        first, *others = self._file.run((pixels - mean) / std)
        self._check_answer(first, len(images))
        score = np.full((len(images), 1), np.inf, np.float32)
        values: np.ndarray
        if options.reading == "embedding":
            values = first.reshape(len(images), -1)
            if options.normalize:
                norm = np.linalg.norm(values, axis=1, keepdims=True)
                values = values / np.maximum(norm, 1e-12)
        elif options.reading == "points":
            side = np.array(self._file.size[::-1], np.float32)
            values = first.reshape(len(images), -1, 2)
            values = values if options.units == "pixels" else values * side
            values = (values + side) / 2 if options.units == "signed" else values
        else:
            maps = first.transpose(0, 3, 1, 2) if options.layout == "NHWC" else first
            values, score = find_peaks(maps, self._file.size)
        if others:
            score = self._scores(others[0], values)
        if options.reading != "embedding" and options.num_points:
            values, score = values[:, : options.num_points], score[:, : options.num_points]
        return values, score

    def _scores(self, score: np.ndarray, values: np.ndarray) -> Float[np.ndarray, "N S"]:
        """What an output says of how sure the network is, ``[N, 1]`` or ``[N, K]``."""
        allowed = [1] if self.options.reading == "embedding" else [1, values.shape[1]]
        if len(score) != len(values) or score[0].size not in allowed:
            raise ValueError(
                f"{self.name}.score_output={self.options.score_output!r} has shape "
                f"{list(score.shape)} for {len(values)} frames; allowed is one value a frame, or "
                f"one a point; name another output."
            )
        return score.reshape(len(score), -1)

    def _check_answer(self, values: np.ndarray, count: int) -> None:
        """Raises ValueError unless the shape of an output fits the reading and the options."""
        tail = values.shape[1:]
        fits = {
            "embedding": bool(tail) and set(tail[1:]) <= {1},
            "points": tail[-1:] == (2,) if len(tail) == 2 else len(tail) == 1 and tail[0] % 2 == 0,
            "heatmaps": len(tail) == 3,
        }
        if values.shape[:1] != (count,) or not fits[self.options.reading]:
            raise ValueError(
                f"{self.name}.reading={self.options.reading!r}: output {self.options.output!r} has "
                f"shape {list(values.shape)} for {count} frames; allowed are embedding [N, E], "
                f"points [N, K, 2] or [N, 2 K], heatmaps [N, K, h, w]; set reading or output."
            )


def _missing(path: str, role: str) -> str:
    name = f"eval.networks.{role}.path"
    return (
        f"{name}={path!r}: no such file; wanted is {_PUBLISHED[role]}; download one and set "
        f"{name} to it, or leave it empty to go without."
    )


def _load_function(path: str, role: str) -> Callable[..., Any]:
    """The function that ``module:function`` or ``file.py:function`` names."""
    file = path.rpartition(":")[0]
    if file.endswith(".py") and not Path(file).expanduser().is_file():
        raise FileNotFoundError(_missing(file, role))
    return import_callable(path, f"eval.networks.{role}.path")
