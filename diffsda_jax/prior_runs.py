"""``--mode=prior``: a prior over the factors of a trained sequence model.

The training split is encoded once, into ``<workdir>/prior/factors``; the prior trains on that in
``<workdir>/prior`` and is scored by what is generated from its samples. Of a config are read the
source, the sections ``data``, ``prior`` and ``eval``, and of ``train`` how often to report and to
save.
"""

import contextlib
import copy
import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffsda_jax import config as configuration
from diffsda_jax import experiment as experiments
from diffsda_jax import prior, prior_api, runs, sharding, workdirs
from diffsda_jax.data.factor_cache import FactorCache, FactorWriter, check_facts
from diffsda_jax.data.sources import Source
from diffsda_jax.data.sources.base import hash_of
from diffsda_jax.data.sources.windows import Windows, list_windows
from diffsda_jax.diffusion.samplers import SamplerSpec
from diffsda_jax.experiment import Experiment
from diffsda_jax.pipeline import DiffSDA
from diffsda_jax.prior import PriorSpec
from diffsda_jax.prior_api import Prior
from diffsda_jax.rngs import stream
from diffsda_jax.train import loop, optimizer, step
from diffsda_jax.train.console import progress_bar
from diffsda_jax.train.integrity import hash_weights
from diffsda_jax.train.state import TrainState, create_state, variables_of
from diffsda_jax.train.writers import MetricWriter

logger = logging.getLogger(__name__)

FACTORS = "factors"  # in the prior's folder
# Of section prior, what may change between two starts.
_FREE = (
    "accumulation_steps",
    "num_steps",
    "eval_every_steps",
    "solver",
    "sample_steps",
    "encode_batch_size",
)
_PARTS = ("generation",)  # of the evaluation


def run_prior(
    config: ConfigDict, workdir: str | Path, sources: dict[str, Source] | None = None
) -> loop.TrainResult:
    """Encodes the training split and trains a prior, or goes on where an earlier start stopped.

    Args:
      config: that the sequence model was trained with.
      workdir: of the sequence model, whose newest checkpoint is taken;
        ``Prior.from_checkpoint(workdir)`` loads the result.
      sources: splits to use instead of the config's own.

    Returns:
      How it ended.

    Raises:
      ValueError, FileNotFoundError: no sequence model in the workdir, one of another config, a
        prior of another model or with other options there, or an option that is not allowed.
      train.loop.NonFiniteLossError: the loss is not finite.
    """
    spec, sampler = _check_options(config)
    experiment, model = runs.load_trained(config, workdir, sources)
    folder = Path(workdir).expanduser() / prior_api.FOLDER
    facts = factor_facts(experiment, model)
    way_out = (
        f"a prior serves the model that it was trained with: move {folder} away (or remove it) and "
        "run --mode=prior again, which encodes and trains anew"
    )
    check_facts(folder / FACTORS, facts, way_out)
    runner = runs.EvalRunner(_evaluated(experiment))

    def prepare(place: Path, mesh: Mesh, fresh: bool) -> workdirs.Training:
        cache = make_factors(experiment, model, place / FACTORS, facts, way_out)
        normalizers = (cache.static, cache.dynamic)
        step_fn, state = make_training(config, spec, len(cache), mesh)

        def load_prior(state: TrainState) -> Prior:
            variables = variables_of(state, config.eval.weights)
            return Prior(spec, variables, normalizers, sampler)

        meta = prior_api.make_meta(spec, normalizers, sampler, int(model.meta.get("step", 0)))
        known = experiment.meta()
        return workdirs.Training(
            step_fn=step_fn,
            state=state,
            iterator=make_iterator(config, cache),
            meta=meta | {"made_from": facts, "config": known["config"], "source": known["source"]},
            summary=describe(spec, cache, mesh),
            make_evaluator=lambda writer: make_evaluator(runner, model, load_prior, place, writer),
        )

    # Factors stand for all that the rest of the config says.
    others = {name: None for name in config if name != "prior"}
    purpose = workdirs.purpose_of_section(
        experiment,
        "prior",
        folder,
        data=hash_of(facts),
        free=others | {"prior": _FREE},
        data_changed="its factors were of another sequence model or of other data",
    )
    return workdirs.train_in(folder, purpose, prepare)


