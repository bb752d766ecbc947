"""Checkpoints: asynchronous Orbax saves, kept by count, checked when they are read.

One step is one directory with the items ``params``, ``ema``, ``constants``, ``opt_state`` (arrays)
and ``meta`` (JSON), so that inference reads only what it needs. Nothing in it is code: arrays are
TensorStore files, the rest is JSON.
"""

import importlib.metadata
import json
import logging
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import checkpoint_managers

from diffsda_jax.train import integrity
from diffsda_jax.train.state import WEIGHTS, TrainState

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
_ARRAY_ITEMS = ("params", "ema", "constants", "opt_state")
_META = "meta"
_PACKAGES = ("diffsda_jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")


class Checkpointer:
    """Writes and reads the checkpoints of one run.

    Args:
      directory: folder of the steps, normally ``<workdir>/checkpoints``; made if missing. Local
        path; writing to a bucket (``gs://``) was never tried.
      keep: number of newest steps that are kept.

    Raises:
      ValueError: ``keep`` below 1.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 3):
        """Opens the folder and clears what a killed process left unfinished."""
        if keep < 1:
            raise ValueError(f"keep_checkpoints is {keep}; allowed: 1 or more.")
        self.directory = integrity.absolute(directory)
        self._manager = _make_manager(self.directory, keep)
        self._sealer = ThreadPoolExecutor(1, thread_name_prefix="checksums")
        self._sealing: Future | None = None

    def save(self, step: int, state: TrainState, meta: Mapping[str, Any]) -> bool:
        """Starts saving; returns when the arrays are copied off the devices.

        Waits first for the save before it.

        Args:
          step: number of optimiser steps done.
          state: the training state; its memory may be reused as soon as this returns.
          meta: JSON values; ``step`` and ``versions`` are added.

        Returns:
          False if the step is there already.

        Raises:
          ValueError: ``meta`` holds something that is not JSON.
          OSError: no room on the disk, or the save before failed.
        """
        self.wait()
        if step in self._manager.all_steps():
            return False
        items = {name: getattr(state, name) for name in _ARRAY_ITEMS}
        integrity.check_room(self.directory, items)
        _save_items(self._manager, step, items, meta)
        if jax.process_index() == 0:
            self._sealing = self._sealer.submit(self._seal, step)
        return True

    def _seal(self, step: int) -> None:
        """Waits in the background until a save is finished, then records its checksums."""
        self._manager.wait_until_finished()
        integrity.write_checksums(self.directory, step)

    def wait(self) -> None:
        """Returns when everything saved so far is on disk, with its checksums.

        Raises:
          TimeoutError: the save took too long, or the clock was set forward.
          OSError: it failed, such as for want of permission; other errors of Orbax likewise.
        """
        sealing, self._sealing = self._sealing, None
        try:
            self._manager.wait_until_finished()
            if sealing is not None:
                sealing.result()
        except TimeoutError as error:  # Orbax reads the time of day
            what = f"saving in {self.directory} took too long, or the clock was set forward"
            raise TimeoutError(f"{what} ({error}); run the same command again.") from error

    def latest_step(self) -> int | None:
        """Newest step that is completely saved, or None; its files are not verified."""
        self.wait()
        return max(self._manager.all_steps(), default=None)

    def restore_latest(self, template: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """Reads the newest whole step; damaged newer ones are renamed to ``<step>.broken``.

        Args:
          template: a state with the wanted structure, shapes and shardings; its values are not
            used, except for the optimiser's state where the checkpoint has none (converted
            weights), which then starts fresh.

        Returns:
          The state and the ``meta`` it was saved with, or None if nothing was ever saved.

        Raises:
          ValueError: there are steps, but none can be restored.
          IncompatibleCheckpointError: the checkpoint is of another model or optimiser.
          FileNotFoundError: one of several processes does not find what the first one found.
        """
        self.wait()
        if not integrity.list_steps(self.directory):
            return None
        if jax.process_count() > 1:
            step = self._agree_on_step()
            return self._restore(step, template)
        _, restored, damaged = integrity.restore_last_good(
            self.directory, lambda step: self._restore(step, template)
        )
        self._set_aside(damaged)
        return restored

    def _agree_on_step(self) -> int:
        """The newest undamaged step as process 0 sees it, on every process."""
        step = -1
        if jax.process_index() == 0:
            step, _, damaged = integrity.restore_last_good(
                self.directory, lambda step: _read_meta(self.directory / str(step))
            )
            self._set_aside(damaged)
        step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        self._manager.reload()
        return step

    def _set_aside(self, damaged: Mapping[int, str]) -> None:
        """Renames damaged steps, so that they are neither listed nor in the way."""
        for step in damaged:
            integrity.set_aside(self.directory, step)
        if damaged:
            self._manager.reload()

    def _restore(self, step: int, template: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Reads all items of one step into the structure and shardings of ``template``."""
        folder = self.directory / str(step)
        meta = _read_meta(folder)
        items = {}
        for name in _ARRAY_ITEMS:
            wanted = getattr(template, name)
            if name == "opt_state" and not (folder / name).exists():
                logger.info("%s has no optimiser state; it starts fresh", folder)
                items[name] = wanted
                continue
            items[name] = _read_arrays(folder / name, wanted)
        saved_step = jax.device_put(np.int32(meta["step"]), template.step.sharding)
        return template.replace(step=saved_step, **items), meta

    def close(self) -> None:
        """Waits for what is being saved and releases threads; the object is then of no use."""
        try:
            self.wait()
        finally:
            self._sealer.shutdown()
            self._manager.close()


