"""Writes files as ``torch.save`` does, without torch, for the tests of the reader."""

import io
import pickle
import zipfile

import numpy as np

STORAGE_NAMES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


class Global:
    """Pickled as the bare name ``module.name``, whether it exists here or not."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """Pickled as a call of a global, and optionally attributes set on the result."""

    def __init__(self, module, name, *args):
        self.function, self.args = Global(module, name), args


class Storage:
    """Raw values under a key of the archive; ``kind`` is torch's name of the type."""

    def __init__(self, key, values, kind=None, count=None):
        self.key, self.values = key, np.ascontiguousarray(values)
        self.kind = kind or STORAGE_NAMES[str(self.values.dtype)]
        self.count = self.values.size if count is None else count


def tensor(storage, offset, size, stride):
    return Call(
        "torch._utils", "_rebuild_tensor_v2", storage, offset, size, stride, False, ordered([])
    )


def ordered(items):
    return Call("collections", "OrderedDict", *([list(map(list, items))] if items else []))


def plain(key, array, kind=None):
    """A contiguous tensor with a storage of its own."""
    array = np.asarray(array)
    strides = tuple(s // array.itemsize for s in np.zeros_like(array, order="C").strides)
    return tensor(Storage(key, array.ravel(), kind), 0, array.shape, strides)


class _Pickler(pickle._Pickler):
    """Python's own pickler, which lets names be written that do not exist here."""

    dispatch = dict(pickle._Pickler.dispatch)

    def __init__(self, file, storages):
        super().__init__(file, protocol=2)
        self.storages = storages

    def save_global_name(self, obj):
        self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())

    def save_call(self, obj):
        self.save(obj.function)
        self.save(tuple(obj.args))
        self.write(pickle.REDUCE)

    def save_storage(self, obj):
        self.storages[obj.key] = obj
        self.save(("storage", Global("torch", obj.kind), obj.key, "cpu", obj.count))
        self.write(pickle.BINPERSID)

    dispatch[Global], dispatch[Call], dispatch[Storage] = (
        save_global_name,
        save_call,
        save_storage,
    )


def pickled(content):
    """The pickle and the storages it names."""
    file, storages = io.BytesIO(), {}
    _Pickler(file, storages).dump(content)
    return file.getvalue(), storages


def write(path, content, byteorder="little", left_out=()):
    """Writes ``content``, made of the above and plain values, as a zip archive."""
    data, storages = pickled(content)
    return write_raw(path, data, storages, byteorder, left_out)


def write_raw(path, data, storages, byteorder="little", left_out=()):
    order = {"little": "<", "big": ">"}[byteorder]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", byteorder)
        for key, storage in storages.items():
            if key not in left_out:
                values = storage.values.astype(storage.values.dtype.newbyteorder(order))
                archive.writestr(f"archive/data/{key}", values.tobytes())
        archive.writestr("archive/version", "3\n")
    return path


def write_state_dict(path, tensors):
    """A state dict of contiguous arrays, as an ordered dictionary."""
    items = [(name, plain(str(i), array)) for i, (name, array) in enumerate(tensors.items())]
    return write(path, ordered(items))
