"""How fast clips of latents are read: from the records, through the pipeline, and to the device.

Latents of random numbers are written to a temporary folder: a set of clips as long as a window, 10
frames of 32x32x4, and a set of clips of 100 frames. ``records`` reads batches of float16 in one
thread, ``records to device`` also moves them there; ``pipeline`` gives training's batches
(normalised, float32, labels, mask) on the host, made by Grain in ``--threads`` threads, and
``pipeline to device`` moves those. CPU time counts all threads; clips per second of wall time say
little while other programs run. The files come from the page cache: with a cold one the disk adds
its time, 82 kB a clip of 10 frames and about 205 kB a window of a longer one.

    taskset -c 0,1 python benchmarks/latents_reading.py --clips=20000 --long_clips=2000
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from diffsda_jax.data.pipeline import make_train_iterator
from diffsda_jax.data.records import ClipEntry, LatentIndex, LatentReader, LatentWriter
from diffsda_jax.data.sources import make_source
from diffsda_jax.data.transforms import fit_normalizer

SHAPE, LENGTH = (32, 32, 4), 10


def write_clips(folder: Path, count: int, frames: int) -> None:
    """Writes clips of random numbers."""
    latents = np.random.default_rng(0).standard_normal((frames, *SHAPE)).astype(np.float16)
    writer = LatentWriter(folder, {"source": "random"})
    for number in range(count):
        labels = {"static": f"speaker {number % 9}"}
        writer.write(ClipEntry(f"{number:06d}", "train", "random", frames, labels), latents)
    writer.finish()


def make_readers(folder: Path, batch: int, threads: int) -> dict[str, Callable[[], object]]:
    """Functions that each give one batch, by name."""
    index, random = LatentIndex.load(folder), np.random.default_rng(1)
    reader, clips = LatentReader(index, "train"), index.clips["train"]
    last_start = clips[0].entry.frames - LENGTH
    source = make_source("latents", "train", root=str(folder), length=LENGTH)
    iterators = [
        make_train_iterator(
            source,
            length=LENGTH,
            normalizer=fit_normalizer(source),
            batch_size=batch,
            seed=0,
            num_threads=threads,
        )
        for _ in range(2)
    ]

    def records() -> np.ndarray:
        starts = random.integers(last_start + 1, size=batch)
        return reader.read_batch(
            random.integers(len(clips), size=batch), starts[:, None] + np.arange(LENGTH)
        )

    return {
        "records, float16": records,
        "records to device, float16": lambda: jax.block_until_ready(jax.device_put(records())),
        "pipeline, float32": lambda: next(iterators[0]),
        "pipeline to device, float32": lambda: jax.block_until_ready(
            jax.device_put(next(iterators[1]))
        ),
    }


def measure(make_batch: Callable[[], object], batch: int, seconds: float) -> tuple[float, float]:
    """Clips per second, and CPU microseconds per clip, after as many batches as are held ready."""
    for _ in range(12):
        make_batch()
    count, cpu, began = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() < began + seconds:
        make_batch()
        count += batch
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    return count / wall, 1e6 * cpu / count


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=20000, help="of 10 frames, 82 kB each")
    parser.add_argument("--long_clips", type=int, default=2000, help="of 100 frames, 820 kB each")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    arguments = parser.parse_args()
    print("| what | clips of | clips/s | CPU us/clip |\n|---|---|---|---|")
    for count, frames in ((arguments.clips, LENGTH), (arguments.long_clips, 10 * LENGTH)):
        with tempfile.TemporaryDirectory() as folder:
            write_clips(Path(folder), count, frames)
            readers = make_readers(Path(folder), arguments.batch, arguments.threads)
            for name, make_batch in readers.items():
                rate, cpu = measure(make_batch, arguments.batch, arguments.seconds)
                print(f"| {name} | {frames} frames | {rate:.0f} | {cpu:.0f} |", flush=True)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(
        f"Machine: {jax.devices()[0].device_kind} x {jax.device_count()}, {os.cpu_count()} CPUs "
        f"({platform.machine()}), load {load:.1f}, jax {jax.__version__}, numpy {np.__version__}, "
        f"batches of {arguments.batch}, {arguments.threads} threads."
    )


if __name__ == "__main__":
    main()
