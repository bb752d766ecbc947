"""Reads the tensors of a ``torch.save`` file without torch and without running what it says.

A ``.pth`` file is a zip archive: a pickle that describes tensors, and one raw file for each
storage. Before PyTorch 1.6 it was one stream of the same parts, see ``torch_legacy_file``. The
pickle is read by an unpickler that knows the few names below, which stand for constructors written
here; any other name is refused before anything is called. ``.npz`` files with the same keys are
read as well.

References:
  The serialisation notes of PyTorch's documentation (zip layout, persistent ids of storages);
  Python's documentation of ``pickle`` ("Restricting Globals").
"""

import contextlib
import io
import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from diffsda_jax.convert.torch_legacy_file import DAMAGE, LegacyArchive, NotLegacyError

_BFLOAT16 = "bfloat16"  # numpy has no such type; its bits are the upper half of a float32
STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": _BFLOAT16,
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_PICKLE_START = b"\x80"  # of every pickle since protocol 2; torch.save wrote one before 1.6
_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
_BAD_ARCHIVE = (  # what a truncated, damaged or encrypted file makes its reader raise
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    zlib.error,
    struct.error,
    NotImplementedError,
    RuntimeError,
    OSError,
    EOFError,
)
_Archive = zipfile.ZipFile | LegacyArchive
_MAX_DEPTH = 4  # of dictionaries around the state dict
_MAX_REPEATED = 1 << 24  # values of a tensor larger than its storage (stride 0)
# Where training scripts put the weights; the first that holds tensors is taken.
USUAL_ENTRIES = ("state_dict", "model_state_dict", "model", "net", "ema", "ema_state_dict")


class StateDict(NamedTuple):
    """The tensors of a file.

    Attributes:
      tensors: name, without the prefix ``module.`` -> array of the tensor's own shape.
      entry: where in the file they lay, ``""`` for the top, parts joined by ``/``.
      other_entries: other places of the file that hold tensors.
      stripped: number of names from which ``module.`` was taken.
      other_keys: names beside the tensors that hold something else.
      bfloat16: names of the tensors that were stored as bfloat16 and are float32 here.
    """

    tensors: dict[str, np.ndarray]
    entry: str
    other_entries: tuple[str, ...]
    stripped: int
    other_keys: tuple[str, ...]
    bfloat16: tuple[str, ...] = ()


class _Storage(NamedTuple):
    """One storage of the archive, read: a flat array and its type as named in ``STORAGES``."""

    values: np.ndarray
    dtype: str


class _Tensor(np.ndarray):
    """An array that the pickle describes as a tensor; ``stored`` is its type in the file."""

    stored: str = ""


class _Refused(ValueError):
    """The pickle asks for something that is not admitted."""


class _Constructor:
    """What an admitted name stands for; without attributes, so that no pickle can change it."""

    __slots__ = ()


class _RebuildTensor(_Constructor):
    """``torch._utils._rebuild_tensor_v2``: a view of a storage."""

    __slots__ = ()

    def __call__(self, storage, offset, size, stride, requires_grad=False, hooks=None, meta=None):
        """The tensor as an array; refuses views that leave their storage."""
        size, stride = tuple(size), tuple(stride)
        numbers = (offset, *size, *stride)
        if not isinstance(storage, _Storage) or len(size) != len(stride):
            raise _Refused("a tensor is described by wrong arguments")
        if any(not isinstance(n, int) or n < 0 for n in numbers):
            raise _Refused(f"a tensor has offset {offset}, size {size} and stride {stride}")
        count = math.prod(size)
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if count and last >= storage.values.size:
            raise _Refused(
                f"a tensor of size {size} and stride {stride} at {offset} leaves its storage of "
                f"{storage.values.size} values"
            )
        flat = storage.values[offset:] if count else storage.values[:0]
        strides = [n * flat.itemsize for n in stride]
        if count > max(storage.values.size, _MAX_REPEATED):
            raise _Refused(f"a tensor of size {size} repeats {storage.values.size} stored values")
        view = np.lib.stride_tricks.as_strided(flat, size, strides, writeable=False)
        tensor = np.array(view).view(_Tensor)
        tensor.stored = storage.dtype
        return tensor


class _RebuildParameter(_Constructor):
    """``torch._utils._rebuild_parameter``: the tensor itself."""

    __slots__ = ()

    def __call__(self, data, requires_grad=False, hooks=None):
        """The tensor that the parameter wraps."""
        if not isinstance(data, _Tensor):
            raise _Refused("a parameter does not wrap a tensor")
        return data


