"""Device mesh and the shardings of state and batches.

The mesh has two axes. Batches are split over both; parameters, their average and the optimiser's
state are split over ``fsdp`` and whole along ``data``. With ``fsdp=1`` this is plain data
parallelism.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS, FSDP_AXIS = "data", "fsdp"
BATCH_AXES = (DATA_AXIS, FSDP_AXIS)
LARGEST = "largest"  # as the spec of a rule: split the largest axis, whatever the size
MIN_SPLIT_SIZE = 2**14  # values; below, fetching the parts costs more than the memory is worth
# (regular expression of a path, spec): the spec is ``LARGEST``, or for each axis of the array a
# name of the mesh's or None; axes at the end may be left out, () is the whole array.
# A config may hold anything, so what a rule is made of is checked where it is used.
Rule = Any


def make_mesh(devices: Sequence[jax.Device] | None = None, data: int = -1, fsdp: int = 1) -> Mesh:
    """The mesh ``data x fsdp`` over the given devices.

    Devices that follow each other share a part of the batch axis ``fsdp``, so that what is split
    over it is fetched from neighbours.

    Args:
      devices: devices to use, in order; None = all devices of all processes. Those of a described
        topology do as well.
      data: number of groups that each hold the whole state; -1 = what is left by ``fsdp``.
      fsdp: number of devices that the state is split over; -1 = what is left by ``data``.

    Returns:
      A mesh with automatic (compiler-chosen) sharding of intermediate values.

    Raises:
      ValueError: no devices given, or sizes that do not multiply to their number.
    """
    devices = jax.devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("make_mesh: devices is empty; give at least one device, or None for all.")
    shape = _mesh_shape(len(devices), data, fsdp)
    return jax.make_mesh(shape, BATCH_AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def _mesh_shape(count: int, data: int, fsdp: int) -> tuple[int, int]:
    """Both sizes, with -1 replaced by what is left."""
    given = f"config.mesh.data is {data} and config.mesh.fsdp is {fsdp}"
    if any(size < 1 and size != -1 for size in (data, fsdp)) or data == fsdp == -1:
        raise ValueError(f"{given}; allowed: 1 or more, and -1 (the rest) for one of them.")
    known = math.prod(size for size in (data, fsdp) if size != -1)
    if count % known or (-1 not in (data, fsdp) and known != count):
        divisors = [n for n in range(1, count + 1) if count % n == 0]
        raise ValueError(
            f"{given}, but there are {count} devices; the two must multiply to {count}: use "
            f"mesh.data=-1 (the rest) and for mesh.fsdp one of {', '.join(map(str, divisors))}."
        )
    rest = count // known
    return (rest if data == -1 else data, rest if fsdp == -1 else fsdp)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding that splits the first axis, B, over the devices and leaves the others whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding that puts the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(state_shapes: Any, mesh: Mesh, rules: Sequence[Rule] = ()) -> Any:
    """Where each array of a state lies.

    The first rule whose regular expression is found in the path of an array (such as
    ``params/denoiser/out/kernel`` or ``opt_state/1/0/mu/denoiser/out/kernel``) says it. Without
    one, arrays of at least ``MIN_SPLIT_SIZE`` values are split over ``fsdp`` along their largest
    axis that it divides (of equals the last), and all others are whole on every device.

    Args:
      state_shapes: tree of arrays, or of anything with a ``shape``.
      mesh: of ``make_mesh``.
      rules: see ``Rule``.

    Returns:
      The same tree with a ``NamedSharding`` for each array.

    Raises:
      ValueError: a rule that is malformed or that does not fit an array which it names.
    """
    compiled = [_compile_rule(rule) for rule in rules]

    def place(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, spec in compiled:
            if pattern.search(name):
                if isinstance(spec, str):  # LARGEST
                    return NamedSharding(mesh, _split_largest(leaf.shape, mesh))
                _check_fit(pattern.pattern, spec, name, leaf.shape, mesh)
                return NamedSharding(mesh, PartitionSpec(*spec))
        large = math.prod(leaf.shape) >= MIN_SPLIT_SIZE
        split = _split_largest(leaf.shape, mesh) if large else PartitionSpec()
        return NamedSharding(mesh, split)

    return jax.tree_util.tree_map_with_path(place, state_shapes)


def _split_largest(shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """Splits the largest axis that ``fsdp`` divides, of equals the last; none = whole."""
    parts = mesh.shape[FSDP_AXIS]
    axes = [axis for axis, size in enumerate(shape) if size and size % parts == 0]
    if parts == 1 or not axes:
        return PartitionSpec()
    chosen = max(axes, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*[None] * chosen, FSDP_AXIS)


def _compile_rule(rule: Rule) -> tuple[re.Pattern, str | tuple[str | None, ...]]:
    """The two parts of a rule, checked."""
    needed = (
        f"it must be (regular expression, spec), with {LARGEST!r} or a list of "
        f"{', '.join(map(repr, BATCH_AXES))} and None for the spec"
    )
    try:
        if isinstance(rule, str):
            raise TypeError("text, and not two values")
        pattern, spec = rule
        pattern, spec = re.compile(pattern), spec if spec == LARGEST else tuple(spec)
    except (TypeError, ValueError, re.error) as error:
        raise ValueError(f"config.mesh.rules holds {rule!r} ({error}); {needed}.") from error
    if spec != LARGEST and not set(spec) <= {*BATCH_AXES, None}:
        raise ValueError(f"config.mesh.rules holds {rule!r}; {needed}.")
    return pattern, spec


def _check_fit(
    pattern: str, spec: tuple[str | None, ...], name: str, shape: tuple[int, ...], mesh: Mesh
) -> None:
    """Refuses a spec with too many axes, an axis twice, or one that does not divide evenly."""
    used = [axis for axis in spec if axis is not None]
    sizes = [1 if axis is None else mesh.shape[axis] for axis in spec]
    fits = len(spec) <= len(shape) and len(used) == len(set(used))
    if not fits or any(size % parts for size, parts in zip(shape, sizes, strict=False)):
        raise ValueError(
            f"config.mesh.rules: the rule {pattern!r} splits {name}, of shape {list(shape)}, as "
            f"{spec}, which mesh {dict(mesh.shape)} does not divide evenly; use a narrower "
            f"regular expression or another spec ({LARGEST!r} leaves whole what cannot be split)."
        )


def place(tree: Any, shardings: Any) -> Any:
    """Puts arrays, the same on every process, where they belong.

    Args:
      tree: host arrays or arrays on devices.
      shardings: of ``state_sharding``, or one for all.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)

    def put(leaf: Any, where: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, where)
        host = np.asarray(leaf)  # device_put would compare all values of all processes
        return jax.make_array_from_callback(host.shape, where, lambda index: host[index])

    return jax.tree.map(put, tree, shardings)


