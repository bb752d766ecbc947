import pickle

import golden_cases
import numpy as np
import pytest
import torch_writer as tw

from diffsda_jax.convert.torch_file import load_state_dict

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


def read(path, **kwargs):
    return load_state_dict(path, **kwargs).tensors


def refusal(path, content):
    """The one-line error for a file with this content."""
    with pytest.raises(ValueError) as error:
        load_state_dict(tw.write(path, content))
    assert "\n" not in str(error.value) and path.name in str(error.value)
    return str(error.value)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


def test_file_written_by_torch_holds_the_weights_of_its_names():
    tensors = read(golden_cases.FOLDER / "audio_mel.pth")
    expected = golden_cases.state_dict("audio_mel")
    assert list(tensors) == list(expected)
    for name, value in expected.items():
        assert tensors[name].dtype == np.float32
        np.testing.assert_array_equal(tensors[name], value)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "uint8", "bool"])
@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_types_and_byte_orders(path, dtype, byteorder):
    array = (ARRAY * 50.25).astype(dtype)
    tw.write(path, {"a": tw.plain("0", array)}, byteorder)
    got = read(path)["a"]
    assert got.dtype == np.dtype(dtype) and type(got) is np.ndarray
    np.testing.assert_array_equal(got, array)


def test_bfloat16_is_the_upper_half_of_float32(path):
    bits = np.array([0x3F80, 0xC000, 0x3DCC, 0x7F80], np.uint16)  # 1, -2, about 0.1, inf
    tw.write(path, {"a": tw.plain("0", bits, "BFloat16Storage")})
    state = load_state_dict(path)
    assert state.bfloat16 == ("a",) and state.tensors["a"].dtype == np.float32
    np.testing.assert_array_equal(state.tensors["a"], np.float32([1, -2, 0.099609375, np.inf]))


def test_offsets_strides_scalars_and_empty_tensors(path):
    storage = tw.Storage("0", np.arange(24, dtype=np.float32))
    views = {
        "transposed": (storage, 4, (3, 2), (1, 3)),
        "every_second": (storage, 1, (5,), (2,)),
        "scalar": (storage, 7, (), ()),
        "empty": (storage, 0, (0, 4), (4, 1)),
        "expanded": (storage, 2, (2, 3), (0, 1)),
    }
    tw.write(path, {name: tw.tensor(*view) for name, view in views.items()})
    got, flat = read(path), np.arange(24, dtype=np.float32)
    np.testing.assert_array_equal(got["transposed"], flat[4:10].reshape(2, 3).T)
    np.testing.assert_array_equal(got["every_second"], flat[1:11:2])
    assert got["scalar"].shape == () and got["scalar"] == 7
    assert got["empty"].shape == (0, 4)
    np.testing.assert_array_equal(got["expanded"], np.tile(flat[2:5], (2, 1)))
    got["transposed"][:] = -1  # arrays are copies: writing to one leaves the others alone
    np.testing.assert_array_equal(got["every_second"], flat[1:11:2])


def test_parameters_sizes_and_metadata(path):
    parameter = tw.Call("torch._utils", "_rebuild_parameter", tw.plain("0", ARRAY), True, {})
    size = tw.Call("torch", "Size", (2, 3))
    sized = tw.tensor(tw.Storage("1", ARRAY.ravel()), 0, size, (3, 1))
    tw.write(path, {"p": parameter, "s": sized, "step": 3, "names": ["a", None, 1.5]})
    state = load_state_dict(path)
    np.testing.assert_array_equal(state.tensors["p"], ARRAY)
    np.testing.assert_array_equal(state.tensors["s"], ARRAY)
    assert state.other_keys == ("step", "names")


def test_prefix_of_data_parallel_is_taken_off(path):
    tw.write_state_dict(path, {"module.a": ARRAY, "module.b": ARRAY})
    state = load_state_dict(path)
    assert set(state.tensors) == {"a", "b"} and state.stripped == 2


def test_names_that_become_the_same_are_refused(path):
    content = {"a": tw.plain("0", ARRAY), "module.a": tw.plain("1", ARRAY)}
    assert "with and without 'module.'" in refusal(path, content)