class _OrderedDict(dict):
    """``collections.OrderedDict``: a dictionary that takes no attributes (``_metadata``)."""

    __slots__ = ()

    def __setstate__(self, state):
        """Ignores the attributes, which hold version numbers of modules."""


class _Size(_Constructor):
    """``torch.Size``: a plain tuple."""

    __slots__ = ()

    def __call__(self, values=()):
        """The sizes as a tuple."""
        return tuple(values)


class _StorageType(NamedTuple):
    """``torch.FloatStorage`` and its kin, which only name a type."""

    dtype: str


_ADMITTED = {
    ("collections", "OrderedDict"): _OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    ("torch", "Size"): _Size(),
    # Lightning keeps what this callback noted under its class; here that is a text, not callable.
    ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"): "ModelCheckpoint",
    **{("torch", name): _StorageType(dtype) for name, dtype in STORAGES.items()},
}


def _stored(dtype: str) -> np.dtype:
    """The type of a storage's values as they lie in the file."""
    return np.dtype("u2" if dtype == _BFLOAT16 else dtype)


class _Unpickler(pickle.Unpickler):
    """Admits the names above and storages of the archive; nothing else."""

    def __init__(self, file, archive: _Archive, prefix: str):
        super().__init__(file, encoding="utf-8")
        self._archive, self._prefix = archive, prefix
        self._storages: dict[str, _Storage] = {}
        order = _entry_text(archive, f"{prefix}byteorder", "little")
        self._order: Literal["<", ">"] = ">" if order == "big" else "<"

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of an admitted name; refuses all others."""
        if (module, name) not in _ADMITTED:
            qualified = repr(f"{module}.{name}"[:120])
            raise _Refused(
                f"its pickle asks for {qualified}, which no tensor needs; it was not run"
            )
        return _ADMITTED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage by its key in the archive; one shared by several tensors is read once."""
        # A sixth part, in the legacy layout, would describe a view; PyTorch 1 wrote None there.
        if isinstance(pid, tuple) and len(pid) == 6 and pid[5] is None:
            pid = pid[:5]
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            raise _Refused(f"its pickle refers to {str(pid)[:80]!r}, which is not a storage")
        _, kind, key, _, count = pid
        if not isinstance(kind, _StorageType) or not isinstance(key, str):
            raise _Refused(f"storage {key!r} has an unknown type")
        if key not in self._storages:
            self._storages[key] = self._read(kind.dtype, key, count)
        if self._storages[key].dtype != kind.dtype:
            raise _Refused(f"storage {key!r} is used with two types")
        return self._storages[key]

    def _read(self, dtype: str, key: str, count: int) -> _Storage:
        """Reads one storage after comparing its length with the pickle's."""
        stored = _stored(dtype).newbyteorder(self._order)
        name = f"{self._prefix}data/{key}"
        try:
            size = self._archive.getinfo(name).file_size
        except KeyError:
            raise _Refused(f"storage {name!r} is missing from the archive") from None
        if not isinstance(count, int) or count < 0 or size < count * stored.itemsize:
            raise _Refused(f"storage {name!r} holds {size} bytes, too few for {count} values")
        values = np.frombuffer(self._archive.read(name), stored, count)
        if dtype == _BFLOAT16:
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return _Storage(values.astype(values.dtype.newbyteorder("="), copy=False), dtype)


def _entry_text(archive: _Archive, name: str, default: str) -> str:
    """Text of a small entry, or the default if the archive has no such entry."""
    if name not in archive.namelist():
        return default
    return archive.read(name).decode("ascii", "replace").strip()