def gather(tree: Any, mesh: Mesh, rules: Sequence[Rule] = ()) -> Any:
    """Fetches weights whole to every device inside a compiled step; their gradient stays split.

    The work on them is then the same as if they had never been split. Left to the compiler, it
    might split the work otherwise than the batch.

    Args:
      tree: under ``state_sharding``.
      mesh: of ``make_mesh``.
      rules: see ``state_sharding``.
    """
    if not splits_state(mesh, rules):
        return tree
    constrain = jax.lax.with_sharding_constraint

    @jax.custom_vjp
    def fetch(tree: Any) -> Any:
        return constrain(tree, replicated(mesh))

    def back(_: None, gradient: Any) -> tuple[Any]:
        where = state_sharding({"params": gradient}, mesh, rules)  # rules see paths of the state
        return (constrain(gradient, where["params"]),)

    fetch.defvjp(lambda tree: (fetch(tree), None), back)
    return fetch(tree)


def splits_state(mesh: Mesh, rules: Sequence[Rule] = ()) -> bool:
    """Whether some array of a state may be split; otherwise all are whole everywhere."""
    return mesh.shape[FSDP_AXIS] > 1 or bool(rules)


def check_batch_size(
    batch_size: int, mesh: Mesh, option: str = "batch_size", accumulation_steps: int = 1
) -> None:
    """Refuses a global batch that cannot be split evenly over the devices.

    Args:
      batch_size: over all devices.
      mesh: of ``make_mesh``.
      option: where it is set, for the error.
      accumulation_steps: micro-batches that each device takes its part in one after another.

    Raises:
      ValueError: ``batch_size`` is not a positive multiple of the number of devices, times that of
        micro-batches; or there is not at least one of these.
    """
    parts = f"{option.removesuffix('batch_size')}accumulation_steps"
    if accumulation_steps < 1:
        raise ValueError(f"{parts} is {accumulation_steps}; allowed: 1 or more.")
    count = mesh.devices.size * accumulation_steps
    if batch_size < 1 or batch_size % count:
        below, above = batch_size // count * count, (batch_size // count + 1) * count
        nearest = f"{below} or {above}" if below > 0 else f"{above}"
        over, fewer = f"{mesh.devices.size} devices", "on fewer devices"
        if accumulation_steps > 1:
            over += f" and {accumulation_steps} {parts}"
            fewer += f" or with fewer {parts}"
        raise ValueError(
            f"{option} is {batch_size}, but it is split over {over}; allowed: positive "
            f"multiples of {count}. Use {nearest}, or run {fewer}."
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
