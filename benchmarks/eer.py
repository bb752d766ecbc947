"""Time and memory of the equal error rate over all pairs of a LibriSpeech-sized test set.

    python benchmarks/eer.py

Prints the seconds of both factors, the pairs, the peak memory, and as a yardstick of a busy machine
the seconds of one float64 product of all embeddings with each other: the ratio says more than the
seconds.
"""

import argparse
import time
import tracemalloc

import numpy as np

from diffsda_jax.evals.verification import speaker_eer


def main() -> None:
    """Times one call on random factors, then measures its memory in a second one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--utterances", type=int, default=2620)
    parser.add_argument("--speakers", type=int, default=40)
    parser.add_argument("--static_dim", type=int, default=256)
    parser.add_argument("--dynamic_dim", type=int, default=4)
    arguments = parser.parse_args()
    rng, count = np.random.default_rng(0), arguments.utterances
    speakers = rng.integers(arguments.speakers, size=count)
    static = rng.standard_normal((count, arguments.static_dim), np.float32)
    dynamic = rng.standard_normal((count, 68, arguments.dynamic_dim), np.float32)
    embedding = static.astype(np.float64)

    def seconds(function, *inputs) -> tuple[float, float]:
        wall, processor = time.perf_counter(), time.process_time()
        function(*inputs)
        return time.perf_counter() - wall, time.process_time() - processor

    product = min(seconds(np.matmul, embedding, embedding.T) for _ in range(3))[0]
    wall, processor = seconds(speaker_eer, static, dynamic, speakers)
    tracemalloc.start()
    speaker_eer(static, dynamic, speakers)
    peak = tracemalloc.get_traced_memory()[1]
    print(
        f"{count} utterances, {count * (count - 1) // 2} pairs, S = {arguments.static_dim}, both "
        f"factors: {wall:.2f} s wall, {processor:.2f} s CPU, {wall / product:.1f} times one "
        f"matrix product ({product:.3f} s), peak {peak / 2**20:.0f} MiB"
    )


if __name__ == "__main__":
    main()
