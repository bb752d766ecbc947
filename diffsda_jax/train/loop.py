"""The training loop: steps, metrics, checkpoints, evaluations, interruption."""

import collections
import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from diffsda_jax import sharding
from diffsda_jax.train.checkpoint import Checkpointer
from diffsda_jax.train.console import Progress
from diffsda_jax.train.interrupt import Abandoned, Interrupt
from diffsda_jax.train.state import TrainState
from diffsda_jax.train.step import BATCH_KEYS, FACTOR_KEYS, StepFn
from diffsda_jax.train.writers import MetricWriter

logger = logging.getLogger(__name__)

DATA_STATE = "data_state"
_MAX_STEPS_AHEAD = 2
_READ = (*BATCH_KEYS, *FACTOR_KEYS)
Evaluator = tuple[int, Callable[[int, TrainState], None]]


class NonFiniteLossError(RuntimeError):
    """The loss, or the gradient or parameters that belong to it, is infinite or not a number."""


class Remedy(NamedTuple):
    """What to do about a loss that is not finite; words of the error.

    Attributes:
      advice: a clause, such as "Lower --config.prior.learning_rate".
      init_option: of the config: the checkpoint that a new run starts from; empty = there is none.
    """

    advice: str = "Lower --config.optimizer.learning_rate in a new --workdir"
    init_option: str = "train.init_from"


DEFAULT_REMEDY = Remedy()


@runtime_checkable
class DataIterator(Protocol):
    """Endless batches whose position can be saved and restored (Grain's ``DatasetIterator``)."""

    def __next__(self) -> Mapping[str, np.ndarray]:
        """The next batch of host arrays."""

    def get_state(self) -> Any:
        """Position as JSON values."""

    def set_state(self, state: Any) -> None:
        """Goes to a saved position."""


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
      state: after the last step done.
      interrupted: it was told to stop before ``total_steps``.
      message: one line for people.
    """

    state: TrainState
    interrupted: bool
    message: str


def resume(
    checkpointer: Checkpointer, state: TrainState, data_iterator: DataIterator
) -> tuple[TrainState, dict[str, Any] | None]:
    """Takes up the newest good checkpoint, if there is one, and moves the data to its place.

    Args:
      checkpointer: of the run's workdir.
      state: a new state, returned as it is if nothing was saved.
      data_iterator: its position is set.

    Returns:
      The state to go on from, and the ``meta`` saved with it (None: nothing was saved).

    Raises:
      ValueError: as ``Checkpointer.restore_latest``.
    """
    restored = checkpointer.restore_latest(state)
    if restored is None:
        return state, None
    state, meta = restored
    if meta.get(DATA_STATE) is not None:
        data_iterator.set_state(meta[DATA_STATE])
    logger.info("resuming after step %d from %s", meta["step"], checkpointer.directory)
    return state, meta


def prefetch_batches(
    data_iterator: DataIterator, mesh: Mesh, depth: int
) -> Iterator[tuple[dict[str, Array], Any]]:
    """Batches on the devices, some ahead, each with the data position right after it.

    Args:
      data_iterator: host batches.
      mesh: where they go.
      depth: number of batches held on the devices beyond the one handed out.

    Yields:
      The batch (only what the loss reads, ``x`` ``[B, V, ...]``) and the position to save after
      using it.

    Raises:
      ValueError: the batch cannot be split over the devices.
    """
    queue: collections.deque = collections.deque()
    while True:
        while len(queue) <= depth:
            batch = next(data_iterator)
            position = data_iterator.get_state()
            read = {name: batch[name] for name in _READ if name in batch}
            queue.append((sharding.shard_batch(read, mesh), position))
        yield queue.popleft()


class _Window:
    """Metrics since the last report, kept on the devices until they are asked for."""

    def __init__(self, checkpointer: Checkpointer, remedy: Remedy):
        self._checkpointer, self._remedy = checkpointer, remedy
        self._steps: list[tuple[int, dict[str, Array]]] = []

    def add(self, step: int, metrics: dict[str, Array]) -> None:
        """Keeps one step's metrics, and waits so that the host is not far ahead of the devices."""
        self._steps.append((step, metrics))
        if len(self._steps) > _MAX_STEPS_AHEAD:
            jax.block_until_ready(self._steps[-1 - _MAX_STEPS_AHEAD][1])

    def fetch(self) -> list[dict[str, float]]:
        """Metrics of every step since the last fetch.

        Raises:
          NonFiniteLossError: one of them is not finite.
        """
        fetched, self._steps = jax.device_get(self._steps), []
        for step, metrics in fetched:
            bad = [name for name, value in metrics.items() if not math.isfinite(value)]
            if bad:
                name = "loss" if "loss" in bad else bad[0]
                raise NonFiniteLossError(
                    _describe_non_finite(step, metrics, name, self._checkpointer, self._remedy)
                )
        return [{name: float(v) for name, v in metrics.items()} for _, metrics in fetched]


