"""Waveforms to spectrograms: resampling, the HiFi-GAN log-mel and a linear log-magnitude.

Pure functions of arrays and frozen descriptions; under ``jax.jit`` the rates and the description
are static. The filters are built once, in numpy.

References:
  Kong et al.: HiFi-GAN, NeurIPS 2020 (framing, floor and mel basis); Slaney: Auditory Toolbox, 1998
  (mel scale); ``scipy.signal.resample_poly`` (filter); librosa's documentation (linear variant).
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

HIGHEST = jax.lax.Precision.HIGHEST  # accelerators round matrix products otherwise
# The Kaiser filter of resample_poly: zero crossings on each side, and shape.
_ZERO_CROSSINGS, _KAISER_BETA = 10, 5.0
# Slaney's scale: linear up to 1 kHz, then 27 mels for each factor of 6.4.
_HZ_PER_MEL, _BREAK_HZ, _LOG_STEP = 200 / 3, 1000.0, math.log(6.4) / 27


@dataclasses.dataclass(frozen=True)
class MelSpec:
    """The log-mel of HiFi-GAN; the defaults are the published 22.05 kHz ones.

    Attributes:
      sample_rate_hz: of the waveform.
      n_fft: samples of a frame.
      hop: samples between frames.
      window: samples of the Hann window, at most ``n_fft``.
      num_mels: bands.
      fmin_hz: lower edge of the first band.
      fmax_hz: upper edge of the last band.
      floor: mel magnitudes below it count as it.
      magnitude_eps: added to the squared magnitude.

    Raises:
      ValueError: values that contradict each other.
    """

    sample_rate_hz: int = 22050
    n_fft: int = 1024
    hop: int = 256
    window: int = 1024
    num_mels: int = 80
    fmin_hz: float = 0.0
    fmax_hz: float = 8000.0
    floor: float = 1e-5
    magnitude_eps: float = 1e-9

    def __post_init__(self):
        """Checks the values."""
        _check_frames(self)
        if not 0 <= self.fmin_hz < self.fmax_hz <= self.sample_rate_hz / 2:
            raise ValueError(
                f"MelSpec covers {self.fmin_hz} to {self.fmax_hz} Hz; at {self.sample_rate_hz} Hz "
                f"the bands must rise between 0 and {self.sample_rate_hz / 2} Hz."
            )
        if self.num_mels < 1:
            raise ValueError(f"MelSpec.num_mels is {self.num_mels}; give 1 or more.")

    @property
    def pad(self) -> int:
        """Samples reflected on each side; V frames then cover V hops."""
        return (self.n_fft - self.hop) // 2

    @property
    def num_bins(self) -> int:
        """Features of a frame."""
        return self.num_mels


@dataclasses.dataclass(frozen=True)
class LinearSpec:
    """A linear-frequency log-magnitude with centred frames; the defaults are for 16 kHz speech.

    Attributes:
      sample_rate_hz: of the waveform.
      n_fft: samples of a frame.
      hop: samples between frames.
      window: samples of the Hann window, centred in the frame.
      floor: magnitudes below it count as it.

    Raises:
      ValueError: values that contradict each other.
    """

    sample_rate_hz: int = 16000
    n_fft: int = 400
    hop: int = 165
    window: int = 320
    floor: float = 1e-5

    def __post_init__(self):
        """Checks the values."""
        _check_frames(self)

    @property
    def pad(self) -> int:
        """Samples reflected on each side; frame v is centred on sample v hop."""
        return self.n_fft // 2

    @property
    def num_bins(self) -> int:
        """Features of a frame."""
        return self.n_fft // 2 + 1


Spec = MelSpec | LinearSpec


def _check_frames(spec: Spec) -> None:
    """Refuses sizes that make no frames, and floors without a logarithm."""
    name = type(spec).__name__
    if not 0 < spec.hop <= spec.window <= spec.n_fft or spec.n_fft % 2:
        raise ValueError(
            f"{name} has hop {spec.hop}, window {spec.window} and n_fft {spec.n_fft}; they must "
            "rise in this order from 1, and n_fft must be even."
        )
    if isinstance(spec, MelSpec) and (spec.n_fft - spec.hop) % 2:
        raise ValueError(f"{name}.hop is {spec.hop}; it must be even, as n_fft is.")
    if spec.sample_rate_hz < 1 or spec.floor <= 0:
        raise ValueError(
            f"{name} has sample_rate_hz {spec.sample_rate_hz} and floor {spec.floor}; both must be "
            "positive."
        )


def num_frames(spec: Spec, samples: int) -> int:
    """Frames V of a waveform of so many samples at the description's rate."""
    return 1 + (samples + 2 * spec.pad - spec.n_fft) // spec.hop


