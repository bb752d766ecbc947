"""Pair files: whose static factor goes with whose dynamics, as CSV.

    # lines like this one, and blank ones, are passed over
    static_clip,dynamic_clip,static_start,dynamic_start
    test/anna.mp4,test/bert.mp4,0,12

Clips are named by their path relative to the root of the source, with forward slashes, as
`Source.item_name` gives it. A start is the number of the first frame of the window in its clip;
the columns of the starts may be left out, which means 0.
"""

import csv
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer

from diffsda_jax.data.sources.base import BrokenItemError, Source, unknown_name_message

_CLIPS = ("static_clip", "dynamic_clip")
_STARTS = ("static_start", "dynamic_start")


class Pair(NamedTuple):
    """One swap.

    Attributes:
        static_clip: name of the clip that gives the static factor.
        dynamic_clip: name of the clip that gives the dynamics.
        static_start: first frame of the window of the static clip.
        dynamic_start: first frame of the window of the dynamic clip.
    """

    static_clip: str
    dynamic_clip: str
    static_start: int = 0
    dynamic_start: int = 0


def read_pairs(path: str | Path, source: Source | None = None) -> list[Pair]:
    """Reads a pair file.

    Args:
        path: the file, see the top of this module.
        source: where the clips must be, and the windows if it cuts any; None does not ask.

    Returns:
        The pairs in the order of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another header, no rows, a row that is no pair, that is there twice or pairs a
            window with itself, a clip that the source does not have, or a window that does not fit
            into its clip; file and line are named.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"pair file {path} is missing: set the path of one, or make one with sample_pairs and "
            "write_pairs of diffsda_jax.data.sources.pairs"
        )
    rows = _rows(path)
    header = next(rows, (0, []))[1]
    _check_header(path, header)
    placed: dict[Pair, str] = {}
    for line, row in rows:
        where = f"pair file {path}, line {line}"
        pair = _parse(where, header, row)
        _check(where, pair, placed)
        placed[pair] = where
    if not placed:
        raise ValueError(f"pair file {path} has a header and no pairs: add some below it")
    if source is not None:
        places = _check_clips(placed, source)
        if hasattr(source, "last_start"):
            _check_starts(placed, places, source)
    return list(placed)


def write_pairs(path: str | Path, pairs: Iterable[Pair], comment: str = "") -> None:
    """Writes a pair file, whole or not at all.

    Args:
        path: the file; folders around it are made.
        pairs: at least one.
        comment: goes before the header, line by line.

    Raises:
        ValueError: no pairs, an empty name or one with a line break, a negative start, a pair that
            is there twice or pairs a window with itself.
    """
    path = Path(path).expanduser()
    placed: dict[Pair, str] = {}
    for number, pair in enumerate(pairs, 1):
        where = f"pair {number} for {path}"
        _check(where, pair, placed)
        placed[pair] = where
    if not placed:
        raise ValueError(f"there are no pairs to write to {path}: give one or more")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("w", newline="", encoding="utf-8") as file:
        file.writelines(f"# {line}\n" for line in comment.splitlines())
        file.write(",".join(Pair._fields) + "\n")
        # Names are quoted, so that none looks like a comment.
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        writer.writerows(placed)
    part.replace(path)


def sample_pairs(
    clips: Sequence[str],
    num_pairs: int,
    *,
    seed: int = 0,
    labels: Integer[np.ndarray, " N"] | None = None,
) -> list[Pair]:
    """Draws pairs of first windows, none twice.

    The static side goes round all clips in a random order before any is taken again; its partner is
    drawn from the clips with another label.

    Args:
        clips: names, see `clip_names`.
        num_pairs: how many.
        seed: the same seed, clips and labels give the same pairs.
        labels: of the clips; None pairs any two different clips.

    Raises:
        ValueError: names that are there twice, other than one label for each, fewer pairs than
            asked for can be made, or none is asked for.
    """
    num_clips = len(clips)
    labels = np.arange(num_clips) if labels is None else np.asarray(labels)
    if len(set(clips)) != num_clips or labels.shape != (num_clips,):
        raise ValueError(
            f"sample_pairs: {num_clips} clips of {len(set(clips))} names with labels of shape "
            f"{labels.shape}: give every clip once and one label for each"
        )
    _, kinds, counts = np.unique(labels, return_inverse=True, return_counts=True)
    partners = num_clips - counts[kinds]  # [N]
    if not 1 <= num_pairs <= partners.sum():
        raise ValueError(
            f"sample_pairs: num_pairs={num_pairs}: use 1 to {partners.sum()}, which is how many "
            f"pairs {num_clips} clips of {len(counts)} labels make; for more give more clips"
        )
    rounds = next(r for r in itertools.count(1) if np.minimum(partners, r).sum() >= num_pairs)
    rng = np.random.default_rng(seed)
    order = rng.permutation(num_clips)
    drawn = {
        i: rng.choice(np.flatnonzero(labels != labels[i]), min(rounds, partners[i]), replace=False)
        for i in order[:num_pairs]
    }
    turns = itertools.product(range(rounds), drawn)
    pairs = [Pair(clips[i], clips[drawn[i][r]]) for r, i in turns if r < len(drawn[i])]
    return pairs[:num_pairs]


def clip_names(source: Source) -> list[str]:
    """Names of the clips of a source, each once though an epoch may repeat it."""
    return list(dict.fromkeys(source.item_name(index) for index in range(len(source))))


class PairWindows(Source):
    """The windows of given pairs as a data set, each once however many pairs it is in.

    Nothing is random, and nothing may be missing: a clip that cannot be read is an error.

    Attributes:
        pairs: `[2, P]`, places of the static donors and of the dynamic ones.
    """

    def __init__(self, source: Source, pairs: Sequence[Pair]):
        """Checks all pairs before the first is read.

        Args:
            source: one that reads windows from a given frame on: `load_window` and `last_start` as
                `VideoFolder` has them.
            pairs: their clips are of this source.

        Raises:
            ValueError: a source that cannot do so, a clip that it does not have, or a window that
                does not fit into its clip.
        """
        if not hasattr(source, "load_window"):
            raise ValueError(
                f"source {source.name!r} cannot read a window from a given frame on, as pairs need "
                "it: use one of videos or latents"
            )
        super().__init__(source.split)
        self.name, self.kind, self.spec = source.name, source.kind, source.spec
        self._source = source
        placed = {pair: f"pair {number}" for number, pair in enumerate(pairs, 1)}
        places = _check_clips(placed, source)
        _check_starts(placed, places, source)
        windows = [
            (places[getattr(pair, clip)], getattr(pair, start))
            for clip, start in zip(_CLIPS, _STARTS, strict=True)
            for pair in pairs
        ]
        self._windows = list(dict.fromkeys(windows))
        place = {window: number for number, window in enumerate(self._windows)}
        self.pairs = np.array([place[window] for window in windows]).reshape(2, -1)

    def __len__(self) -> int:
        """Number of distinct windows."""
        return len(self._windows)

    def item_name(self, index: int) -> str:
        """Name of the clip of a window."""
        return self._source.item_name(self._windows[index][0])

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A window as `load_window` of the source gives it; draws nothing from `rng`.

        Raises:
            ValueError: a clip that cannot be read.
        """
        del rng
        try:
            return self._source.load_window(*self._windows[index])
        except BrokenItemError as error:
            number = int(np.flatnonzero((self.pairs == index).any(0))[0]) + 1
            raise ValueError(
                f"pair {number}: {error}: repair the clip, or remove its pairs"
            ) from error

    def _identity(self) -> Any:
        return [self._source.fingerprint(), self._windows]


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of what is neither blank nor a comment."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            # A comment becomes a blank line, so that line numbers stay right.
            lines = ("\n" if line.lstrip().startswith("#") else line for line in file)
            reader = csv.reader(lines, strict=True, skipinitialspace=True)
            yield from ((reader.line_num, row) for row in reader if "".join(row).strip() or row[1:])
    except UnicodeDecodeError as error:
        raise ValueError(
            f"pair file {path} is not UTF-8 text ({error.reason}): save it as UTF-8"
        ) from None
    except csv.Error as error:
        raise ValueError(f"pair file {path} is not a CSV file ({error}): mend it") from None


