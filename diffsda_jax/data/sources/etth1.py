"""ETTh1: loads and oil temperature of an electricity transformer, hour by hour for two years.

Zhou et al. (2021), "Informer", AAAI; file `ETTh1.csv` of the ETDataset, CC BY-ND 4.0: date, HUFL,
HULL, MUFL, MULL, LUFL, LULL, OT; 17,420 hours from 2016-07-01.

Published: sequences of 672 hours by the six loads; the mean oil temperature of blocks of ten hours
is read from both codes by a probe with hidden layers of 32 and 8, scored by the mean absolute
error. Own readings, where the paper leaves it open: a window starts every 24 hours, always at the
same hour of the day, so that the phase of the day is no nuisance; the split is by time, 60/20/20
as usual for this file; a block is ten consecutive hours from the start of the window, 67 of them,
and the last two hours have no target.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64

from diffsda_jax.data.sources.base import ElementSpec, Source
from diffsda_jax.data.sources.tables import read_table
from diffsda_jax.data.sources.tasks import Task
from diffsda_jax.data.sources.timeline import (
    check_options,
    hour_text,
    hours_from_text,
    masked,
    need_columns,
    observed_mean,
    read_hourly,
    shift_cyclically,
    too_much_missing,
)

FEATURES = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL")
OIL = "OT"
SEQUENCE_HOURS = 672
BLOCK_HOURS = 10
LABELS = ("aligned", "reference")
_REFERENCE_LABEL_SEED = 0
_MAX_SPARSENESS = 10  # hours of the period for each row; more is a wrong stamp or another file


class Etth1(Source):
    """Windows of four weeks: `x` `[672, 6]`, `target_oil_temperature` `[67]` (degrees Celsius).

    Hours without a row and missing cells are masked; `x` is the feature's mean there. A block's
    target is the mean over the hours whose oil temperature is known.

    Args:
        split: "train" or "test".
        path: `ETTh1.csv`.
        stride: hours between the starts of windows.
        train_share: share of the period, at its start, for training.
        test_share: share of the period, at its end, for testing; what is between is validation.
        include_validation: keep the validation part in the training split.
        labels: "aligned", or "reference" as in the released code, which takes the targets of the
            training windows from another shuffle than the signals.
        max_missing_share: a window with a larger share of missing values is skipped, as is one
            without any oil temperature for ten hours.
        cyclic_shift: augmentation of the training split, see `timeline.shift_cyclically`.
        max_skipped_share: see `Source`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a bad option or a bad file; with file, line, column and value.
    """

    name, kind = "etth1", "series"
    tasks = (
        Task(
            "oil_temperature",
            "target_oil_temperature",
            "regression",
            "both",
            None,
            "mlp",
            (32, 8),
            ("mae",),
        ),
    )

    def __init__(
        self,
        split: str,
        path: str,
        stride: int = 24,
        train_share: float = 0.6,
        test_share: float = 0.2,
        include_validation: bool = False,
        labels: str = "aligned",
        max_missing_share: float = 0.5,
        cyclic_shift: str = "none",
        max_skipped_share: float = 0.05,
    ):
        """Reads the file and cuts the windows; see the class."""
        super().__init__(split, max_skipped_share)
        check_options(self.name, cyclic_shift, max_missing_share=max_missing_share)
        _check_cut(stride, train_share, test_share, labels)
        self._cyclic_shift = cyclic_shift if split == "train" else "none"
        self._first, grid = _read_file(path)
        self.spec = ElementSpec(
            kind="series",
            shape=(len(FEATURES),),
            feature_names=FEATURES,
            masked=bool(np.isnan(grid[:, :-1]).any()),  # never in the published file
        )
        end = len(grid) - round(len(grid) * test_share)
        if split == "test":
            begin, end = end, len(grid)
        else:
            begin, end = 0, end if include_validation else round(len(grid) * train_share)
        if end - begin < SEQUENCE_HOURS:
            raise ValueError(
                f"file {path}: its {split} part has {end - begin} hours, fewer than the "
                f"{SEQUENCE_HOURS} of a window: use the whole published file, or change "
                "train_share and test_share"
            )
        self._first, grid = self._first + begin, grid[begin:end]
        self._values, self._oil = grid[:, :-1], grid[:, -1]
        self._fill = observed_mean(self._values)
        starts = np.arange(0, end - begin - SEQUENCE_HOURS + 1, stride)
        self._num_windows = len(starts)
        self._starts = self._usable(starts.tolist(), max_missing_share)
        self._labels_from = np.array(self._starts)
        if split == "train" and labels == "reference":
            shuffle = np.random.default_rng(_REFERENCE_LABEL_SEED)
            self._labels_from = shuffle.permutation(self._labels_from)

    def _usable(self, starts: list[int], max_missing_share: float) -> list[int]:
        """The windows with enough values, and an oil temperature for every block."""
        usable = []
        for start in starts:
            hours = slice(start, start + SEQUENCE_HOURS)
            reason = too_much_missing(self._values[hours], max_missing_share)
            if _has_empty_block(np.isnan(self._oil[hours])):
                reason = f"no oil temperature ({OIL}) for {BLOCK_HOURS} hours or more"
            if reason is None:
                usable.append(start)
            else:
                self.skip(f"window from {hour_text(self._first + start)}", reason, check=False)
        self.check_skipped()
        return usable

    def __len__(self) -> int:
        """Number of windows."""
        return len(self._starts)

    def num_items(self) -> int:
        """Number of windows in the split, the skipped ones too."""
        return self._num_windows

    def lengths(self) -> np.ndarray:
        """672 for every window."""
        return np.full(len(self), SEQUENCE_HOURS)

    def item_name(self, index: int) -> str:
        """First hour of a window."""
        return f"{self.name}/{self.split} from {hour_text(self._first + self._starts[index])}"

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Window `index`; draws from `rng` for the cyclic shift alone."""
        start, label_start = self._starts[index], int(self._labels_from[index])
        element = masked(self._values[start : start + SEQUENCE_HOURS], self._fill)
        element["oil"] = self._oil[label_start : label_start + SEQUENCE_HOURS]
        element = shift_cyclically(element, self._cyclic_shift, rng, per_step=("oil",))
        return {
            "x": element["x"],
            "mask": element["mask"],
            "target_oil_temperature": block_means(element["oil"]),
        }

    def _identity(self) -> Any:
        digest = hashlib.sha256(self._values.tobytes() + self._oil.tobytes()).hexdigest()
        return [digest, self._starts, self._labels_from.tolist(), self._cyclic_shift]


