"""From a file of released weights to variables, a description of the model, and a report."""

import dataclasses
import hashlib
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffsda_jax.convert import first_stage, mapping, prior, report
from diffsda_jax.convert.infer_spec import CLASSES, Shapes, infer_spec, is_sequence_model
from diffsda_jax.convert.report import KeyEntry, Report
from diffsda_jax.convert.torch_file import StateDict, load_state_dict
from diffsda_jax.first_stage import nets as first_stage_nets
from diffsda_jax.first_stage.spec import FirstStageSpec
from diffsda_jax.model import ModelSpec, variable_shapes
from diffsda_jax.prior import variable_shapes as prior_variable_shapes
from diffsda_jax.prior_spec import PriorSpec

_NAMED = 3  # keys that an error names


class ConversionError(ValueError):
    """Keys are missing or contradict each other; ``report`` has all of them."""

    def __init__(self, message: str, key_report: Report):
        """Keeps the report beside the message."""
        super().__init__(message)
        self.report = key_report


@dataclasses.dataclass(frozen=True)
class Converted:
    """A converted model, frame autoencoder or prior.

    Attributes:
      variables: ``{"params": ...}`` and for models ``"constants"``, float32 numpy arrays.
      spec: the description that was read from the shapes.
      report: what became of every key.
      source: name of the file and its SHA-256, ``{"file": ..., "sha256": ...}``.
      first_stage: the frame autoencoder that the file of a sequence model holds too, if it does.
    """

    variables: dict[str, Any]
    spec: ModelSpec | FirstStageSpec | PriorSpec
    report: Report
    source: dict[str, str]
    first_stage: "Converted | None" = None


class _Target(NamedTuple):
    """What a state dict is converted to.

    Attributes:
      spec: the description that was read from the shapes.
      classes: the released classes that have these keys.
      rules: one for every variable.
      shapes: tree of the variables' shapes.
      left_out: keys that need not be variables, as status in the report -> pattern.
    """

    spec: ModelSpec | FirstStageSpec | PriorSpec
    classes: str
    rules: list[mapping.Rule]
    shapes: dict[str, Any]
    left_out: dict[str, re.Pattern]


