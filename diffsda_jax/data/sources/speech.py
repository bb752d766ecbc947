"""Chunks of utterances by many speakers: what the speech sets have in common."""

import abc
import concurrent.futures
import dataclasses
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from diffsda_jax.data import audio_io
from diffsda_jax.data.sources.base import (
    BrokenItemError,
    ElementSpec,
    Source,
    hash_of,
    label_ids,
)

_LOG = logging.getLogger(__name__)

SAMPLE_RATE_HZ = 16_000
LAST_CHUNK = ("mask", "pad", "drop")
_PROBE_THREADS = 8
_NAMED = 3  # files that are named one by one in the log
_REPEATED_SHARE = 0.5  # of the utterances, for sentences to make classes


@dataclasses.dataclass(frozen=True, slots=True)
class Utterance:
    """One recording of one sentence.

    Attributes:
        path: the file.
        name: path relative to the root, with forward slashes.
        speaker: who speaks.
        text: what is said, or a code for it; None where it is not known.
        num_samples: length at `SAMPLE_RATE_HZ`; 0 before it is known.
        num_bytes: size of the file; 0 before it is known.
    """

    path: Path
    name: str
    speaker: str
    text: str | None = None
    num_samples: int = 0
    num_bytes: int = 0


class SpeechSource(Source):
    """Chunks of `chunk_seconds` at 16 kHz, mono, of the utterances of a set.

    `static_label` is the speaker, numbered over both splits, and `group` the utterance within the
    split. Where at least half of the utterances say a sentence that another speaker says too,
    `dynamic_label` is the sentence, numbered over both splits, those said once too. Files that
    cannot be read are skipped, counted and named; clipped ones are kept, counted and named.

    Subclasses set `name` and `expected` and implement `_find`.

    Attributes:
        expected: what the root should hold, in words.
        clipped: names of the utterances found to be clipped so far.
    """

    kind = "audio"
    expected: str = ""

    def __init__(
        self,
        split: str,
        root: str,
        chunk_seconds: float = 0.8,
        last_chunk: str = "mask",
        max_skipped_share: float = 0.05,
    ):
        """Lists the utterances of both splits and reads the headers of those of `split`.

        Args:
            split: "train" or "test".
            root: the folder.
            chunk_seconds: length of an element; 0.8 s are 12,800 samples.
            last_chunk: what becomes of the end of an utterance: "mask" fills it up with zeros that
                do not count, "pad" with zeros that count as silence, as in the paper, "drop" leaves
                it out. An utterance shorter than a chunk is filled up in any case.
            max_skipped_share: see `Source`; a share of the utterances.

        Raises:
            FileNotFoundError: no such folder, or one of its parts is missing.
            ValueError: no utterances, too many skipped ones, or a bad option.
            ImportError: soundfile is missing.
        """
        super().__init__(split, max_skipped_share)
        self._chunk = round(chunk_seconds * SAMPLE_RATE_HZ)
        if self._chunk < 1:
            raise ValueError(
                f"chunk_seconds={chunk_seconds} of source {self.name!r}: use 1/{SAMPLE_RATE_HZ} "
                "or more"
            )
        if last_chunk not in LAST_CHUNK:
            raise ValueError(f"last_chunk={last_chunk!r} of source {self.name!r}: use {LAST_CHUNK}")
        audio_io.import_soundfile()  # before a long list is made for nothing
        self._last_chunk = last_chunk
        self.clipped: set[str] = set()
        self._checked: set[str] = set()  # utterances that were decoded whole and are not silent
        found = self._find(self._existing(root))
        if not found[split]:
            raise ValueError(
                f"root {root} of source {self.name!r} holds nothing for the split {split!r}; "
                f"expected there: {self.expected}"
            )
        everything = [utterance for utterances in found.values() for utterance in utterances]
        self._speakers = label_ids(utterance.speaker for utterance in everything)
        self._sentences = _sentence_ids(everything)
        self._num_found = len(found[split])
        self._utterances = self._probe(found[split])
        self._ends = np.cumsum([self.num_chunks(u.num_samples) for u in self._utterances])
        self.spec = ElementSpec(
            "audio",
            (),
            static_names=tuple(self._speakers),
            dynamic_names=tuple(self._sentences) or None,
            fps=float(SAMPLE_RATE_HZ),
        )

    @abc.abstractmethod
    def _find(self, root: Path) -> dict[str, list[Utterance]]:
        """Utterances of both splits, of `split` at least, in a fixed order."""

    def _existing(self, root: str) -> Path:
        """The root as a path."""
        folder = Path(root).expanduser()
        if not str(root) or not folder.is_dir():
            raise FileNotFoundError(
                f"root {str(root)!r} of source {self.name!r} is no folder; expected there: "
                f"{self.expected}; set root to the folder of your data"
            )
        return folder

    def _probe(self, utterances: list[Utterance]) -> list[Utterance]:
        """Reads the headers and leaves out broken files."""
        with concurrent.futures.ThreadPoolExecutor(_PROBE_THREADS) as pool:
            probed = list(pool.map(_measure, utterances))
        usable = []
        for utterance, measured in zip(utterances, probed, strict=True):
            if isinstance(measured, str):
                self.skip(utterance.name, measured, check=False)
            else:
                usable.append(measured)
        self.check_skipped()
        if not usable:
            raise ValueError(f"{self.name}/{self.split}: no utterance is left after skipping")
        return usable

    def num_chunks(self, num_samples: int) -> int:
        """Chunks of an utterance of `num_samples` at 16 kHz, 1 or more."""
        up = 0 if self._last_chunk == "drop" else self._chunk - 1
        return max(1, (num_samples + up) // self._chunk)

    def __len__(self) -> int:
        """Number of chunks."""
        return int(self._ends[-1])

    def num_items(self) -> int:
        """Number of utterances, the skipped ones too."""
        return self._num_found

    def lengths(self) -> np.ndarray:
        """Samples of a chunk for every chunk."""
        return np.full(len(self), self._chunk)

    def groups(self) -> np.ndarray:
        """Number of the utterance of every chunk."""
        return np.searchsorted(self._ends, np.arange(len(self)), side="right")

    def item_name(self, index: int) -> str:
        """Path of the utterance of a chunk relative to the root."""
        return self._utterances[self._place(index)[0]].name

    def describe(self) -> str:
        """One line for logs and plans."""
        speakers = len({utterance.speaker for utterance in self._utterances})
        clipped = f", {len(self.clipped)} clipped" if self.clipped else ""
        return (
            f"{super().describe()}{clipped}, {len(self._utterances)} utterances of {speakers} "
            f"speakers in chunks of {self._chunk / SAMPLE_RATE_HZ:g} s"
        )

    def _place(self, index: int) -> tuple[int, int]:
        """Number of the utterance of a chunk, and of the chunk in it."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, index - (int(self._ends[number - 1]) if number else 0)

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Chunk `index`: `x` `[chunk]` in [-1, 1], `length`, its samples that count, and labels."""
        del rng
        number, chunk = self._place(index)
        utterance = self._utterances[number]
        samples = audio_io.read_slice(
            utterance.path, chunk * self._chunk, self._chunk, SAMPLE_RATE_HZ
        )
        if audio_io.is_silent(samples) or audio_io.is_clipped(samples):
            self._check_whole(utterance)
        element = {
            "x": np.pad(samples, (0, self._chunk - len(samples))),
            "length": self._chunk if self._last_chunk == "pad" else len(samples),
            "static_label": self._speakers[utterance.speaker],
            "group": number,
        }
        if self._sentences:
            assert utterance.text is not None  # see _sentence_ids
            element["dynamic_label"] = self._sentences[utterance.text]
        return element

    def _check_whole(self, utterance: Utterance) -> None:
        """Refuses a silent file and counts a clipped one; a chunk alone proves neither."""
        name = utterance.name
        if name in self._checked:
            return
        samples, _ = audio_io.read_audio(utterance.path)
        self._checked.add(name)
        if not audio_io.is_clipped(samples):
            return
        self.clipped.add(name)
        if len(self.clipped) <= _NAMED:
            _LOG.warning(
                "%s/%s: %s is clipped (more than %g of its samples are at full scale) and kept%s",
                self.name,
                self.split,
                name,
                audio_io.CLIPPED_SHARE,
                "; more of them are only counted" if len(self.clipped) == _NAMED else "",
            )

    def _identity(self) -> Any:
        files = [[u.name, u.num_bytes, u.num_samples, u.text] for u in self._utterances]
        return [self._chunk, self._last_chunk, hash_of(files)]


def list_audio(folder: Path, root: Path) -> list[tuple[Path, str]]:
    """Audio files under a folder, at any depth, and their names relative to `root`, sorted.

    Hidden files and folders are left out.
    """
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(place, name)
            if path.suffix.lower() in audio_io.AUDIO_SUFFIXES and not name.startswith("."):
                found.append((path, path.relative_to(root).as_posix()))
    return sorted(found, key=lambda entry: entry[1])


def _measure(utterance: Utterance) -> Utterance | str:
    """The utterance with its sizes, or why it cannot be read."""
    try:
        num_samples, sample_rate_hz = audio_io.audio_info(utterance.path)
        return dataclasses.replace(
            utterance,
            num_samples=audio_io.resampled_length(num_samples, sample_rate_hz, SAMPLE_RATE_HZ),
            num_bytes=utterance.path.stat().st_size,
        )
    except (BrokenItemError, OSError) as error:
        return str(error)


def _sentence_ids(utterances: Iterable[Utterance]) -> dict[str, int]:
    """Numbers of the sentences; empty unless most utterances say what another speaker says too."""
    speakers: dict[str, set[str]] = {}
    texts = []
    for utterance in utterances:
        if utterance.text is None:
            return {}
        texts.append(utterance.text)
        speakers.setdefault(utterance.text, set()).add(utterance.speaker)
    repeated = sum(len(speakers[text]) > 1 for text in texts)
    return label_ids(speakers) if repeated >= _REPEATED_SHARE * len(texts) else {}