def _describe_non_finite(
    step: int,
    metrics: Mapping[str, Any],
    name: str,
    checkpointer: Checkpointer,
    remedy: Remedy,
) -> str:
    """The one-line error; waits for a save under way, so that what it names is on disk."""
    last, place = checkpointer.latest_step(), checkpointer.directory
    saved, keep = f"there is no checkpoint yet in {place}", ""
    if last is not None:
        saved = f"the last good checkpoint is step {last} in {place}"
        if option := remedy.init_option:
            keep = f", with --config.{option}={place} to keep the last good weights"
    values = ", ".join(f"{key}={float(value):.4g}" for key, value in metrics.items())
    return (
        f"{name} is {float(metrics[name])} at step {step} ({values}); {saved}. "
        f"{remedy.advice}{keep}, or look for extreme values in the data."
    )


def train(
    *,
    state: TrainState,
    step_fn: StepFn,
    data_iterator: DataIterator,
    mesh: Mesh,
    root_key: Array,
    total_steps: int,
    checkpointer: Checkpointer,
    writer: MetricWriter,
    meta: Mapping[str, Any],
    log_every_steps: int = 100,
    checkpoint_every_steps: int = 1000,
    evaluators: Sequence[Evaluator] = (),
    prefetch: int = 2,
    section: str = "train",
    remedy: Remedy = DEFAULT_REMEDY,
) -> TrainResult:
    """Trains from ``state.step`` to ``total_steps``; saves, evaluates and reports on the way.

    A signal (SIGTERM, Ctrl-C) ends the run after the current step with a checkpoint; an evaluation
    under way is dropped. The state is saved at the end, too. A run that is finished already is
    left as it is, without an evaluation.

    Args:
      state: of ``create_state`` or ``resume``; its memory is reused, so use the result's.
      step_fn: of ``make_train_step``.
      data_iterator: endless host batches, at the position that belongs to ``state``. It is read
        ahead; the position saved is that of the batches used.
      mesh: of ``sharding.make_mesh``.
      root_key: the run's key, the same after a restart.
      total_steps: step at which the run is finished.
      checkpointer: where states are saved.
      writer: where metrics go, as ``train/<name>``: means since the last report.
      meta: JSON values saved with each checkpoint; ``data_state`` is added.
      log_every_steps: steps between two reports; the values stay on the devices until then.
      checkpoint_every_steps: steps between two checkpoints.
      evaluators: pairs (every_steps, ``evaluate(step, state)``), called at these steps, after a
        checkpoint, and at the end. They must not keep ``state``.
      prefetch: batches put on the devices ahead of use.
      section: of the config that ``total_steps`` is from, for the message.
      remedy: what the error of a loss that is not finite says is to be done.

    Returns:
      The last state, whether the run was interrupted, and a message.

    Raises:
      NonFiniteLossError: names the step, the metric and the last good checkpoint. Such a state is
        never saved.
      ValueError: a number of steps below 1.
    """
    every = {"log": log_every_steps, "checkpoint": checkpoint_every_steps}
    every |= {"eval": min((steps for steps, _ in evaluators), default=1)}
    for name, steps in every.items():
        if steps < 1:
            raise ValueError(f"{name}_every_steps is {steps}; allowed: 1 or more.")

    step, stop = int(state.step), False
    if step >= total_steps:
        message = (
            f"finished already: {step} steps are done and saved in {checkpointer.directory}; "
            f"--config.{section}.num_steps above {step} goes on (it is {total_steps})"
        )
        logger.info(message)
        return TrainResult(state=state, interrupted=False, message=message)

    batches = prefetch_batches(data_iterator, mesh, prefetch)
    window, progress = _Window(checkpointer, remedy), Progress(step, total_steps)

    def report() -> None:
        if steps := window.fetch():
            means = {name: float(np.mean([m[name] for m in steps])) for name in steps[0]}
            means["learning_rate"] = steps[-1]["learning_rate"]
            means["steps_per_second"] = progress.report(step, means)
            writer.write_scalars(step, {f"train/{name}": value for name, value in means.items()})

    def save() -> None:
        report()  # raises if this state must not be saved
        checkpointer.save(step, state, {**meta, DATA_STATE: position})

    logger.info("compiling the training step; then a report every %d steps", log_every_steps)
    with Interrupt(before_exit=checkpointer.wait) as interrupt:
        try:
            while step < total_steps and not stop:
                batch, position = next(batches)
                state, metrics = step_fn(state, batch, root_key)
                step += 1
                window.add(step, metrics)
                progress.advance()
                stop, last = interrupt.requested(step), step == total_steps
                due = [evaluate for steps, evaluate in evaluators if last or step % steps == 0]
                if stop or due or last or step % checkpoint_every_steps == 0:
                    save()
                elif step % log_every_steps == 0:
                    report()
                for evaluate in due:
                    if not stop:
                        try:
                            with interrupt.droppable():
                                evaluate(step, state)
                        except Abandoned:  # the signal came just before or after the evaluation
                            pass
                        stop = interrupt.signalled
        finally:
            progress.close()
            writer.flush()
        checkpointer.wait()
    message = f"{step} of {total_steps} steps done, saved in {checkpointer.directory}"
    if stop:
        way = "the same command again to go on" if step < total_steps else "--mode=eval to evaluate"
        message = f"stopped by {interrupt.name}: {message}; run {way}"
    logger.info(message)
    return TrainResult(state=state, interrupted=stop, message=message)
