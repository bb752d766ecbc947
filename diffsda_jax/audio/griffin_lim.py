"""Spectrograms back to waveforms without a network: mel inversion and fast Griffin-Lim.

References:
  Lee and Seung: Algorithms for non-negative matrix factorization, NIPS 2000; Griffin and Lim 1984;
  Perraudin, Balazs, Soendergaard: A fast Griffin-Lim algorithm, WASPAA 2013.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from diffsda_jax.audio.spectrogram import (
    HIGHEST,
    MelSpec,
    Spec,
    hann,
    mel_basis,
    num_samples,
    overlap_add,
    stft,
)

MEL_ITERATIONS = 100  # of the multiplicative updates; they leave about 0.1 % of a mel's norm
_TINY = 1e-8


def linear_magnitude(log_spectrum: Float[Array, "B V M"], spec: Spec) -> Float[Array, "B V F"]:
    """Magnitudes of the ``n_fft / 2 + 1`` bins behind a log-spectrum.

    Of a mel it is a non-negative least-squares solution; bins that no band covers are zero.

    Raises:
      ValueError: the number of bands is not the description's.
    """
    if log_spectrum.shape[-1] != spec.num_bins:
        raise ValueError(
            f"A spectrogram with {log_spectrum.shape[-1]} features cannot be inverted by "
            f"{type(spec).__name__}, which has {spec.num_bins}; give the description it was made "
            "with."
        )
    target = jnp.exp(log_spectrum)
    if not isinstance(spec, MelSpec):
        return target
    basis = jnp.asarray(mel_basis(spec))
    multiply = functools.partial(jnp.matmul, precision=HIGHEST)
    pulled = multiply(target, basis.T)
    # A start of the right size: every bin gets the mean of the bands that cover it.
    start = pulled / jnp.maximum(basis.sum(1) * basis.sum(0).mean(), _TINY)[None, None, :]

    def update(_, magnitude):
        return (
            magnitude * pulled / jnp.maximum(multiply(multiply(magnitude, basis), basis.T), _TINY)
        )

    return jax.lax.fori_loop(0, MEL_ITERATIONS, update, start)


def inverse_stft(spectrum: Array, spec: Spec) -> Float[Array, "B N"]:
    """The waveform whose frames are nearest to ``spectrum``; the reflected ends are cut off.

    Args:
      spectrum: ``[B, V, n_fft / 2 + 1]`` complex.
      spec: what ``stft`` was given.

    Returns:
      ``N = num_samples(spec, V)`` samples: windowed frames added, divided by the sum of the squared
      windows.
    """
    frames, window = spectrum.shape[1], hann(spec)
    weights = np.zeros((frames - 1) * spec.hop + spec.n_fft)
    for v in range(frames):
        weights[v * spec.hop : v * spec.hop + spec.n_fft] += window**2
    kept = slice(spec.pad, spec.pad + num_samples(spec, frames))
    waves = jnp.fft.irfft(spectrum, spec.n_fft) * jnp.asarray(window, jnp.float32)[None, None, :]
    scale = jnp.asarray(1.0 / np.maximum(weights[kept], _TINY), jnp.float32)
    return overlap_add(waves, spec.hop)[:, kept] * scale[None, :]


def improve_phase(carry: tuple[Array, Array], magnitude: Array, spec: Spec, momentum: float):
    """One step of fast Griffin-Lim.

    Args:
      carry: the spectrum whose phase is taken, and the last consistent spectrum, both of the shape
        of ``magnitude``.
      magnitude: the one that is wanted, ``[B, V, n_fft / 2 + 1]``.
      spec: the framing.
      momentum: see ``griffin_lim``.

    Returns:
      The next carry.
    """
    guess, last = carry
    consistent = stft(inverse_stft(with_phase(magnitude, guess), spec), spec)
    return consistent - momentum / (1 + momentum) * last, consistent


def with_phase(magnitude: Array, spectrum: Array) -> Array:
    """``magnitude`` with the phases of ``spectrum``, all ``[B, V, n_fft / 2 + 1]``."""
    return magnitude * spectrum / jnp.maximum(jnp.abs(spectrum), _TINY)


@functools.partial(jax.jit, static_argnames=("spec", "num_iterations", "momentum"))
def griffin_lim(
    log_spectrum: Float[Array, "B V M"],
    spec: Spec,
    key: Array,
    num_iterations: int = 32,
    momentum: float = 0.99,
) -> Float[Array, "B N"]:
    """A waveform whose spectrogram is near the one given.

    Args:
      log_spectrum: as ``log_mel`` or ``log_linear`` gives it.
      spec: the description it was made with.
      key: of the phases to start from; the same key gives the same sound.
      num_iterations: steps, one scan.
      momentum: share of the last step that is kept; 0 is the classical algorithm.

    Returns:
      ``N = V hop`` samples of a mel, ``(V - 1) hop`` of a linear spectrogram, at
      ``spec.sample_rate_hz``.

    Raises:
      ValueError: the number of bands is not the description's, or too few frames to be reflected.
    """
    magnitude = linear_magnitude(log_spectrum, spec)
    angle = jax.random.uniform(key, magnitude.shape, magnitude.dtype, -jnp.pi, jnp.pi)
    carry = jnp.exp(1j * angle), jnp.zeros(magnitude.shape, jnp.complex64)

    def step(carry, _):
        return improve_phase(carry, magnitude, spec, momentum), None

    (guess, _), _ = jax.lax.scan(step, carry, None, num_iterations)
    return inverse_stft(with_phase(magnitude, guess), spec)
