"""Speech sets: TIMIT, LibriSpeech, and any folder with a folder for each speaker."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffsda_jax.data.sources.base import SPLITS, hash_split
from diffsda_jax.data.sources.speech import SpeechSource, Utterance, list_audio

_LOG = logging.getLogger(__name__)

# The core test set and the development set of TIMIT that its users agree on; the first is stated
# in the documentation of the corpus (LDC93S1).
TIMIT_CORE = frozenset(
    """MDAB0 MWBT0 FELC0 MTAS1 MWEW0 FPAS0 MJMP0 MLNT0 FPKT0 MLLL0 MTLS0 FJLM0 MBPM0 MKLT0 FNLP0
    MCMJ0 MJDH0 FMGD0 MGRT0 MNJM0 FDHC0 MJLN0 MPAM0 FMLD0""".split()
)
TIMIT_DEV = frozenset(
    """FAKS0 FDAC1 FJEM0 MGWT0 MJAR0 MMDB1 MMDM2 MPDF0 FCMH0 FKMS0 MBDG0 MBWM0 MCSH0 FADG0 FDMS0
    FEDW0 MGJF0 MGLB0 MRTK0 MTAA0 MTDT0 MTHC0 MWJG0 FNMR0 FREW0 FSEM0 MBNS0 MMJR0 MDLS0 MDLF0 MDVC0
    MERS0 FMAH0 FDRW0 MRCS0 MRJM4 FCAL1 MMWH0 FJSJ0 MAJC0 MJSW0 MREB0 FGJD0 FJMG0 MROA0 MTEB0 MJFC0
    MRJR0 FMML0 MRWS1""".split()
)
SENTENCES = ("all but SA", "all")
SPLIT_BY = ("speaker", "utterance")
_TIMIT_FILE = re.compile(r"(S[AIX]\d+)\..+", re.IGNORECASE)
_SHOWN = 5  # names listed in a message


class Timit(SpeechSource):
    """TIMIT: `<root>/{TRAIN,TEST}/DR*/<speaker>/*.WAV`, upper or lower case, SPHERE or RIFF.

    The test split is the core test set of 24 speakers. The 50 speakers of the development set, who
    lie in TEST, belong to the training split; the other speakers of TEST to none.
    """

    name = "timit"
    expected = "the folders TRAIN and TEST with DR<n>/<speaker>/<sentence>.WAV"

    def __init__(
        self,
        split: str,
        root: str,
        sentences: str = "all but SA",
        chunk_seconds: float = 0.8,
        last_chunk: str = "mask",
        max_skipped_share: float = 0.05,
    ):
        """See `SpeechSource`.

        Args:
            split: see there, as for all that is not listed here.
            root: the folder that holds TRAIN and TEST.
            sentences: "all but SA" leaves out the two sentences that every speaker says; or "all".
            chunk_seconds: see there.
            last_chunk: see there.
            max_skipped_share: see there.
        """
        if sentences not in SENTENCES:
            raise ValueError(f"sentences={sentences!r} of source 'timit': use one of {SENTENCES}")
        self._sa = sentences == "all"
        super().__init__(split, root, chunk_seconds, last_chunk, max_skipped_share)

    def _find(self, root: Path) -> dict[str, list[Utterance]]:
        train, test = (self._list(root, part) for part in ("TRAIN", "TEST"))
        people = {utterance.speaker for utterance in test}
        if not people & (TIMIT_CORE | TIMIT_DEV):
            raise ValueError(
                f"the TEST folder in {root} of source 'timit' holds none of the speakers of the "
                f"core test set and the development set, but {_some(people)}: set root to the "
                "whole corpus, or read other recordings with the source 'speech_folder'"
            )
        missing = TIMIT_CORE - people
        if missing and self.split == "test":
            _LOG.warning(
                "timit/test: %d of the 24 core test speakers are missing: %s",
                len(missing),
                _some(missing),
            )
        others = people - TIMIT_CORE - TIMIT_DEV
        if others:
            _LOG.info(
                "timit/%s: %d speakers of TEST are in neither the core test set nor the "
                "development set and belong to no split: %s",
                self.split,
                len(others),
                _some(others),
            )
        return {
            "train": train + [utterance for utterance in test if utterance.speaker in TIMIT_DEV],
            "test": [utterance for utterance in test if utterance.speaker in TIMIT_CORE],
        }

    def _list(self, root: Path, part: str) -> list[Utterance]:
        """Utterances of TRAIN or TEST, one for each speaker and sentence."""
        folders = [path for path in root.iterdir() if path.is_dir() and path.name.upper() == part]
        if not folders:
            raise FileNotFoundError(
                f"folder {part} of source 'timit' is missing in {root}, where there "
                f"{_there(root)}; expected there: {self.expected}; set root to the folder that "
                "holds both"
            )
        found: dict[tuple[str, str], Utterance] = {}
        double = []
        files = [entry for folder in folders for entry in list_audio(folder, root)]
        for path, name in sorted(files, key=lambda entry: (len(entry[1]), entry[1])):
            match = _TIMIT_FILE.fullmatch(path.name)
            if match is None or name.count("/") != 3:
                if part == self.split.upper():
                    reason = f"not laid out as {part}/DR<n>/<speaker>/<sentence>.WAV"
                    self.skip(name, reason, check=False)
                continue
            speaker, code = path.parent.name.upper(), match.group(1).upper()
            if code.startswith("SA") and not self._sa:
                continue
            if (speaker, code) in found:
                double.append(name)
            else:
                found[speaker, code] = Utterance(path, name, speaker, code)
        if double:  # a copy of the corpus that adds SA1.WAV.wav to SA1.WAV is going round
            _LOG.info("timit: %d files are second copies, not read: %s", len(double), _some(double))
        return sorted(found.values(), key=lambda utterance: utterance.name)

    def _identity(self) -> Any:
        return [super()._identity(), self._sa]


class LibriSpeech(SpeechSource):
    """LibriSpeech: `<root>/<subset>/<speaker>/<chapter>/*.flac`, with transcripts.

    The sentence of an utterance is its line in `<speaker>-<chapter>.trans.txt`. In LibriSpeech
    hardly one is read twice, so there is no content label; a corpus of parallel sentences in the
    same layout has one.
    """

    name = "librispeech"
    expected = "<subset>/<speaker>/<chapter>/*.flac, such as train-clean-360 and test-clean"

    def __init__(
        self,
        split: str,
        root: str,
        train_subsets: Sequence[str] = ("train-clean-360",),
        test_subsets: Sequence[str] = ("test-clean",),
        chunk_seconds: float = 0.8,
        last_chunk: str = "mask",
        max_skipped_share: float = 0.05,
    ):
        """See `SpeechSource`.

        Args:
            split: see there, as for all that is not listed here.
            root: the folder that holds the subsets.
            train_subsets: folders of the training split. Those of the split that is not asked for
                may be missing; its speakers then have no number.
            test_subsets: folders of the test split.
            chunk_seconds: see there.
            last_chunk: see there.
            max_skipped_share: see there.
        """
        self._subsets = {"train": tuple(train_subsets), "test": tuple(test_subsets)}
        for key, subsets in self._subsets.items():
            if not subsets or isinstance(train_subsets if key == "train" else test_subsets, str):
                raise ValueError(f"{key}_subsets={subsets} of source 'librispeech': use a list")
        both = set(self._subsets["train"]) & set(self._subsets["test"])
        if both:
            raise ValueError(
                f"subset {_some(both)} of source 'librispeech' is in train_subsets and in "
                "test_subsets: leave it in one of them"
            )
        super().__init__(split, root, chunk_seconds, last_chunk, max_skipped_share)

    def _find(self, root: Path) -> dict[str, list[Utterance]]:
        found: dict[str, list[Utterance]] = {split: [] for split in SPLITS}
        for split, subsets in self._subsets.items():
            for subset in subsets:
                if (root / subset).is_dir():
                    found[split] += self._list(root, subset)
                elif split == self.split:
                    raise FileNotFoundError(
                        f"subset {subset!r} of source 'librispeech' is missing in {root}, where "
                        f"there {_there(root)}: download it, or name others in {split}_subsets"
                    )
                else:
                    _LOG.warning(
                        "librispeech/%s: the subset %s of the other split is missing in %s; its "
                        "speakers get no number",
                        self.split,
                        subset,
                        root,
                    )
        both = {u.speaker for u in found["train"]} & {u.speaker for u in found["test"]}
        if both:
            _LOG.warning("librispeech: %d speakers are in both splits: %s", len(both), _some(both))
        return found

    def _list(self, root: Path, subset: str) -> list[Utterance]:
        """Utterances of a subset."""
        utterances, without = [], []
        texts: dict[Path, dict[str, str]] = {}
        for path, name in list_audio(root / subset, root):
            if name.count("/") != 3:
                if subset in self._subsets[self.split]:
                    reason = "not laid out as <subset>/<speaker>/<chapter>/*.flac"
                    self.skip(name, reason, check=False)
                continue
            chapter = path.parent
            if chapter not in texts:
                texts[chapter] = _transcripts(chapter)
            text = texts[chapter].get(path.stem)
            if text is None:
                without.append(name)
            utterances.append(Utterance(path, name, chapter.parent.name, text))
        if without:
            _LOG.warning(
                "librispeech/%s: %d of %d utterances of %s have no transcript, so there is no "
                "content label: %s",
                self.split,
                len(without),
                len(utterances),
                subset,
                _some(without),
            )
        return utterances

    def _identity(self) -> Any:
        return [super()._identity(), self._subsets[self.split]]


class SpeechFolder(SpeechSource):
    """Any recordings: `<root>/<speaker>/**` of wav, flac, mp3 or ogg, any rate and channels.

    Splits are the folders `train/` and `test/` where they are, and else a hash of the speaker or of
    each file's relative path.
    """

    name = "speech_folder"
    expected = "a folder for each speaker with wav, flac, mp3 or ogg files, at any depth"

    def __init__(
        self,
        split: str,
        root: str,
        test_share: float = 0.2,
        split_by: str = "speaker",
        chunk_seconds: float = 0.8,
        last_chunk: str = "mask",
        max_skipped_share: float = 0.05,
    ):
        """See `SpeechSource`.

        Args:
            split: see there, as for all that is not listed here.
            root: see there.
            test_share: share of the speakers, or utterances, for testing, without split folders.
            split_by: "speaker" tests on speakers that training never heard, "utterance" on other
                utterances of the same speakers.
            chunk_seconds: see there.
            last_chunk: see there.
            max_skipped_share: see there.
        """
        if split_by not in SPLIT_BY:
            raise ValueError(
                f"split_by={split_by!r} of source 'speech_folder': use one of {SPLIT_BY}"
            )
        self._test_share, self._split_by = test_share, split_by
        super().__init__(split, root, chunk_seconds, last_chunk, max_skipped_share)

    def _find(self, root: Path) -> dict[str, list[Utterance]]:
        folders = {split: root / split for split in SPLITS}
        there = [split for split in SPLITS if folders[split].is_dir()]
        if len(there) == 1:
            missing = next(split for split in SPLITS if split not in there)
            raise FileNotFoundError(
                f"folder {folders[missing]} is missing though there is {folders[there[0]]}: make "
                "it and put speakers there, or move all speakers out of the split folder"
            )
        if there:
            return {split: _by_folder(folder, root) for split, folder in folders.items()}
        utterances = _by_folder(root, root)
        key = {u.name: u.speaker if self._split_by == "speaker" else u.name for u in utterances}
        keys = sorted(set(key.values()))
        if len(keys) == 1:
            raise ValueError(
                f"root {root} of source 'speech_folder' holds one {self._split_by}, {keys[0]}, too "
                "few for two splits: add others, make the folders train/ and test/, or set "
                "split_by='utterance'"
            )
        found = {}
        for split in SPLITS:
            chosen = set(hash_split(keys, split, self._test_share))
            found[split] = [u for u in utterances if key[u.name] in chosen]
        return found


def _by_folder(folder: Path, root: Path) -> list[Utterance]:
    """Utterances under a folder of speakers."""
    utterances = []
    for path, name in list_audio(folder, root):
        parts = path.relative_to(folder).parts
        if len(parts) == 1:
            raise ValueError(
                f"file {name} of source 'speech_folder' has no folder around it that names its "
                f"speaker: put it into one in {folder}, or remove it"
            )
        utterances.append(Utterance(path, name, parts[0]))
    return utterances


def _transcripts(chapter: Path) -> dict[str, str]:
    """Texts by name of the utterance; empty without the file."""
    file = chapter / f"{chapter.parent.name}-{chapter.name}.trans.txt"
    if not file.is_file():
        return {}
    lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    return {words[0]: " ".join(words[1:]).upper() for words in lines if len(words) > 1}


def _there(root: Path) -> str:
    """The folders in a folder, for a message."""
    return f"is {_some(path.name for path in root.iterdir() if path.is_dir())}"


def _some(names: Any) -> str:
    """The first few names, for a message."""
    known = sorted(names)
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return (", ".join(known[:_SHOWN]) or "nothing") + more
