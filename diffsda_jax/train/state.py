"""What a training run carries from step to step."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from diffsda_jax import sharding

WEIGHTS = {"ema": "ema", "raw": "params"}  # which weights: where the state holds them


class TrainState(flax.struct.PyTreeNode):
    """State of training; a pytree, on the devices as ``sharding.state_sharding`` says.

    Attributes:
      step: number of optimiser steps done, int32 scalar.
      params: trained parameters.
      ema: exponential moving average of ``params``, same tree.
      opt_state: state of the optimiser.
      constants: arrays of the model that are not trained (Fourier frequencies); may be empty.
    """

    step: Any
    params: Any
    ema: Any
    opt_state: Any
    constants: Any


def variables_of(state: TrainState, weights: str) -> dict[str, Any]:
    """A model's variables, whole on this process's first device, for an evaluation.

    Of a state that is split over several processes, give what ``distributed.fetch`` made of it.

    Args:
      state: of training.
      weights: ``"ema"`` or ``"raw"``.
    """
    variables = {"params": getattr(state, WEIGHTS[weights]), "constants": state.constants}
    return jax.device_put(variables, jax.local_devices()[0])


def create_state(
    variables: Mapping[str, Any],
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None = None,
    rules: Sequence[sharding.Rule] = (),
) -> TrainState:
    """State at step 0: the average starts as a copy of the parameters.

    Every array is copied, because the training step gives its state's memory away.

    Args:
      variables: the model's variables, ``params`` and (optionally) ``constants``.
      optimizer: of ``make_optimizer``.
      mesh: where the state lives; None = the default device.
      rules: which arrays are split how, see ``sharding.state_sharding``.

    Returns:
      A new state.

    Raises:
      ValueError: ``variables`` has no ``params``, or a collection that is neither of the two.
    """
    unknown = sorted(set(variables) - {"params", "constants"})
    if "params" not in variables or unknown:
        raise ValueError(
            f"variables hold the collections {sorted(variables)}; allowed: 'params' and 'constants'"
            ". Pass what model.init returns."
        )

    def copy(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)

    params = copy(variables["params"])
    if mesh is not None:  # before there are four times as many arrays
        params = place_state({"params": params}, mesh, rules)["params"]
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=copy(params),
        opt_state=optimizer.init(params),
        constants=copy(dict(variables.get("constants", {}))),
    )
    return state if mesh is None else place_state(state, mesh, rules)


def place_state(state: Any, mesh: Mesh, rules: Sequence[sharding.Rule] = ()) -> Any:
    """Puts a state, or a part under its name, where ``sharding.state_sharding`` says."""
    return sharding.place(state, sharding.state_sharding(state, mesh, rules))