def block_means(hourly: Float64[np.ndarray, " V"]) -> Float32[np.ndarray, " K"]:
    """Mean over each block of ten hours, leaving out NaN; a rest at the end is not used."""
    blocks = hourly[: len(hourly) // BLOCK_HOURS * BLOCK_HOURS].reshape(-1, BLOCK_HOURS)
    return np.nanmean(blocks, axis=-1).astype(np.float32)


def _has_empty_block(missing: Bool[np.ndarray, " V"]) -> bool:
    """Whether ten hours in a row are missing, across the ends too, where a shift may join them."""
    round_the_end = np.concatenate([missing, missing[: BLOCK_HOURS - 1]])
    runs = np.lib.stride_tricks.sliding_window_view(round_the_end, BLOCK_HOURS)
    return bool(runs.all(axis=-1).any())


def _check_cut(stride: int, train_share: float, test_share: float, labels: str) -> None:
    """Refuses bad values of the options that no file is needed for."""
    if stride < 1:
        raise ValueError(f"stride={stride} of source 'etth1': use 1 hour or more")
    if labels not in LABELS:
        raise ValueError(f"labels={labels!r} of source 'etth1': use one of {LABELS}")
    if min(train_share, test_share) <= 0 or train_share + test_share > 1:
        raise ValueError(
            f"train_share={train_share} and test_share={test_share} of source 'etth1': use shares "
            "over 0 that add up to 1 at most"
        )


def _read_file(path: str) -> tuple[int, Float64[np.ndarray, "N 7"]]:
    """The first hour, and loads and oil temperature hour by hour, NaN where missing."""
    file = Path(path).expanduser()
    if not str(path) or not file.is_file():
        raise FileNotFoundError(
            f"path {str(path)!r} of source 'etth1' is no file: set it to ETTh1.csv of the ETDataset"
        )
    table = read_table(file)
    need_columns(table, ("date", *FEATURES, OIL))
    stamps = hours_from_text(table, "date")
    first = int(stamps.min())
    hours = int(stamps.max()) - first + 1
    if hours > _MAX_SPARSENESS * len(stamps):
        raise ValueError(
            f"file {file}: {len(stamps)} rows for the {hours} hours from {hour_text(first)} to "
            f"{hour_text(first + hours - 1)}: use the hourly file, or correct the wrong time stamps"
        )
    return first, read_hourly(table, (*FEATURES, OIL), stamps, first, hours)
