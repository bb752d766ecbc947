"""LSTM and tanh RNN as scans whose input projection is one matrix product outside the scan."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from diffsda_jax.nets.layers import XAVIER


def uniform_by_width(width: int):
    """PyTorch's default for recurrent layers: uniform in +-1/sqrt(width)."""

    def init(key, shape, dtype=jnp.float32):
        bound = width**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def valid_steps(length: Int[Array, "B"] | None, batch: int, steps: int) -> Bool[Array, "V B"]:
    """True where a step is data and not padding, time first; ``length=None``: all are data."""
    if length is None:
        return jnp.ones((steps, batch), bool)
    return jnp.arange(steps)[:, None] < length[None, :]


def scan_cell(cell, state, inputs: Float[Array, "B V G"], valid: Bool[Array, "V B"], reverse: bool):
    """Runs ``cell(state, input) -> (state, output)`` over time; padding leaves the state as it is.

    Args:
      cell: one step on ``[B, ...]`` arrays.
      state: tuple of ``[B, H]`` arrays.
      inputs: projected inputs.
      valid: which steps are data.
      reverse: from the last step to the first.

    Returns:
      The final state and the outputs ``[B, V, H]``; an output at a padded step repeats the last.
    """

    def step(carry, inputs_and_valid):
        x, keep = inputs_and_valid
        new = cell(carry, x)
        carry = jax.tree.map(lambda n, o: jnp.where(keep[:, None], n, o), new, carry)
        return carry, carry[0]

    state, outputs = jax.lax.scan(step, state, (jnp.swapaxes(inputs, 0, 1), valid), reverse=reverse)
    return state, jnp.swapaxes(outputs, 0, 1)


class LSTM(nn.Module):
    """Long short-term memory in one direction, gates in the order input, forget, cell, output.

    Attributes:
      features: width H of the state.
      reverse: runs from the last step to the first.
      two_biases: keeps the second bias that PyTorch has, for parity with released weights.
      torch_init: every parameter uniform in +-1/sqrt(H) instead of Xavier with zero biases.

    References:
      Hochreiter and Schmidhuber 1997.
    """

    features: int
    reverse: bool = False
    two_biases: bool = False
    torch_init: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "B V F"], valid: Bool[Array, "V B"]
    ) -> tuple[Float[Array, "B H"], Float[Array, "B V H"]]:
        """Returns the final output and the outputs of all steps."""
        size, torch_like = self.features, uniform_by_width(self.features)
        kernel_init = torch_like if self.torch_init else XAVIER
        bias_init = torch_like if self.torch_init else nn.initializers.zeros
        w_input = self.param("kernel_input", kernel_init, (x.shape[-1], 4 * size))
        w_hidden = self.param("kernel_hidden", kernel_init, (size, 4 * size))
        bias = self.param("bias", bias_init, (4 * size,))
        if self.two_biases:
            bias = bias + self.param("bias_hidden", torch_like, (4 * size,))

        def cell(state, projected):
            h, c = state
            gates = projected + h @ w_hidden
            i, f, g, o = jnp.split(gates, 4, axis=-1)
            c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
            return nn.sigmoid(o) * jnp.tanh(c), c

        zeros = jnp.zeros((x.shape[0], size), x.dtype)
        projected = x @ w_input + bias[None, None, :]
        state, outputs = scan_cell(cell, (zeros, zeros), projected, valid, self.reverse)
        return state[0], outputs


class TanhRNN(nn.Module):
    """The plain recurrence ``h = tanh(W x + b + U h + b')`` that the released code uses for d.

    Attributes:
      features: width H of the state.

    References:
      Elman 1990; DiffSDA's released encoder.
    """

    features: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B V F"], valid: Bool[Array, "V B"]
    ) -> Float[Array, "B V H"]:
        """Returns the outputs of all steps."""
        size, init = self.features, uniform_by_width(self.features)
        w_input = self.param("kernel_input", init, (x.shape[-1], size))
        w_hidden = self.param("kernel_hidden", init, (size, size))
        bias = self.param("bias", init, (size,)) + self.param("bias_hidden", init, (size,))

        def cell(state, projected):
            return (jnp.tanh(projected + state[0] @ w_hidden),)

        zeros = jnp.zeros((x.shape[0], size), x.dtype)
        projected = x @ w_input + bias[None, None, :]
        _, outputs = scan_cell(cell, (zeros,), projected, valid, reverse=False)
        return outputs


class Recurrence(nn.Module):
    """From the features of every step to what the two factors are read from.

    Attributes:
      features: width H.
      kind: ``"lstm"``: the paper's causal pair, a causal LSTM whose last output gives s and a
        second causal LSTM on its outputs that gives d; ``"reference"``: the released code's
        bidirectional LSTM, whose two final outputs give s, and tanh RNN, so that d sees the future.

    References:
      DiffSDA (arXiv 2510.05717), section 3 (paper) and its released code (reference).
    """

    features: int
    kind: str = "lstm"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B V F"], length: Int[Array, "B"] | None = None
    ) -> tuple[Float[Array, "B P"], Float[Array, "B V H"]]:
        """Returns what s is read from, ``[B, H]`` or ``[B, 2 H]``, and what d is, ``[B, V, H]``."""
        valid = valid_steps(length, x.shape[0], x.shape[1])
        if self.kind == "lstm":
            last, outputs = LSTM(self.features, name="lstm")(x, valid)
            _, dynamic = LSTM(self.features, name="lstm_dynamic")(outputs, valid)
            return last, dynamic
        if self.kind == "reference":
            last, forward = LSTM(self.features, two_biases=True, name="lstm")(x, valid)
            first, backward = LSTM(
                self.features, reverse=True, two_biases=True, torch_init=True, name="lstm_reverse"
            )(x, valid)
            both = jnp.concatenate([forward, backward], axis=-1)
            dynamic = TanhRNN(self.features, name="rnn_dynamic")(both, valid)
            return jnp.concatenate([last, first], axis=-1), dynamic
        raise ValueError(
            f"model.recurrence is {self.kind!r}; allowed: 'lstm' (the paper's causal encoder) and "
            "'reference' (the released code's bidirectional one)."
        )
