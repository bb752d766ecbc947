"""Factors of a training split on disk: written resumably, memory-mapped, and read as batches.

A folder holds `facts.json` (what the factors were made from), shards `factors-00000.npy` of fixed
shares of the sequences, and, once all is written, `factors.json` (the summary). A shard is one
array of records (`static`, `dynamic`, `length`), so that it appears whole by one rename, and a kill
at any time costs one shard.
"""

import dataclasses
import json
import os
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int, Integer

from diffsda_jax.data.pipeline import make_array_iterator
from diffsda_jax.data.record_files import read_json, save_json
from diffsda_jax.data.transforms import Normalizer
from diffsda_jax.npz_file import DAMAGE

FACTS, SUMMARY = "facts.json", "factors.json"
_FORMAT = 1
_PART = ".part"
_FIELDS = ("static", "dynamic", "length")
_CHUNK_BYTES = 8 << 20
_AGAIN = "remove it and run --mode=prior again, which makes it anew"


def check_facts(folder: Path, facts: dict[str, Any], way_out: str) -> None:
    """Refuses a folder whose factors were made from something else; a new folder is fine.

    Args:
        folder: of the factors.
        facts: JSON values that tell what the factors are made from and how.
        way_out: how to go on, for the message.

    Raises:
        ValueError: the first fact that differs, with both values.
    """
    if not (folder / FACTS).is_file():
        return
    old = _load_json(folder / FACTS)
    new = json.loads(json.dumps(facts))
    if old.get("format") != _FORMAT:
        raise ValueError(
            f"the factors in {folder} have format {old.get('format')!r}, this version reads "
            f"{_FORMAT}; {way_out}."
        )
    for key, value in new.items():
        if old["facts"].get(key) != value:
            raise ValueError(
                f"the factors in {folder} were made with {key} {old['facts'].get(key)!r}, which "
                f"is now {value!r}; {way_out}."
            )