@pytest.mark.parametrize("name", ["state_dict", "model", "ema"])
def test_nested_state_dicts(path, name):
    optimizer = {"state": {0: {"exp_avg": tw.plain("9", ARRAY)}}}
    content = {"epoch": 3, name: {"a": tw.plain("0", ARRAY)}, "optimizer": optimizer}
    tw.write(path, content | {"best_loss": tw.plain("8", np.float32(1))})
    state = load_state_dict(path)
    assert state.entry == name and set(state.tensors) == {"a"}


def test_two_nested_state_dicts(path):
    both = {"ema": {"a": tw.plain("0", ARRAY)}, "model": {"a": tw.plain("1", -ARRAY)}}
    tw.write(path, both)
    state = load_state_dict(path)
    assert state.entry == "model" and state.other_entries == ("ema",)
    np.testing.assert_array_equal(state.tensors["a"], -ARRAY)
    np.testing.assert_array_equal(read(path, entry="ema")["a"], ARRAY)
    with pytest.raises(ValueError, match="no tensors in 'emma'; it has them in 'ema', 'model'"):
        load_state_dict(path, entry="emma")


def test_unusual_places_must_be_chosen(path):
    content = {"one": {"a": tw.plain("0", ARRAY)}, "two": {"x": {"a": tw.plain("1", ARRAY)}}}
    assert "'one', 'two/x'; choose one with --entry" in refusal(path, content)
    assert set(read(path, entry="two/x")) == {"a"}


@pytest.mark.parametrize(
    ("module", "name", "args"),
    [
        ("os", "system", ("touch {}",)),
        ("posix", "system", ("touch {}",)),
        ("builtins", "eval", ("open({!r}, 'w')",)),
        ("builtins", "getattr", ("a", "b")),
        ("torch.nn.modules.module", "Module", ()),
        ("torch._utils", "_rebuild_tensor_v3", ()),
        ("torch", "load", ("{}",)),
        ("collections", "OrderedDict.fromkeys", ()),
        ("numpy.core.multiarray", "scalar", ()),
    ],
)
def test_other_names_are_refused_and_not_run(path, tmp_path, module, name, args):
    made = tmp_path / "made"
    call = tw.Call(module, name, *(arg.format(made) for arg in args))
    message = refusal(path, {"a": tw.plain("0", ARRAY), "b": call})
    assert f"'{module}.{name}'" in message and "was not run" in message
    assert not made.exists()


def test_real_reduce_exploit_is_refused(path, tmp_path):
    """Control: the same pickle does its work in Python's own unpickler."""
    made = tmp_path / "made"

    class Exploit:
        def __reduce__(self):
            return open, (str(made), "w")

    data = pickle.dumps({"a": Exploit()}, protocol=4)
    tw.write_raw(path, data, {})
    with pytest.raises(ValueError, match=r"'(_io|io)\.open'"):
        load_state_dict(path)
    assert not made.exists()
    pickle.loads(data)["a"].close()
    assert made.exists()


BUILD_ATTACKS = {
    "attributes of a dictionary": pickle.PROTO
    + b"\x02ccollections\nOrderedDict\n)R}U\x05itemsK\x01sb.",
    "attributes of a constructor": pickle.PROTO
    + b"\x02ctorch._utils\n_rebuild_tensor_v2\n}U\x08__call__K\x01sb.",
    "slots of a constructor": pickle.PROTO
    + b"\x02ctorch._utils\n_rebuild_tensor_v2\nN}U\x09__class__ccollections\nOrderedDict\ns\x86b.",
    "attributes of a class": pickle.PROTO + b"\x02ccollections\nOrderedDict\nN}U\x01xK\x01s\x86b.",
    "a call of a type's name": pickle.PROTO + b"\x02ctorch\nFloatStorage\n)R.",
    "nothing": b"",
    "cut off": pickle.PROTO + b"\x02}U\x01a",
    "wrong opcode": pickle.PROTO + b"\x02\xff.",
    "foreign persistent id": pickle.PROTO + b"\x02U\x03abcQ.",
    "a number": pickle.PROTO + b"\x02K\x01.",
}


