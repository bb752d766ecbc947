"""What every data source offers: raw elements by index, a spec, a description and a fingerprint."""

import abc
import dataclasses
import difflib
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from diffsda_jax.data.sources.tasks import Task

_LOG = logging.getLogger(__name__)
_NAMED_SKIPS = 3

SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class ElementSpec:
    """What one step of a sequence looks like.

    Attributes:
        kind: "video" (pixels in [-1, 1]), "series" (any per-step feature vector) or "audio"
            (samples of a waveform in [-1, 1], which a front end turns into a series).
        shape: shape of one step, `(H, W, C)` for video, `(F,)` for series, `()` for audio.
        static_names: names of the classes in `static_label`, or None without such a label.
        dynamic_names: names of the classes in `dynamic_label`, or None without such a label.
        feature_names: one name per feature of a series, or None.
        fps: steps per second, or None when unknown; for audio the sample rate in Hz.
        masked: some values are missing.
    """

    kind: str
    shape: tuple[int, ...]
    static_names: tuple[str, ...] | None = None
    dynamic_names: tuple[str, ...] | None = None
    feature_names: tuple[str, ...] | None = None
    fps: float | None = None
    masked: bool = False

    def __post_init__(self):
        """Holds kind and shape against each other.

        Raises:
            ValueError: an unknown kind, or one that does not fit the shape.
        """
        ranks = {"video": 3, "series": 1, "audio": 0}
        if self.kind not in ranks or len(self.shape) != ranks[self.kind]:
            raise ValueError(
                f"kind {self.kind!r} with shape {self.shape}: use 'video' with (H, W, C), "
                "'series' with (F,) or 'audio' with ()"
            )


class BrokenItemError(ValueError):
    """One item of a source cannot be read; the pipeline leaves it out and counts it."""


