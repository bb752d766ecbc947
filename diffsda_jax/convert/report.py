"""What became of every key of a converted state dict."""

import collections
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

FILE_NAME = "conversion_report.json"

MAPPED, UNUSED, SKIPPED, ALIAS, DIFFERS, UNEXPECTED, MISSING = (
    "mapped",
    "unused",
    "skipped",
    "alias",
    "alias differs",
    "unexpected",
    "missing",
)
MEANINGS = {
    MAPPED: "became a variable",
    UNUSED: "cross-attention, which the forward pass never reads",
    SKIPPED: "of training or of another model in the file, left out",
    ALIAS: "second name of a mapped tensor, equal to it",
    DIFFERS: "second name of a mapped tensor, NOT equal to it",
    UNEXPECTED: "unknown, left out",
    MISSING: "needed, not in the file",
}
ERRORS = (DIFFERS, MISSING)
_RARE = (SKIPPED, DIFFERS)  # not in the table if there are none
_LISTED = 20  # keys of one kind that the summary prints


@dataclasses.dataclass(frozen=True)
class KeyEntry:
    """One key.

    Attributes:
      key: name in the state dict.
      status: a key of ``MEANINGS``.
      shape: in the file; of a missing key None.
      dtype: in the file; of a missing key None.
      target: path of the variable, or the canonical name of an alias; None if there is neither.
      note: anything else to know.
    """

    key: str
    status: str
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    target: str | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, level included."""
        level = "error" if self.status in ERRORS else "info"
        if self.status == UNEXPECTED:
            level = "warning"
        return {**dataclasses.asdict(self), "level": level}


@dataclasses.dataclass(frozen=True)
class Report:
    """All keys of one file.

    Attributes:
      source: name of the file.
      classes: the released classes that have these keys.
      entries: one for each key, and for each missing one.
      notes: what was done to the file as a whole.
    """

    source: str
    classes: str
    entries: tuple[KeyEntry, ...]
    notes: tuple[str, ...] = ()

    def counts(self) -> dict[str, int]:
        """Number of keys of each status, zeros included."""
        found = collections.Counter(entry.status for entry in self.entries)
        return {status: found[status] for status in MEANINGS}

    def with_note(self, note: str) -> "Report":
        """The same with one note more."""
        return dataclasses.replace(self, notes=(*self.notes, note))

    def of(self, status: str) -> list[KeyEntry]:
        """The entries of one status."""
        return [entry for entry in self.entries if entry.status == status]

    def summary(self) -> str:
        """A table of counts, and the keys that deserve a look."""
        lines = [f"{self.source}: keys of {self.classes}"]
        lines += [f"  note: {note}" for note in self.notes]
        lines.append(f"  {'status':14}{'keys':>6}{'values':>14}  meaning")
        for status, count in self.counts().items():
            if count or status not in _RARE:
                values = sum(math.prod(e.shape) for e in self.of(status) if e.shape is not None)
                lines.append(f"  {status:14}{count:>6}{values:>14,}  {MEANINGS[status]}")
        for status in (*ERRORS, UNEXPECTED, SKIPPED):
            entries = self.of(status)
            for entry in entries[:_LISTED]:
                shape = "" if entry.shape is None else f" {entry.shape}"
                note = f" ({entry.note})" if entry.note else ""
                lines.append(f"  {status}: {entry.key}{shape}{note}")
            if len(entries) > _LISTED:
                lines.append(f"  {status}: and {len(entries) - _LISTED} more, see {FILE_NAME}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "source": self.source,
            "classes": self.classes,
            "counts": self.counts(),
            "notes": list(self.notes),
            "keys": [entry.to_dict() for entry in self.entries],
        }

    def save(self, directory: str | Path) -> Path:
        """Writes ``conversion_report.json`` into a directory, which is made if need be."""
        path = Path(directory) / FILE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n")
        return path
