"""What a run would be: config, parameters, work and memory of a step, data; nothing is trained."""

import inspect
import json
import math
import tempfile
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import Mesh, Sharding
from ml_collections import ConfigDict

from diffsda_jax import config as configuration
from diffsda_jax import experiment as experiments
from diffsda_jax import prior, sharding
from diffsda_jax.data.pipeline import num_steps_per_epoch
from diffsda_jax.data.sources import SOURCES, ElementSpec, Source
from diffsda_jax.data.sources.base import SPLITS
from diffsda_jax.data.synthetic import Synthetic
from diffsda_jax.first_stage.spec import PUBLISHED
from diffsda_jax.model import make_model, variable_shapes
from diffsda_jax.nets.applied import applied
from diffsda_jax.train.state import TrainState, create_state

SAMPLE_RATE_HZ = 16_000  # of all speech
# Features of a step, and whether some may be missing, of sources whose files are all alike.
SERIES = {"air_quality": (10, True), "etth1": (6, False), "physionet": (10, True)}
LATENTS, FRAME_SIZE = "vq-f8", 256  # what latents are taken to be before there are any


def make_plan(config: ConfigDict) -> str:
    """Describes the run that a config stands for, from the compiled program of its training step.

    Where the place of the data is not set, made-up data of the same shape stand in, and the text
    says so.

    Args:
      config: from a file of ``configs/``.

    Returns:
      A text: resolved config, parameter table, data set, FLOPs and peak memory of one step.

    Raises:
      ValueError, FileNotFoundError: as ``experiment.build``.
    """
    experiment, data = prepare(config)
    mesh = configuration.make_mesh(config.mesh)
    sharding.check_batch_size(config.train.batch_size, mesh)
    facts = work_facts(experiment) | step_facts(experiment, mesh)
    return format_sections(overview(experiment, data) | {"one training step": format_facts(facts)})


def prepare(config: ConfigDict) -> tuple[experiments.Experiment, str]:
    """The experiment, with made-up data if there are no other, and what its data are in words.

    Raises:
      ValueError, FileNotFoundError: as ``experiment.build``.
    """
    configuration.check_config(config)
    missing = missing_option(config)
    sources = stand_ins(config) if missing else None
    experiment = build(config, sources)
    if sources is None:
        return experiment, describe_data(experiment)
    return experiment, (
        f"source.options.{missing} is not set: no data were read, and made-up ones of steps "
        f"{experiment.sources['train'].spec.shape} stand in; epochs need the data"
    )


def overview(experiment: experiments.Experiment, data: str) -> dict[str, str]:
    """The sections that say what is trained on what."""
    return {
        "config": json.dumps(configuration.to_json(experiment.config), indent=2),
        "parameters": experiments.parameter_table(variable_shapes(experiment.spec)["params"]),
        "data": data,
    }


def format_sections(sections: dict[str, str]) -> str:
    """A heading and a text for each."""
    return "\n\n".join(f"== {name}\n{text}" for name, text in sections.items())


def describe_data(experiment: experiments.Experiment) -> str:
    """The splits, and how many epochs the run is."""
    train = experiment.config.train
    per_epoch = num_steps_per_epoch(experiment.sources["train"], train.batch_size)
    epochs = f"{train.num_steps} steps are {train.num_steps / per_epoch:.1f} epochs"
    splits = [source.describe() for source in experiment.sources.values()]
    return "\n".join([*splits, f"{per_epoch:.1f} steps an epoch; {epochs}"])


def format_facts(facts: dict[str, str]) -> str:
    """A line for each."""
    return "\n".join(f"{name:<42}{value}" for name, value in facts.items())


def missing_option(config: ConfigDict) -> str:
    """The option without which the source has no data, such as its root, if it is not set."""
    parameters = inspect.signature(SOURCES[config.source.name]).parameters
    for option, parameter in parameters.items():
        needed = parameter.default is inspect.Parameter.empty and option != "split"
        if needed and config.source.options.get(option) in (None, ""):
            return option
    return ""


def stand_ins(config: ConfigDict) -> dict[str, Source] | None:
    """Made-up sequences shaped as the source's; None where only its data tell their shape."""
    name, options, num_steps = config.source.name, config.source.options, config.data.length
    if name == "latents":
        first_stage = PUBLISHED[LATENTS]
        side = FRAME_SIZE // first_stage.factor
        element = ElementSpec("video", (side, side, first_stage.embed_dim))
    elif name in SERIES:
        features, masked = SERIES[name]
        element = ElementSpec("series", (features,), masked=masked)
    elif "chunk_seconds" in options:
        element = ElementSpec("audio", (), fps=float(SAMPLE_RATE_HZ))
        num_steps = round(options.chunk_seconds * SAMPLE_RATE_HZ)
    elif "size" in options:
        element = ElementSpec("video", (options.size, options.size, 3))
    else:
        return None
    return {split: Synthetic(split, element, num_steps=num_steps) for split in SPLITS}


def build(config: ConfigDict, sources: dict[str, Source] | None) -> experiments.Experiment:
    """The experiment; statistics of stand-ins are not kept."""
    if sources is None:
        return experiments.build(config)
    config = config.copy_and_resolve_references()
    with tempfile.TemporaryDirectory() as scratch:
        config.data.cache_dir = scratch
        return experiments.build(config, sources)


