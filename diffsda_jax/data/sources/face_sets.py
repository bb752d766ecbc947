"""Published sets of talking faces: VoxCeleb1 (frames) and CelebV-HQ (videos)."""

import dataclasses
import json
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from diffsda_jax.data import video_io
from diffsda_jax.data.face_crop import DETECTION_SIZE, crop_face, find_faces, import_callable
from diffsda_jax.data.sources.base import SPLITS, BrokenItemError, ElementSpec
from diffsda_jax.data.sources.tables import read_table
from diffsda_jax.data.sources.video_folder import Clip, VideoFolder, find_clips

_LOG = logging.getLogger(__name__)

# The speakers of the published test split, by their numbers in the data set's list.
VOX1_TEST_IDS = frozenset(f"id{number}" for number in range(10270, 10310))
SPLIT_BY = ("clip", "video")
_ID_COLUMN, _NAME_COLUMN = "VoxCeleb1 ID", "VGGFace1 ID"
_ID = re.compile(r"id1\d{4}")
_SHOWN = 3  # names listed in a message


class VoxCeleb1(VideoFolder):
    """VoxCeleb1 frames: `unzippedIntervalFaces/data/<Name>/1.6/<youtube id>/<clip>/*.jpg`.

    The test split is the 40 speakers id10270 to id10309, whose names stand in the data set's list
    `vox1_meta.csv`. `static_label` is the speaker, numbered over both splits. Clips of speakers
    that are not listed, and images and videos that lie elsewhere in these folders, are skipped,
    counted and named. Every sixth frame of 25 a second is stored, so about 4 a second.
    """

    name = "voxceleb1"
    expected = "unzippedIntervalFaces/data/<Name>/1.6/<youtube id>/<clip>/*.jpg"
    _num_outside = 0

    def __init__(
        self,
        split: str,
        root: str,
        length: int = 10,
        stride: int = 1,
        test_stride: int = 2,
        size: int = 256,
        meta: str = "",
        max_skipped_share: float = 0.05,
    ):
        """Lists the clips of both splits and counts the frames of one.

        Args:
            split: see `VideoFolder`, as for all that is not listed here.
            root: the folder that holds `unzippedIntervalFaces`.
            length: see there.
            stride: distance between the frames of a training window.
            test_stride: distance between the frames of a test clip, from its first frame on.
            size: see there.
            meta: the data set's `vox1_meta.csv`; empty looks for it in the root. Not needed where
                the folders of the speakers are named by number (id10270) and not by name.
            max_skipped_share: see there.

        Raises:
            FileNotFoundError: a part of the layout, or the list of speakers, is missing.
            ValueError: no clips, too many skipped ones, a bad option, or a list of speakers that
                cannot be read.
        """
        if test_stride < 1:
            raise ValueError(f"test_stride={test_stride} of source {self.name!r}: use 1 or more")
        self._meta = meta
        super().__init__(
            split,
            root,
            length=length,
            stride=stride if split == "train" else test_stride,
            size=size,
            label_from="parent",
            max_skipped_share=max_skipped_share,
        )

    def _find(self, root: Path, test_share: float) -> dict[str, list[Clip]]:
        del test_share  # the split is by speaker
        data = root / "unzippedIntervalFaces" / "data"
        if not data.is_dir():
            raise FileNotFoundError(
                f"folder {data} of source {self.name!r} is missing; expected in the root: "
                f"{self.expected}; set root to the folder that holds unzippedIntervalFaces"
            )
        clips = list(self._walk(data, root, ()))
        ids = self._speaker_ids(root, {clip.parents[0] for clip in clips})
        found: dict[str, list[Clip]] = {split: [] for split in SPLITS}
        for clip in clips:
            number = ids.get(clip.parents[0])
            if number is None:
                reason = f"speaker {clip.parents[0]!r} is not in the list of speakers"
                self.skip(clip.name, reason, check=False)
            else:
                found["test" if number in VOX1_TEST_IDS else "train"].append(clip)
        self._num_outside = len(self.skipped)
        if not found[self.split]:
            raise ValueError(
                f"folder {data} of source {self.name!r} holds no clip for the split "
                f"{self.split!r} ({_some(self.skipped, 'skipped')}); the test split is the "
                "speakers id10270..id10309, the training split all others; expected in the root: "
                f"{self.expected}: put them there, or set root elsewhere"
            )
        return found

    def _walk(self, place: Path, root: Path, parents: tuple[str, ...]) -> Iterator[Clip]:
        """Folders of frames three folders below the data; what lies elsewhere is skipped."""
        with os.scandir(place) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith((".", "__")):
                continue
            if entry.is_dir():
                if len(parents) == 3:
                    yield Clip(path, path.relative_to(root).as_posix(), parents)
                else:
                    yield from self._walk(path, root, (*parents, entry.name))
            elif path.suffix.lower() in video_io.IMAGE_SUFFIXES + video_io.VIDEO_SUFFIXES:
                name = (path.parent if _is_image(path) else path).relative_to(root).as_posix()
                self.skip(name, f"not laid out as {self.expected}", check=False)

    def _speaker_ids(self, root: Path, speakers: set[str]) -> dict[str, str]:
        """Numbers of the speakers by what their folders are called, name or number."""
        if all(_ID.fullmatch(speaker) for speaker in speakers):
            return {speaker: speaker for speaker in speakers}
        path = Path(self._meta).expanduser() if self._meta else root / "vox1_meta.csv"
        if not path.is_file():
            raise FileNotFoundError(
                f"file {path} of source {self.name!r} is missing; it names the 40 test speakers "
                "id10270..id10309: get vox1_meta.csv from the VoxCeleb web site and put it there, "
                "or set meta (--config.source.options.meta) to where it is"
            )
        return _read_speakers(path)

    def _label(self, clip: Clip) -> str:
        return clip.parents[0]

    def num_items(self) -> int:
        """Number of clips of the split, and of what was skipped in belonging to none."""
        return super().num_items() + self._num_outside


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in video_io.IMAGE_SUFFIXES


