"""The small networks of the supervised probes, and their training over several seeds."""

import functools
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Bool, Float, Num, UInt

from diffsda_jax.evals.choices import check_choice
from diffsda_jax.nets.applied import applied
from diffsda_jax.nets.recurrence import LSTM
from diffsda_jax.rngs import stream

_HIDDEN = {"classes": (64,), "regression": (32, 8), "binary": (32, 16)}


@dataclass(frozen=True)
class ProbeSpec:
    """One supervised probe.

    Attributes:
      kind: ``classes`` (from s), ``regression`` (block by block from s and d) or ``binary`` (from
        s and the whole course of d).
      hidden: widths of the hidden layers; for ``binary`` of the LSTM and of the layer after it.
        None: (64,) for classes (width: own reading), (32, 8) and (32, 16) as in the paper; ``()``
        is a linear probe, not to be had of ``binary``.
      num_steps: optimiser steps of each repeat.
      learning_rate: of AdamW at the start of a cosine.
      weight_decay: of AdamW.
      batch_size: items a step, drawn with replacement.
      seeds: one repeat for each, of initial weights and batches.
    """

    kind: str
    hidden: tuple[int, ...] | None = None
    num_steps: int = 1000
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    batch_size: int = 64
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    def __post_init__(self):
        """Checks the choices.

        Raises:
          ValueError: one that is not allowed.
        """
        check_choice("kind", self.kind, tuple(_HIDDEN))
        if self.kind == "binary" and len(self.widths) != 2:
            raise ValueError(
                f"hidden: {self.hidden} for a binary probe; allowed are two widths, of the LSTM "
                f"and of the layer after it; give for example (32, 16)."
            )
        for name in ("num_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}; allowed is 1 or more; raise it.")
        if not self.seeds:
            raise ValueError("seeds: there are none; allowed is one or more; give (0,).")

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the hidden layers, those of the kind where ``hidden`` is None."""
        return _HIDDEN[self.kind] if self.hidden is None else self.hidden


class ProbeNet(nn.Module):
    """Dense layers with ReLU between them; over a sequence, an LSTM before them.

    Attributes:
      hidden: widths of the hidden layers; over a sequence, of the LSTM first.
      num_outputs: numbers given for each item.
    """

    hidden: tuple[int, ...]
    num_outputs: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B E"] | Float[Array, "B V E"], valid: Bool[Array, "B V"] | None
    ) -> Float[Array, "B K"]:
        """Outputs; ``valid`` says which steps of a sequence are real, None if there are none."""
        widths = self.hidden
        if valid is not None:
            x, _ = LSTM(widths[0])(x, valid.T)
            widths = widths[1:]
        for width in widths:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.num_outputs)(x)


Inputs = tuple[Array, Array | None]  # features, and which steps are real where there are steps


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def fit_and_read(
    spec: ProbeSpec,
    reuse: bool,
    num_outputs: int,
    inputs: Inputs,
    goal: Num[Array, " N"],
    test_inputs: Inputs,
    seeds: UInt[Array, " R"],
) -> Float[Array, "R M K"]:
    """Outputs of each repeat on the test items, after training on the training items.

    Args:
      spec: which probe, and how it is trained.
      reuse: a repeat goes on from the parameters of the one before.
      num_outputs: K of the network.
      inputs: features of the N training items ``[N, E]`` or ``[N, V, E]``, and real steps.
      goal: what the outputs are to be.
      test_inputs: the same of the M test items, ``[M, ...]``.
      seeds: one for each of R repeats, of initial parameters and batches.

    Returns:
      R times the outputs on the test items.
    """
    net = ProbeNet(spec.widths, num_outputs)
    keys = jax.vmap(jax.random.key)(seeds)

    def init(key: Array) -> Any:
        return net.init(stream(key, "params"), *_take(inputs, slice(0, 1)))

    def repeat(params: Any, key: Array) -> tuple[Any, Array]:
        params = _fit(spec, net, params, inputs, goal, key)
        return params, applied(net, params, *test_inputs)

    if reuse:
        return jax.lax.scan(repeat, init(keys[0]), keys)[1]
    return jax.vmap(lambda key: repeat(init(key), key)[1])(keys)


def _fit(
    spec: ProbeSpec, net: ProbeNet, params: Any, inputs: Inputs, goal: Num[Array, " N"], key: Array
) -> Any:
    """Parameters after ``num_steps`` steps on random batches."""
    size = min(spec.batch_size, len(goal))
    schedule = optax.cosine_decay_schedule(spec.learning_rate, spec.num_steps)
    optimizer = optax.adamw(schedule, weight_decay=spec.weight_decay)

    def loss_fn(params: Any, index: Array) -> Array:
        return _loss(spec.kind, applied(net, params, *_take(inputs, index)), goal[index])

    def step(carry: Any, index: Array) -> tuple[Any, None]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss_fn)(params, index), state, params)
        return (optax.apply_updates(params, updates), state), None

    batches = jax.random.randint(stream(key, "batch"), (spec.num_steps, size), 0, len(goal))
    return jax.lax.scan(step, (params, optimizer.init(params)), batches)[0][0]


def _loss(kind: str, outputs: Float[Array, "B K"], goal: Num[Array, " B"]) -> Float[Array, ""]:
    """Cross-entropy for labels, squared error for numbers."""
    if kind == "classes":
        return optax.softmax_cross_entropy_with_integer_labels(outputs, goal).mean()
    if kind == "binary":
        return optax.sigmoid_binary_cross_entropy(outputs[:, 0], goal).mean()
    return jnp.mean(jnp.square(outputs[:, 0] - goal))


def _take(inputs: Inputs, index: Any) -> Inputs:
    """Some items of the inputs."""
    return jax.tree.map(lambda values: values[index], inputs)
