"""One training run at a time in a workdir."""

import fcntl
import logging
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import TextIO

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"


def cannot_write(folder: str | os.PathLike, reason: str) -> str:
    """The sentence about a workdir that is read-only or cannot be made."""
    return (
        f"workdir {folder} cannot be written to ({reason}); give a --workdir that this user may "
        "write to, or change its permissions."
    )


class WorkdirLock:
    """Context manager that holds ``<workdir>/.lock``; the system frees it however a run ends.

    Only one process of a run takes it (process 0). File systems without locks are let through with
    a logged warning.

    Args:
      workdir: folder of the run; made if missing.

    Raises:
      ValueError: on entering, if another run holds the lock, or the folder is read-only.
    """

    def __init__(self, workdir: str | os.PathLike):
        """Nothing is locked yet."""
        self.workdir = str(workdir)
        self._file: TextIO | None = None

    def __enter__(self) -> "WorkdirLock":
        """Takes the lock or raises at once."""
        folder = Path(self.workdir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = self._file = (folder / LOCK_FILE).open("a+")
        except OSError as error:
            raise ValueError(cannot_write(folder, error.strerror or str(error))) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown process"
            file.close()
            raise ValueError(
                f"workdir {self.workdir} is in use by another run ({owner}); wait for it, stop it, "
                "or give another --workdir."
            ) from None
        except OSError as error:
            logger.warning(
                "%s cannot be locked (%s): two runs in it are not detected", folder, error
            )
            return self
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}")
        file.flush()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Gives the lock back."""
        if self._file is not None:
            self._file.close()
            self._file = None
