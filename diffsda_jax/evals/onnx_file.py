"""An ONNX file as a function of pictures, checked when it is opened."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

_NUMBER_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_AXES = {"NCHW": (1, 2, 3), "NHWC": (3, 1, 2)}  # of channels, rows and columns


class OnnxFile:
    """A network with one picture as input, run by onnxruntime on the CPU.

    Attributes:
      size: height and width in pixels of the input.
      batch_size: that the file demands; 0 if any will do.
    """

    def __init__(
        self, path: str, name: str, outputs: Sequence[str], layout: str, size: Sequence[int]
    ):
        """Opens a file.

        Args:
          path: of the file, which exists.
          name: of the network, for messages.
          outputs: names or numbers of the outputs that are wanted.
          layout: of the input, ``NCHW`` or ``NHWC``.
          size: height and width of the input; 0 where the file states it.

        Raises:
          ImportError: there is no onnxruntime.
          ValueError: not an ONNX file, or one whose input or outputs do not fit.
        """
        self._session = _open_session(path, name)
        given = self._session.get_inputs()
        first = given[0]
        shape = [side if isinstance(side, int) and side > 0 else None for side in first.shape]
        shown = f"{name}: the input {first.name!r} of {path} is {first.type} {first.shape}"
        if len(given) != 1 or len(shape) != 4 or first.type not in _NUMBER_TYPES:
            raise ValueError(
                f"{shown}, the first of {len(given)}; allowed is one input of {layout} and type "
                f"{' or '.join(_NUMBER_TYPES)}; export the network so."
            )
        channels, rows, columns = _AXES[layout]
        if shape[channels] not in (3, None):
            raise ValueError(
                f"{shown}, so axis {channels} is not the 3 colours of layout {layout}; set "
                f"{name}.layout to NCHW or NHWC as the file has it."
            )
        sides = tuple(a or b for a, b in zip((shape[rows], shape[columns]), size, strict=True))
        if not all(sides) or any(b not in (0, side) for side, b in zip(sides, size, strict=True)):
            raise ValueError(
                f"{shown}, which size={tuple(size)} does not fit; set {name}.size to the height "
                f"and width in pixels that the network was made for."
            )
        self.size, self.batch_size = (sides[0], sides[1]), shape[0] or 0
        self._input, self._layout, self._type = first.name, layout, _NUMBER_TYPES[first.type]
        self._shown = shown
        known = [output.name for output in self._session.get_outputs()]
        self._outputs = [_find_output(output, known, name) for output in outputs]

    def run(self, images: Float[np.ndarray, "N H W 3"]) -> list[np.ndarray]:
        """The wanted outputs ``[N, ...]``, float32, of pictures that are normalised and in order.

        Raises:
          ValueError: the network fails on them.
        """
        if self._layout == "NCHW":
            images = images.transpose(0, 3, 1, 2)
        feed = {self._input: np.ascontiguousarray(images, self._type)}
        try:
            answers = self._session.run(self._outputs, feed)
        except Exception as error:  # onnxruntime's errors share no other base
            raise ValueError(
                f"{self._shown} and fails on {list(images.shape)} ({_reason(error)}); export it "
                f"for any batch size, or for a fixed one."
            ) from error
        return [np.asarray(answer, np.float32) for answer in answers]


def _open_session(path: str, name: str) -> Any:
    """An inference session on the CPU: other devices belong to JAX."""
    try:
        import onnxruntime
    except ImportError:
        raise ImportError(
            f"{name}.path: reading {path} needs onnxruntime: pip install 'diffsda_jax[onnx]' (a "
            f"Python function, as 'module:function', works without it)"
        ) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = os.cpu_count() or 1
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no other base
        raise ValueError(
            f"{name}.path={path!r}: onnxruntime cannot read it ({_reason(error)}); give an ONNX "
            f"network that this version knows."
        ) from error


def _reason(error: Exception) -> str:
    """The start of a message, in one line."""
    return " ".join(str(error).split())[:200]


def _find_output(wanted: str, known: Sequence[str], name: str) -> str:
    """The name of an output that is given by name or number."""
    if wanted in known:
        return wanted
    if wanted.isdecimal() and int(wanted) < len(known):
        return known[int(wanted)]
    raise ValueError(
        f"{name}: no output {wanted!r}; allowed are {', '.join(known)}, or 0 to "
        f"{len(known) - 1}; set {name}.output or {name}.score_output to one of these."
    )