def _check_header(path: Path, header: list[str]) -> None:
    """Refuses a first row that does not name the columns."""
    fields = ",".join(Pair._fields)
    missing = [name for name in _CLIPS if name not in header]
    if missing:
        raise ValueError(
            f"pair file {path} has no column {missing[0]!r} in its first row "
            f"{','.join(header)[:80]!r}: start it with the line {fields}"
        )
    for place, name in enumerate(header):
        if name not in Pair._fields:
            raise ValueError(
                f"pair file {path}: {unknown_name_message('column', name, Pair._fields)}"
            )
        if name in header[:place]:
            raise ValueError(f"pair file {path}: column {name!r} is there twice: remove one")


def _parse(where: str, header: list[str], row: list[str]) -> Pair:
    """A row as a pair; names are checked later."""
    if len(row) != len(header):
        raise ValueError(
            f"{where}: {len(row)} cells, but the header names {len(header)} columns: mend the row "
            "(a name with a comma stands in double quotes)"
        )
    cells: dict[str, Any] = dict(zip(header, row, strict=True))
    for name in _STARTS:
        cell = cells.setdefault(name, "0").strip()
        if not (cell.isascii() and cell.isdigit()):
            raise ValueError(f"{where}: {name}={cell!r}: write a frame number, 0 or more")
        cells[name] = int(cell)
    return Pair(**cells)


