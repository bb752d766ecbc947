"""LSTM and tanh RNN as scans whose input projection is one matrix product outside the scan."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from diffsda_jax.nets import cudnn_lstm
from diffsda_jax.nets.layers import XAVIER, product

State = tuple[Array, ...]  # of [B, H]
Cell = Callable[[State, Array], State]
# Kernel, states before each step, pre-activations [V, B, G] and which steps are data.
Residuals = tuple[Array, State, Array, Array]


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


def scan_cell(
    cell: Cell,
    kernel: Float[Array, "H G"],
    state: State,
    inputs: Float[Array, "B V G"],
    valid: Bool[Array, "V B"],
    reverse: bool,
) -> tuple[State, Float[Array, "B V H"]]:
    """Runs ``cell(state, input + state[0] @ kernel)`` over time; padding leaves the state as it is.

    Args:
      cell: from ``[B, ...]`` arrays, the state and the pre-activations, to the next state.
      kernel: weights of the recurrence.
      state: tuple of ``[B, H]`` arrays, the first of which is the output.
      inputs: projected inputs.
      valid: which steps are data.
      reverse: from the last step to the first.

    Returns:
      The final state and the outputs ``[B, V, H]``; an output at a padded step repeats the last.
    """
    by_time = jnp.swapaxes(inputs, 0, 1)
    state, outputs = _scan(cell, reverse, kernel, state, by_time, valid)
    return state, jnp.swapaxes(outputs, 0, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan(
    cell: Cell, reverse: bool, kernel: Array, state: State, inputs: Array, valid: Array
) -> tuple[State, Array]:
    """``scan_cell`` with time first.

    Its gradient is written out because that of ``lax.scan`` adds the kernel's part at every step,
    an array as large as the kernel, which costs more than the recurrence itself where batches are
    small. Here the steps only give the gradients of the pre-activations, and one product over all
    steps that of the kernel.
    """
    return _scan_forward(cell, reverse, kernel, state, inputs, valid)[0]


def _scan_forward(
    cell: Cell, reverse: bool, kernel: Array, state: State, inputs: Array, valid: Array
) -> tuple[tuple[State, Array], Residuals]:
    def step(carry: State, at_step: tuple[Array, Array]):
        x, keep = at_step
        pre_activation = x + carry[0] @ kernel
        new = _where(keep, cell(carry, pre_activation), carry)
        return new, (new[0], carry, pre_activation)

    final, (outputs, before, pre_activations) = jax.lax.scan(
        step, state, (inputs, valid), reverse=reverse
    )
    return (final, outputs), (kernel, before, pre_activations, valid)


def _scan_backward(
    cell: Cell, reverse: bool, residuals: Residuals, gradients: tuple[State, Array]
) -> tuple[Array, State, Array, None]:
    kernel, before, pre_activations, valid = residuals
    grad_final, grad_outputs = gradients
    # Transposed once, and not by every step's product, which would be three times as slow.
    kernel_transposed = jax.lax.optimization_barrier(kernel.T)

    def step(grad_new: State, at_step):
        grad_output, keep, state, pre_activation = at_step
        grad_new = (grad_new[0] + grad_output, *grad_new[1:])
        zeros = jax.tree.map(jnp.zeros_like, grad_new)
        _, pull_back = jax.vjp(cell, state, pre_activation)
        grad_state, grad_pre = pull_back(_where(keep, grad_new, zeros))
        grad_state = (grad_state[0] + grad_pre @ kernel_transposed, *grad_state[1:])
        passed_on = _where(keep, zeros, grad_new)
        return jax.tree.map(jnp.add, grad_state, passed_on), grad_pre

    grad_start, grad_inputs = jax.lax.scan(
        step, grad_final, (grad_outputs, valid, before, pre_activations), reverse=not reverse
    )
    grad_kernel = jnp.einsum("vbh,vbg->hg", before[0], grad_inputs)
    return grad_kernel, grad_start, grad_inputs, None


_scan.defvjp(_scan_forward, _scan_backward)


def _where(keep: Bool[Array, "B"], new: State, old: State) -> State:
    """The new state where a step is data, the old one elsewhere."""
    return jax.tree.map(lambda n, o: jnp.where(keep[:, None], n, o), new, old)


def lstm_cell(state: State, gates: Float[Array, "B G"]) -> State:
    """One step on output and cell, gates in the order input, forget, cell, output."""
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    c = nn.sigmoid(f) * state[1] + nn.sigmoid(i) * jnp.tanh(g)
    return nn.sigmoid(o) * jnp.tanh(c), c


def tanh_cell(state: State, pre_activation: Float[Array, "B H"]) -> State:
    """One step of the plain recurrence, whose state is its output."""
    return (jnp.tanh(pre_activation),)


class LSTM(nn.Module):
    """Long short-term memory in one direction, gates in the order input, forget, cell, output.

    Attributes:
      features: width H of the state.
      reverse: runs from the last step to the first.
      two_biases: keeps the second bias that PyTorch has, for parity with released weights.
      torch_init: every parameter uniform in +-1/sqrt(H) instead of Xavier with zero biases.
      bfloat16: the input's product is ``bfloat16_product``; the recurrence stays float32.
      cudnn: on one NVIDIA GPU cuDNN runs it, with products in TF32 for ``bfloat16``; elsewhere this
        changes nothing.

    References:
      Hochreiter and Schmidhuber 1997.
    """

    features: int
    reverse: bool = False
    two_biases: bool = False
    torch_init: bool = False
    bfloat16: bool = False
    cudnn: bool = False

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

        if self.cudnn and cudnn_lstm.is_available():
            weights = w_input, w_hidden, bias
            return cudnn_lstm.run_lstm(*weights, x, valid, self.reverse, tf32=self.bfloat16)
        zeros = jnp.zeros((x.shape[0], size), x.dtype)
        projected = product(x, w_input, self.bfloat16) + bias[None, None, :]
        state, outputs = scan_cell(
            lstm_cell, w_hidden, (zeros, zeros), projected, valid, self.reverse
        )
        return state[0], outputs


class TanhRNN(nn.Module):
    """The plain recurrence ``h = tanh(W x + b + U h + b')`` that the released code uses for d.

    Attributes:
      features: width H of the state.
      bfloat16: as in ``LSTM``.

    References:
      Elman 1990; DiffSDA's released encoder.
    """

    features: int
    bfloat16: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "B V F"], valid: Bool[Array, "V B"]
    ) -> Float[Array, "B V H"]:
        """Returns the outputs of all steps."""
        size, init = self.features, uniform_by_width(self.features)
        w_input = self.param("kernel_input", init, (x.shape[-1], size))
        w_hidden = self.param("kernel_hidden", init, (size, size))
        bias = self.param("bias", init, (size,)) + self.param("bias_hidden", init, (size,))

        zeros = jnp.zeros((x.shape[0], size), x.dtype)
        projected = product(x, w_input, self.bfloat16) + bias[None, None, :]
        _, outputs = scan_cell(tanh_cell, w_hidden, (zeros,), projected, valid, reverse=False)
        return outputs


class Recurrence(nn.Module):
    """From the features of every step to what the two factors are read from.

    Attributes:
      features: width H.
      kind: ``"lstm"``: the paper's causal pair, a causal LSTM whose last output gives s and a
        second causal LSTM on its outputs that gives d; ``"reference"``: the released code's
        bidirectional LSTM, whose two final outputs give s, and tanh RNN, so that d sees the future.
      bfloat16: as in ``LSTM``.
      cudnn: as in ``LSTM``; the tanh RNN is a scan in any case.
      static_per_step: s is read from the outputs at every step instead of the final ones.

    References:
      DiffSDA (arXiv 2510.05717), section 3 (paper) and its released code (reference).
    """

    features: int
    kind: str = "lstm"
    bfloat16: bool = False
    static_per_step: bool = False
    cudnn: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "B V F"], length: Int[Array, "B"] | None = None
    ) -> tuple[Float[Array, "B *V P"], Float[Array, "B _ H"]]:
        """Returns what s is read from and what d is, ``[B, V, H]``.

        P is H (``"lstm"``) or 2 H; there is one such vector, or one for each step.

        Raises:
          ValueError: an unknown kind.
        """
        valid = valid_steps(length, x.shape[0], x.shape[1])
        size, bfloat16 = self.features, self.bfloat16
        lstm = functools.partial(LSTM, size, bfloat16=bfloat16, cudnn=self.cudnn)
        if self.kind == "lstm":
            last, outputs = lstm(name="lstm")(x, valid)
            _, dynamic = lstm(name="lstm_dynamic")(outputs, valid)
            return (outputs if self.static_per_step else last), dynamic
        if self.kind == "reference":
            last, forward = lstm(two_biases=True, name="lstm")(x, valid)
            back = lstm(reverse=True, two_biases=True, torch_init=True, name="lstm_reverse")
            first, backward = back(x, valid)
            both = jnp.concatenate([forward, backward], axis=-1)
            dynamic = TanhRNN(size, bfloat16, name="rnn_dynamic")(both, valid)
            ends = jnp.concatenate([last, first], axis=-1)
            return (both if self.static_per_step else ends), dynamic
        raise ValueError(
            f"model.recurrence is {self.kind!r}; allowed: 'lstm' (the paper's causal encoder) and "
            "'reference' (the released code's bidirectional one)."
        )
