"""What a run would be: config, parameters, work and memory of a step, data; nothing is trained."""

import json
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffsda_jax import config as configuration
from diffsda_jax import experiment as experiments
from diffsda_jax import sharding
from diffsda_jax.data.pipeline import num_steps_per_epoch
from diffsda_jax.model import variable_shapes
from diffsda_jax.train.state import create_state


def make_plan(config: ConfigDict) -> str:
    """Describes the run that a config stands for, from the compiled program of its training step.

    Args:
      config: from a file of ``configs/``.

    Returns:
      A text: resolved config, parameter table, data set, FLOPs and peak memory of one step.

    Raises:
      ValueError, FileNotFoundError: as ``experiment.build``.
    """
    experiment = experiments.build(config)
    mesh = sharding.make_mesh()
    sharding.check_batch_size(config.train.batch_size, mesh)
    per_epoch = num_steps_per_epoch(experiment.sources["train"], config.train.batch_size)
    steps = config.train.num_steps
    data = [source.describe() for source in experiment.sources.values()]
    data.append(f"{per_epoch:.1f} steps an epoch; {steps} steps are {steps / per_epoch:.1f} epochs")
    step = compiled_step_facts(experiment, mesh)
    sections = {
        "config": json.dumps(configuration.to_json(config), indent=2),
        "parameters": experiments.parameter_table(experiment),
        "data": "\n".join(data),
        "one training step": "\n".join(f"{name:<38}{value}" for name, value in step.items()),
    }
    return "\n\n".join(f"== {name}\n{text}" for name, text in sections.items())


def compiled_step_facts(experiment: experiments.Experiment, mesh: Mesh) -> dict[str, str]:
    """Compiles the training step for the devices at hand and reads what the compiler says of it."""
    transformation, step_fn, _ = experiments.make_training(experiment, mesh)
    whole, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)

    def place(tree: Any, where: Any) -> Any:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree
        )

    state = jax.eval_shape(
        lambda variables: create_state(variables, transformation),
        variable_shapes(experiment.spec),
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    batch = batch_shapes(experiment)
    compiled = step_fn.lower(place(state, whole), place(batch, split), place(key, whole)).compile()
    cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes
    peak += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    return {
        "devices": f"{mesh.devices.size} x {jax.devices()[0].device_kind}",
        "FLOPs of a device and step": f"{cost.get('flops', float('nan')) / 1e9:.3f} G (XLA's count;"
        " the body of a loop counts once)",
        "peak memory of a device": f"{peak / 2**20:.0f} MiB (arguments, results, temporaries)",
        "  of which temporaries": f"{memory.temp_size_in_bytes / 2**20:.0f} MiB",
    }


def batch_shapes(experiment: experiments.Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of what the training step reads of a global batch."""
    config, spec = experiment.config, experiment.spec
    batch, steps = config.train.batch_size, config.data.length
    if experiment.front_end is not None:
        samples = (batch, experiment.front_end.num_samples)
        return {"x": jax.ShapeDtypeStruct(samples, jnp.float32)}
    mask = (batch, steps) if spec.kind == "video" else (batch, steps, *spec.shape)
    return {
        "x": jax.ShapeDtypeStruct((batch, steps, *spec.shape), jnp.float32),
        "mask": jax.ShapeDtypeStruct(mask, jnp.bool_),
        "length": jax.ShapeDtypeStruct((batch,), jnp.int32),
    }
