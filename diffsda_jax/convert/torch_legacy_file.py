"""Finds the parts of a file that ``torch.save`` wrote before PyTorch 1.6, without running it.

Such a file is five pickles and then raw bytes: a magic number, the protocol, a description of the
machine, the content, the keys of the storages; then, for each key, the number of values as eight
bytes and the values. ``LegacyArchive`` shows it as the zip archive that later versions write, so
that one unpickler reads both. To know how long each storage is, the content is surveyed first, by
an unpickler for which every name stands for the same inert thing: nothing is imported or called.

References:
  The serialisation notes of PyTorch's documentation; ``torch.save`` with
  ``_use_new_zipfile_serialization=False`` still writes this layout.
"""

import pickle
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
PICKLE_NAME = "data.pkl"  # of the content, as in the zip layout
DAMAGE = (  # what a pickle with wrong opcodes or arguments makes the unpickler raise
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    RecursionError,
    TypeError,
    UnicodeError,
)


class NotLegacyError(ValueError):
    """The file is another pickle; the text says how."""


class _Inert:
    """What any name stands for and any call returns; takes everything and keeps nothing."""

    __slots__ = ("name",)

    def __init__(self, name: str = ""):
        """Under the name that the pickle gives."""
        self.name = name

    def __call__(self, *args):
        """A call that is not made."""
        return _Inert()

    def __setitem__(self, key, value):
        """An item that is not kept."""

    def __setstate__(self, state):
        """Attributes that are not set."""

    def append(self, item):
        """An item that is not kept."""

    def extend(self, items):
        """Items that are not kept."""


class _Survey(pickle.Unpickler):
    """Notes the storages that a pickle names."""

    def __init__(self, file: BinaryIO):
        """Reads from where the file stands."""
        super().__init__(file, encoding="utf-8")
        self.kinds: dict[Any, str] = {}

    def find_class(self, module: str, name: str) -> _Inert:
        """The inert thing; nothing is imported."""
        return _Inert(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Inert:
        """Notes key and type of a storage; whether they are admitted is decided elsewhere."""
        named = isinstance(pid, tuple) and len(pid) > 2 and pid[0] == "storage"
        if named and isinstance(pid[1], _Inert):
            self.kinds.setdefault(pid[2], pid[1].name)
        return _Inert()


class Entry(NamedTuple):
    """One part of the file.

    Attributes:
      start: its first byte.
      file_size: bytes, named as ``zipfile`` does.
    """

    start: int
    file_size: int


class LegacyArchive:
    """The parts of a legacy file under the names of the zip layout.

    It offers what the reader needs of ``zipfile.ZipFile``.
    """

    def __init__(self, file: BinaryIO, value_bytes: Mapping[str, int]):
        """Surveys the file.

        Args:
          file: open for reading at its start; to be closed by the caller.
          value_bytes: name of a storage type, such as ``"FloatStorage"``, -> bytes of a value.

        Raises:
          NotLegacyError: another pickle.
          EOFError: the file ends too early, or holds more than it should.
          pickle.UnpicklingError: damaged.
        """
        self._file = file
        self._entries: dict[str, Entry] = {}
        _check_header(file)
        start, content = file.tell(), _Survey(file)
        _load(content)
        kinds = content.kinds
        self._entries[PICKLE_NAME] = Entry(start, file.tell() - start)
        keys = _load(_Survey(file))
        named = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
        if not named or len(keys) != len(kinds) or set(keys) != set(kinds):
            raise pickle.UnpicklingError("its list of storages is not that of its tensors")
        sizes = {f"torch.{name}": size for name, size in value_bytes.items()}
        # Of a type that is not known, neither this storage nor those behind it can be found; the
        # reader refuses the type by its name before it asks for them.
        known = all(kinds[key] in sizes for key in keys)
        for key in keys if known else ():
            self._add_storage(key, sizes[kinds[key]])
        if known and file.read(1):
            raise EOFError("there is more behind the last storage")

    def _add_storage(self, key: Any, size: int):
        """Notes one storage, and moves behind it."""
        header = self._file.read(8)
        if len(header) < 8:
            raise EOFError(f"it ends before storage {key!r}")
        (count,) = struct.unpack("<q", header)
        entry = Entry(self._file.tell(), count * size)
        end = self._file.seek(0, 2)
        if count < 0 or entry.start + entry.file_size > end:
            raise EOFError(f"it ends within storage {key!r} of {count} values")
        self._file.seek(entry.start + entry.file_size)
        self._entries[f"data/{key}"] = entry

    def namelist(self) -> list[str]:
        """``data.pkl`` and ``data/KEY`` for every storage."""
        return list(self._entries)

    def getinfo(self, name: str) -> Entry:
        """Place and size of one part; KeyError if there is none of this name."""
        return self._entries[name]

    def read(self, name: str) -> bytes:
        """Bytes of one part."""
        entry = self._entries[name]
        self._file.seek(entry.start)
        return self._file.read(entry.file_size)


def _load(survey: _Survey) -> Any:
    """What a pickle holds, with inert things for all that has a name."""
    try:
        return survey.load()
    except (*DAMAGE, ValueError) as error:
        raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from None


def _check_header(file: BinaryIO):
    """Reads magic number, protocol and machine; refuses other pickles."""
    try:
        magic = _load(_Survey(file))
    except pickle.UnpicklingError:
        magic = None
    if magic != MAGIC_NUMBER:
        raise NotLegacyError(
            "is a bare pickle, but not one that torch.save wrote before PyTorch 1.6. With a "
            "current PyTorch: torch.save(torch.load(FILE, weights_only=True), NEW_FILE)."
        )
    protocol, machine = _load(_Survey(file)), _load(_Survey(file))
    little = isinstance(machine, dict) and machine.get("little_endian") is True
    if protocol != PROTOCOL or not little:
        raise NotLegacyError(
            f"has protocol {str(protocol)[:20]} and was saved on {str(machine)[:80]}; only "
            f"protocol {PROTOCOL} of little-endian machines is read. Save it "
            "again with a current PyTorch."
        )
