"""How many frames clips have, remembered from one run to the next."""

import json
import logging
import os
from pathlib import Path

from diffsda_jax.data import video_io
from diffsda_jax.data.sources.base import BrokenItemError

_LOG = logging.getLogger(__name__)
_COUNTING = 3  # version of how frames are counted; counts of another version are not believed


class FrameCounts:
    """Frame counts of clips, remembered in a JSON file when there is a cache folder.

    A clip is known by its path and believed unchanged while its size and time of change are. For a
    folder of frames these are the folder's own, which change when a frame is added, removed or
    renamed. So a known clip costs one look at the file system and its folder is not listed; only a
    folder that changes within the clock tick in which it was counted (some milliseconds) is taken
    for unchanged.
    """

    def __init__(self, cache_dir: Path | None):
        """Reads what is known.

        Args:
            cache_dir: folder of the file `frame_counts.json`; None remembers nothing.
        """
        self._file = None if cache_dir is None else cache_dir / "frame_counts.json"
        self._known = _read(self._file) if self._file and self._file.is_file() else {}
        self._changed = False

    def count(self, path: Path) -> int | str:
        """Number of frames of a clip, or why they cannot be counted; may be called from threads."""
        try:
            if self._file is None:
                return video_io.count_frames(path)
            stat = path.stat()
            stamp = [_COUNTING, stat.st_size, stat.st_mtime_ns]
            key = str(path.absolute())
            if self._known.get(key, [None])[:-1] != stamp:
                self._known[key] = [*stamp, video_io.count_frames(path)]
                self._changed = True
            return self._known[key][-1]
        except (BrokenItemError, OSError) as error:
            return str(error)

    def save(self) -> None:
        """Writes the file, whole or not at all, if anything new is known."""
        if self._file is None or not self._changed:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        part = self._file.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(self._known))
        part.replace(self._file)


def _read(file: Path) -> dict[str, list]:
    """What a file knows; nothing, with a warning, when it is not as `save` writes it."""
    try:
        known = json.loads(file.read_text())
    except ValueError:
        known = None
    if isinstance(known, dict) and all(isinstance(entry, list) for entry in known.values()):
        return known
    _LOG.warning("%s is not readable and will be made anew", file)
    return {}