def _check_options(config: ConfigDict) -> tuple[PriorSpec, SamplerSpec]:
    """The prior and its sampler; refuses what can be refused before anything is read."""
    options = config.prior
    for name in ("windows_per_item", "encode_batch_size", "sequences_per_shard", "num_steps"):
        if options[name] < 1:
            raise ValueError(f"prior.{name} is {options[name]}; it must be at least 1.")
    if options.sample_steps < 2:
        raise ValueError(f"prior.sample_steps is {options.sample_steps}; it must be at least 2.")
    if config.model.static_per_step:
        raise ValueError(
            "model.static_per_step is True, but a prior samples one static factor for a sequence; "
            "train the sequence model with --config.model.static_per_step=False for one."
        )
    mesh = configuration.make_mesh(config.mesh)
    sharding.check_batch_size(options.encode_batch_size, mesh, "prior.encode_batch_size")
    sharding.check_batch_size(
        options.batch_size, mesh, "prior.batch_size", options.accumulation_steps
    )
    sampler = SamplerSpec(options.solver, options.sample_steps)
    prior.check_sampler(sampler)
    return experiments.prior_spec(config), sampler


def factor_facts(experiment: Experiment, model: DiffSDA) -> dict[str, Any]:
    """What makes the factors what they are; an option that differs says more than a hash."""
    config = experiment.config
    return {
        "the model's step": int(model.meta.get("step", 0)),
        prior_api.WEIGHTS_KEY: config.eval.weights,
        prior_api.HASH_KEY: hash_weights(repr(model.spec), model.variables),
        "data of the fingerprint": experiment.sources["train"].fingerprint(),
        "data.length": config.data.length,
        "data.length_mode": config.data.length_mode,
        "prior.windows_per_item": config.prior.windows_per_item,
        "seed": config.seed,
    }


def _evaluated(experiment: Experiment) -> Experiment:
    """The experiment with the parts that say something about a prior."""
    config = copy.deepcopy(experiment.config)
    config.eval.parts = _PARTS
    return dataclasses.replace(experiment, config=config)


def make_training(
    config: ConfigDict, spec: PriorSpec, num_sequences: int, mesh: Mesh
) -> tuple[step.StepFn, TrainState]:
    """The jitted step, and the state at step 0."""
    options = config.prior
    schedule = experiments.schedule_of(
        options, options.num_steps, num_sequences / options.batch_size
    )
    transformation = optimizer.make_optimizer(
        schedule, weight_decay=options.weight_decay, clip_norm=options.clip_norm
    )
    step_fn = step.make_train_step(
        prior.make_loss_fn(spec),
        transformation,
        schedule=schedule,
        ema_half_life_examples=options.ema_half_life_examples,
        batch_size=options.batch_size,
        mesh=mesh,
        rules=config.mesh.rules,
        accumulation_steps=options.accumulation_steps,
    )
    variables = prior.init_variables(spec, stream(jax.random.key(config.seed), "prior"))
    return step_fn, create_state(variables, transformation, mesh, config.mesh.rules)


def make_iterator(config: ConfigDict, cache: FactorCache) -> Any:
    """Endless training batches of this process."""
    return cache.iterate(
        batch_size=config.prior.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=config.data.num_threads,
        prefetch_batches=config.data.prefetch_batches,
    )


def make_evaluator(
    runner: runs.EvalRunner,
    model: DiffSDA,
    load_prior: Callable[[TrainState], Prior],
    workdir: Path,
    writer: MetricWriter,
) -> Callable[[int, TrainState], None]:
    """What the training loop calls to evaluate."""

    def evaluate(step_number: int, state: TrainState) -> None:
        place = workdir / "eval" / f"{step_number:08d}"
        result = runner.run(model, place, load_prior(state))
        runs.write_result(writer, step_number, result, runner.domain)

    return evaluate


def describe(spec: PriorSpec, cache: FactorCache, mesh: Mesh) -> str:
    """A few lines on what is about to be trained on what."""
    count = sum(leaf.size for leaf in jax.tree.leaves(prior.variable_shapes(spec)["params"]))
    return (
        f"factors: {len(cache):,} sequences of {cache.length} steps"
        f"{', some of them padded' if cache.padded else ''}, in {cache.folder}\n"
        f"prior: form {spec.form!r}, s of {spec.static_dim} and d of {spec.dynamic_dim} numbers, "
        f"{count / 1e6:.2f} M parameters; {mesh.devices.size} {jax.devices()[0].platform} device(s)"
    )