class Source(abc.ABC):
    """Random access to the raw sequences of one split of a data set.

    Subclasses set `name`, `kind`, `split`, `spec` and implement `__len__`, `load` and `_identity`.

    Attributes:
        name: the name in the registry.
        split: "train" or "test".
        spec: the `ElementSpec` of the elements.
        skipped: what was left out, as {item: reason}.
        max_skipped_share: the largest share of items that may be left out.
        kind: "video", "series" or "audio", as in the spec but known before the data are; "" where
            it depends on them.
        tasks: what the data set is used for downstream.
    """

    name: str = ""
    kind: str = ""
    tasks: tuple[Task, ...] = ()
    spec: ElementSpec

    def __init__(self, split: str, max_skipped_share: float = 0.05):
        """Checks and keeps the split and the cap on skipped items.

        Args:
            split: "train" or "test".
            max_skipped_share: in [0, 1].

        Raises:
            ValueError: for another split or a share outside [0, 1].
        """
        if split not in SPLITS:
            raise ValueError(f"split {split!r} of source {self.name!r}: use one of {SPLITS}")
        if not 0.0 <= max_skipped_share <= 1.0:
            raise ValueError(f"max_skipped_share={max_skipped_share}: use a share in [0, 1]")
        self.split = split
        self.skipped: dict[str, str] = {}
        self._next_summary = _NAMED_SKIPS + 1
        self.max_skipped_share = max_skipped_share

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of elements in an epoch."""

    @abc.abstractmethod
    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Reads one raw element.

        Args:
            index: in `[0, len(self))`.
            rng: the source of all randomness (windows, augmentation) of this read.

        Returns:
            `x` float32 `[V, ...]`, not normalised, and where the source has them `mask` (bool, True
            where observed; `[V, F]` for series, `[V]` for video), `static_label`, `static_id`,
            `dynamic_label` (int), `position` float32 `[V, 2]`, and `group` (int), the recording
            that elements cut from one recording share.

        Raises:
            BrokenItemError: this item cannot be read.
        """

    @abc.abstractmethod
    def _identity(self) -> Any:
        """JSON-serialisable facts that tell this data from other data; no absolute paths."""

    def lengths(self) -> np.ndarray | None:
        """Number of raw steps of each element `[len(self)]`, or None when it costs too much."""
        return None

    def statistics(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Mean and standard deviation `[F]` of the features of the training split, where known."""
        return None

    def groups(self) -> np.ndarray | None:
        """The recording that each element was cut from `[len(self)]`, or None for one each."""
        return None

    def item_name(self, index: int) -> str:
        """Name of an element in messages."""
        return f"{self.name}/{self.split}[{index}]"

    def describe(self) -> str:
        """One line for logs and plans."""
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        return (
            f"{self.name}/{self.split}: {len(self)} {self.spec.kind} sequences, "
            f"step shape {self.spec.shape}{skipped}"
        )

    def fingerprint(self) -> str:
        """16 hex digits that change when the data or the way it is cut changes."""
        return hash_of([self.name, self.split, dataclasses.asdict(self.spec), self._identity()])

    def num_items(self) -> int:
        """Number of items on disk, the skipped ones too: what the skipped share is taken of."""
        return len(self)

    def warn_if_not_held_out(self, names: Mapping[str, Sequence[str]]) -> None:
        """Says once for both splits that there are no clips that a model has not seen.

        Args:
            names: of the clips of each split.
        """
        tested = set(names["test"])
        if self.split == "test" and tested and tested <= set(names["train"]):
            _LOG.warning(
                "both splits of %s hold the same %d clips, too few to hold some out: numbers of an "
                "evaluation say nothing about other clips",
                self.name,
                len(tested),
            )

    def skip(self, item: str, reason: str, check: bool = True) -> None:
        """Counts an item that is left out; the first few are logged one by one.

        Args:
            item: its name.
            reason: why, in a few words.
            check: also hold the share of skipped items against the cap.

        Raises:
            ValueError: see `check_skipped`.
        """
        if item not in self.skipped:
            self.skipped[item] = reason
            if len(self.skipped) <= _NAMED_SKIPS:
                _LOG.warning("%s/%s: skipped %s (%s)", self.name, self.split, item, reason)
        if check:
            self.check_skipped()

    def check_skipped(self) -> None:
        """Logs how many items were left out, in one line once there are more than are named.

        Raises:
            ValueError: more than `max_skipped_share` of the items were left out.
        """
        total = self.num_items()
        if len(self.skipped) <= self.max_skipped_share * total:
            if len(self.skipped) >= self._next_summary:
                # While items are read one by one: again only when there are twice as many.
                self._next_summary = 2 * len(self.skipped)
                _LOG.warning(
                    "%s/%s: skipped %d of %d items so far, the first %d are named above",
                    self.name,
                    self.split,
                    len(self.skipped),
                    total,
                    _NAMED_SKIPS,
                )
            return
        first = list(self.skipped.items())[:_NAMED_SKIPS]
        names = "; ".join(f"{item} ({reason})" for item, reason in first)
        more = len(self.skipped) - len(first)
        raise ValueError(
            f"{self.name}/{self.split}: {len(self.skipped)} of {total} items had to be skipped, "
            f"more than max_skipped_share={self.max_skipped_share:g} allows: {names}"
            f"{f'; and {more} more' if more else ''}. Repair or remove them, for short ones lower "
            "the length (--config.data.length), or raise max_skipped_share"
        )


class BatchedSource(Source):
    """A video source that reads a whole batch in one call, which is what the pipeline then does.

    Its elements take one number each from the random generator and share one length.
    """

    @abc.abstractmethod
    def load_batch(
        self, indices: Int[np.ndarray, " B"], draws: Float[np.ndarray, " B"]
    ) -> dict[str, np.ndarray]:
        """Reads raw elements.

        Args:
            indices: of the elements, in `[0, len(self))`.
            draws: the randomness of each, uniform in [0, 1).

        Returns:
            The keys of `load` with a leading axis B; `x`, `[B, V, ...]`, may be float16.

        Raises:
            BrokenItemError: one of the items cannot be read.
        """

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A batch of one; see `Source`."""
        batch = self.load_batch(np.array([index]), np.array([rng.random()]))
        batch["x"] = batch["x"].astype(np.float32)
        return {key: values[0] for key, values in batch.items()}


def unknown_name_message(what: str, name: str, allowed: Iterable[str]) -> str:
    """The message for an unknown name, with the nearest known one first.

    Args:
        what: what the name should be one of, such as "data source".
        name: the unknown one.
        allowed: the known ones.
    """
    known = sorted(allowed)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {name!r}.{hint} Known: {', '.join(known)}."


def hash_of(facts: Any) -> str:
    """16 hex digits of SHA-256 over the JSON form of `facts`."""
    text = json.dumps(facts, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_split(keys: list[str], split: str, test_share: float) -> list[str]:
    """Splits keys by a hash that depends on nothing but each key.

    Adding or removing other keys never moves a key to the other split, except that the key closest
    to the border is moved when a split would be empty though there are two keys or more.

    Args:
        keys: distinct names.
        split: "train" or "test".
        test_share: expected share of the test split, in (0, 1).

    Returns:
        The keys of `split`, sorted.

    Raises:
        ValueError: a share outside of these.
    """
    if not 0.0 < test_share < 1.0:
        raise ValueError(f"test_share={test_share}: use a share between 0 and 1")
    place = {key: int(hashlib.sha256(key.encode()).hexdigest()[:12], 16) / 16**12 for key in keys}
    ranked = sorted(keys, key=place.__getitem__)
    count = sum(place[key] < test_share for key in keys)
    if len(keys) > 1:
        count = min(max(count, 1), len(keys) - 1)
    return sorted(ranked[:count] if split == "test" else ranked[count:])


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts frame_2 before frame_10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def label_ids(names: Iterable[str]) -> dict[str, int]:
    """Numbers the distinct names from 0, in natural order."""
    return {name: number for number, name in enumerate(sorted(set(names), key=natural_key))}
