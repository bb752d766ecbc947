"""Sequences in the units of their data, with what files say beside the numbers."""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, Num

from diffsda_jax.data import media_writer
from diffsda_jax.data.media_writer import check_format
from diffsda_jax.npz_file import read_arrays

_PAUSE_SECONDS = 0.3  # between sounds that follow each other
_NO_FILE_NAME = re.compile(r"[/\\\x00-\x1f]")


@dataclasses.dataclass(frozen=True)
class Columns:
    """What a table holds beside the values.

    Attributes:
        time_name: of the column of times, or None.
        times: its cells, for each step of each sequence; empty where there are none.
        id_name: of the column that tells sequences apart, where a file holds several.
    """

    time_name: str | None = None
    times: tuple[tuple[str, ...], ...] = ()
    id_name: str = "id"


@dataclasses.dataclass(frozen=True)
class Sequences:
    """A batch of sequences of any lengths, in the units of their data.

    Attributes:
        x: `[B, V, ...]`: video frames `[B, V, H, W, 3]` of 0 to 255, series `[B, V, F]` with NaN
            where a value is missing, or waveforms `[B, N]` in [-1, 1]; zeros after the end.
        lengths: number of real steps (samples of a waveform) of each `[B]`.
        kind: "video", "series" or "audio".
        rates: steps a second of each: frames, or samples in Hz; None where it is not known.
        names: of each, such as the name of its file without suffix.
        feature_names: of a series, or None.
        columns: what tables hold beside the values.

    Examples:
        >>> import tempfile
        >>> import numpy as np
        >>> from diffsda_jax import Sequences
        >>> waves = Sequences.join(
        ...     [np.zeros((3, 2), np.float32), np.ones((2, 2), np.float32)],
        ...     "series",
        ...     rates=[1.0, 1.0],
        ...     names=["rest", "walk"],
        ...     feature_names=["x", "y"],
        ... )
        >>> waves.x.shape, waves.lengths.tolist()
        ((2, 3, 2), [3, 2])
        >>> folder = tempfile.TemporaryDirectory()
        >>> [path.name for path in waves.save(folder.name)]
        ['rest.csv', 'walk.csv']
        >>> (path,) = waves.save(f"{folder.name}/all.npz")
        >>> Sequences.load(path).names
        ('rest', 'walk')
        >>> folder.cleanup()
    """

    x: Num[np.ndarray, "B V *event"]
    lengths: Integer[np.ndarray, " B"]
    kind: str
    rates: tuple[float | None, ...]
    names: tuple[str, ...]
    feature_names: tuple[str, ...] | None = None
    columns: Columns = Columns()

    @classmethod
    def join(
        cls,
        items: Sequence[np.ndarray],
        kind: str,
        rates: Sequence[float | None],
        names: Sequence[str],
        feature_names: Sequence[str] | None = None,
        columns: Columns | None = None,
    ) -> "Sequences":
        """Makes a batch of arrays `[V, ...]` of any lengths, `rates` in steps a second.

        The other arguments are as the attributes.

        Raises:
            ValueError: steps of different shapes.
        """
        if len(shapes := {item.shape[1:] for item in items}) > 1:
            raise ValueError(
                "sequences of one batch have steps of one shape, and these have "
                f"{', '.join(map(str, sorted(shapes)))}; give them one by one."
            )
        lengths = np.array([len(item) for item in items], np.int32)
        x = np.zeros((len(items), lengths.max(), *items[0].shape[1:]), items[0].dtype)
        for row, item in zip(x, items, strict=True):
            row[: len(item)] = item
        features = None if feature_names is None else tuple(feature_names)
        names = tuple(distinct(names))
        return cls(x, lengths, kind, tuple(rates), names, features, columns or Columns())

    @property
    def sound_rates(self) -> tuple[float, ...]:
        """The rates of sounds in Hz, which must be known.

        Raises:
            ValueError: one is not.
        """
        known = tuple(rate for rate in self.rates if rate is not None)
        if len(known) < len(self.rates):
            raise ValueError("sounds without rates cannot be used; give each a rate in Hz.")
        return known

    def __len__(self) -> int:
        """Number of sequences B."""
        return len(self.x)

    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> "Sequences":
        """Some sequences of the batch: a slice, or a list or array of places."""
        places = np.arange(len(self))[index].tolist()

        def pick(values: tuple) -> tuple:
            return tuple(values[place] for place in places) if values else ()

        return dataclasses.replace(
            self,
            x=self.x[places],
            lengths=self.lengths[places],
            rates=pick(self.rates),
            names=pick(self.names),
            columns=dataclasses.replace(self.columns, times=pick(self.columns.times)),
        )

    def items(self) -> list[np.ndarray]:
        """The sequences without what fills them up, `[V, ...]` each."""
        return [x[:length] for x, length in zip(self.x, self.lengths, strict=True)]

    def save(self, path: str | os.PathLike, form: str | None = None) -> list[Path]:
        """Writes files.

        Args:
            path: a file, whose suffix names the format: mp4 or gif, wav or flac, csv, npz. One
                without a suffix is a folder, which gets a file for each sequence, by its name
                (slashes become `_`). A csv or npz file holds any number of sequences, others one.
            form: the format, for a folder: one of `media_writer.FORMATS`. "frames" writes images:
                into the folder itself where there is one sequence.

        Returns:
            The files (of frames the folders).

        Raises:
            ValueError: a format that this kind of data does not have, or several sequences for a
                file that holds one.
            ImportError: a package that the format needs is missing.
            OSError: a file cannot be written.
        """
        path = Path(path).expanduser()
        form = check_format(self.kind, path, form)
        if form == "npz":
            return [self._save_npz(path if path.suffix else path / "sequences.npz")]
        if path.suffix and form != media_writer.FRAMES:
            return [self._save_file(path, form)]
        if form == media_writer.FRAMES and len(self) == 1:
            return [self._save_one(0, path, form)]
        suffix = "" if form == media_writer.FRAMES else f".{form}"
        return [
            self._save_one(place, path / f"{name}{suffix}", form)
            for place, name in enumerate(file_names(self.names))
        ]

    def _save_file(self, path: Path, form: str) -> Path:
        """All sequences into one file."""
        if len(self) == 1:
            return self._save_one(0, path, form)
        if form != "csv":
            raise ValueError(
                f"{len(self)} sequences do not fit into {path}: give a folder (a name without "
                "suffix), an .npz file, or ask for them side by side."
            )
        header, rows = self._rows(0)
        rows = [
            [name, *row]
            for place, name in enumerate(self.names)
            for row in (rows if place == 0 else self._rows(place)[1])
        ]
        return media_writer.write_table(path, [self.columns.id_name, *header], rows)

    def _save_one(self, place: int, path: Path, form: str) -> Path:
        """One sequence."""
        x, rate = self.x[place, : self.lengths[place]], self.rates[place]
        if self.kind == "video":
            return media_writer.write_clip(x, path, form, rate)
        if self.kind == "audio":
            return media_writer.write_sound(x, path, self.sound_rates[place])
        return media_writer.write_table(path, *self._rows(place))

    def _rows(self, place: int) -> tuple[list[str], list[list[object]]]:
        """Header and rows of the table of one sequence; times come first where there are any."""
        x = self.x[place, : self.lengths[place]]
        header = list(self.feature_names or (f"feature_{i}" for i in range(x.shape[-1])))
        times = self.columns.times[place] if self.columns.times else ()
        if self.columns.time_name is None or not times:
            return header, [list(row) for row in x]
        filled = [*times, *[""] * (len(x) - len(times))]  # all sequences of a file have the column
        rows = [[time, *row] for time, row in zip(filled, x, strict=False)]
        return [self.columns.time_name, *header], rows

    def _save_npz(self, path: Path) -> Path:
        """Everything but tables' other columns; see `load`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        features: dict[str, Any] = {}
        if self.feature_names is not None:
            features["feature_names"] = self.feature_names
        with path.open("wb") as file:  # a path that ends in .NPZ would get another .npz
            np.savez(
                file,
                x=self.x,
                lengths=self.lengths,
                kind=np.array(self.kind),
                rates=np.array([np.nan if rate is None else rate for rate in self.rates]),
                names=np.array(self.names),
                **features,
            )
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Sequences":
        """Reads the `.npz` file that `save` wrote; no code in it is run.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or holds something else.
        """
        arrays = read_arrays(Path(path))
        needed = ("x", "lengths", "kind", "rates", "names")
        if missing := [key for key in needed if key not in arrays]:
            raise ValueError(f"{path} does not hold sequences ({missing[0]!r} is missing in it).")
        x, lengths, rates, names = (arrays[key] for key in ("x", "lengths", "rates", "names"))
        counts = {len(part) if part.ndim else 0 for part in (x, lengths, rates, names)}
        numbers = all(part.dtype.kind in "iuf" for part in (x, lengths, rates))
        if not numbers or len(counts) > 1 or x.ndim < 2 or not x.size:
            raise ValueError(
                f"{path} does not hold sequences (x {x.shape}, lengths {lengths.shape}, rates "
                f"{rates.shape}, names {names.shape}); give a file that Sequences.save wrote."
            )
        if lengths.min() < 1 or lengths.max() > x.shape[1]:
            raise ValueError(
                f"{path} holds sequences of {lengths.min()} to {lengths.max()} steps in an array "
                f"of {x.shape[1]}; allowed are 1 to {x.shape[1]}."
            )
        features = arrays.get("feature_names")
        return cls(
            x,
            lengths.astype(np.int32),
            str(arrays["kind"]),
            tuple(None if np.isnan(rate) else float(rate) for rate in rates),
            tuple(map(str, names)),
            None if features is None else tuple(map(str, features)),
        )


def distinct(names: Sequence[str]) -> list[str]:
    """Names with a number after those that occurred before."""
    found: dict[str, None] = {}
    for name in names:
        number, new = 2, name
        while new in found:
            number, new = number + 1, f"{name}_{number}"
        found[new] = None
    return list(found)


def file_names(names: Sequence[str]) -> list[str]:
    """Distinct names of files for sequences, whose own may be any cell of a table: no folders."""
    flat = [_NO_FILE_NAME.sub("_", name).strip() for name in names]
    return distinct([name if name.strip(".") else "sequence" for name in flat])


def side_by_side(parts: Sequence[Sequences], titles: Sequence[str]) -> Sequences:
    """Puts sequences next to each other, to compare them.

    Args:
        parts: batches of the same kind and size; the last one's rates, names and times are kept.
        titles: of the parts, for the columns of tables.

    Returns:
        One batch: frames side by side, features after one another (as `title.feature`), or sounds
        after one another. Shorter videos stay at their last frame, shorter series are missing.

    Raises:
        ValueError: parts of different sizes.
    """
    last = parts[-1]
    if len({len(part) for part in parts}) > 1:
        counts = ", ".join(
            f"{len(part)} {title}" for part, title in zip(parts, titles, strict=True)
        )
        raise ValueError(f"cannot put {counts} side by side: give as many of each.")
    rows = zip(*(part.items() for part in parts), strict=True)
    rates: Sequence[float | None] = last.rates
    if last.kind == "audio":
        all_rates = [part.sound_rates for part in parts]
        sounds = [
            _after_another(list(zip(row, own, strict=True)))
            for row, own in zip(rows, zip(*all_rates, strict=True), strict=True)
        ]
        items, rates = [x for x, _ in sounds], [rate for _, rate in sounds]
    else:
        axis = 2 if last.kind == "video" else 1
        items = [np.concatenate(_as_long(row, last.kind), axis=axis) for row in rows]
    features = None
    if last.kind == "series":
        names = last.feature_names or [f"feature_{i}" for i in range(last.x.shape[-1])]
        features = [f"{title}.{name}" for title in titles for name in names]
    return Sequences.join(items, last.kind, rates, last.names, features, last.columns)


def _as_long(row: Sequence[np.ndarray], kind: str) -> list[np.ndarray]:
    """Arrays as long as the longest."""
    longest = max(map(len, row))
    how: dict[str, Any] = {"mode": "edge"}
    if kind == "series":
        how = {"mode": "constant", "constant_values": np.nan}
    return [np.pad(x, [(0, longest - len(x))] + [(0, 0)] * (x.ndim - 1), **how) for x in row]


def _after_another(sounds: Sequence[tuple[np.ndarray, float]]) -> tuple[np.ndarray, float]:
    """Sounds with pauses between them, at the rate of the last."""
    from diffsda_jax.data.audio_io import resample

    rate = round(sounds[-1][1])
    pause = np.zeros(round(_PAUSE_SECONDS * rate), np.float32)
    pieces = [piece for x, own in sounds for piece in (resample(x, round(own), rate), pause)]
    return np.concatenate(pieces[:-1]), float(rate)
