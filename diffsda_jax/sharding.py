"""Device mesh and the shardings of state and batches: data parallel over one axis."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-axis mesh, ``data``, over the given devices.

    Args:
      devices: devices to use, in order; None = all devices of all processes.

    Returns:
      A mesh with automatic (compiler-chosen) sharding of intermediate values.

    Raises:
      ValueError: no devices given.
    """
    devices = jax.devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("make_mesh: devices is empty; give at least one device, or None for all.")
    return jax.make_mesh(
        (len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding that splits the first axis, B, over the devices and leaves the others whole."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding that puts the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(batch_size: int, mesh: Mesh, option: str = "batch_size") -> None:
    """Refuses a global batch that cannot be split evenly over the devices.

    Args:
      batch_size: over all devices.
      mesh: of ``make_mesh``.
      option: where it is set, for the error.

    Raises:
      ValueError: ``batch_size`` is not a positive multiple of the number of devices.
    """
    count = mesh.devices.size
    if batch_size < 1 or batch_size % count:
        below, above = batch_size // count * count, (batch_size // count + 1) * count
        nearest = f"{below} or {above}" if below > 0 else f"{above}"
        raise ValueError(
            f"{option} is {batch_size}, but it is split over {count} devices; allowed: positive "
            f"multiples of {count}. Use {nearest}, or run on fewer devices."
        )


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays, split over B, from the part of the batch this process holds.

    Args:
      batch: host arrays ``[B / processes, ...]``; every process gives the same names and shapes.
      mesh: mesh of ``make_mesh``.

    Returns:
      The same names with device arrays ``[B, ...]`` under ``batch_sharding(mesh)``.

    Raises:
      ValueError: the global batch size is not a multiple of the number of devices.
    """
    sharding = batch_sharding(mesh)
    processes = len({device.process_index for device in mesh.devices.flat})
    sharded = {}
    for name, value in batch.items():
        value = np.asarray(value)
        check_batch_size(value.shape[0] * processes, mesh)
        shape = (value.shape[0] * processes, *value.shape[1:])
        sharded[name] = jax.make_array_from_process_local_data(sharding, value, shape)
    return sharded