def _check(where: str, pair: Pair, placed: dict[Pair, str]) -> None:
    """Refuses a pair that is none, or one that was there before."""
    for name in _CLIPS:
        clip = getattr(pair, name)
        if not clip.strip() or len(clip.splitlines()) > 1:
            raise ValueError(
                f"{where}: {name}={clip!r}: write the path of a clip relative to the root of the "
                "source, in one line, or remove the row"
            )
    for name in _STARTS:
        if getattr(pair, name) < 0:
            raise ValueError(f"{where}: {name}={getattr(pair, name)}: use a frame number from 0 on")
    if pair in placed:
        raise ValueError(
            f"{where}: {pair.static_clip} with {pair.dynamic_clip} was there before as "
            f"{placed[pair]}: remove one of them"
        )
    if (pair.static_clip, pair.static_start) == (pair.dynamic_clip, pair.dynamic_start):
        raise ValueError(
            f"{where}: pairs {pair.static_clip} with itself, which swaps nothing: use another clip "
            "or another start on one side"
        )


def _check_clips(placed: dict[Pair, str], source: Source) -> dict[str, int]:
    """Place of every clip of a source by its name; refuses pairs of others."""
    places: dict[str, int] = {}
    for index in range(len(source)):
        places.setdefault(source.item_name(index), index)
    unknown = [
        (getattr(pair, name), where)
        for pair, where in placed.items()
        for name in _CLIPS
        if getattr(pair, name) not in places
    ]
    if not unknown:
        return places
    clip, where = unknown[0]
    data = f"source {source.name!r}, split {source.split!r}"
    if clip in source.skipped:
        raise ValueError(
            f"{where}: clip {clip!r} of {data} was skipped ({source.skipped[clip]}): repair the "
            "clip, or remove its pairs"
        )
    raise ValueError(
        f"{where}: {data} has no clip {clip!r} ({len({name for name, _ in unknown})} clips of the "
        f"pairs are unknown); its clips are named like {next(iter(places), '')!r}: correct the "
        "name, or set the root or split that it is from"
    )


def _check_starts(placed: dict[Pair, str], places: dict[str, int], source: Any) -> None:
    """Refuses windows that do not fit into their clips."""
    for pair, where in placed.items():
        for clip, start in zip(_CLIPS, _STARTS, strict=True):
            name, frame = getattr(pair, clip), getattr(pair, start)
            last = source.last_start(places[name])
            if not 0 <= frame <= last:
                raise ValueError(
                    f"{where}: {start}={frame}: the windows of clip {name!r} start at frame 0 to "
                    f"{last}: use one of these, or lower the length or the stride of the source"
                )