def _read_speakers(path: Path) -> dict[str, str]:
    """Speaker numbers by name, and by number, of a `vox1_meta.csv` with tabs or commas."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        delimiter = "\t" if "\t" in file.readline() else ","
    columns = read_table(path, delimiter).columns
    for column in (_ID_COLUMN, _NAME_COLUMN):
        if column not in columns:
            raise ValueError(
                f"file {path} has no column {column!r} but {', '.join(columns)}: set meta to the "
                "vox1_meta.csv of VoxCeleb1"
            )
    numbers = columns[_ID_COLUMN]
    if not VOX1_TEST_IDS & set(numbers):
        raise ValueError(
            f"file {path} lists none of the test speakers id10270..id10309 in its column "
            f"{_ID_COLUMN!r}: set meta to the vox1_meta.csv of VoxCeleb1"
        )
    return dict(zip([*columns[_NAME_COLUMN], *numbers], [*numbers, *numbers], strict=True))


class CelebVHQ(VideoFolder):
    """CelebV-HQ: `35666/<clip>.mp4`, with the list of clips `celebvhq_info.json`.

    The split is 80/20 by clip with seed 42 over all clips of the list, sorted by name, drawn as
    scikit-learn's `train_test_split` does. So videos that could not be downloaded move no other to
    the other split; the log says how many they are. Videos that the list does not know are skipped.
    Without a list the split is over the videos that are there.

    Attributes:
        missed_frames: clips by name, with how many frames of the window last read had no face.
    """

    name = "celebv_hq"
    expected = "35666/<clip>.mp4 and celebvhq_info.json"
    _num_outside = 0

    def __init__(
        self,
        split: str,
        root: str,
        length: int = 10,
        stride: int = 2,
        size: int = 256,
        test_share: float = 0.2,
        split_seed: int = 42,
        split_by: str = "clip",
        info: str = "",
        detector: str = "",
        cache_dir: str | None = None,
        max_skipped_share: float = 0.05,
    ):
        """Lists the clips of both splits and counts the frames of one.

        Args:
            split: see `VideoFolder`, as for all that is not listed here.
            root: the folder that holds `35666`.
            length: see there.
            stride: see there.
            size: see there.
            test_share: share of the clips for testing.
            split_seed: of the shuffling before the split.
            split_by: "clip" as published, which puts clips of one recording into both splits;
                "video" keeps the clips of one YouTube video together and needs the list.
            info: the data set's `celebvhq_info.json`; empty looks for it in the root.
            detector: empty takes frames as cropped to the face already. "module:callable" crops
                every window: the callable takes a frame of 512x512 pixels and returns boxes, see
                `face_crop.find_faces`. All frames get the same crop, the square around their
                median box with a margin of 40 px at 512.
            cache_dir: see there.
            max_skipped_share: see there. A window without a face in any frame is skipped too.

        Raises:
            FileNotFoundError: the folder of the clips, or a list that was asked for, is missing.
            ValueError: no clips, too many skipped ones, a bad option or list.
        """
        if split_by not in SPLIT_BY:
            raise ValueError(f"split_by={split_by!r} of source {self.name!r}: use {SPLIT_BY}")
        if not 0.0 < test_share < 1.0:
            raise ValueError(f"test_share={test_share}: use a share between 0 and 1")
        self._split_seed, self._split_by, self._info = split_seed, split_by, info
        if size < 1:
            raise ValueError(f"size={size} of source {self.name!r}: use 1 or more")
        self._detector, self._face_size = detector, size
        self._detect = import_callable(detector, "detector") if detector else None
        self.missed_frames: dict[str, int] = {}
        super().__init__(
            split,
            root,
            length=length,
            stride=stride,
            size=DETECTION_SIZE if detector else size,
            test_share=test_share,
            cache_dir=cache_dir,
            max_skipped_share=max_skipped_share,
        )

    def _find(self, root: Path, test_share: float) -> dict[str, list[Clip]]:
        folder = root / "35666"
        if not folder.is_dir():
            raise FileNotFoundError(
                f"folder {folder} of source {self.name!r} is missing; expected in the root: "
                f"{self.expected}; set root to the folder that holds 35666"
            )
        clips = find_clips(folder, root)
        recordings = self._recordings(root, clips)
        listed = [clip for clip in clips if clip.path.stem in recordings]
        for clip in clips:
            if clip.path.stem not in recordings:
                self.skip(clip.name, "not in the list of clips", check=False)
        self._num_outside = len(self.skipped)
        absent = sorted(recordings.keys() - {clip.path.stem for clip in listed})
        if absent:
            _LOG.warning("%s: %s", self.name, _some(absent, "listed but not there"))
        tested = self._tested(recordings, test_share)
        found = {
            "train": [clip for clip in listed if recordings[clip.path.stem] not in tested],
            "test": [clip for clip in listed if recordings[clip.path.stem] in tested],
        }
        if not found[self.split]:
            raise ValueError(
                f"folder {folder} of source {self.name!r} holds {len(clips)} clips and none for "
                f"the split {self.split!r} ({_some(self.skipped, 'skipped')}, "
                f"{_some(absent, 'listed but not there')}); expected: {self.expected}: add clips, "
                "or set root elsewhere"
            )
        return found

    def _recordings(self, root: Path, clips: list[Clip]) -> dict[str, str]:
        """What is kept together by the split, for every clip of the list or of the folder."""
        path = Path(self._info).expanduser() if self._info else root / "celebvhq_info.json"
        by_video = self._split_by == "video"
        if path.is_file():
            entries = _read_info(path)
            return {
                name: _youtube_id(path, name, entry) if by_video else name
                for name, entry in entries.items()
            }
        if self._info or by_video:
            raise FileNotFoundError(
                f"file {path} of source {self.name!r} is missing: get celebvhq_info.json from the "
                "CelebV-HQ repository, set info (--config.source.options.info) to where it is, or "
                "leave it empty with split_by='clip' to split the clips that are there"
            )
        _LOG.warning("%s: no %s, the split is over the %d clips there", self.name, path, len(clips))
        return {clip.path.stem: clip.path.stem for clip in clips}

    def _tested(self, recordings: dict[str, str], test_share: float) -> set[str]:
        """The recordings of the test split."""
        units = sorted(set(recordings.values()))
        # The legacy generator: its stream is frozen, so the split stays as it is.
        order = np.random.RandomState(self._split_seed).permutation(len(units))
        return {units[place] for place in order[: math.ceil(test_share * len(units))]}

    def _make_spec(self) -> ElementSpec:
        shape = (self._face_size, self._face_size, 3)
        return dataclasses.replace(super()._make_spec(), shape=shape)

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A window of a clip, cropped to the face: `x` `[length, size, size, 3]` in [-1, 1]."""
        element = super().load(index, rng)
        if self._detect is None:
            return element
        frames = np.round((element["x"] + 1.0) * 127.5).astype(np.uint8)
        boxes = find_faces(self._detect, frames)
        missed = int(np.isnan(boxes[:, 0]).sum())
        self._count_missed(self.item_name(index), missed)
        if missed == len(frames):
            raise BrokenItemError(f"the detector finds no face in any of {missed} frames")
        faces = crop_face(frames, np.nanmedian(boxes, axis=0), self._face_size)
        return {**element, "x": faces.astype(np.float32) / 127.5 - 1.0}

    def _count_missed(self, name: str, missed: int) -> None:
        """Remembers the frames without a face; the log names ever fewer of the clips."""
        known = name in self.missed_frames
        if missed or known:
            self.missed_frames[name] = missed
        clips = len(self.missed_frames)
        if not known and missed and (clips <= _SHOWN or clips & (clips - 1) == 0):
            _LOG.warning(
                "%s/%s: no face in %d of %d frames of %s; clips with such frames so far: %d",
                self.name,
                self.split,
                missed,
                self.length,
                name,
                clips,
            )

    def num_items(self) -> int:
        """Number of clips of the split, and of the videos that the list does not know."""
        return super().num_items() + self._num_outside

    def _identity(self) -> Any:
        return [super()._identity(), self._face_size, self._detector]


def _read_info(path: Path) -> dict[str, Any]:
    """Entries of the clips of a `celebvhq_info.json`, by name."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"file {path} is not JSON ({error}): get celebvhq_info.json of CelebV-HQ anew"
        ) from None
    clips = content.get("clips") if isinstance(content, dict) else None
    if not isinstance(clips, dict) or not clips:
        raise ValueError(
            f"file {path} has no clips: expected an object with the key 'clips' that holds an "
            "entry for every clip, as in the published celebvhq_info.json"
        )
    return clips


def _youtube_id(path: Path, name: str, entry: Any) -> str:
    """The YouTube video that a clip was cut from."""
    video = entry.get("ytb_id") if isinstance(entry, dict) else None
    if not isinstance(video, str):
        raise ValueError(
            f"file {path}: clip {name!r} has no text 'ytb_id', which split_by='video' needs: mend "
            "the entry or set split_by='clip'"
        )
    return video


def _some(names: Iterable[str], what: str) -> str:
    """How many there are, and the first few, for a message."""
    known = sorted(names)
    shown = ", ".join(known[:_SHOWN])
    more = ", ..." if len(known) > _SHOWN else ""
    return f"{len(known)} {what}" + (f": {shown}{more}" if known else "")