def convert_file(
    path: str | Path,
    frame_size: tuple[int, int] | None = None,
    entry: str | None = None,
    factor_dims: tuple[int, int] | None = None,
) -> Converted:
    """Converts a ``.pth``/``.pt`` or ``.npz`` file of a released class, autoencoder or prior.

    Args:
      path: the file.
      frame_size: (H, W) of a video model whose frames are not square.
      entry: which dictionary of the file holds the weights, see ``load_state_dict``.
      factor_dims: S and D of the sequence model that a prior belongs to.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file cannot be read, or is of no known class (one line).
      ConversionError: keys are missing or contradict each other (one line).
    """
    state = load_state_dict(path, entry)
    with Path(path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    converted = convert_state_dict(state, Path(path).name, frame_size, factor_dims)
    source = {"file": Path(path).name, "sha256": digest}
    inner = converted.first_stage and dataclasses.replace(converted.first_stage, source=source)
    return dataclasses.replace(converted, source=source, first_stage=inner)


def convert_state_dict(
    state: StateDict,
    name: str,
    frame_size: tuple[int, int] | None = None,
    factor_dims: tuple[int, int] | None = None,
) -> Converted:
    """Converts tensors that were read already.

    Args:
      state: from ``load_state_dict``.
      name: what errors and the report call the file.
      frame_size: as for ``convert_file``.
      factor_dims: as for ``convert_file``.

    Raises:
      ConversionError: keys that are missing or contradict each other; with the report.
      ValueError: as for ``convert_file``.
    """
    tensors = state.tensors
    try:
        shapes = {key: value.shape for key, value in tensors.items()}
        target = _target(shapes, frame_size, factor_dims)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    key_report = Report(name, target.classes, tuple(_entries(state, target)), _notes(state))
    _refuse_errors(key_report, len(target.rules))
    unfilled = _by_path(target.shapes)
    variables: dict[str, Any] = {}
    for rule in target.rules:
        key = rule.key if rule.key in tensors or rule.alias is None else rule.alias
        node = variables
        for part in rule.path[:-1]:
            node = node.setdefault(part, {})
        node[rule.path[-1]] = _variable(name, key, tensors[key], rule, unfilled.pop(rule.path))
    if unfilled:
        raise AssertionError(f"no rule fills {sorted(unfilled)}")
    converted = Converted(variables, target.spec, key_report, {"file": name})
    return _with_first_stage(converted, state)


def _with_first_stage(converted: Converted, state: StateDict) -> Converted:
    """The same with the frame autoencoder that lies in a sequence model's state dict, if any."""
    own = {key: value for key, value in state.tensors.items() if first_stage.NESTED.match(key)}
    if not own or not isinstance(converted.spec, ModelSpec):
        return converted
    key_report, inner = converted.report, None
    try:
        inner = convert_state_dict(state._replace(tensors=own, other_keys=()), key_report.source)
        note = "its frame autoencoder has a report of its own"
    except ValueError as error:
        note = f"its frame autoencoder cannot be converted: {error}"
    return dataclasses.replace(converted, report=key_report.with_note(note), first_stage=inner)


def _target(
    shapes: Shapes,
    frame_size: tuple[int, int] | None,
    factor_dims: tuple[int, int] | None,
) -> _Target:
    """What the names and shapes of a state dict say that it is."""
    if prior.recognises(shapes):
        _refuse_option("frame_size", frame_size, "a prior, which knows no frames")
        of_prior = prior.infer_spec(shapes, factor_dims)
        return _Target(
            of_prior,
            prior.CLASSES[of_prior.form],
            prior.rules(of_prior),
            prior_variable_shapes(of_prior),
            {},
        )
    _refuse_option("factor_dims", factor_dims, "no prior; only there they are asked for")
    within = first_stage.without_prefix(shapes)
    nested = first_stage.recognises(within) and not is_sequence_model(shapes)
    if not nested and not first_stage.recognises(shapes):
        spec = infer_spec(shapes, frame_size)
        left_out = {report.UNUSED: mapping.UNUSED, report.SKIPPED: first_stage.NESTED}
        return _Target(
            spec, CLASSES[spec.kind], mapping.rules(spec), variable_shapes(spec), left_out
        )
    _refuse_option("frame_size", frame_size, "a frame autoencoder, which takes frames of any size")
    of_frames = first_stage.infer_spec(within if nested else shapes)
    variables = first_stage_nets.variable_shapes(of_frames)
    rules, pattern = first_stage.rules(of_frames), first_stage.TRAINING_ONLY
    if nested:
        rules = [rule._replace(key=first_stage.PREFIX + rule.key) for rule in rules]
        pattern = first_stage.LEFT_OUT_NESTED
    classes = first_stage.CLASSES[of_frames.kind]
    return _Target(of_frames, classes, rules, variables, {report.SKIPPED: pattern})


def _refuse_option(name: str, value: Any, what: str) -> None:
    """Raises ValueError for an option that this kind of state dict has no use for."""
    if value is not None:
        raise ValueError(f"{name} is {value}, but the state dict is of {what}; leave it out.")


def _entries(state: StateDict, target: _Target):
    """One report entry for each key, in the order of the file, then the missing ones."""
    tensors = state.tensors
    by_key = {rule.key: rule for rule in target.rules}
    by_alias = {rule.alias: rule for rule in target.rules if rule.alias}
    for key, value in tensors.items():
        dtype = "bfloat16" if key in state.bfloat16 else str(value.dtype)
        shape = tuple(value.shape)
        if key in by_key or (key in by_alias and by_alias[key].key not in tensors):
            rule = by_key.get(key) or by_alias[key]
            note = "" if key in by_key else f"taken for {rule.key!r}, which is not in the file"
            yield KeyEntry(key, report.MAPPED, shape, dtype, "/".join(rule.path), note)
        elif key in by_alias:
            first = by_alias[key].key
            same = np.array_equal(value, tensors[first], equal_nan=True)
            status = report.ALIAS if same else report.DIFFERS
            yield KeyEntry(key, status, shape, dtype, first)
        else:
            matching = (name for name, pattern in target.left_out.items() if pattern.match(key))
            yield KeyEntry(key, next(matching, report.UNEXPECTED), shape, dtype)
    for key in state.other_keys:
        yield KeyEntry(key, report.UNEXPECTED, note="not a tensor")
    for rule in target.rules:
        if rule.key not in tensors and rule.alias not in tensors:
            yield KeyEntry(rule.key, report.MISSING, target="/".join(rule.path))


def _notes(state: StateDict) -> tuple[str, ...]:
    """What was done to the file as a whole."""
    notes = []
    if state.entry:
        notes.append(f"weights taken from entry {state.entry!r}")
    if state.other_entries:
        names = ", ".join(
            repr(place) if place else "the top level" for place in state.other_entries
        )
        notes.append(f"tensors in {names} were left out (choose with --entry)")
    if state.stripped:
        notes.append(f"prefix 'module.' taken off {state.stripped} names")
    if types := sorted({str(v.dtype) for v in state.tensors.values()} - {"float32"}):
        notes.append(f"values of type {', '.join(types)} become float32")
    return tuple(notes)


def _refuse_errors(key_report: Report, total: int):
    """Raises one line if keys are missing or aliases differ."""
    name = key_report.source
    if missing := key_report.of(report.MISSING):
        some = ", ".join(repr(entry.key) for entry in missing[:_NAMED])
        raise ConversionError(
            f"{name} lacks {len(missing)} of the {total} tensors of {key_report.classes}, first "
            f"ones: {some}; is the file whole, and of this class?",
            key_report,
        )
    if differing := key_report.of(report.DIFFERS):
        first = differing[0]
        raise ConversionError(
            f"{name}: {len(differing)} second names differ from the tensor they stand for, first "
            f"one {first.key!r} from {first.target!r}; in the released classes they are the same "
            "tensor, so remove the wrong ones from the file.",
            key_report,
        )


def _by_path(shapes: dict[str, Any]) -> dict[mapping.Path, tuple[int, ...]]:
    """Path -> shape of every variable."""
    leaves = jax.tree_util.tree_flatten_with_path(shapes)[0]
    return {tuple(part.key for part in path): leaf.shape for path, leaf in leaves}


def _variable(
    name: str, key: str, value: np.ndarray, rule: mapping.Rule, shape: tuple[int, ...]
) -> np.ndarray:
    """One tensor in the layout used here, after checks of its type, shape and values."""
    if not np.issubdtype(value.dtype, np.floating):
        raise ValueError(f"{name}: {key!r} has type {value.dtype}; weights are floating-point.")
    fits = value.ndim == mapping.RANKS.get(rule.layout, value.ndim)
    if fits and rule.layout == "pointwise":
        fits = value.shape[2:] == (1, 1)
    if fits:
        with np.errstate(over="ignore"):  # what becomes infinite is refused below
            array = mapping.to_layout(value, rule.layout)
        fits = array.shape == shape
    if not fits:
        raise ValueError(
            f"{name}: {key!r} has shape {tuple(value.shape)}, but the variable "
            f"{'/'.join(rule.path)} that it becomes has shape {shape}, as follows from the other "
            "keys; the file is not of one model."
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: {key!r} holds values that are not finite in float32.")
    return array