def make_factors(
    experiment: Experiment, model: DiffSDA, folder: Path, facts: dict[str, Any], way_out: str
) -> FactorCache:
    """Encodes the training split, or what of it an earlier start did not.

    Args:
      experiment: whose training split is encoded.
      model: that encodes it.
      folder: of the factors.
      facts: of ``factor_facts``.
      way_out: how to go on where the folder holds other factors.

    Returns:
      The factors.

    Raises:
      ValueError: other factors in the folder, several processes, or too many items that cannot be
        read.
    """
    if jax.process_count() > 1:
        with contextlib.suppress(FileNotFoundError):
            return FactorCache.load(folder)
        raise ValueError(
            f"{jax.process_count()} processes were started, but encoding is the work of one, which "
            "uses all devices of its machine; run the same command on one process first (it may be "
            "stopped when training begins), then on all."
        )
    config, source = experiment.config, experiment.sources["train"]
    data, options = config.data, config.prior
    windows = list_windows(source, data.length, data.length_mode, options.windows_per_item)
    writer = FactorWriter(folder, facts, len(windows), options.sequences_per_shard, way_out)
    if missing := writer.missing():
        left = sum(len(writer.span(shard)) for shard in missing)
        with progress_bar("factors", "sequence", len(windows), len(windows) - left) as bar:
            for shard, arrays in encode(experiment, model, windows, writer, missing, bar.update):
                writer.write(shard, **arrays)
    if missing or not writer.finished():
        writer.finish()
    cache = FactorCache.load(folder)
    if lost := len(windows) - len(cache):
        logger.warning("%d of %d sequences could not be read", lost, len(windows))
        if lost > source.max_skipped_share * len(windows):
            raise ValueError(
                f"{lost} of {len(windows)} sequences could not be read, more than "
                f"max_skipped_share={source.max_skipped_share:g} allows; mend them, remove "
                f"{folder} and run --mode=prior again."
            )
    return cache


def encode(
    experiment: Experiment,
    model: DiffSDA,
    windows: list[tuple[int, int]],
    writer: FactorWriter,
    shards: list[int],
    advance: Callable[[int], Any],
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Encodes windows shard by shard, while threads read those that follow.

    Args:
      experiment: of the windows.
      model: that encodes them.
      windows: all of them, of ``list_windows``.
      writer: says which of them a shard is for.
      shards: numbers of those to encode.
      advance: is told how many windows are done.

    Yields:
      The number of a shard, and of its N windows ``static`` ``[N, S]``, ``dynamic`` ``[N, V, D]``
      and ``length`` ``[N]``.
    """
    config = experiment.config
    mesh = configuration.make_mesh(config.mesh)
    size = config.prior.encode_batch_size
    placed = DiffSDA(model.spec, jax.device_put(model.variables, sharding.replicated(mesh)))
    empty = {
        "static": np.zeros((0, model.spec.static_dim), np.float32),
        "dynamic": np.zeros((0, config.data.length, model.spec.dynamic_dim), np.float32),
        "length": np.zeros(0, np.int32),
    }

    def blocks() -> Iterator[tuple[int, range]]:
        for shard in shards:
            span = writer.span(shard)
            for first in range(span.start, span.stop, size):
                yield shard, range(first, min(first + size, span.stop))

    def read(block: tuple[int, range]) -> tuple[int, range, dict[str, np.ndarray] | None]:
        shard, span = block
        return shard, span, _load_windows(experiment, windows[span.start : span.stop])

    parts = [empty]
    for shard, span, arrays in _read_ahead(read, blocks(), max(1, config.data.num_threads)):
        if arrays is not None:
            parts.append(_encode_block(placed, arrays, size, mesh))
        advance(len(span))
        if span.stop == writer.span(shard).stop:
            yield shard, {name: np.concatenate([part[name] for part in parts]) for name in empty}
            parts = [empty]


def _load_windows(
    experiment: Experiment, windows: list[tuple[int, int]]
) -> dict[str, np.ndarray] | None:
    """Some windows as an evaluation reads clips; None if none of them can be read."""
    data = experiment.config.data
    source = Windows(
        experiment.sources["train"], windows, data.length, data.length_mode, experiment.config.seed
    )
    part = dataclasses.replace(experiment, sources={"train": source})
    try:
        return experiments.load_split(part, "train", len(windows))
    except ValueError:
        if len(source.skipped) < len({source.item_name(i) for i in range(len(source))}):
            raise
        return None


def _encode_block(
    model: DiffSDA, arrays: dict[str, np.ndarray], size: int, mesh: Mesh
) -> dict[str, np.ndarray]:
    """Factors and lengths of at most ``size`` windows; the last one is repeated to fill."""
    count = len(arrays["x"])
    index = np.minimum(np.arange(size), count - 1)
    names = ("x", "length", "mask")
    read: dict[str, np.ndarray] = {name: arrays[name][index] for name in names if name in arrays}
    batch = sharding.shard_batch(read, mesh)
    factors = model.encode(batch["x"], batch.get("length"), batch.get("mask"))
    return {
        "static": np.asarray(factors.static)[:count],
        "dynamic": np.asarray(factors.dynamic)[:count],
        "length": arrays["length"].astype(np.int32),
    }


def _read_ahead(
    read: Callable[[Any], Any], items: Iterator[Any], num_threads: int
) -> Iterator[Any]:
    """``read`` of every item in order, by threads that are at most one item each ahead."""
    ahead: deque[Future] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for item in items:
                ahead.append(pool.submit(read, item))
                if len(ahead) > num_threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