def load_state_dict(path: str | Path, entry: str | None = None) -> StateDict:
    """Tensors of a ``.pth``/``.pt`` or ``.npz`` file; the content decides which one it is.

    Args:
      path: the file.
      entry: which dictionary of the file to take, such as ``"ema"`` or ``"model/state_dict"``;
        None takes the top if it holds tensors, otherwise the first of ``USUAL_ENTRIES`` that does,
        otherwise the only one there is.

    Returns:
      The tensors; bfloat16 ones as float32, all others in the file's type.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not such a file, damaged, holding something that is not admitted, or without
        tensors; one line that names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"checkpoint {str(path)!r} is not a file; give a .pth or .npz file."
        )
    try:
        with _open(path) as archive:
            names = archive.namelist()
            if any(name.rpartition("/")[2] == "data.pkl" for name in names):
                content = _unpickle(archive, names)
            else:
                content = _read_npz(path, names)
    except _Refused as error:
        raise ValueError(f"{path.name}: {error}. {_WAY_OUT}") from None
    except NotLegacyError as error:
        raise ValueError(f"{path.name} {error}") from None
    except _BAD_ARCHIVE as error:
        raise ValueError(
            f"{path.name} is truncated or damaged ({_first_line(error)}); download or save it "
            "again."
        ) from None
    return _select(path.name, content, entry)


_WAY_OUT = (
    "Only state dicts of tensors can be read; save one with torch.save(model.state_dict(), FILE)."
)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[_Archive]:
    """The archive in either layout, told apart by its first bytes."""
    with path.open("rb") as file:
        start = file.read(32)
        file.seek(0)
        if start.startswith(_ZIP_STARTS):
            with zipfile.ZipFile(file) as archive:
                yield archive
        elif start.startswith(_PICKLE_START):
            yield LegacyArchive(
                file, {name: _stored(kind).itemsize for name, kind in STORAGES.items()}
            )
        else:
            raise ValueError(
                f"{path.name} is neither a .pth nor a .npz file (it does not start like a zip "
                f"archive but with {start[:8]!r}); is it the right file, downloaded whole?"
            )


def _first_line(error: BaseException) -> str:
    """First line of an error's text, or its class name."""
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def _unpickle(archive: _Archive, names: list[str]) -> Any:
    """What the archive's pickle describes."""
    pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1 or any(name.endswith("/constants.pkl") for name in names):
        raise _Refused("it is not one state dict (a TorchScript archive?)")
    prefix = pickles[0].removesuffix("data.pkl")
    unpickler = _Unpickler(io.BytesIO(archive.read(pickles[0])), archive, prefix)
    try:
        return unpickler.load()
    except _Refused:
        raise
    except (*DAMAGE, ValueError) as error:
        raise _Refused(f"its pickle is damaged ({_first_line(error)})") from None


def _read_npz(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Arrays of an ``.npz`` file; refuses pickled objects."""
    if not names or not all(name.endswith(".npy") for name in names):
        some = ", ".join(map(repr, names[:3])) or "nothing"
        raise _Refused(f"it is a zip archive but neither .pth nor .npz (it holds {some})")
    arrays: dict[str, np.ndarray] = {}
    with np.load(path, allow_pickle=False) as file:
        for name in file.files:
            try:
                array = np.asarray(file[name]).view(_Tensor)
            except ValueError as error:
                raise _Refused(f"array {name!r} cannot be read ({_first_line(error)})") from None
            array.stored = str(array.dtype)
            arrays[name] = array
    return arrays


def _places(content: Any, place: str = "", depth: int = 0) -> dict[str, Mapping]:
    """All dictionaries that hold tensors under text names, by their place."""
    if not isinstance(content, Mapping) or depth > _MAX_DEPTH:
        return {}
    found = {}
    if any(isinstance(k, str) and isinstance(v, _Tensor) for k, v in content.items()):
        found[place] = content
    for key, value in content.items():
        if isinstance(key, str):
            found |= _places(value, f"{place}/{key}" if place else key, depth + 1)
    return found


def _select(name: str, content: Any, entry: str | None) -> StateDict:
    """The state dict among what the file holds."""
    places = _places(content)
    held = ", ".join(repr(place) if place else "the top level" for place in places)
    if not places:
        raise ValueError(f"{name} holds no tensors with names. {_WAY_OUT}")
    if entry is None:
        usual = [place for place in USUAL_ENTRIES if place in places]
        # A stray tensor beside the dictionaries (a step, a rate) does not make the top a model.
        whole = "" in places and len(places[""]) > 1 and not usual
        candidates = [""] if whole else usual or list(places)
        if len(candidates) > 1 and candidates != usual:
            raise ValueError(f"{name} holds tensors in {held}; choose one with --entry.")
        entry = candidates[0]
    elif entry not in places:
        raise ValueError(f"{name} has no tensors in {entry!r}; it has them in {held}.")
    chosen = places[entry]
    tensors = {k: v for k, v in chosen.items() if isinstance(k, str) and isinstance(v, _Tensor)}
    stripped = sum(key.startswith("module.") for key in tensors)
    clean = {key.removeprefix("module."): value for key, value in tensors.items()}
    if len(clean) < len(tensors):
        raise ValueError(f"{name} holds names with and without 'module.' for the same tensor.")
    return StateDict(
        tensors={key: value.view(np.ndarray) for key, value in clean.items()},
        entry=entry,
        other_entries=tuple(place for place in places if place != entry),
        stripped=stripped,
        other_keys=tuple(str(key) for key in chosen if key not in tensors),
        bfloat16=tuple(key for key, value in clean.items() if value.stored == _BFLOAT16),
    )
