"""Checksums of saved steps, and the choice of the last step that is whole.

A step directory may be damaged in ways that restoring does not notice (overwritten bytes) or only
notices late (a truncated file, an empty directory that counts as the latest step). So size and
CRC-32 of every file are kept beside the steps, in ``checksums/<step>.json``.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath

logger = logging.getLogger(__name__)

CHECKSUMS = "checksums"
_CHUNK_BYTES = 8 << 20
_SPARE_BYTES = 4 << 20  # of the disk, for what is not arrays
_Restored = TypeVar("_Restored")


def hash_weights(description: str, variables: Any) -> str:
    """16 hex digits that change with the description of a model or with any of its weights."""
    digest = hashlib.sha256(description.encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()[:16]


def check_room(directory: epath.Path, arrays: Any) -> None:
    """Refuses a tree of arrays that the disk cannot hold; a bucket has no such bound.

    Without this Orbax fails half-way, with pages of tracebacks.

    Raises:
      OSError: says how much is needed and how much is free.
    """
    if "://" in str(directory):
        return
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
    needed, free = 1.25 * size + _SPARE_BYTES, shutil.disk_usage(directory).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{os.strerror(errno.ENOSPC)}: a checkpoint needs {needed / 1e6:.1f} MB while it is "
            f"written, and {free / 1e6:.1f} MB are free",
            str(directory),
        )


class IncompatibleCheckpointError(ValueError):
    """A whole checkpoint that belongs to another model or another optimiser."""


def check_compatible(template: Any, found: Any, what: str = "parameter") -> None:
    """Refuses arrays whose names or shapes are not those of the model.

    Args:
      template: tree of arrays or shape structs that the model has.
      found: tree of arrays, shape structs or array metadata of the checkpoint.
      what: what the leaves are called in the error.

    Raises:
      IncompatibleCheckpointError: names the first leaf that differs, with both shapes.
    """
    wanted, present = _shapes(template), _shapes(found)
    for name in sorted(wanted.keys() | present.keys()):
        in_model, in_checkpoint = wanted.get(name, "absent"), present.get(name, "absent")
        if in_model != in_checkpoint:
            raise IncompatibleCheckpointError(
                f"the checkpoint is of another architecture: {what} {name} is {in_checkpoint} in "
                f"the checkpoint and {in_model} in the model. Use the config it was trained with, "
                "or another checkpoint or workdir."
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shape of every leaf by its path, joined with slashes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }


def absolute(path: str | os.PathLike) -> epath.Path:
    """Absolute path with ``~`` replaced; a URL, such as ``gs://bucket/run``, stays as it is."""
    found = epath.Path(path).expanduser()
    return found if "://" in os.fspath(found) else found.absolute()


def list_steps(directory: epath.Path) -> list[int]:
    """Numbers of the step directories, newest first; whole or not."""
    if not directory.is_dir():
        return []
    names = (entry.name for entry in directory.iterdir() if entry.is_dir())
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def checksum_file(directory: epath.Path, step: int) -> epath.Path:
    """Where the checksums of one step are kept."""
    return directory / CHECKSUMS / f"{step}.json"


def _digest(path: epath.Path) -> dict[str, int]:
    """Size in bytes and CRC-32 of one file."""
    size, crc = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return {"size": size, "crc32": crc}


def _list_files(step_directory: epath.Path, prefix: str = "") -> list[str]:
    """Paths of all files below a directory, relative to it, sorted."""
    names: list[str] = []
    for entry in step_directory.iterdir():
        name = prefix + entry.name
        names += _list_files(entry, name + "/") if entry.is_dir() else [name]
    return sorted(names)


def write_checksums(directory: epath.Path, step: int) -> None:
    """Records every file of one finished step, and forgets steps that are gone.

    The record appears whole or not at all.
    """
    step_directory = directory / str(step)
    digests = {name: _digest(step_directory / name) for name in _list_files(step_directory)}
    target = checksum_file(directory, step)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f"{step}.json.tmp"
    temporary.write_text(json.dumps(digests))
    temporary.replace(target)
    kept = {f"{kept_step}.json" for kept_step in list_steps(directory)}
    for entry in target.parent.iterdir():
        if entry.name not in kept:
            entry.unlink(missing_ok=True)


def find_damage(directory: epath.Path, step: int) -> str | None:
    """What is wrong with a saved step: the file and how it differs; None = nothing was found."""
    step_directory, record = directory / str(step), checksum_file(directory, step)
    files = _list_files(step_directory)
    if not files:
        return "the directory is empty"
    if not record.exists():
        return None
    try:
        digests = json.loads(record.read_text())
    except ValueError:
        return f"{CHECKSUMS}/{record.name} is not JSON"
    try:
        expected = {name: (digest["size"], digest["crc32"]) for name, digest in digests.items()}
    except (AttributeError, KeyError, TypeError):
        return f"{CHECKSUMS}/{record.name} is damaged"
    for name, (size, crc) in expected.items():
        if name not in files:
            return f"file {name} is missing"
        found = _digest(step_directory / name)
        if found["size"] != size:
            return f"file {name} has {found['size']} bytes instead of {size}"
        if found["crc32"] != crc:
            return f"file {name} has changed since it was written (checksum differs)"
    return None


def restore_last_good(
    directory: epath.Path, restore: Callable[[int], _Restored]
) -> tuple[int, _Restored, dict[int, str]]:
    """Restores the newest step that is whole, with one logged warning if newer ones are not.

    A step without a checksum record (the process was killed before it was written) is taken if it
    restores.

    Args:
      directory: holds the step directories; at least one.
      restore: reads one step; its errors count as damage only where there is no checksum record.

    Returns:
      The step, what ``restore`` returned, and the damaged newer steps with what is wrong with each.

    Raises:
      ValueError: no step can be restored.
      IncompatibleCheckpointError: from ``restore``; the step is whole but of another model.
    """
    damaged: dict[int, str] = {}
    for step in list_steps(directory):
        damage = find_damage(directory, step)
        restored: _Restored
        if damage is None:
            recorded = checksum_file(directory, step).exists()
            try:
                restored = restore(step)
            except IncompatibleCheckpointError:
                raise
            except Exception as error:  # which Orbax raises itself, of no other type
                if recorded:
                    raise
                reason = (str(error).strip().splitlines() or [repr(error)])[0]
                damage = f"it does not restore ({reason[:200]})"
        if damage is not None:
            damaged[step] = damage
            continue
        if not recorded:
            logger.info("step %d in %s has no checksum record; it restores", step, directory)
        if damaged:
            text = "; ".join(f"step {bad}: {what}" for bad, what in damaged.items())
            logger.warning("damaged checkpoint in %s: %s; using step %d", directory, text, step)
        return step, restored, damaged
    text = "; ".join(f"step {bad}: {what}" for bad, what in damaged.items())
    raise ValueError(
        f"no checkpoint in {directory} can be restored: {text}. Give another directory, or move "
        "this one away to start anew."
    )


def set_aside(directory: epath.Path, step: int) -> None:
    """Renames a damaged step to ``<step>.broken``, so that its number can be saved again."""
    checksum_file(directory, step).unlink(missing_ok=True)
    target = directory / f"{step}.broken"
    if target.exists():
        target.rmtree()
    (directory / str(step)).rename(target)