class FactorWriter:
    """Writes the factors of numbered sequences, or goes on where a killed run stopped.

    Shard i holds what there is of the sequences `span(i)`; it is written whole. Only one writer may
    have the folder open.
    """

    def __init__(
        self,
        folder: Path,
        facts: dict[str, Any],
        num_sequences: int,
        sequences_per_shard: int,
        way_out: str = "remove the folder to make them anew",
    ):
        """Opens a new folder, or one that was written with the same facts.

        Args:
            folder: is made when it is missing.
            facts: see `check_facts`.
            num_sequences: how many there are to write.
            sequences_per_shard: how many a kill may cost.
            way_out: see `check_facts`.

        Raises:
            ValueError: see `check_facts`; or `sequences_per_shard` below 1.
        """
        if sequences_per_shard < 1:
            raise ValueError(f"sequences_per_shard={sequences_per_shard}: use 1 or more")
        facts = facts | {"sequences": num_sequences, "sequences a shard": sequences_per_shard}
        self._folder, self._facts = folder, facts
        self._num_sequences, self._per_shard = num_sequences, sequences_per_shard
        self._num_shards = -(-num_sequences // sequences_per_shard)
        folder.mkdir(parents=True, exist_ok=True)
        check_facts(folder, facts, way_out)
        save_json(folder / FACTS, {"format": _FORMAT, "facts": facts})
        for part in folder.glob(f"*{_PART}"):
            part.unlink()

    def missing(self) -> list[int]:
        """Numbers of the shards that are not written."""
        numbers = range(self._num_shards)
        return [shard for shard in numbers if not _shard_file(self._folder, shard).exists()]

    def finished(self) -> bool:
        """Whether all is written, with the summary."""
        return not self.missing() and (self._folder / SUMMARY).is_file()

    def span(self, shard: int) -> range:
        """Numbers of the sequences that a shard is for."""
        first = shard * self._per_shard
        return range(first, min(first + self._per_shard, self._num_sequences))

    def write(
        self,
        shard: int,
        static: Float32[np.ndarray, "N S"],
        dynamic: Float32[np.ndarray, "N V D"],
        length: Integer[np.ndarray, " N"] | None = None,
    ) -> None:
        """Writes a shard.

        Args:
            shard: its number.
            static: s of the sequences that could be read.
            dynamic: their d; what is padding is not looked at.
            length: their steps that are not padding; None = all.

        Raises:
            ValueError: more sequences than the shard is for, or factors that are not finite.
        """
        steps, dim = dynamic.shape[1:]
        length = np.full(len(static), steps) if length is None else length
        if len(static) > len(self.span(shard)):
            raise ValueError(f"shard {shard} is for {len(self.span(shard))} sequences")
        real = np.arange(steps) < length[:, None]
        dynamic = np.where(real[..., None], dynamic, np.float32(0))
        if not (np.isfinite(static).all() and np.isfinite(dynamic).all()):
            raise ValueError(
                "some factors are not finite: the sequence model is of no use here; train it anew "
                "with a lower learning rate, or take an earlier checkpoint"
            )
        fields = [("static", "<f4", static.shape[1:]), ("dynamic", "<f4", (steps, dim))]
        records = np.empty(len(static), [*fields, ("length", "<i4")])
        records["static"], records["dynamic"], records["length"] = static, dynamic, length
        target = _shard_file(self._folder, shard)
        part = target.with_name(target.name + _PART)
        with part.open("wb") as file:
            np.save(file, records)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)

    def finish(self) -> None:
        """Takes the statistics and writes the summary; only then the folder can be read.

        Raises:
            ValueError: a shard is missing, or there is no sequence at all.
        """
        if missing := self.missing():
            raise ValueError(f"shard {missing[0]} in {self._folder} is not written")
        shards = [_open_shard(self._folder, number) for number in range(self._num_shards)]
        rows = [len(shard) for shard in shards]
        if not sum(rows):
            raise ValueError(f"no sequence could be read, so {self._folder} holds no factors")
        summary = {
            "format": _FORMAT,
            "facts": self._facts,
            "rows": rows,
            "crc32": [_checksum(self._folder, number) for number in range(self._num_shards)],
            "padded": any((s["length"] < s["dynamic"].shape[1]).any() for s in shards),
            "static": _moments(lambda: (s["static"] for s in shards)),
            "dynamic": _moments(lambda: (_real_steps(s) for s in shards)),
        }
        save_json(self._folder / SUMMARY, summary)


def _moments(parts: Callable[[], Iterable[np.ndarray]]) -> dict[str, Any]:
    """Mean and standard deviation over the rows of all parts, as `Normalizer.to_dict` has them.

    Args:
        parts: gives the parts `[N, F]` anew at every call; two passes lose no digits.
    """
    count = sum(len(part) for part in parts())
    mean = sum(part.sum(0, dtype=np.float64) for part in parts()) / count
    variance = sum(np.square(part - mean).sum(0) for part in parts()) / count
    std = np.sqrt(variance)
    std = np.where(std > 1e-6 * np.maximum(np.abs(mean), 1e-6), std, 1.0)  # a constant stays 0
    return Normalizer(mean.astype(np.float32), std.astype(np.float32), 1.0).to_dict()


def _real_steps(records: np.ndarray) -> Float32[np.ndarray, "N D"]:
    """The dynamics of all steps that are not padding."""
    dynamic = records["dynamic"]
    return dynamic[np.arange(dynamic.shape[1]) < records["length"][:, None]]


