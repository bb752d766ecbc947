"""Frames per second and peak memory of encoding by a VQ f8 first stage, beside PyTorch.

Raw frames of 256x256 become float16 latents of 32x32x4, as in `--mode=latents`, at the published
widths and with several numbers of frames held at once (`first_stage.chunk_frames`). For each of
them both sides run in processes of their own that take turns on this machine; each waits while the
other works. Weights are random. Memory is the device's on a GPU, and else the process's; `program`
is what XLA states for the arguments, results and temporaries of one chunk.

    python benchmarks/first_stage_encoding.py --torch-python=PATH --chunks=1,4,8 --rounds=3

PATH is a Python that has PyTorch, this one if left out. Small: `--width=32 --size=64`.
"""

import argparse
import dataclasses
import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from turns import PAUSE_SECONDS, Worker, add_record, cores, describe_machine, prepare

HERE = Path(__file__).parent


def work(sizes: dict[str, Any]) -> None:
    """The worker of our side: what `--mode=latents` does with raw frames, on one device."""
    import jax
    import numpy as np

    from diffsda_jax import FirstStage, sharding
    from diffsda_jax.command_line import choose_cpu_kernels
    from diffsda_jax.first_stage.nets import variable_shapes
    from diffsda_jax.first_stage.spec import FirstStageSpec
    from diffsda_jax.first_stage_api import FrameEncoder, encode_bytes

    choose_cpu_kernels()
    spec, chunk = FirstStageSpec.from_dict(sizes["spec"]), sizes["chunk"]
    generator = np.random.default_rng(0)
    weights = jax.tree.map(
        lambda leaf: 0.02 * generator.standard_normal(leaf.shape, np.float32), variable_shapes(spec)
    )
    mesh = sharding.make_mesh(jax.devices()[:1])
    encoder = FrameEncoder(FirstStage(spec, weights), mesh, sizes["frames"], chunk)
    shape = (sizes["size"], sizes["size"], spec.image_channels)
    frames = generator.integers(0, 256, (sizes["frames"], *shape), np.uint8)
    one_chunk = jax.ShapeDtypeStruct((chunk, *shape), np.uint8)
    program = encode_bytes.lower(spec, mesh, encoder.variables, one_chunk).compile()
    memory = program.memory_analysis()
    needs = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    used = [encoder.variables["params"][name] for name in ("encoder", "before_latent")]
    about = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(used)),
        "about": f"jax {jax.__version__} on {jax.devices()[0].device_kind}",
        "program_mib": needs / 2**20,
    }
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        count, began = json.loads(line)["steps"], time.perf_counter()
        for _ in range(count):
            encoder.fetch(encoder.start(frames), len(frames))  # waits for the device
        seconds = (time.perf_counter() - began) / count
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10
        peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", peak)
        print(json.dumps({"seconds": seconds, "peak_mib": peak / 2**20}), flush=True)


def measure(workers: dict[str, Worker], frames: int, rounds: int, steps: int) -> dict[str, Any]:
    """Frames per second of each side in each round, and each side's peak memory."""
    results: dict[str, Any] = {name: [] for name in workers}
    for number in range(rounds + 1):  # the first round compiles
        for name, worker in workers.items():
            time.sleep(PAUSE_SECONDS)
            answer = worker.step("", steps if number else 1)
            results[f"{name} peak"] = answer["peak_mib"]
            if number:
                results[name].append(frames / answer["seconds"])
    return results


def row(chunk: int, results: dict[str, Any], program_mib: float) -> str:
    """One line of the table; the ratio is the median over rounds, smallest and largest."""
    ratios = [ours / theirs for ours, theirs in zip(results["jax"], results["torch"], strict=True)]
    cells = [str(chunk), *(f"{statistics.median(results[name]):.2f}" for name in ("jax", "torch"))]
    cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    cells += [f"{value:.0f}" for value in (results["jax peak"], program_mib, results["torch peak"])]
    return "| " + " | ".join(cells) + " |"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable, help="a Python with PyTorch")
    parser.add_argument("--width", type=int, default=128, help="base width; published: 128")
    parser.add_argument("--size", type=int, default=256, help="side of the frames in pixels")
    parser.add_argument("--chunks", default="1,4,8", help="frames held at once, several numbers")
    parser.add_argument("--frames", type=int, default=8, help="of one encoding, at least")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="encodings of a side in a round")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="of both sides")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="file that results are added to")
    return parser.parse_args()


def main() -> None:
    """For every number of frames held at once: starts both sides, lets them take turns."""
    arguments = parse_arguments()
    if arguments.worker is not None:
        return work(arguments.worker)
    from diffsda_jax.first_stage.spec import PUBLISHED

    prepare(arguments)
    spec = dataclasses.replace(PUBLISHED["vq-f8"], channels=arguments.width).to_dict()
    machine, abouts, measured = describe_machine(), [], {}
    print("| chunk_frames | jax frames/s | torch frames/s | jax / torch | jax peak MiB", end=" ")
    print("| of these its program | torch peak MiB |\n" + "|---" * 7 + "|")
    for chunk in map(int, arguments.chunks.split(",")):
        frames = -(-arguments.frames // chunk) * chunk
        sizes = {"spec": spec, "size": arguments.size, "chunk": chunk, "frames": frames}
        text = json.dumps(sizes)
        twin = [arguments.torch_python, str(HERE / "torch_first_stage.py"), f"--sizes={text}"]
        twin += [f"--device={arguments.device}", f"--threads={cores()}"]
        workers = {"jax": Worker([sys.executable, __file__, f"--worker={text}"])}
        workers["torch"] = Worker(twin)
        abouts = [worker.about for worker in workers.values()]
        if abouts[0]["parameters"] != abouts[1]["parameters"]:
            print("The two encoders are not the same: their numbers of parameters differ.")
        results = measure(workers, frames, arguments.rounds, arguments.steps)
        print(row(chunk, results, abouts[0]["program_mib"]), flush=True)
        measured[chunk] = results | {"program_mib": abouts[0]["program_mib"]}
        for worker in workers.values():
            worker.close()
    print(
        f"{machine}{abouts[0]['about']}; {abouts[1]['about']}; device {arguments.device}; "
        f"{abouts[0]['parameters']:,} parameters of the encoder; frames of {arguments.size}x"
        f"{arguments.size}; {arguments.rounds} rounds of {arguments.steps} encodings."
    )
    add_record(
        arguments.out, machine + "; ".join(each["about"] for each in abouts), chunks=measured
    )


if __name__ == "__main__":
    main()