def load_for_inference(
    path: str | os.PathLike,
    weights: str = "ema",
    sharding: jax.sharding.Sharding | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads the weights of a checkpoint onto the devices at hand, whatever saved them.

    Args:
      path: a run's workdir, its ``checkpoints`` folder, or one step's folder. Of several steps the
        newest whole one is taken.
      weights: ``"ema"`` (moving average) or ``"raw"``.
      sharding: where the arrays go; None = this process's first device.

    Returns:
      The variables (``params`` and ``constants``) and ``meta``.

    Raises:
      FileNotFoundError: there is no such directory.
      ValueError: not a checkpoint, or a damaged one; or unknown ``weights``.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights is {weights!r}; allowed: {', '.join(map(repr, WEIGHTS))}.")
    sharding = sharding or SingleDeviceSharding(jax.local_devices()[0])
    directory, only = _find_steps(integrity.absolute(path))

    def read(step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        folder = directory / str(step)
        items = {"params": WEIGHTS[weights], "constants": "constants"}
        variables = {
            name: _read_arrays(folder / item, _stored_structure(folder / item, sharding))
            for name, item in items.items()
        }
        return variables, _read_meta(folder)

    if only is None:
        return integrity.restore_last_good(directory, read)[1]
    damage = integrity.find_damage(directory, only)
    if damage is not None:
        raise ValueError(
            f"checkpoint {directory / str(only)} is damaged: {damage}. Give the folder above it to "
            "take the newest whole step."
        )
    return read(only)


def save_converted(
    directory: str | os.PathLike, variables: Mapping[str, Any], meta: Mapping[str, Any]
) -> epath.Path:
    """Writes given weights as a checkpoint of step 0 that reads like a trained one.

    Args:
      directory: a workdir to be; the step goes to ``<directory>/checkpoints/0``.
      variables: ``params`` (written as raw and as averaged weights) and optionally ``constants``.
      meta: as for ``Checkpointer.save``.

    Returns:
      The folder of the step.

    Raises:
      ValueError: the directory holds checkpoints already.
    """
    folder = integrity.absolute(directory) / FOLDER
    found = integrity.list_steps(folder)
    if found:
        raise ValueError(
            f"{folder} already holds step {found[0]}; give an empty or new directory, or remove it."
        )
    items = {"params": variables["params"], "ema": variables["params"]}
    items["constants"] = variables.get("constants", {})
    manager = _make_manager(folder, keep=1)
    try:
        _save_items(manager, 0, items, meta)
        manager.wait_until_finished()
    finally:
        manager.close()
    integrity.write_checksums(folder, 0)
    return folder / "0"


def _make_manager(directory: epath.Path, keep: int) -> ocp.CheckpointManager:
    """A manager that saves whenever it is told to, and clears what a killed process left."""
    return ocp.CheckpointManager(
        directory,
        options=ocp.CheckpointManagerOptions(
            save_decision_policy=checkpoint_managers.FixedIntervalPolicy(1),
            preservation_policy=checkpoint_managers.LatestN(keep),
            cleanup_tmp_directories=True,
        ),
    )


def _save_items(
    manager: ocp.CheckpointManager, step: int, items: Mapping[str, Any], meta: Mapping[str, Any]
) -> None:
    """Starts saving arrays and meta; trees without a single array leave no item."""
    versions = {name: package_version(name) for name in _PACKAGES}
    full_meta = {**meta, "step": step, "versions": versions}
    try:
        json.dumps(full_meta)
    except TypeError as error:
        raise ValueError(
            f"checkpoint meta holds a value that is not JSON: {error}. Allowed: numbers, strings, "
            "booleans, None, and lists and dicts of them."
        ) from error
    args = {
        name: ocp.args.StandardSave(jax.tree.map(_one_copy, tree))
        for name, tree in items.items()
        if jax.tree.leaves(tree)
    }
    manager.save(step, args=ocp.args.Composite(**args, **{_META: ocp.args.JsonSave(full_meta)}))


def _one_copy(leaf: Any) -> Any:
    """The first device's copy of an array that every device of this process holds whole.

    Orbax would cut each into a slice per device: 40 instead of 1 second for 3,000 small arrays on
    eight devices. Between processes the slices pay, so there it may.
    """
    if not isinstance(leaf, jax.Array) or jax.process_count() > 1 or not leaf.is_fully_replicated:
        return leaf
    return leaf.addressable_data(0)


def package_version(package: str) -> str | None:
    """Installed version of a package; None = it runs from source, or is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read_meta(folder: epath.Path) -> dict[str, Any]:
    """The ``meta`` item of one step's folder."""
    return ocp.JsonCheckpointHandler().restore(folder / _META, args=ocp.args.JsonRestore())


def _stored_structure(item: epath.Path, sharding: jax.sharding.Sharding) -> Any:
    """Shapes and types of a saved item, to be read onto ``sharding``."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        _stored_tree(item),
    )


def _stored_tree(item: epath.Path) -> Any:
    """Tree of array metadata of a saved item; a model without constants has none saved.

    Raises:
      FileNotFoundError: another item is missing.
    """
    if item.exists():
        return ocp.StandardCheckpointHandler().metadata(item).tree
    if item.name == "constants":
        return {}
    raise FileNotFoundError(f"item {item.name} is missing in {item.parent}")


def _read_arrays(item: epath.Path, wanted: Any) -> Any:
    """Reads one item into the structure, types and shardings of ``wanted``."""
    integrity.check_compatible(wanted, _stored_tree(item), f"{item.name}:")
    if not jax.tree.leaves(wanted):
        return wanted
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), wanted
    )
    handler = ocp.StandardCheckpointHandler()
    return handler.restore(item, args=ocp.args.StandardRestore(target))


def _find_steps(path: epath.Path) -> tuple[epath.Path, int | None]:
    """The folder of the steps, and the step if ``path`` is one step's folder."""
    expected = "a run's workdir, its 'checkpoints' folder, or one step's folder in it"
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path} does not exist; expected {expected}.")
    if not path.is_dir():
        raise ValueError(
            f"checkpoint {path} is a file; expected {expected}. Convert PyTorch weights first, "
            "with python -m diffsda_jax.convert."
        )
    if path.name.isdecimal() and (path / _META).is_dir():
        return path.parent, int(path.name)
    directory = path / FOLDER if (path / FOLDER).is_dir() else path
    if integrity.list_steps(directory):
        return directory, None
    names = sorted(entry.name for entry in path.iterdir())
    listing = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    raise ValueError(
        f"{path} is not a checkpoint: it holds {listing or 'nothing'}; expected {expected}. Train "
        "first with --workdir, or convert PyTorch weights with python -m diffsda_jax.convert."
    )
