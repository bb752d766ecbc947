"""The LSTM of cuDNN, which runs all steps on an NVIDIA GPU as one kernel instead of a scan."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import rnn
from jaxtyping import Bool, Float


def is_available() -> bool:
    """Whether cuDNN computes: one GPU. XLA cannot split its kernel over several."""
    return jax.default_backend() == "gpu" and jax.device_count() == 1


def pack_weights(
    kernel_input: Float[Array, "F G"], kernel_hidden: Float[Array, "H G"], bias: Float[Array, "G"]
) -> Float[Array, " W"]:
    """The flat weights of ``jax.experimental.rnn``; its second bias is zero, gates are ours."""
    parts = (kernel_input.T, kernel_hidden.T, bias, jnp.zeros_like(bias))
    return jnp.concatenate([part.reshape(-1) for part in parts])


def run_lstm(
    kernel_input: Float[Array, "F G"],
    kernel_hidden: Float[Array, "H G"],
    bias: Float[Array, "G"],
    x: Float[Array, "B V F"],
    valid: Bool[Array, "V B"],
    reverse: bool,
    tf32: bool,
    lstm: Callable[..., tuple[Array, Array, Array]] = rnn.lstm,
) -> tuple[Float[Array, "B H"], Float[Array, "B V H"]]:
    """An LSTM in one direction from a state of zeros, as ``recurrence.LSTM`` runs it.

    Args:
      kernel_input: weights of the input, gates in the order input, forget, cell, output.
      kernel_hidden: weights of the recurrence.
      bias: of all gates.
      x: inputs.
      valid: which steps are data: the first of every item, at least one.
      reverse: from the last step of each item to its first.
      tf32: products may round their factors to TF32.
      lstm: ``jax.experimental.rnn.lstm``, or a twin of it.

    Returns:
      The final output and the outputs of all steps, which repeat the final one at padding; where
      ``reverse``, padding comes first and its outputs are the state of zeros.
    """
    (batch, steps, features), hidden = x.shape, kernel_hidden.shape[0]
    length = valid.sum(0, dtype=jnp.int32)
    places = jnp.broadcast_to(jnp.arange(steps)[None, :], (batch, steps))
    if reverse:  # data stay in front, as cuDNN needs them; twice is the identity
        places = jnp.where(places < length[:, None], length[:, None] - 1 - places, places)
        x = jnp.take_along_axis(x, places[..., None], axis=1)
    zeros = jnp.zeros((1, batch, hidden), x.dtype)
    weights = pack_weights(kernel_input, kernel_hidden, bias)
    precision = None if tf32 else (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)
    outputs, final, _ = lstm(
        x, zeros, zeros, weights, length, features, hidden, 1, 0.0, False, precision
    )
    final = final[0]
    if reverse:
        outputs = jnp.take_along_axis(outputs, places[..., None], axis=1)
    padding = jnp.zeros_like(final) if reverse else final
    return final, jnp.where(valid.T[..., None], outputs, padding[:, None])
