import io
import pickle
import struct

import numpy as np
import pytest
import torch_writer as tw

from diffsda_jax.convert.torch_file import load_state_dict
from diffsda_jax.convert.torch_legacy_file import MAGIC_NUMBER, PROTOCOL

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)
MACHINE = {
    "protocol_version": 1001,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}


class Pickler(tw._Pickler):
    """Writes storages with the sixth part of the old layout."""

    dispatch = dict(tw._Pickler.dispatch)
    view = None

    def save_storage(self, obj):
        self.storages[obj.key] = obj
        kind = tw.Global("torch", obj.kind)
        self.save(("storage", kind, obj.key, "cuda:0", obj.count, self.view))
        self.write(pickle.BINPERSID)

    dispatch[tw.Storage] = save_storage


def layout(content, storages=None, magic=MAGIC_NUMBER, protocol=PROTOCOL, machine=MACHINE):
    """A file as torch.save wrote it; ``content`` may be the bytes of a pickle."""
    file, seen = io.BytesIO(), {}
    for header in (magic, protocol, machine):
        pickle.dump(header, file, protocol=2)
    if isinstance(content, bytes):
        file.write(content)
    else:
        Pickler(file, seen).dump(content)
    seen = seen if storages is None else storages
    pickle.dump(list(seen), file, protocol=2)
    for storage in seen.values():
        file.write(struct.pack("<q", storage.values.size))
        file.write(storage.values.astype(storage.values.dtype.newbyteorder("<")).tobytes())
    return file.getvalue()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "generator_v1"


def read(path, data):
    path.write_bytes(data)
    return load_state_dict(path)


def refusal(path, data):
    with pytest.raises(ValueError) as error:
        read(path, data)
    assert "\n" not in str(error.value) and str(error.value).startswith(path.name)
    return str(error.value)


def test_tensors_of_several_types_that_share_storages(path):
    shared = tw.Storage("94", np.arange(24, dtype=np.float32))
    content = tw.ordered(
        [
            ("whole", tw.tensor(shared, 0, (4, 6), (6, 1))),
            ("turned", tw.tensor(shared, 4, (3, 2), (1, 3))),
            ("long", tw.plain("17", np.array([3, -(2**40)]))),
            ("half", tw.plain("95", np.array([0.5, -2], np.float16))),
            ("scalar", tw.plain("96", np.float64(np.pi))),
            ("empty", tw.plain("97", np.zeros((0, 3), np.float32))),
            ("brain", tw.plain("98", np.array([0x3F80, 0xC000], np.uint16), "BFloat16Storage")),
            ("weight", tw.Call("torch._utils", "_rebuild_parameter", tw.plain("9", ARRAY), True)),
        ]
    )
    state = read(path, layout({"generator": content, "steps": 2_500_000}))
    flat = np.arange(24, dtype=np.float32)
    assert state.entry == "generator" and state.bfloat16 == ("brain",)
    expected = {
        "whole": flat.reshape(4, 6),
        "turned": flat[4:10].reshape(2, 3).T,
        "long": np.array([3, -(2**40)]),
        "half": np.array([0.5, -2], np.float16),
        "scalar": np.float64(np.pi),
        "empty": np.zeros((0, 3), np.float32),
        "brain": np.array([1, -2], np.float32),
        "weight": ARRAY,
    }
    assert list(state.tensors) == list(expected)
    for name, value in expected.items():
        assert state.tensors[name].dtype == value.dtype
        np.testing.assert_array_equal(state.tensors[name], value)


@pytest.mark.parametrize(
    ("module", "name"),
    [("os", "system"), ("builtins", "eval"), ("torch.nn.modules.conv", "Conv1d")],
)
def test_other_names_are_refused_and_not_run(path, tmp_path, module, name):
    made = tmp_path / "made"
    call = tw.Call(module, name, f"touch {made}")
    message = refusal(path, layout({"a": tw.plain("0", ARRAY), "b": call}))
    assert f"'{module}.{name}'" in message and "was not run" in message
    assert not made.exists()


