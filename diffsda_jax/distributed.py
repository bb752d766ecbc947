"""Several processes as one run: how they start, agree on what they do, and end together."""

import contextlib
import glob
import importlib.util
import itertools
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast, overload

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

Result = TypeVar("Result")
# What a scheduler sets for each of its processes: their number, and what else JAX needs of it.
_SCHEDULERS = {
    "Slurm": ("SLURM_NTASKS", ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID")),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", ("OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_RANK")),
    "TPU slices": ("MEGASCALE_NUM_SLICES", ()),
}
_SECONDS_TO_WAIT = 7 * 24 * 3600  # for process 0, which may evaluate for long; if it dies all end
_SECONDS_TO_REPORT = 3.0
_NAMED_DIFFERENCES = 5
_TPU_DEVICES = ("/dev/accel*", "/dev/vfio/[0-9]*")  # of older and of newer virtual machines
_barriers = itertools.count()


def start(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins the processes of a run, if there are several; before anything else that JAX does.

    Without arguments the environment says it: that of a TPU pod, Slurm, Open MPI or Kubernetes.

    Args:
      coordinator_address: host and port of process 0, reachable from all.
      num_processes: of the run.
      process_id: of this process, from 0.

    Raises:
      ValueError: some of the arguments are missing or out of range.
      ConnectionError: the processes do not find each other.
    """
    given: dict[str, Any] = {
        "coordinator_address": coordinator_address,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise ValueError(
            f"{', '.join(missing)} is missing; give --coordinator_address, --num_processes and "
            "--process_id together, or none of them where the environment says it."
        )
    if not missing:
        _check_numbers(*given.values())
        if num_processes == 1:
            return
    elif not environment():
        return
    try:
        jax.distributed.initialize(**given)
    except RuntimeError as error:
        where = coordinator_address or f"in the environment of {environment()}"
        raise ConnectionError(
            f"the processes of this run did not find each other ({where}): {error}; start all "
            "within five minutes, with an address of process 0 that all can reach."
        ) from error


def _check_numbers(address: str, num_processes: int, process_id: int) -> None:
    """Refuses numbers out of range, and an address without a port."""
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise ValueError(
            f"--process_id is {process_id} and --num_processes {num_processes}; allowed: 1 or more "
            "processes, with ids from 0 to one less."
        )
    if not address.rpartition(":")[2].isdecimal() or not address.rpartition(":")[0]:
        raise ValueError(
            f"--coordinator_address is {address!r}; give host and port of process 0, such as "
            "10.0.0.1:12345."
        )


def environment() -> str:
    """What started several processes, as the environment says; empty if nothing did.

    A TPU virtual machine of a pod does not say how many there are, so any machine with TPUs that is
    not told otherwise counts; JAX then asks for the number, which may be one.
    """
    known = os.environ
    for name, (count, needed) in _SCHEDULERS.items():
        if int(known.get(count) or 1) > 1 and all(variable in known for variable in needed):
            return name
    if len(known.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1:
        return "TPU"
    indexed = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= known.keys()
    if indexed and importlib.util.find_spec("kubernetes"):
        return "Kubernetes"
    unsaid = not {"TPU_WORKER_HOSTNAMES", "TPU_SKIP_MDS_QUERY"} & known.keys()
    allowed = "tpu" in known.get("JAX_PLATFORMS", "tpu")
    chips = any(glob.glob(pattern) for pattern in _TPU_DEVICES)
    return "TPU" if unsaid and allowed and chips and importlib.util.find_spec("libtpu") else ""


def several() -> bool:
    """Whether this process is one of several of a run."""
    # Asked first, as counting starts the backend, which --topology=cpu:8 must do in its own way.
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this process is the one that writes and speaks for all."""
    return not several() or jax.process_index() == 0


def gather_json(value: Any) -> list[Any]:
    """The JSON value that each process gives, in their order, on all of them."""
    if not several():
        return [value]
    from jax.experimental.multihost_utils import process_allgather

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = process_allgather(np.int32(len(text)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(text)] = text
    rows = process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def check_same(facts: Mapping[str, Any], way_out: str) -> None:
    """Refuses, on all processes at once, what is not the same on all of them.

    Args:
      facts: nested JSON values by name.
      way_out: what to do where they differ.

    Raises:
      ValueError: names the first process that differs from process 0, and in what.
    """
    first, *others = gather_json({"host": socket.gethostname(), "facts": _flatten(facts)})
    for number, other in enumerate(others, start=1):
        names = sorted(first["facts"].keys() | other["facts"].keys())
        pairs = {name: (other["facts"].get(name), first["facts"].get(name)) for name in names}
        found = [
            f"{name} is {there!r} there and {here!r} on process 0"
            for name, (there, here) in pairs.items()
            if there != here
        ]
        if found:
            more = len(found) - _NAMED_DIFFERENCES
            raise ValueError(
                f"process {number} (on {other['host']}) is not of the same run as process 0 (on "
                f"{first['host']}): {'; '.join(found[:_NAMED_DIFFERENCES])}"
                f"{f'; and {more} more' if more > 0 else ''}. {way_out}"
            )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested names joined with dots."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, Mapping)
        flat |= _flatten(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


@overload
def together(action: Callable[[], Result]) -> Result: ...


@overload
def together(action: Callable[[], Result], only_first: bool) -> Result | None: ...


def together(action: Callable[[], Result], only_first: bool = False) -> Result | None:
    """Does something on every process, and fails on all where it fails on one.

    Args:
      action: uses nothing that other processes would have to take part in.
      only_first: process 0 does it for all, while the others wait.

    Returns:
      What ``action`` returns; None on a process that did not do it.

    Raises:
      ValueError: it failed on another process; where it failed, its own error.
    """
    if not several():
        return action()
    result, failure = None, None
    if is_first() or not only_first:
        try:
            result = action()
        except Exception as error:  # of any kind: the others must not wait for what never comes
            failure = error
    _wait()
    messages = gather_json(None if failure is None else " ".join(f"{failure}".split()) or "error")
    if failure is not None:
        raise failure
    for number, message in enumerate(messages):
        if message is not None:
            raise ValueError(f"process {number} cannot go on: {message}")
    return result


def _wait() -> None:
    """Returns when all processes are here; devices, whose time-outs are short, are not asked."""
    from orbax.checkpoint import multihost

    multihost.sync_global_processes(
        f"diffsda_jax/{next(_barriers)}",
        timeout=_SECONDS_TO_WAIT,
        processes=set(range(jax.process_count())),
    )


def fetch(tree: Any) -> Any:
    """Arrays of a run as whole arrays of this process; all processes must ask.

    Args:
      tree: of arrays on a mesh. Those that lie on this process's devices stay as they are.

    Returns:
      The same tree, with host arrays where parts were elsewhere.
    """
    if not several():
        return tree

    def whole(leaf: jax.Array) -> NamedSharding:
        return NamedSharding(cast(NamedSharding, leaf.sharding).mesh, PartitionSpec())

    parted = jax.tree.map(lambda leaf: not leaf.is_fully_replicated, tree)
    if any(jax.tree.leaves(parted)):
        tree = jax.jit(lambda tree: tree, out_shardings=jax.tree.map(whole, tree))(tree)
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), tree)


@contextlib.contextmanager
def ends_with_others(status_interrupted: int) -> Iterator[None]:
    """Ends a process that fails so that the others of the run end, too.

    An orderly end waits for all processes, and those at work would wait for this one. So it leaves
    without a word to them, and JAX ends them: at once when process 0 is gone, else in two minutes.
    Where all fail alike, process 0 is the last to go, so that each can say why.

    Args:
      status_interrupted: of a ``SystemExit`` that all processes come to together.
    """
    try:
        yield
    except BaseException as error:
        together_all = isinstance(error, SystemExit) and error.code in (None, 0, status_interrupted)
        if not several() or together_all:
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        if is_first():
            time.sleep(_SECONDS_TO_REPORT)
        code = error.code if isinstance(error, SystemExit) else None
        os._exit(code if isinstance(code, int) and code else 1)
