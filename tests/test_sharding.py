"""Mesh and shardings over the eight virtual devices."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from diffsda_jax import sharding

pytestmark = pytest.mark.usefixtures("optimised")


def test_mesh_covers_all_devices_with_automatic_axes():
    mesh = sharding.make_mesh()
    assert mesh.axis_names == ("data", "fsdp") and mesh.devices.shape == (8, 1)
    assert mesh.axis_types == (AxisType.Auto,) * 2


def test_mesh_over_chosen_devices_keeps_their_order():
    devices = jax.devices()[2:4]
    assert list(sharding.make_mesh(devices).devices.flat) == devices
    with pytest.raises(ValueError, match="devices is empty"):
        sharding.make_mesh([])


def test_shard_batch_splits_the_first_axis_and_keeps_the_values():
    mesh = sharding.make_mesh()
    batch = {"x": np.arange(48.0, dtype=np.float32).reshape(16, 3), "length": np.arange(16)}
    sharded = sharding.shard_batch(batch, mesh)
    for name, value in batch.items():
        np.testing.assert_array_equal(sharded[name], value)
        assert sharded[name].sharding.spec == PartitionSpec(("data", "fsdp"))
        assert sharded[name].addressable_shards[3].data.shape == (2, *value.shape[1:])
    np.testing.assert_array_equal(sharded["x"].addressable_shards[3].data, batch["x"][6:8])


def test_replicated_puts_everything_everywhere():
    value = jax.device_put(np.arange(3.0), sharding.replicated(sharding.make_mesh()))
    assert [shard.data.shape for shard in value.addressable_shards] == [(3,)] * 8


@pytest.mark.parametrize(("size", "way"), [(12, "8 or 16"), (3, "Use 8,"), (0, "Use 8,")])
def test_batch_that_cannot_be_split_is_named(size, way):
    with pytest.raises(ValueError, match=f"batch_size is {size}.*multiples of 8.*{way}"):
        sharding.shard_batch({"x": np.zeros((size, 2))}, sharding.make_mesh())


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [((-1, 1), (8, 1)), ((-1, 4), (2, 4)), ((2, -1), (2, 4)), ((1, 8), (1, 8)), ((4, 2), (4, 2))],
)
def test_sizes_of_a_mesh(sizes, shape):
    mesh = sharding.make_mesh(None, *sizes)
    assert mesh.devices.shape == shape
    assert list(mesh.devices.flat) == jax.devices()  # neighbours share what is split over fsdp


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((3, 2), "mesh.data is 3 and config.mesh.fsdp is 2.*8 devices.*one of 1, 2, 4, 8"),
        ((2, 2), "multiply to 8"),
        ((-1, 3), "multiply to 8"),
        ((-1, -1), "-1 .the rest. for one of them"),
        ((0, 8), "allowed: 1 or more"),
        ((-2, -4), "allowed: 1 or more"),
    ],
)
def test_sizes_that_do_not_multiply_to_the_devices_are_named(sizes, words):
    with pytest.raises(ValueError, match=words):
        sharding.make_mesh(None, *sizes)


def shapes(**sizes):
    """A tree of shapes by name."""
    return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in sizes.items()}


def specs(tree, rules=(), fsdp=4):
    """The spec of each array."""
    placed = sharding.state_sharding(tree, sharding.make_mesh(fsdp=fsdp), rules)
    return jax.tree.map(lambda where: tuple(where.spec), placed)


def test_large_arrays_are_split_along_their_largest_axis():
    tree = shapes(
        kernel=(3, 3, 64, 128), tall=(512, 64), square=(128, 128), odd=(129, 1024), small=(64, 64)
    )
    tree |= shapes(undivided=(257, 129), step=())
    assert specs(tree) == {
        "kernel": (None, None, None, "fsdp"),
        "tall": ("fsdp",),
        "square": (None, "fsdp"),
        "odd": (None, "fsdp"),
        "small": (),
        "undivided": (),
        "step": (),
    }
    assert set(specs(tree, fsdp=1).values()) == {()}


def test_the_first_rule_that_matches_a_path_decides():
    tree = {
        "params": {"out": shapes(kernel=(256, 256), bias=(8,)), "in": shapes(kernel=(256, 256))}
    }
    rules = [("out/kernel$", ["fsdp", None]), ("out/", "largest"), ("in/", ())]
    found = specs(tree, rules)["params"]
    assert found["out"] == {"kernel": ("fsdp", None), "bias": ("fsdp",)}
    assert found["in"] == {"kernel": ()}


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (("kernel", (None, None, "fsdp")), "'kernel' splits a/kernel, of shape .6, 8.*narrower"),
        (("kernel", ("fsdp",)), "does not divide evenly"),
        (("kernel", ("data", "data")), "does not divide evenly"),
        (("kernel", ("model",)), "'data', 'fsdp' and None"),
        (("kernel", "smallest"), "'largest'"),
        (("(", ()), "regular expression"),
        ("kernel", "regular expression"),
    ],
)
def test_rules_that_do_not_fit_are_named(rule, words):
    with pytest.raises(ValueError, match=f"config.mesh.rules.*{words}"):
        specs({"a": shapes(kernel=(6, 8))}, [rule])


@pytest.mark.parametrize("steps", [2, 4])
def test_micro_batches_must_divide_among_the_devices(steps):
    mesh = sharding.make_mesh()
    sharding.check_batch_size(32, mesh, accumulation_steps=steps)
    with pytest.raises(ValueError, match=f"8 devices and {steps} accumulation_steps.*Use"):
        sharding.check_batch_size(8, mesh, accumulation_steps=steps)
    with pytest.raises(ValueError, match="accumulation_steps is 0"):
        sharding.check_batch_size(8, mesh, accumulation_steps=0)
