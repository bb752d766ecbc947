"""Seconds and differences of the LSTM as a scan and by cuDNN, on one NVIDIA GPU.

    python benchmarks/lstm_backends.py

Prints, for the sizes of the encoders of Air Quality and of vox256, the time of the outputs and of
the gradients, and how far the two are apart, relative to the largest value.
"""

import functools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffsda_jax.nets import cudnn_lstm
from diffsda_jax.nets.recurrence import LSTM, valid_steps

SIZES = {"air_quality": (8, 672, 512, 256), "vox256": (16, 10, 1024, 1024)}  # B, V, F, H
REPEATS = 20


def milliseconds(function: Callable[..., Any], *arguments: Any) -> float:
    """Median time of a call."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)


def compare(batch: int, steps: int, features: int, hidden: int, reverse: bool) -> str:
    """What both take and how far they are apart, as a text."""
    x = jax.random.normal(jax.random.key(0), (batch, steps, features))
    valid = valid_steps(jnp.maximum(steps - jnp.arange(batch), 1), batch, steps)
    nets = [LSTM(hidden, reverse=reverse, cudnn=cudnn) for cudnn in (False, True)]
    variables = nets[0].init(jax.random.key(1), x, valid)

    def loss(net: LSTM, variables: Any, x: Any) -> Any:
        final, outputs = net.apply(variables, x, valid)
        return jnp.sum(jnp.where(valid.T[..., None], outputs, 0) ** 2) + final.sum()

    results, times = [], []
    for net in nets:
        outputs = jax.jit(functools.partial(net.apply, variables, valid=valid))
        slopes = jax.jit(jax.grad(functools.partial(loss, net), (0, 1)))
        results.append(jax.tree.leaves((outputs(x), slopes(variables, x))))
        times.append((milliseconds(outputs, x), milliseconds(slopes, variables, x)))
    apart = max(
        float(jnp.abs(own - other).max() / jnp.abs(own).max())
        for own, other in zip(*results, strict=True)
    )
    (scan, scan_slope), (cudnn, cudnn_slope) = times
    return (
        f"outputs {scan:.2f} ms by the scan and {cudnn:.2f} by cuDNN, gradients {scan_slope:.2f} "
        f"and {cudnn_slope:.2f} ms; apart by {apart:.1e}"
    )


def main() -> None:
    """Prints a line for each size and direction."""
    if not cudnn_lstm.is_available():
        sys.exit("lstm_backends: needs exactly one NVIDIA GPU.")
    jax.config.update("jax_default_matmul_precision", "highest")
    for name, sizes in SIZES.items():
        for reverse in (False, True):
            direction = "backward" if reverse else "forward"
            print(f"{name}, {direction}: {compare(*sizes, reverse)}", flush=True)


if __name__ == "__main__":
    main()
