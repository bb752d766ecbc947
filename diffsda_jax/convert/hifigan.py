"""Published HiFi-GAN generators (v1, v2 and others of that class) to variables of ``nets.hifigan``.

The file is what its training script saves, ``{"generator": state_dict}``, under any name
(``generator_v1``, ``g_02500000``); its content decides how it is read. Weight norm is folded.
What shapes cannot tell is taken as published: an upsampling rate is half its kernel, and the pairs
of a residual block are dilated by 1, 3 and 5.

References:
  Kong, Kim, Bae: HiFi-GAN, NeurIPS 2020; Salimans and Kingma: Weight normalization, NIPS 2016.
"""

import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffsda_jax.convert import report
from diffsda_jax.convert.report import KeyEntry, Report
from diffsda_jax.convert.torch_file import StateDict, load_state_dict
from diffsda_jax.convert.weights import ConversionError
from diffsda_jax.nets.hifigan import Hifigan, HifiganSpec

_LOG = logging.getLogger(__name__)
CLASS = "HiFi-GAN's Generator"
DILATIONS = (1, 3, 5)
# Names of a layer's weight: gain and direction in two versions of PyTorch, or already one tensor.
WEIGHT_FORMS = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ("weight",),
)
_NAMED = 3  # keys that an error or a warning names


class Layer(NamedTuple):
    """One convolution.

    Attributes:
      source: its name in the state dict.
      path: its module here, below ``params``.
      axes: of the file's weight, in the order used here: taps, inputs, outputs.
    """

    source: str
    path: tuple[str, ...]
    axes: tuple[int, int, int] = (2, 1, 0)


@dataclasses.dataclass(frozen=True)
class ConvertedHifigan:
    """A converted generator.

    Attributes:
      spec: read from the shapes.
      variables: ``{"params": ...}``, float32 numpy arrays.
      report: what became of every key.
    """

    spec: HifiganSpec
    variables: dict[str, Any]
    report: Report


def load_hifigan(path: str | Path, entry: str | None = None) -> tuple[HifiganSpec, dict[str, Any]]:
    """Description and variables of a published generator; the report of its keys is logged.

    Args:
      path: a file of ``torch.save`` in its old or its new layout, or ``.npz`` with the same keys.
      entry: which dictionary of the file holds the weights, if there are several.

    Returns:
      What ``Hifigan(spec).apply(variables, log_mel)`` needs.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it cannot be read, or is no such generator (one line).
      ConversionError: keys are missing (one line).
    """
    converted = convert_hifigan(load_state_dict(path, entry), Path(path).name)
    _LOG.info("%s", converted.report.summary())
    if left_out := converted.report.of(report.UNEXPECTED):
        some = ", ".join(repr(item.key) for item in left_out[:_NAMED])
        _LOG.warning("%d unknown keys were left out, first ones: %s", len(left_out), some)
    return converted.spec, converted.variables


def convert_hifigan(state: StateDict, name: str) -> ConvertedHifigan:
    """Converts tensors that were read already.

    Args:
      state: from ``load_state_dict``.
      name: what errors and the report call the file.

    Raises:
      ValueError: as for ``load_hifigan``.
      ConversionError: as for ``load_hifigan``.
    """
    tensors = state.tensors
    try:
        spec = infer_spec({key: value.shape for key, value in tensors.items()})
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    wanted = {layer: _keys(layer, tensors) for layer in layers(spec)}
    key_report = Report(name, CLASS, tuple(_entries(state, wanted)), _notes(state, spec))
    if missing := key_report.of(report.MISSING):
        some = ", ".join(repr(item.key) for item in missing[:_NAMED])
        raise ConversionError(
            f"{name} lacks {len(missing)} of the {sum(map(len, wanted.values()))} tensors of "
            f"{CLASS}, first ones: {some}; is the file whole, and of this class?",
            key_report,
        )
    example = jax.ShapeDtypeStruct((1, 1, spec.num_mels), jnp.float32)
    shapes = jax.eval_shape(Hifigan(spec).init, jax.random.key(0), example)["params"]
    params: dict[str, Any] = {}
    for layer, keys in wanted.items():
        node, shape = params, shapes
        for part in layer.path:
            node, shape = node.setdefault(part, {}), shape[part]
        *weight, bias = (_floating(name, key, tensors[key]) for key in keys)
        kernel = _fold(name, keys, *weight) if len(weight) == 2 else weight[0]
        kernel = kernel.transpose(layer.axes) if kernel.ndim == 3 else kernel
        node["kernel"] = _variable(name, keys[-2], kernel, shape["kernel"].shape)
        node["bias"] = _variable(name, keys[-1], bias, shape["bias"].shape)
    return ConvertedHifigan(spec, {"params": params}, key_report)


