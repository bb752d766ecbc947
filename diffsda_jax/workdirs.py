"""The folder of a run: whose it is, and training in it, whatever is trained."""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffsda_jax import config as configuration
from diffsda_jax import distributed, sharding
from diffsda_jax.experiment import Experiment
from diffsda_jax.saved_config import CONFIG_FILE, read_record
from diffsda_jax.train import checkpoint, loop, profiling
from diffsda_jax.train.lock import WorkdirLock, cannot_write
from diffsda_jax.train.state import TrainState
from diffsda_jax.train.step import StepFn
from diffsda_jax.train.writers import MetricWriter

logger = logging.getLogger(__name__)

# Of what is trained, and of section train for all of it.
_OWN_TRAIN_OPTIONS = ("batch_size", "num_steps", "eval_every_steps")
_SHARED_TRAIN_OPTIONS = ("log_every_steps", "checkpoint_every_steps", "keep_checkpoints")
Evaluate = Callable[[int, TrainState], None]
FreeOptions = Mapping[str, Sequence[str] | None]
# What may change between two starts in one workdir: how long, how often, where, what is measured.
FREE_OPTIONS: FreeOptions = {
    "mesh": None,  # all of it
    "profile": None,
    "model": ("remat", "lstm_backend"),
    "eval": None,
    "first_stage": None,
    "latents": None,
    "prior": None,
    "explore": None,
    "sampling": None,
    "report": None,
    "distill": None,
    "train": (
        "accumulation_steps",
        "num_steps",
        "log_every_steps",
        "checkpoint_every_steps",
        "eval_every_steps",
        "keep_checkpoints",
        "init_from",
    ),
    **configuration.PLACES,
}


class Purpose(NamedTuple):
    """What a workdir is used for; only a start with the same purpose goes on in it.

    Attributes:
      config: the config as JSON values.
      mesh: section of the config: how the devices that it is done on are used.
      profile: section of the config: which steps are traced.
      data: fingerprint of what is learnt from.
      train: how long, how often: options as in the config's section ``train``.
      seed: of the training's random choices.
      section: of the config that ``train`` comes from, for messages.
      free: options that may change from start to start.
      data_changed: what to say where ``data`` differs.
      way_out: how to go on where the purpose differs.
      remedy: what to do where the loss is not finite.
    """

    config: dict[str, Any]
    mesh: ConfigDict
    profile: ConfigDict
    data: str
    train: ConfigDict
    seed: int
    section: str
    free: FreeOptions
    data_changed: str
    way_out: str
    remedy: loop.Remedy


def purpose_of(experiment: Experiment, init_option: str = "train.init_from") -> Purpose:
    """Training a model on the data of an experiment.

    Args:
      experiment: whose sections ``train`` and ``optimizer`` are read.
      init_option: of the config: the checkpoint that a new run starts from.
    """
    meta = experiment.meta()
    return Purpose(
        config=meta["config"],
        mesh=experiment.config.mesh,
        profile=experiment.config.profile,
        data=meta["source"]["fingerprint"],
        train=experiment.config.train,
        seed=experiment.config.seed,
        section="train",
        free=FREE_OPTIONS,
        data_changed=f"the data ({experiment.sources['train'].describe()}) changed",
        way_out=(
            f"Use a new --workdir, or set the option back; {init_option} starts a new run from "
            "this one's weights."
        ),
        remedy=loop.DEFAULT_REMEDY._replace(init_option=init_option),
    )


def purpose_of_section(
    experiment: Experiment,
    section: str,
    folder: Path,
    *,
    data: str,
    free: FreeOptions,
    data_changed: str,
) -> Purpose:
    """Training something beside a trained model, in a folder of the model's workdir.

    Args:
      experiment: of the model.
      section: of the config, with what is trained and how; what is reported and kept is told by
        section ``train`` for all.
      folder: where.
      data: see ``Purpose``.
      free: see ``Purpose``.
      data_changed: see ``Purpose``.
    """
    config = experiment.config
    return Purpose(
        config=experiment.meta()["config"],
        mesh=config.mesh,
        profile=config.profile,
        data=data,
        train=ConfigDict(
            {name: config.train[name] for name in _SHARED_TRAIN_OPTIONS}
            | {name: config[section][name] for name in _OWN_TRAIN_OPTIONS}
        ),
        seed=config.seed,
        section=section,
        free=free,
        data_changed=data_changed,
        way_out=f"Set the option back, or move {folder} away to start anew.",
        remedy=loop.Remedy(
            f"Lower --config.{section}.learning_rate and move {folder} away to start anew", ""
        ),
    )


def check_workdir(workdir: Path, experiment: Experiment) -> None:
    """Refuses a workdir that belongs to another run than training this; a new one is fine.

    Raises:
      ValueError: names the first option that differs, and the way out.
    """
    check_purpose(workdir, purpose_of(experiment))


def check_purpose(workdir: Path, purpose: Purpose) -> None:
    """Refuses a workdir that is used for something else; a new one is fine.

    Raises:
      ValueError: names the first option that differs, and the way out.
    """
    if not (workdir / CONFIG_FILE).exists():
        return
    old, fingerprint = read_record(workdir)
    changed = configuration.differences(old, purpose.config)
    found = [change for change in changed if not _is_free(change, purpose.free)]
    if not found and fingerprint != purpose.data:
        found = [purpose.data_changed]
    if found:
        raise ValueError(f"workdir {workdir} belongs to another run: {found[0]}. {purpose.way_out}")
    for change in changed:
        logger.info("changed since the last start: %s", change)
    if any(f"config.{purpose.section}.num_steps " in change for change in changed):
        logger.warning("the learning-rate schedule now has another length than at the start")