def num_samples(spec: Spec, frames: int) -> int:
    """The smallest number of samples that give so many frames."""
    return (frames - 1) * spec.hop + spec.n_fft - 2 * spec.pad


@functools.lru_cache(maxsize=16)
def resampling_matrix(up: int, down: int) -> tuple[np.ndarray, int]:
    """The filter laid out for one period, ``[J, up]``, and how many samples it looks back.

    Output ``q up + p`` is ``sum_j x[q down + j] h[p down - j up]``, where h is the windowed sinc
    around its middle. j runs from minus the second value on.
    """
    widest = max(up, down)
    half = _ZERO_CROSSINGS * widest
    time = np.arange(-half, half + 1)
    taps = np.sinc(time / widest) * np.kaiser(2 * half + 1, _KAISER_BETA)
    taps *= up / taps.sum()
    before = half // up
    after = ((up - 1) * down + half) // up
    lag = np.arange(up)[None, :] * down - np.arange(-before, after + 1)[:, None] * up
    matrix = np.where(np.abs(lag) <= half, taps[np.clip(lag + half, 0, 2 * half)], 0.0)
    return matrix.astype(np.float32), before


def resample(x: Float[Array, "B N"], from_hz: int, to_hz: int) -> Float[Array, "B M"]:
    """Resamples waveforms by a windowed sinc; what lies outside counts as zero.

    Equals ``scipy.signal.resample_poly(x, to_hz, from_hz, axis=-1)``, as one matrix product on
    overlapping frames of one period (320 samples to 441 for 16 to 22.05 kHz).

    Args:
      x: waveforms.
      from_hz: their rate.
      to_hz: the rate wanted.

    Returns:
      ``M = ceil(N to_hz / from_hz)`` samples.

    Raises:
      ValueError: a rate is not positive.
    """
    if from_hz < 1 or to_hz < 1:
        raise ValueError(f"Cannot resample from {from_hz} to {to_hz} Hz; rates must be positive.")
    common = math.gcd(from_hz, to_hz)
    up, down = to_hz // common, from_hz // common
    if up == down:
        return x
    matrix, before = resampling_matrix(up, down)
    length = -(-x.shape[1] * up // down)
    periods = -(-length // up)
    after = (periods - 1) * down + matrix.shape[0] - before - x.shape[1]
    padded = jnp.pad(x, ((0, 0), (before, max(after, 0))))
    frames = frame(padded, matrix.shape[0], down, periods)
    out = jnp.matmul(frames, jnp.asarray(matrix, x.dtype), precision=HIGHEST)
    return out.reshape(x.shape[0], periods * up)[:, :length]


def frame(
    x: Float[Array, "B N"], size: int, hop: int, count: int
) -> Float[Array, "B {count} {size}"]:
    """Overlapping frames, ``out[:, v, i] = x[:, v hop + i]``.

    Made of shifted whole blocks, which is faster than reading by index.
    """
    blocks = -(-size // hop)
    missing = (count - 1 + blocks) * hop - x.shape[1]
    x = jnp.pad(x, ((0, 0), (0, max(missing, 0))))
    parts = [
        x[:, i * hop : (i + count) * hop].reshape(x.shape[0], count, hop) for i in range(blocks)
    ]
    return jnp.concatenate(parts, axis=-1)[:, :, :size]


def overlap_add(frames: Float[Array, "B V L"], hop: int) -> Float[Array, "B N"]:
    """Adds frames where they lay, the transpose of ``frame``; ``N = (V - 1) hop + L``."""
    batch, count, size = frames.shape
    blocks = -(-size // hop)
    frames = jnp.pad(frames, ((0, 0), (0, 0), (0, blocks * hop - size)))
    total = jnp.zeros((batch, (count - 1 + blocks) * hop), frames.dtype)
    for i in range(blocks):
        part = frames[:, :, i * hop : (i + 1) * hop].reshape(batch, count * hop)
        total = total + jnp.pad(part, ((0, 0), (i * hop, (blocks - 1 - i) * hop)))
    return total[:, : (count - 1) * hop + size]


def hann(spec: Spec) -> np.ndarray:
    """The periodic Hann window, centred in a frame of ``n_fft`` samples, ``[n_fft]`` float64."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(spec.window) / spec.window)
    before = (spec.n_fft - spec.window) // 2
    return np.pad(window, (before, spec.n_fft - spec.window - before))


def stft(x: Float[Array, "B N"], spec: Spec) -> Array:
    """Complex spectra of reflected, windowed frames, ``[B, V, n_fft / 2 + 1]``.

    Raises:
      ValueError: a waveform too short to be reflected.
    """
    if x.shape[1] <= spec.pad:
        raise ValueError(
            f"A waveform of {x.shape[1]} samples is too short for {type(spec).__name__}, which "
            f"reflects {spec.pad} on each side; give {spec.pad + 1} or more (pad with zeros)."
        )
    padded = jnp.pad(x, ((0, 0), (spec.pad, spec.pad)), mode="reflect")
    frames = frame(padded, spec.n_fft, spec.hop, num_frames(spec, x.shape[1]))
    return jnp.fft.rfft(frames * jnp.asarray(hann(spec), x.dtype)[None, None, :])


def _power(spectrum: Array) -> Array:
    """Squared magnitude, whose gradient is finite at zero."""
    return jnp.square(spectrum.real) + jnp.square(spectrum.imag)


def _slaney_hz(mel: np.ndarray) -> np.ndarray:
    """Frequencies of points on Slaney's scale."""
    break_mel = _BREAK_HZ / _HZ_PER_MEL
    above = _BREAK_HZ * np.exp(_LOG_STEP * np.maximum(mel - break_mel, 0.0))
    return np.where(mel < break_mel, mel * _HZ_PER_MEL, above)


def _slaney_mel(hz: float) -> float:
    """Point of a frequency on Slaney's scale."""
    if hz < _BREAK_HZ:
        return hz / _HZ_PER_MEL
    return _BREAK_HZ / _HZ_PER_MEL + math.log(hz / _BREAK_HZ) / _LOG_STEP


@functools.lru_cache(maxsize=16)
def mel_basis(spec: MelSpec) -> np.ndarray:
    """Triangles of unit area on Slaney's scale.

    Returns:
      ``[n_fft / 2 + 1, num_mels]`` float32, not writeable.
    """
    bins = np.linspace(0.0, spec.sample_rate_hz / 2, spec.n_fft // 2 + 1)[:, None]
    ends = _slaney_mel(spec.fmin_hz), _slaney_mel(spec.fmax_hz)
    edges = _slaney_hz(np.linspace(*ends, spec.num_mels + 2))[None, :]
    low, middle, high = edges[:, :-2], edges[:, 1:-1], edges[:, 2:]
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    basis = np.maximum(np.minimum(rising, falling), 0.0) * (2.0 / (high - low))
    basis = basis.astype(np.float32)
    basis.flags.writeable = False
    return basis


def log_mel(x: Float[Array, "B N"], spec: MelSpec) -> Float[Array, "B V M"]:
    """Natural logarithm of mel magnitudes, as HiFi-GAN is trained on them.

    Args:
      x: waveforms in +-1 at ``spec.sample_rate_hz``; N above ``spec.pad``.
      spec: what to compute.

    Returns:
      ``V = N // hop`` frames; 0.8 s, which are 17,640 samples, give 68.

    Raises:
      ValueError: a waveform too short to be reflected.
    """
    magnitude = jnp.sqrt(_power(stft(x, spec)) + spec.magnitude_eps)
    mel = jnp.matmul(magnitude, jnp.asarray(mel_basis(spec), x.dtype), precision=HIGHEST)
    return jnp.log(jnp.maximum(mel, spec.floor))


def log_linear(x: Float[Array, "B N"], spec: LinearSpec) -> Float[Array, "B V M"]:
    """Natural logarithm of magnitudes, ``V = 1 + N // hop`` frames of ``n_fft / 2 + 1`` bins.

    Args:
      x: waveforms at ``spec.sample_rate_hz``; N above ``spec.pad``.
      spec: what to compute.

    Raises:
      ValueError: a waveform too short to be reflected.
    """
    return 0.5 * jnp.log(jnp.maximum(_power(stft(x, spec)), spec.floor**2))
