"""The mel front end (16 to 22.05 kHz, log-mel) on this device against numpy in the data workers.

Clips of 0.8 s. ``jax`` computes batches in one jitted function, transfer of the samples included.
``numpy`` computes one clip at a time with the same filters in float32 and ``np.fft``, as a worker
would: in one process with one BLAS thread, while jax takes all cores, so with several workers the
ratio shrinks; CPU time per clip (all threads) tells more where jax runs on the CPU. Both are also
timed without the resampling.

    python benchmarks/mel_front_end.py --batch=64 --rounds=5
"""

import argparse
import os
import platform
import time
from collections.abc import Callable

import jax
import numpy as np
from threadpoolctl import threadpool_limits

from diffsda_jax.audio import spectrogram as sg

FROM_HZ, SAMPLES = 16000, 12800
SPEC = sg.MelSpec()


def log_mel_numpy(x: np.ndarray, window: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """The log-mel of one waveform, ``[N] -> [V, M]``."""
    padded = np.pad(x, SPEC.pad, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, SPEC.n_fft)[:: SPEC.hop]
    spectrum = np.fft.rfft(frames * window)
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    return np.log(np.maximum(np.sqrt(power + SPEC.magnitude_eps) @ basis, SPEC.floor))


def resample_numpy(x: np.ndarray, matrix: np.ndarray, before: int, down: int) -> np.ndarray:
    """Resamples one waveform by the product that ``sg.resample`` does, ``[N] -> [M]``."""
    periods = len(x) // down
    after = (periods - 1) * down + matrix.shape[0] - before - len(x)
    padded = np.pad(x, (before, after))
    frames = np.lib.stride_tricks.sliding_window_view(padded, matrix.shape[0])[::down]
    return (frames @ matrix).reshape(-1)


def numpy_front_end(resampling: bool) -> Callable[[np.ndarray], np.ndarray]:
    """The front end on a batch, one clip at a time."""
    common = np.gcd(FROM_HZ, SPEC.sample_rate_hz)
    up, down = SPEC.sample_rate_hz // common, FROM_HZ // common
    matrix, before = sg.resampling_matrix(int(up), int(down))
    window, basis = sg.hann(SPEC).astype(np.float32), sg.mel_basis(SPEC)

    def one(clip: np.ndarray) -> np.ndarray:
        clip = resample_numpy(clip, matrix, before, down) if resampling else clip
        return log_mel_numpy(clip, window, basis)

    return lambda clips: np.stack([one(clip) for clip in clips])


def jax_front_end(resampling: bool) -> Callable[[np.ndarray], np.ndarray]:
    """The front end on a batch, jitted."""

    @jax.jit
    def compute(clips):
        if resampling:
            clips = sg.resample(clips, FROM_HZ, SPEC.sample_rate_hz)
        return sg.log_mel(clips, SPEC)

    return lambda clips: jax.block_until_ready(compute(clips))


def measure(computes: list[Callable], clips: np.ndarray, rounds: int) -> np.ndarray:
    """Clips per second and CPU milliseconds per clip of each function, ``[functions, 2]``.

    Medians over rounds, in which the functions take turns, after one that compiles.
    """
    spent = np.zeros((rounds + 1, len(computes), 2))
    for i in range(rounds + 1):
        for j, compute in enumerate(computes):
            began = time.perf_counter(), time.process_time()
            compute(clips)
            spent[i, j] = time.perf_counter() - began[0], time.process_time() - began[1]
    wall, cpu = np.median(spent[1:], axis=0).T
    return np.stack([len(clips) / wall, 1e3 * cpu / len(clips)], axis=1)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    print(
        "| front end | numpy clips/s | jax clips/s | jax / numpy | numpy CPU ms/clip | "
        "jax CPU ms/clip | largest difference |"
    )
    print("|---" * 7 + "|")
    for name, resampling in (("resampling and log-mel", True), ("log-mel alone", False)):
        length = SAMPLES if resampling else SAMPLES * SPEC.sample_rate_hz // FROM_HZ
        clips = 0.1 * random.standard_normal((arguments.batch, length), np.float32)
        host, device = numpy_front_end(resampling), jax_front_end(resampling)
        difference = np.abs(host(clips) - np.asarray(device(clips))).max()
        with threadpool_limits(1, "blas"):  # numpy's; XLA has threads of its own
            (rate, cpu), (jax_rate, jax_cpu) = measure([host, device], clips, arguments.rounds)
        print(
            f"| {name} | {rate:.0f} | {jax_rate:.0f} | {jax_rate / rate:.2f} | {cpu:.2f} | "
            f"{jax_cpu:.2f} | {difference:.1e} |"
        )
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(
        f"Machine: {jax.devices()[0].device_kind} x {jax.device_count()}, {os.cpu_count()} CPUs "
        f"({platform.machine()}), load {load:.1f}, jax {jax.__version__}, numpy {np.__version__}, "
        f"batch {arguments.batch}, {arguments.rounds} rounds."
    )


if __name__ == "__main__":
    main()
