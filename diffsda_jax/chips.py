"""Chips that a run is planned for without having them: what each can do, and described devices."""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax

GIB = 2.0**30
INSTALL = "pip install -c constraints.txt -e '.[plan]'"


@dataclasses.dataclass(frozen=True)
class Chip:
    """What the maker says of a chip.

    Attributes:
      name: such as ``v5e``.
      memory: bytes of high-bandwidth memory.
      flops: bfloat16 FLOPs a second at best; JAX multiplies float32 in one bfloat16 pass on TPUs
        unless told otherwise, so this is the bound for both.
      memory_speed: bytes a second to and from that memory.
      network_speed: bytes a second that it can send to other chips, all links together; half of
        what is published, which counts both directions.
      chip_config: how libtpu joins the cores of a chip to one device, as on real hosts.
    """

    name: str
    memory: float
    flops: float
    memory_speed: float
    network_speed: float
    chip_config: str = "default"


# Google's documentation, https://docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e} ("Key chip
# specifications"). Where editions differ, the lower speed. v4's network is that of Jouppi et al.
# 2023 (arXiv 2304.01433): six links of 50 GB/s.
CHIPS = {
    "v4": Chip("v4", 32 * GIB, 275e12, 1200e9, 300e9, "megacore"),
    "v5e": Chip("v5e", 16 * GIB, 197e12, 800e9, 200e9),
    "v5p": Chip("v5p", 95 * GIB, 459e12, 2765e9, 600e9, "megachip_tccontrol"),
    "v6e": Chip("v6e", 32 * GIB, 918e12, 1600e9, 400e9, "megachip_tccontrol"),
}


def devices_of(topology: str) -> tuple[list[Any], Chip | None]:
    """Devices to compile for, which need not exist.

    Args:
      topology: ``CHIP:AxB`` or ``CHIP:AxBxC``, such as ``v5e:16x16``; or ``cpu:N``, N parts of
        this machine's processor.

    Returns:
      The devices, and the chip; None for ``cpu:N``, of which nothing is known.

    Raises:
      ValueError: no such topology, or N devices after JAX has started with fewer.
      ImportError: libtpu, which compiles for TPUs, is not installed.
    """
    name, _, shape = topology.partition(":")
    if name == "cpu" and re.fullmatch(r"[1-9]\d*", shape):
        return _cpu_devices(int(shape)), None
    if name not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", shape):
        raise ValueError(
            f"--topology is {topology!r}; allowed: cpu:N, or CHIP:SHAPE with a chip of "
            f"{', '.join(CHIPS)} and its slice's shape, such as v5e:4x4, v5e:16x16, v6e:8x8 or "
            "v5p:2x2x4."
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            f"--topology={topology} needs libtpu, the compiler for TPUs (no TPU is needed): "
            f"{INSTALL}, or pip install libtpu."
        )
    return _tpu_devices(topology, shape, CHIPS[name]), CHIPS[name]


def _cpu_devices(count: int) -> list[jax.Device]:
    """The first of this machine's CPU devices, made before JAX starts if it has not yet."""
    try:
        if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
            jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        pass  # JAX has started: with enough devices, or the error below
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ValueError(
            f"--topology is cpu:{count}, but JAX has started with {len(devices)} CPU devices; set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count} before it starts."
        )
    return devices[:count]


def _tpu_devices(topology: str, shape: str, chip: Chip) -> list[Any]:
    """Devices described by libtpu, one for each chip."""
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # asks no cloud for what this machine is
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no TPU to keep others from
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")  # any; else it warns
    try:
        devices = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, chip_config_name=chip.chip_config
        ).devices
    except jax.errors.JaxRuntimeError as error:
        first = str(error).splitlines()[0]
        raise ValueError(
            f"--topology is {topology!r}, which the compiler refuses: {first}. Use a shape that "
            "exists, such as v5e:4x4, v5e:16x16, v6e:8x8 or v5p:2x2x4."
        ) from error
    if len(devices) != math.prod(int(size) for size in shape.split("x")):
        raise ValueError(
            f"--topology is {topology!r}, but the compiler describes {len(devices)} devices for "
            "it; plan for another chip, or with another version of libtpu."
        )
    return devices
