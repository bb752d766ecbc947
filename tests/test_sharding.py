"""Mesh and shardings over the eight virtual devices."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from diffsda_jax import sharding


def test_mesh_covers_all_devices_with_automatic_axes():
    mesh = sharding.make_mesh()
    assert mesh.axis_names == ("data",) and mesh.devices.size == jax.device_count() == 8
    assert mesh.axis_types == (AxisType.Auto,)


def test_mesh_over_chosen_devices_keeps_their_order():
    devices = jax.devices()[2:4]
    assert list(sharding.make_mesh(devices).devices) == devices
    with pytest.raises(ValueError, match="devices is empty"):
        sharding.make_mesh([])


def test_shard_batch_splits_the_first_axis_and_keeps_the_values():
    mesh = sharding.make_mesh()
    batch = {"x": np.arange(48.0, dtype=np.float32).reshape(16, 3), "length": np.arange(16)}
    sharded = sharding.shard_batch(batch, mesh)
    for name, value in batch.items():
        np.testing.assert_array_equal(sharded[name], value)
        assert sharded[name].sharding.spec == PartitionSpec("data")
        assert sharded[name].addressable_shards[3].data.shape == (2, *value.shape[1:])
    np.testing.assert_array_equal(sharded["x"].addressable_shards[3].data, batch["x"][6:8])


def test_replicated_puts_everything_everywhere():
    value = jax.device_put(np.arange(3.0), sharding.replicated(sharding.make_mesh()))
    assert [shard.data.shape for shard in value.addressable_shards] == [(3,)] * 8


@pytest.mark.parametrize(("size", "way"), [(12, "8 or 16"), (3, "Use 8,"), (0, "Use 8,")])
def test_batch_that_cannot_be_split_is_named(size, way):
    with pytest.raises(ValueError, match=f"batch_size is {size}.*multiples of 8.*{way}"):
        sharding.shard_batch({"x": np.zeros((size, 2))}, sharding.make_mesh())