def _is_free(change: str, free: FreeOptions) -> bool:
    """Whether a line of ``differences`` is about an option that may change."""
    path = change.split(" ")[0].removeprefix("config.")
    return any(
        path.startswith(f"{section}.")
        and (options is None or path.removeprefix(f"{section}.") in options)
        for section, options in free.items()
    )


def _write_config(workdir: Path, purpose: Purpose) -> None:
    """Writes ``config.json`` in one piece."""
    scratch = workdir / f"{CONFIG_FILE}.tmp"
    record = {"config": purpose.config, "data": purpose.data}
    scratch.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    scratch.replace(workdir / CONFIG_FILE)


def open_workdir(workdir: str | os.PathLike) -> Path:
    """The workdir as a path, made if missing.

    Raises:
      ValueError: a bucket, a file, or a folder that cannot be written to.
    """
    if "://" in str(workdir):
        raise ValueError(f"workdir {workdir} is a bucket; only local folders are supported so far.")
    path = Path(workdir).expanduser()
    if path.exists() and not path.is_dir():
        raise ValueError(f"workdir {path} is a file; give a folder, which is made if missing.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(cannot_write(path, error.strerror or str(error))) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise ValueError(cannot_write(path, "it is read-only"))
    return path


class Training(NamedTuple):
    """What is trained in a workdir.

    Attributes:
      step_fn: one step.
      state: to start from, if the workdir has no checkpoint.
      iterator: endless batches.
      meta: what checkpoints say of it.
      summary: a few lines for the log.
      make_evaluator: from the writer of metrics to what is called with step and state.
      parameters: table for ``parameters.txt``; empty writes none.
    """

    step_fn: StepFn
    state: TrainState
    iterator: loop.DataIterator
    meta: dict[str, Any]
    summary: str
    make_evaluator: Callable[[MetricWriter], Evaluate]
    parameters: str = ""


def _on_first_process(evaluator: Evaluate) -> Evaluate:
    """Of several processes the first evaluates, on its devices, while the others wait."""

    def evaluate(step_number: int, state: TrainState) -> None:
        if not distributed.several():
            return evaluator(step_number, state)
        state = distributed.fetch(state.replace(opt_state=None))
        distributed.together(lambda: evaluator(step_number, state), only_first=True)

    return evaluate


def _traced(step_fn: StepFn, profile: ConfigDict, left: int, workdir: Path) -> StepFn:
    """The step, traced as section ``profile`` says; only on the first process.

    Args:
      step_fn: one step.
      profile: section of the config.
      left: steps that this start will do.
      workdir: of the run.
    """
    if not profile.steps or not distributed.is_first():
        return step_fn
    traced = min(profile.steps, left - profile.skip)
    if traced < profile.steps:
        logger.warning(
            "%d steps are left, of which profile.skip=%d come before those that are traced: %d of "
            "profile.steps=%d will be; raise train.num_steps or lower profile.skip",
            *(left, profile.skip, max(traced, 0), profile.steps),
        )
    if traced < 1 <= profile.steps:
        return step_fn
    return profiling.trace_steps(step_fn, workdir / "logs", profile.skip, traced)


def train_in(
    workdir: str | Path, purpose: Purpose, prepare: Callable[[Path, Mesh, bool], Training]
) -> loop.TrainResult:
    """Trains in a workdir, or goes on where its last checkpoint is.

    Args:
      workdir: made if missing, and locked.
      purpose: of this start; only the workdir of the same one is gone on with.
      prepare: makes what is trained, for a folder, a mesh, and whether this is the first start.

    Returns:
      How it ended.
    """
    train, mesh = purpose.train, configuration.make_mesh(purpose.mesh)
    sharding.check_batch_size(train.batch_size, mesh, f"{purpose.section}.batch_size")
    facts = {"data (by its fingerprint)": purpose.data, "workdir": str(workdir)}
    distributed.check_same(facts, "Give all processes the same data and --workdir.")
    workdir = open_workdir(workdir)
    with contextlib.ExitStack() as stack:
        lock = WorkdirLock(workdir)
        distributed.together(lambda: stack.enter_context(lock), only_first=True)
        check_purpose(workdir, purpose)
        folder = workdir / checkpoint.FOLDER
        checkpointer = checkpoint.Checkpointer(folder, keep=train.keep_checkpoints)
        stack.enter_context(contextlib.closing(checkpointer))
        training = prepare(workdir, mesh, checkpointer.latest_step() is None)
        state, meta = loop.resume(checkpointer, training.state, training.iterator)
        writer = stack.enter_context(contextlib.closing(MetricWriter(workdir / "logs")))
        if jax.process_index() == 0:
            _write_config(workdir, purpose)
            if training.parameters:
                (workdir / "parameters.txt").write_text(training.parameters + "\n")
        if meta is None:
            writer.write_hparams(purpose.config)
        logger.info("%s", training.summary)
        evaluator = _on_first_process(training.make_evaluator(writer))
        left = max(train.num_steps - int(state.step), 0)
        if not left:
            evaluator(int(state.step), state)  # finished before; the loop has nothing to do
        return loop.train(
            state=state,
            step_fn=_traced(training.step_fn, purpose.profile, left, workdir),
            data_iterator=training.iterator,
            mesh=mesh,
            root_key=jax.random.key(purpose.seed),
            total_steps=train.num_steps,
            checkpointer=checkpointer,
            writer=writer,
            meta=training.meta,
            log_every_steps=train.log_every_steps,
            checkpoint_every_steps=train.checkpoint_every_steps,
            evaluators=[(train.eval_every_steps or train.num_steps, evaluator)],
            section=purpose.section,
            remedy=purpose.remedy,
        )
