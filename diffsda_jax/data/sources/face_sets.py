"""Published sets of talking faces: VoxCeleb1 (frames) and CelebV-HQ (videos)."""

import json
import logging
import math
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

from diffsda_jax.data import video_io
from diffsda_jax.data.face_crop import (
    DETECTION_SIZE,
    crop_face,
    find_faces,
    median_box,
)
from diffsda_jax.data.plug_ins import import_callable
from diffsda_jax.data.sources.base import SPLITS, BrokenItemError
from diffsda_jax.data.sources.tables import read_table
from diffsda_jax.data.sources.video_folder import Clip, VideoFolder, find_clips

_LOG = logging.getLogger(__name__)

# The speakers of the published test split, by their numbers in the data set's list.
VOX1_TEST_IDS = frozenset(f"id{number}" for number in range(10270, 10310))
SPLIT_BY = ("clip", "video")
_ID_COLUMN, _NAME_COLUMN = "VoxCeleb1 ID", "VGGFace1 ID"
_ID = re.compile(r"id1\d{4}")
_SHOWN = 3  # names listed in a message
_SEARCHED = 16  # frames of a clip in which its face is looked for
# Detectors seldom bear calls from several threads. Of the module, since the sources of both splits
# share a detector, and since a source that held a lock could not be pickled.
_DETECTION = threading.Lock()


class VoxCeleb1(VideoFolder):
    """VoxCeleb1 frames: `unzippedIntervalFaces/data/<Name>/1.6/<youtube id>/<clip>/*.jpg`.

    The test split is the 40 speakers id10270 to id10309, whose names stand in the data set's list
    `vox1_meta.csv`. `static_label` is the speaker, numbered over both splits. Clips of speakers
    that are not listed, and images and videos that lie elsewhere in these folders, are skipped,
    counted and named. Every sixth frame of 25 a second is stored, so about 4 a second.
    """

    name = "voxceleb1"
    expected = "unzippedIntervalFaces/data/<Name>/1.6/<youtube id>/<clip>/*.jpg"

    def __init__(
        self,
        split: str,
        root: str,
        length: int = 10,
        stride: int = 1,
        test_stride: int = 2,
        size: int = 256,
        meta: str = "",
        cache_dir: str | None = None,
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
            cache_dir: see there; the folders of known clips are not listed again.
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
            cache_dir=cache_dir,
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
                name = (
                    (path.parent if video_io.is_image(path) else path).relative_to(root).as_posix()
                )
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

    def _label(self, clip: Clip) -> dict[str, str]:
        return {"static": clip.parents[0]}


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
        missed_frames: clips by name, with in how many of the frames searched no face was found.
    """

    name = "celebv_hq"
    expected = "35666/<clip>.mp4 and celebvhq_info.json"

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
                every clip: the callable takes a frame of 512x512 pixels and returns boxes, see
                `face_crop.find_faces`. All frames of a clip get the same crop, the square around
                the median box of up to 16 frames spread over the clip, with a margin of 40 px at
                512. The boxes are found when a clip is first read and remembered in memory. The
                callable gets calls from several threads, but one at a time.
            cache_dir: see there.
            max_skipped_share: see there. A clip without a face in any of these frames is skipped.

        Raises:
            FileNotFoundError: the folder of the clips, or a list that was asked for, is missing.
            ValueError: no clips, too many skipped ones, a bad option or list.
        """
        if split_by not in SPLIT_BY:
            raise ValueError(f"split_by={split_by!r} of source {self.name!r}: use {SPLIT_BY}")
        if not 0.0 < test_share < 1.0:
            raise ValueError(f"test_share={test_share}: use a share between 0 and 1")
        self._split_seed, self._split_by, self._info = split_seed, split_by, info
        self._detector = detector
        self._detect = import_callable(detector, "detector") if detector else None
        self._boxes: dict[str, np.ndarray] = {}
        self.missed_frames: dict[str, int] = {}
        super().__init__(
            split,
            root,
            length=length,
            stride=stride,
            size=size,
            test_share=test_share,
            cache_dir=cache_dir,
            max_skipped_share=max_skipped_share,
        )
        if detector:
            self._decoded_size = DETECTION_SIZE

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

    def _crop(self, clip: Clip, frames: UInt8[np.ndarray, "V S S 3"]) -> np.ndarray:
        if self._detect is None:
            return frames
        return crop_face(frames, self._box(clip, self._detect), self.size)

    def _box(self, clip: Clip, detect: Callable[..., Any]) -> Float64[np.ndarray, " 4"]:
        """Where the face of a clip is: the same for all of its windows and blocks."""
        count = min(clip.frames, _SEARCHED)
        if clip.name not in self._boxes:
            places = np.linspace(0, clip.frames - 1, count).round().astype(int).tolist()
            frames = video_io.read_frames(clip.path, places, DETECTION_SIZE)
            with _DETECTION:
                if clip.name not in self._boxes:  # another thread may have been faster
                    faces = find_faces(detect, frames)
                    self._count_missed(clip.name, int(np.isnan(faces[:, 0]).sum()), count)
                    self._boxes[clip.name] = median_box(faces)
        box = self._boxes[clip.name]
        if np.isnan(box).any():
            raise BrokenItemError(f"the detector finds no face in any of {count} frames")
        return box

    def _count_missed(self, name: str, missed: int, searched: int) -> None:
        """Remembers the frames without a face; the log names ever fewer of the clips."""
        if not missed:
            return
        self.missed_frames[name] = missed
        clips = len(self.missed_frames)
        if clips <= _SHOWN or clips & (clips - 1) == 0:
            _LOG.warning(
                "%s/%s: no face in %d of the %d frames searched of %s; such clips so far: %d",
                self.name,
                self.split,
                missed,
                searched,
                name,
                clips,
            )

    def _identity(self) -> Any:
        return [super()._identity(), self._detector]


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