@pytest.mark.parametrize("place", ["magic", "machine", "content", "keys"])
def test_real_reduce_exploit_is_refused_wherever_it_lies(path, tmp_path, place):
    """Control: the same pickle does its work in Python's own unpickler."""
    made = tmp_path / "made"

    class Exploit:
        def __reduce__(self):
            return open, (str(made), "w")

    if place == "content":
        data = layout(pickle.dumps({"a": Exploit()}, protocol=2), {})
    elif place == "keys":
        data = layout({}, {Exploit(): tw.Storage("0", ARRAY)})
    else:
        data = layout({"a": tw.plain("0", ARRAY)}, **{place: Exploit()})
    refusal(path, data)
    assert not made.exists()
    pickle.loads(pickle.dumps(Exploit(), protocol=2)).close()
    assert made.exists()


BUILD_ATTACKS = {
    "attributes of a dictionary": b"\x80\x02ccollections\nOrderedDict\n)R}U\x05itemsK\x01sb.",
    "slots of a constructor": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}U\x09__class__"
    b"ccollections\nOrderedDict\ns\x86b.",
    "a new object": b"\x80\x02ctorch\nFloatStorage\n)\x81.",
    "a view": b"\x80\x02U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x06U\x01vt\x85Q.",
    "a registered extension": b"\x80\x02\x82\x01.",
    "a key that has no hash": b"\x80\x02(U\x07storagectorch\nFloatStorage\n]tQ.",
    "nothing": b"",
    "wrong opcode": b"\x80\x02\xff.",
    "a long line": b"\x80\x02Inot a number\n.",
}


@pytest.mark.parametrize("name", BUILD_ATTACKS)
def test_odd_pickles_end_in_one_line(path, name):
    refusal(path, layout(BUILD_ATTACKS[name], {}))
    assert set(read(path, layout({"a": tw.plain("0", ARRAY)})).tensors) == {"a"}


def test_storages_that_lie(path, monkeypatch):
    storage = tw.Storage("0", ARRAY.ravel())
    good = {"a": tw.tensor(storage, 0, (2, 3), (3, 1))}
    two_keys = {"0": storage, "1": storage}
    assert "not that of its tensors" in refusal(path, layout(good, two_keys))
    short = {"0": tw.Storage("0", ARRAY.ravel()[:5])}
    assert "too few for 6 values" in refusal(path, layout(good, short))
    data = layout(good)
    at = len(data) - 24 - 8
    for count in (-1, 7, 1 << 62):
        lie = data[:at] + struct.pack("<q", count) + data[at + 8 :]
        assert f"within storage '0' of {count} values" in refusal(path, lie)
    assert "more behind the last storage" in refusal(path, data + b"x")
    unknown = tw.Storage("0", ARRAY.ravel(), "QInt8Storage")
    message = refusal(path, layout({"a": tw.tensor(unknown, 0, (6,), (1,))}))
    assert "'torch.QInt8Storage'" in message
    monkeypatch.setattr(Pickler, "view", ("0", 0, 6))
    assert "which is not a storage" in refusal(path, layout(good))


def test_a_file_cut_off_anywhere_is_refused(path):
    data = layout({"a": tw.plain("0", ARRAY), "b": tw.plain("1", ARRAY)})
    for length in range(2, len(data), 5):
        # Before the magic number is whole, any other pickle looks the same.
        expected = "bare pickle" if length < 15 else "truncated or damaged"
        assert expected in refusal(path, data[:length])


def test_other_headers(path):
    content = {"a": tw.plain("0", ARRAY)}
    message = refusal(path, layout(content, magic=1))
    assert "bare pickle" in message and "NEW_FILE" in message
    assert "has protocol 1002" in refusal(path, layout(content, protocol=1002))
    big = MACHINE | {"little_endian": False}
    assert "'little_endian': False" in refusal(path, layout(content, machine=big))