@dataclasses.dataclass(frozen=True)
class FactorCache:
    """The factors of a finished folder, memory-mapped.

    Attributes:
        folder: where they are.
        facts: what they were made from and how.
        static: between s in the model's units and s of mean 0 and standard deviation 1.
        dynamic: the same of d, over all real steps.
        padded: some sequences have padding.
        shards: arrays `[rows]` of records, with fields of s, d and the length of a sequence.
    """

    folder: Path
    facts: dict[str, Any]
    static: Normalizer
    dynamic: Normalizer
    padded: bool
    shards: list[np.ndarray]

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "FactorCache":
        """Opens a folder.

        Raises:
            FileNotFoundError: there are no factors in it, or they are not finished.
            ValueError: a shard is missing or damaged.
        """
        folder = Path(folder)
        if not (folder / SUMMARY).is_file():
            raise FileNotFoundError(
                f"{folder} holds no finished factors ({SUMMARY} is missing): run --mode=prior, "
                "which writes them"
            )
        summary = _load_json(folder / SUMMARY)
        shards = [_open_shard(folder, number) for number in range(len(summary["rows"]))]
        for number, crc in enumerate(summary.get("crc32", [])):
            if _checksum(folder, number) != crc:
                raise ValueError(
                    f"{_shard_file(folder, number)} is damaged (its checksum differs): {_AGAIN}"
                )
        for number, (shard, rows) in enumerate(zip(shards, summary["rows"], strict=True)):
            if len(shard) != rows:
                raise ValueError(
                    f"{_shard_file(folder, number)} has {len(shard)} sequences, written were "
                    f"{rows}: {_AGAIN}"
                )
        return cls(
            folder=folder,
            facts=summary["facts"],
            static=Normalizer.from_dict(summary["static"]),
            dynamic=Normalizer.from_dict(summary["dynamic"]),
            padded=summary["padded"],
            shards=shards,
        )

    def __len__(self) -> int:
        """Number of sequences."""
        return sum(len(shard) for shard in self.shards)

    @property
    def length(self) -> int:
        """V, with padding."""
        return self.shards[0].dtype["dynamic"].shape[0]

    def read(self, indices: Int[np.ndarray, " B"]) -> dict[str, np.ndarray]:
        """Some sequences as a batch, normalised; padding is 0.

        Args:
            indices: in `[0, len(self))`.

        Returns:
            `static` `[B, S]`, `dynamic` `[B, V, D]`, and `length` `[B]` if any sequence of the
            folder is padded.
        """
        starts = np.cumsum([0, *(len(shard) for shard in self.shards)])
        number = np.searchsorted(starts, indices, side="right") - 1
        records = np.empty(len(indices), self.shards[0].dtype)
        for shard in np.unique(number):
            rows = number == shard
            records[rows] = self.shards[shard][indices[rows] - starts[shard]]
        dynamic = self.dynamic.apply(records["dynamic"])
        batch = {"static": self.static.apply(records["static"]), "dynamic": dynamic}
        if not self.padded:
            return batch
        real = np.arange(dynamic.shape[1]) < records["length"][:, None]
        dynamic = np.where(real[..., None], dynamic, np.float32(0))
        return batch | {"dynamic": dynamic, "length": records["length"].copy()}

    def iterate(self, **options: Any) -> Any:
        """Endless shuffled batches of `read`, on Grain.

        Args:
            **options: of `data.pipeline.make_array_iterator`, such as `batch_size` and `seed`.
        """
        return make_array_iterator(self.read, len(self), **options)


def _shard_file(folder: Path, shard: int) -> Path:
    return folder / f"factors-{shard:05d}.npy"


def _open_shard(folder: Path, shard: int) -> np.ndarray:
    """The records of a shard, memory-mapped; one without any cannot be."""
    file = _shard_file(folder, shard)
    try:
        records = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"{file} is missing: run --mode=prior again, which makes it") from None
    except DAMAGE as error:
        try:
            records = np.load(file, allow_pickle=False)
            damaged = len(records) > 0
        except DAMAGE:
            damaged = True
        if damaged:
            raise ValueError(f"{file} is damaged ({error}): {_AGAIN}") from None
    if records.ndim != 1 or records.dtype.names != _FIELDS:
        raise ValueError(f"{file} is damaged (it holds no factors): {_AGAIN}")
    return records


def _checksum(folder: Path, shard: int) -> int:
    """CRC-32 of a shard's file."""
    crc = 0
    with _shard_file(folder, shard).open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc


def _load_json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except ValueError as error:
        raise ValueError(
            f"{path} {error}: remove {path.parent} and run --mode=prior again"
        ) from None
