"""Prepared data sets of TensorFlow Datasets, read at random without TensorFlow.

Reference: TensorFlow Datasets, `tfds.data_source` and the file format ArrayRecord.
"""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from diffsda_jax.data.sources.base import (
    BrokenItemError,
    ElementSpec,
    Source,
    hash_of,
    natural_key,
    unknown_name_message,
)
from diffsda_jax.data.sources.tasks import Task

KINDS = ("auto", "video", "series")
METADATA_KEY = "diffsda"  # under which `data.tfds_builders` keeps what features do not tell
_KIND_OF_RANK = {4: "video", 2: "series"}
_LABELS = ("static_label", "dynamic_label")
_KEPT = ("static_id", "group")  # passed on as they are, and what starts with one of these:
_KEPT_PREFIXES = ("position", "target_", "factor_")
_NAME = re.compile(r"(?P<set>\w+)(/(?P<config>[^/:]+))?(:(?P<version>\d+\.\d+\.\d+))?")
_PREPARE = 'builder.download_and_prepare(file_format="array_record")'
_SHOWN = 8  # names listed in a message


class Tfds(Source):
    """Sequences of a data set that TensorFlow Datasets has prepared as ArrayRecord.

    `x` is one feature of it: frames `[V, H, W, C]` (a tensor, or a sequence of images) or a series
    `[V, F]`. Integers of 8 bits become pixels in [-1, 1]; frames of floats must be there already.

    Attributes:
        kind: "video" or "series", only known when the data are; "" before.
    """

    name = "tfds"

    def __init__(
        self,
        split: str,
        dataset: str,
        data_dir: str | None = None,
        train_split: str = "train",
        test_split: str = "test",
        feature: str = "auto",
        static_label: str | None = None,
        dynamic_label: str | None = None,
        mask: str | None = None,
        kind: str = "auto",
        max_skipped_share: float = 0.05,
    ):
        """Finds the prepared files and looks at their description and their first element.

        Args:
            split: "train" or "test".
            dataset: "set", "set/config", "set:1.0.0" or "set/config:1.0.0"; without a version the
                newest.
            data_dir: the folder of prepared data sets; None: TFDS_DATA_DIR, or
                ~/tensorflow_datasets.
            train_split: what of the data set is for training, such as "train" or "train[:80%]".
            test_split: what of it is for testing, such as "validation" or "train[80%:]".
            feature: name of the sequence; "auto": the only one with two or four axes.
            static_label: name of a feature with the static class, a ClassLabel or an integer;
                None: the feature `static_label` if there is one; "": no label.
            dynamic_label: likewise.
            mask: name of a feature with what is observed, bool `[V, F]` or for video `[V]`;
                None and "" likewise.
            kind: "video", "series", or "auto": by the number of axes of the sequence.
            max_skipped_share: see `Source`.

        Raises:
            FileNotFoundError: no such folder, or no such data set in it.
            ValueError: a split, feature or format that is not there or cannot be read.
            BrokenItemError: the first element is damaged, from which the shape had to be taken.
        """
        super().__init__(split, max_skipped_share)
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r} of source 'tfds': use one of {KINDS}")
        self._folder = find_prepared(dataset, data_dir)
        self._builder = _open(self._folder)
        self._tensors = {
            key: info
            for key, info in sorted(self._builder.info.features.get_tensor_info().items())
            if not isinstance(info, dict)
        }
        self._part = train_split if split == "train" else test_split
        self._records = self._open_split(self._part)
        wanted = {"static_label": static_label, "dynamic_label": dynamic_label, "mask": mask}
        found = {role: self._optional(role, name) for role, name in wanted.items()}
        self._roles = {role: name for role, name in found.items() if name is not None}
        self._feature = self._find_feature(feature, kind)
        self._kept = [
            key
            for key in self._tensors
            if (key in _KEPT or key.startswith(_KEPT_PREFIXES)) and key not in self._used()
        ]
        self._decoder = self._make_decoder()
        self.spec = self._make_spec()
        self.kind = self.spec.kind
        self.tasks = tuple(_make_task(facts) for facts in self._extra().get("tasks", ()))

    def __len__(self) -> int:
        """Number of sequences in the split."""
        return len(self._records)

    def lengths(self) -> np.ndarray | None:
        """V for each sequence where the data set states it."""
        steps = self._tensors[self._feature].shape[0]
        return None if steps is None else np.full(len(self), steps)

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Sequence `index` in the order of the files; draws nothing from `rng`."""
        del rng
        example = self._example(index)
        out: dict[str, Any] = {"x": self._sequence(example)}
        if "mask" in self._roles:
            out["mask"] = np.array(example[self._roles["mask"]], bool)
        for label in _LABELS:
            if label in self._roles:
                out[label] = int(example[self._roles[label]])
                if out[label] < 0:
                    raise BrokenItemError(f"{self._roles[label]} is {out[label]}, no class")
        return out | {key: _plain(example[key]) for key in self._kept}

    def _sequence(self, example: dict[str, Any]) -> np.ndarray:
        """`x` of an example, checked."""
        steps = [np.asarray(step) for step in example[self._feature]]
        shapes = {step.shape for step in steps}
        if shapes != {self.spec.shape}:
            raise BrokenItemError(
                f"feature {self._feature} has {len(steps)} steps of shape "
                f"{', '.join(map(str, sorted(shapes))) or 'none'}, not {self.spec.shape}"
            )
        x = np.stack(steps)
        if self.spec.kind == "series":
            return np.array(x, np.float32)
        if x.dtype == np.uint8:
            return (x / 127.5 - 1.0).astype(np.float32)
        x = np.array(x, np.float32)
        if not np.abs(x).max() <= 1.0:
            raise BrokenItemError(
                f"feature {self._feature} has values of {x.min():g} to {x.max():g}, frames need "
                "-1 to 1, or integers of 8 bits"
            )
        return x

    def _example(self, index: int) -> dict[str, Any]:
        """One example; a file that is missing, empty or cut makes its examples broken ones."""
        try:
            return self._decoder.deserialize_example_np(self._records[index])
        except (RuntimeError, OSError, ValueError, TypeError) as error:
            message = f"{self._folder} is damaged: {_one_line(error)}"
            raise BrokenItemError(message) from error

    def _open_split(self, part: str) -> Any:
        """The records of a split, not decoded."""
        import tensorflow_datasets as tfds

        info = self._builder.info
        known = list(info.splits)
        if re.split(r"[\[+]", part)[0] not in known:
            raise ValueError(
                f"{self.split}_split={part!r} of source 'tfds': {info.full_name} has the splits "
                f"{', '.join(known)}; use one of them, or a part such as '{known[0]}[80%:]'"
            )
        try:
            return self._builder.as_data_source(
                part, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
            )
        except NotImplementedError:
            formats = ", ".join(format.value for format in info.available_file_formats())
            raise ValueError(
                f"data set {info.full_name} in {self._folder} is prepared as {formats}, which "
                "cannot be read at random without TensorFlow: prepare it in another data_dir with "
                f"{_PREPARE}"
            ) from None
        except ValueError as error:
            raise ValueError(
                f"{self.split}_split={part!r} of source 'tfds': {_one_line(error)}; write it like "
                f"'{known[0]}[80%:]', and so that it holds something"
            ) from None

    def _optional(self, role: str, wanted: str | None) -> str | None:
        """The feature for a label or the mask, or None without one."""
        if wanted is None:
            return role if role in self._tensors else None
        if wanted == "":
            return None
        if wanted not in self._tensors:
            raise ValueError(self._unknown_feature(f"{role} of source 'tfds':", wanted))
        info = self._tensors[wanted]
        if role != "mask" and (info.shape or not np.issubdtype(info.np_dtype, np.integer)):
            raise ValueError(
                f"{role}={wanted!r} of source 'tfds' has shape {info.shape} and type "
                f"{np.dtype(info.np_dtype)}; a label is a ClassLabel or one integer"
            )
        return wanted

    def _used(self) -> set[str]:
        """Features that are already something."""
        return {self._feature, *self._roles.values()}

    def _find_feature(self, wanted: str, kind: str) -> str:
        """The feature that is the sequence."""
        allowed = [rank for rank, name in _KIND_OF_RANK.items() if kind in ("auto", name)]
        fit = {
            key: len(info.shape)
            for key, info in self._tensors.items()
            if len(info.shape) in allowed and np.issubdtype(info.np_dtype, np.number)
        }
        axes = " or ".join(f"{rank} axes ({_KIND_OF_RANK[rank]})" for rank in allowed)
        if wanted == "auto":
            others = {*self._roles.values(), *_KEPT}
            free = [k for k in fit if k not in others and not k.startswith(_KEPT_PREFIXES)]
            if len(free) == 1:
                return free[0]
            raise ValueError(
                f"feature='auto' of source 'tfds': {self._builder.info.full_name} has "
                f"{', '.join(free) or 'no feature'} with {axes}; name the sequence in feature, of "
                f"{self._list_features()}"
            )
        if wanted not in self._tensors:
            raise ValueError(self._unknown_feature("feature of source 'tfds':", wanted))
        if wanted not in fit:
            info = self._tensors[wanted]
            raise ValueError(
                f"feature={wanted!r} of source 'tfds' has shape {info.shape} and type "
                f"{np.dtype(info.np_dtype)}; a sequence has numbers and {axes}; there are "
                f"{self._list_features()}"
            )
        return wanted

    def _unknown_feature(self, what: str, name: str) -> str:
        return unknown_name_message(what, name, self._tensors)

    def _list_features(self) -> str:
        """All features with their shapes, for a message."""
        return ", ".join(f"{key} {info.shape}" for key, info in self._tensors.items())

    def _make_decoder(self) -> Any:
        """Reads the features that are needed, and passes over all others."""
        import tensorflow_datasets as tfds

        features = self._builder.info.features
        keys = [*sorted(self._used()), *self._kept]
        return tfds.features.FeaturesDict({key: features[key] for key in keys})

    def _make_spec(self) -> ElementSpec:
        """The description of a step; what the features leave open is taken from the first one."""
        shape = self._tensors[self._feature].shape[1:]
        if None in shape:
            example = self._example(0)
            shape = np.asarray(example[self._feature][0]).shape
        extra, features = self._extra(), self._builder.info.features
        names = {}
        for label in _LABELS:
            known = label in self._roles and getattr(features[self._roles[label]], "names", None)
            names[label] = tuple(known) if known else None
        return ElementSpec(
            kind=_KIND_OF_RANK[1 + len(shape)],
            shape=tuple(int(size) for size in shape),
            static_names=names["static_label"],
            dynamic_names=names["dynamic_label"],
            feature_names=extra.get("feature_names") and tuple(extra["feature_names"]),
            fps=extra.get("fps"),
            masked="mask" in self._roles and extra.get("masked", True),
        )

    def _extra(self) -> dict[str, Any]:
        """What `data.tfds_builders` wrote of the sequence `x`; nothing for other data sets."""
        facts = self._builder.info.metadata.get(METADATA_KEY)
        return facts if facts and self._feature == "x" else {}

    def _identity(self) -> Any:
        info = self._builder.info
        splits = {key: [s.num_bytes, list(s.shard_lengths)] for key, s in info.splits.items()}
        facts = [str(info.full_name), splits, self._extra().get("fingerprints")]
        return [hash_of(facts), self._part, self._feature, self._roles, self._kept]


def find_prepared(dataset: str, data_dir: str | None = None) -> Path:
    """The folder of a prepared data set.

    Args:
        dataset: see `Tfds`.
        data_dir: see there.

    Raises:
        FileNotFoundError: no such folder, or no such data set in it; says which there are.
        ValueError: of another form, or fits several configs.
    """
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    root = root.expanduser()
    match = _NAME.fullmatch(dataset)
    if match is None:
        raise ValueError(
            f"dataset={dataset!r} of source 'tfds': use 'set', 'set/config', 'set:1.0.0' or "
            "'set/config:1.0.0'"
        )
    if not root.is_dir():
        raise FileNotFoundError(
            f"data_dir {root} of source 'tfds' is no folder: set data_dir to where data sets are "
            f"prepared, or prepare one there with {_PREPARE}"
        )
    found = _list_prepared(root / match["set"])
    fitting = [
        path
        for path in found
        if match["config"] in (None, path.parent.name) and match["version"] in (None, path.name)
    ]
    if not fitting:
        there = found or _list_prepared(root, "*/")
        names = [_name_of(path, root) for path in there]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise FileNotFoundError(
            f"dataset={dataset!r} of source 'tfds' is not prepared in {root}, where there is "
            f"{', '.join(names[:_SHOWN]) or 'none'}{more}: prepare it with {_PREPARE}"
        )
    if len({path.parent for path in fitting}) > 1:
        several = ", ".join(_name_of(path, root) for path in fitting)
        raise ValueError(f"dataset={dataset!r} of source 'tfds' fits {several}: name one of them")
    return fitting[-1]


def _list_prepared(folder: Path, below: str = "") -> list[Path]:
    """Folders of versions of a data set and of its configs, versions in their order."""
    found = [
        file.parent
        for pattern in (f"{below}*/dataset_info.json", f"{below}*/*/dataset_info.json")
        for file in folder.glob(pattern)
    ]
    return sorted(found, key=lambda path: (path.parent, natural_key(path.name)))


def _name_of(path: Path, root: Path) -> str:
    """How `Tfds` is asked for a prepared folder."""
    return f"{path.parent.relative_to(root).as_posix()}:{path.name}"


def _open(folder: Path) -> Any:
    """The builder of a prepared folder, without the code that prepared it."""
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(str(folder))
    except ImportError as error:
        raise ValueError(
            f"data set in {folder} has a feature that needs TensorFlow ({_one_line(error)}): "
            "tfds reads Tensor, Text, ClassLabel and Image, and sequences of them, without it; "
            "prepare the data set with these, or install tensorflow"
        ) from None


def _one_line(error: Exception) -> str:
    """The first line of an error's message."""
    return str(error).strip().partition("\n")[0]


def _plain(value: Any) -> Any:
    """A number as a Python number, anything else as an array of its own."""
    return np.asarray(value).item() if np.ndim(value) == 0 else np.array(value)


def _make_task(facts: dict[str, Any]) -> Task:
    """A task from its JSON form."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()}
    return Task(**values)