def infer_spec(shapes: Mapping[str, tuple[int, ...]]) -> HifiganSpec:
    """The description behind names and shapes of a state dict.

    Raises:
      ValueError: of another class, or with sizes that shapes do not tell.
    """
    if any(re.match(r"resblocks\.\d+\.convs\.", key) for key in shapes):
        raise ValueError(
            "The file has the short residual blocks of HiFi-GAN v3 ('resblocks.0.convs...'); only "
            "v1 and v2 ('resblocks.0.convs1...') can be converted."
        )
    outputs, num_mels, _ = _weight_shape(shapes, r"conv_pre")
    num_ups = _count(shapes, r"ups\.(\d+)\.")
    num_blocks = _count(shapes, r"resblocks\.(\d+)\.")
    num_pairs = _count(shapes, r"resblocks\.\d+\.convs1\.(\d+)\.")
    if not num_ups or not num_blocks or num_blocks % num_ups:
        raise ValueError(
            f"The file has {num_ups} upsamplings ('ups...') and {num_blocks} residual blocks "
            f"('resblocks...'); {CLASS} has the same number of blocks after each upsampling. Is "
            "the file whole?"
        )
    kernels = tuple(_weight_shape(shapes, rf"ups\.{i}")[2] for i in range(num_ups))
    per_level = num_blocks // num_ups
    blocks = []
    for j in range(per_level):
        indices = "|".join(str(i * per_level + j) for i in range(num_ups))
        blocks.append(_weight_shape(shapes, rf"resblocks\.({indices})\.convs[12]\.\d+")[2])
    if num_pairs != len(DILATIONS) or any(k % 4 for k in kernels):
        raise ValueError(
            f"The file has {num_pairs} pairs of convolutions in a block and upsampling kernels "
            f"{kernels}; dilations and rates are not stored, and are known only for "
            f"{len(DILATIONS)} pairs and for kernels that are multiples of 4."
        )
    return HifiganSpec(
        num_mels=num_mels,
        channels=outputs,
        upsample_rates=tuple(k // 2 for k in kernels),
        upsample_kernels=kernels,
        resblock_kernels=tuple(blocks),
        resblock_dilations=(DILATIONS,) * per_level,
    )


def _count(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> int:
    """One more than the largest number in names of this pattern."""
    found = (re.match(pattern, key) for key in shapes)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _weight_shape(shapes: Mapping[str, tuple[int, ...]], layer: str) -> tuple[int, ...]:
    """Shape of the weight of the first layer whose name has this pattern."""
    endings = "|".join(re.escape(form[-1]) for form in WEIGHT_FORMS)
    for key, shape in shapes.items():
        if re.fullmatch(rf"{layer}\.({endings})", key):
            if len(shape) != 3:
                raise ValueError(f"{key!r} has shape {shape}; a convolution's has 3 axes.")
            return tuple(shape)
    some = ", ".join(map(repr, list(shapes)[:_NAMED])) or "none"
    raise ValueError(
        f"The {len(shapes)} keys (first ones: {some}) are not those of {CLASS}, which has "
        f"{layer.replace(chr(92), '') + '.weight_v'!r}; is the file whole, and the right one?"
    )


def layers(spec: HifiganSpec) -> Iterator[Layer]:
    """All convolutions of a generator, each once."""
    yield Layer("conv_pre", ("conv_pre",))
    per_level = len(spec.resblock_kernels)
    for i in range(len(spec.upsample_rates)):
        yield Layer(f"ups.{i}", (f"up_{i}",), (2, 0, 1))
        for j, dilations in enumerate(spec.resblock_dilations):
            block = f"resblocks.{i * per_level + j}", f"block_{i}_{j}"
            for m in range(len(dilations)):
                yield Layer(f"{block[0]}.convs1.{m}", (block[1], f"dilated_{m}"))
                yield Layer(f"{block[0]}.convs2.{m}", (block[1], f"plain_{m}"))
    yield Layer("conv_post", ("conv_post",))


def _keys(layer: Layer, tensors: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Keys of a layer's weight, in the form the file has, and of its bias."""
    forms = [tuple(f"{layer.source}.{part}" for part in form) for form in WEIGHT_FORMS]
    present = (form for form in forms if any(key in tensors for key in form))
    return (*next(present, forms[0]), f"{layer.source}.bias")


def _entries(state: StateDict, wanted: Mapping[Layer, tuple[str, ...]]) -> Iterator[KeyEntry]:
    """One report entry for each key, in the order of the file, then the missing ones."""
    targets: dict[str, tuple[str, str]] = {}
    for layer, (*weight, bias) in wanted.items():
        path, note = "/".join(("params", *layer.path)), "weight norm folded" * (len(weight) - 1)
        targets |= {key: (f"{path}/kernel", note) for key in weight}
        targets[bias] = f"{path}/bias", ""
    for key, value in state.tensors.items():
        dtype = "bfloat16" if key in state.bfloat16 else str(value.dtype)
        status = report.MAPPED if key in targets else report.UNEXPECTED
        yield KeyEntry(key, status, tuple(value.shape), dtype, *targets.get(key, ()))
    for key in state.other_keys:
        yield KeyEntry(key, report.UNEXPECTED, note="not a tensor")
    for key, (target, _) in targets.items():
        if key not in state.tensors:
            yield KeyEntry(key, report.MISSING, target=target)


def _notes(state: StateDict, spec: HifiganSpec) -> tuple[str, ...]:
    """Where the weights lay, and what was taken as published."""
    notes = [f"taken as published: rates {spec.upsample_rates}, dilations {DILATIONS}"]
    if state.entry:
        notes.append(f"weights taken from entry {state.entry!r}")
    if state.other_entries:
        notes.append(f"tensors in {', '.join(map(repr, state.other_entries))} were left out")
    if state.stripped:
        notes.append(f"prefix 'module.' taken off {state.stripped} names")
    return tuple(notes)


def _floating(name: str, key: str, value: np.ndarray) -> np.ndarray:
    """The tensor in float64, in which weight norm is folded."""
    if not np.issubdtype(value.dtype, np.floating):
        raise ValueError(f"{name}: {key!r} has type {value.dtype}; weights are floating-point.")
    return value.astype(np.float64)


def _fold(name: str, keys: tuple[str, ...], gain: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """``g v / |v|``, the norm over all axes but the first; equally in transposed convolutions."""
    expected = direction.shape[:1] + (1,) * (direction.ndim - 1)
    if gain.shape != expected:
        raise ValueError(
            f"{name}: {keys[0]!r} has shape {gain.shape}, but {keys[1]!r} of shape "
            f"{direction.shape} asks for {expected}; the file is not of one model."
        )
    norm = np.sqrt(np.square(direction).sum(axis=tuple(range(1, direction.ndim)), keepdims=True))
    with np.errstate(invalid="ignore", divide="ignore"):  # what is not finite is refused later
        return gain * direction / norm


def _variable(name: str, key: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A float32 array after checks of its shape and values."""
    if value.shape != shape:
        raise ValueError(
            f"{name}: {key!r} gives an array of shape {value.shape}, but the other keys ask for "
            f"{shape}; the file is not of one model."
        )
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(value, dtype=np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: {key!r} gives values that are not finite in float32.")
    return array