@pytest.mark.parametrize("name", BUILD_ATTACKS)
def test_odd_pickles_end_in_one_line(path, name):
    tw.write_raw(path, BUILD_ATTACKS[name], {})
    with pytest.raises(ValueError) as error:
        load_state_dict(path)
    assert "\n" not in str(error.value) and path.name in str(error.value)
    # Nothing of it stays: a good file is read as before.
    tw.write_state_dict(path, {"a": ARRAY})
    np.testing.assert_array_equal(read(path)["a"], ARRAY)


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ((0, (3, 3), (3, 1)), "leaves its storage of 6 values"),
        ((5, (2,), (1,)), "leaves its storage"),
        ((-1, (2,), (1,)), "has offset -1"),
        ((0, (2,), (-1,)), "stride"),
        ((0, (2, 3), (1,)), "wrong arguments"),
        ((0, (1 << 62, 1 << 62), (0, 0)), "repeats 6 stored values"),
        ((0, (2.0,), (1,)), "has offset"),
        ((0, 5, (1,)), "damaged"),
    ],
)
def test_views_outside_their_storage(path, view, message):
    storage = tw.Storage("0", ARRAY.ravel())
    assert message in refusal(path, {"a": tw.tensor(storage, *view)})


def test_storages_that_lie(path):
    short = tw.Storage("0", ARRAY.ravel(), count=7)
    assert "too few for 7 values" in refusal(path, {"a": tw.tensor(short, 0, (7,), (1,))})
    unknown = tw.Storage("0", ARRAY.ravel(), "QInt8Storage")
    assert "'torch.QInt8Storage'" in refusal(path, {"a": tw.tensor(unknown, 0, (6,), (1,))})
    two = {
        "a": tw.plain("0", ARRAY),
        "b": tw.tensor(tw.Storage("0", ARRAY.ravel(), "IntStorage"), 0, (6,), (1,)),
    }
    assert "used with two types" in refusal(path, two)
    tw.write(path, {"a": tw.plain("0", ARRAY)}, left_out=("0",))
    with pytest.raises(ValueError, match="storage 'archive/data/0' is missing"):
        load_state_dict(path)


def test_npz_of_the_same_keys(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, **{"module.a.b": ARRAY})
    np.testing.assert_array_equal(read(path)["a.b"], ARRAY)


def test_npz_with_objects_is_refused(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, a=np.array([{}], object))
    with pytest.raises(ValueError, match=r"weights.npz: array 'a' cannot be read \(Object arrays"):
        load_state_dict(path)


@pytest.mark.parametrize("suffix", ["pth", "npz"])
@pytest.mark.parametrize("kept", [0.2, 0.6, 0.99])
def test_truncated_files(tmp_path, suffix, kept):
    path = tmp_path / f"weights.{suffix}"
    if suffix == "npz":
        np.savez(path, a=np.zeros(500))
    else:
        tw.write_state_dict(path, {"a": np.zeros(500)})
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(ValueError, match=f"^{path.name} is truncated or damaged .*again.$"):
        load_state_dict(path)


def test_a_flipped_bit_is_seen(path):
    tw.write_state_dict(path, {"a": np.zeros(500, np.float32)})
    data = bytearray(path.read_bytes())
    data[data.index(b"archive/data/0") + 400] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="truncated or damaged .Bad CRC-32"):
        load_state_dict(path)


def test_files_of_other_kinds(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(pickle.dumps({"a": 1}, protocol=2))
    with pytest.raises(ValueError, match=r"bare pickle.*before PyTorch 1\.6.*NEW_FILE"):
        load_state_dict(path)
    path.write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ValueError, match="neither a .pth nor a .npz file"):
        load_state_dict(path)
    tw.zipfile.ZipFile(path, "w").writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match="neither .pth nor .npz .it holds 'readme.txt'"):
        load_state_dict(path)
    with tw.zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"")
        archive.writestr("m/constants.pkl", b"")
    with pytest.raises(ValueError, match="TorchScript"):
        load_state_dict(path)
    with pytest.raises(FileNotFoundError, match="'.*none.pth' is not a file"):
        load_state_dict(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="holds no tensors with names"):
        load_state_dict(tw.write(path, {"a": 1}))