def work_facts(experiment: experiments.Experiment) -> dict[str, str]:
    """FLOPs of the two networks for one sequence, and how large a prior over its factors is."""
    spec, config = experiment.spec, experiment.config
    length = config.data.length
    model, variables = make_model(spec), variable_shapes(spec)
    x = jax.ShapeDtypeStruct((1, length, *spec.shape), jnp.float32)
    sigma = jax.ShapeDtypeStruct((1, length), jnp.float32)

    prior_leaves = jax.tree.leaves(prior.variable_shapes(experiments.prior_spec(config))["params"])
    encoder = flops(jax.make_jaxpr(partial(applied, model, method="encode"))(variables, x))
    both = flops(jax.make_jaxpr(partial(applied, model))(variables, x, sigma))
    return {
        "FLOPs of encoding a sequence": f"{encoder / 1e9:.3f} G",
        "FLOPs of denoising it once": f"{(both - encoder) / 1e9:.3f} G",
        f"parameters of a {config.prior.form!r} prior": f"{sum(x.size for x in prior_leaves):,}",
    }


def flops(jaxpr: ClosedJaxpr | Jaxpr) -> float:
    """FLOPs of the matrix products and convolutions of a traced function.

    A multiply-add counts as 2, a scan's body as often as it runs, of the branches of a condition
    the largest. The body of a ``while`` loop counts once. All else, linear in the data, is left
    out, and so are the zeros that the gradient of a strided convolution puts in.
    """
    total = 0.0
    equations: Sequence[Any] = getattr(jaxpr, "jaxpr", jaxpr).eqns
    for equation in equations:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            summed = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * summed * equation.outvars[0].aval.size
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            axis = equation.params["dimension_numbers"].rhs_spec[0]  # of the output's features
            zeros = math.prod(equation.params["lhs_dilation"])
            summed = kernel.size / kernel.shape[axis] / zeros
            total += 2 * summed * equation.outvars[0].aval.size
        else:
            inner = [flops(part) for part in _inner(equation.params)] or [0.0]
            called = max(inner) if name == "cond" else sum(inner)
            total += called * (equation.params["length"] if name == "scan" else 1)
    return total


def _inner(params: dict[str, Any]) -> list[ClosedJaxpr | Jaxpr]:
    """The functions that an equation calls."""
    values = [value if isinstance(value, tuple) else (value,) for value in params.values()]
    return [part for parts in values for part in parts if isinstance(part, (ClosedJaxpr, Jaxpr))]


def traced_step(experiment: experiments.Experiment, mesh: Mesh) -> tuple[TrainState, Any]:
    """Shapes of the training state, and the training step traced for the devices at hand."""
    transformation, step_fn, _ = experiments.make_training(experiment, mesh)
    state = jax.eval_shape(
        lambda variables: create_state(variables, transformation),
        variable_shapes(experiment.spec),
    )
    rules = experiment.config.mesh.rules
    key, batch = jax.eval_shape(lambda: jax.random.key(0)), batch_shapes(experiment)
    return state, cast(jax.stages.Wrapped, step_fn).trace(
        place(state, sharding.state_sharding(state, mesh, rules)),
        place(batch, sharding.batch_sharding(mesh)),
        place(key, sharding.replicated(mesh)),
    )


def place(shapes: Any, where: Any) -> Any:
    """Shapes with a sharding each: one for all, or a tree of the same structure."""
    if isinstance(where, Sharding):
        where = jax.tree.map(lambda _: where, shapes)
    return jax.tree.map(
        lambda leaf, on: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on), shapes, where
    )


def step_facts(experiment: experiments.Experiment, mesh: Mesh) -> dict[str, str]:
    """Counts the training step's FLOPs, compiles it, and reads what the compiler says of memory."""
    state, traced = traced_step(experiment, mesh)
    memory = traced.lower().compile().memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes
    peak += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    return {
        "FLOPs of a step, all devices": f"{flops(traced.jaxpr) / 1e9:.3f} G",
        "devices": f"{mesh.devices.size} x {jax.devices()[0].device_kind}",
        "peak memory of a device": f"{peak / 2**20:.0f} MiB (arguments, results, temporaries)",
        "  of which temporaries": f"{memory.temp_size_in_bytes / 2**20:.0f} MiB",
        "  of which weights, average, moments": f"{kept / 2**20:.0f} MiB",
    }


def batch_shapes(experiment: experiments.Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of what the training step reads of a global batch."""
    config, spec = experiment.config, experiment.spec
    batch, steps = config.train.batch_size, config.data.length
    if experiment.front_end is not None:
        samples = (batch, experiment.front_end.num_samples)
        return {
            "x": jax.ShapeDtypeStruct(samples, jnp.float32),
            "length": jax.ShapeDtypeStruct((batch,), jnp.int32),
        }
    mask = (batch, steps) if spec.kind == "video" else (batch, steps, *spec.shape)
    return {
        "x": jax.ShapeDtypeStruct((batch, steps, *spec.shape), jnp.float32),
        "mask": jax.ShapeDtypeStruct(mask, jnp.bool_),
        "length": jax.ShapeDtypeStruct((batch,), jnp.int32),
    }
