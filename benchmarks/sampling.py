"""Seconds of sampling sequences with the denoiser of a config, beside the same in PyTorch.

Both sides draw the same number of sequences from noise, given factors, with random weights: Heun's
method with 63 evaluations on either side, and on ours also solvers that need fewer. They run in
processes of their own that take turns on this machine; each waits while the other works.

    python benchmarks/sampling.py --torch-python=PATH --config=configs/digits.py --clips=64 \
        --length=16 --fast=dpmpp_2m:12
    python benchmarks/sampling.py --config=configs/librispeech.py:reference --shape=80 --clips=16 \
        --length=68 --theirs=eager

PATH is a Python that has PyTorch, this one if left out. `--fast` takes solver:steps, several by
commas, such as the one that `--mode=sampling` chose. With `--jemalloc` our side allocates by
that library.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from turns import (
    PAUSE_SECONDS,
    Worker,
    add_record,
    cores,
    describe_machine,
    format_ratios,
    jemalloc_environment,
    prepare,
)

HERE = Path(__file__).parent


def work(sizes: dict[str, Any]) -> None:
    """The worker of our side: `DiffSDA.decode` from given noise."""
    import jax
    import numpy as np

    from diffsda_jax import DiffSDA, Factors
    from diffsda_jax.command_line import choose_cpu_kernels
    from diffsda_jax.model import ModelSpec, variable_shapes

    choose_cpu_kernels()
    spec = ModelSpec.from_dict(sizes["spec"])
    generator = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape, np.float32)

    weights = jax.tree.map(lambda leaf: 0.05 * draw(*leaf.shape), variable_shapes(spec))
    model = DiffSDA(spec, jax.device_put(weights))
    clips, length = sizes["clips"], sizes["length"]
    factors = Factors(draw(clips, spec.static_dim), draw(clips, length, spec.dynamic_dim))
    start = draw(clips, length, *spec.shape)
    count = sum(leaf.size for leaf in jax.tree.leaves(model.variables["params"]["denoiser"]))
    about = f"jax {jax.__version__} on {jax.devices()[0].device_kind}"
    print(json.dumps({"parameters": count, "about": about}), flush=True)
    for line in sys.stdin:
        request, began = json.loads(line), time.perf_counter()
        solver, num_steps = request["form"].split(":")
        for _ in range(request["steps"]):
            x = model.decode(factors, start=start, solver=solver, num_steps=int(num_steps))
        x.block_until_ready()
        seconds = (time.perf_counter() - began) / request["steps"]
        print(json.dumps({"seconds": seconds}), flush=True)


def measure(sides: list[tuple[str, str, Worker]], rounds: int) -> dict[str, list[float]]:
    """Seconds of one sampling of every side in every round, after one that compiles."""
    results: dict[str, list[float]] = {name: [] for name, _, _ in sides}
    for number in range(rounds + 1):
        for name, form, worker in sides:
            time.sleep(PAUSE_SECONDS)
            seconds = worker.step(form, 1)["seconds"]
            if number:
                results[name].append(seconds)
    return results


def report(results: dict[str, list[float]], evaluations: dict[str, int]) -> None:
    """Prints the table; ratios are medians over rounds, with the smallest and the largest."""
    theirs = [name for name in results if name.startswith("torch")]
    print("| | evaluations | s | " + " | ".join(f"{name} / this" for name in theirs) + " |")
    print("|---" * (3 + len(theirs)) + "|")
    for name, seconds in results.items():
        cells = [name, str(evaluations[name]), f"{statistics.median(seconds):.2f}"]
        cells += [format_ratios(results[other], seconds) for other in theirs]
        print("| " + " | ".join(cells) + " |")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable, help="a Python with PyTorch")
    parser.add_argument("--config", default=str(HERE.parent / "configs" / "digits.py"))
    parser.add_argument("--shape", default="16,16,1", help="height, width, channels; or features")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--length", type=int, default=16, help="steps of a sequence")
    parser.add_argument("--steps", type=int, default=32, help="of Heun; 32 are 63 evaluations")
    parser.add_argument("--fast", default="dpmpp_2m:12", help="solver:steps, several by commas")
    parser.add_argument("--theirs", default="eager;eager, channels last", help="several by ;")
    parser.add_argument("--precision", default="", help="of our side: float32 or bfloat16")
    parser.add_argument("--jemalloc", action="store_true", help="of our side, as allocator")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="of both sides")
    parser.add_argument("--out", type=Path, help="file that results are added to")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Starts both sides, lets them take turns and prints what they took."""
    arguments = parse_arguments()
    if arguments.worker is not None:
        return work(arguments.worker)
    from diffsda_jax import config as configuration
    from diffsda_jax.diffusion.samplers import SamplerSpec
    from diffsda_jax.diffusion.schedules import sigma_grid
    from diffsda_jax.experiment import model_spec

    prepare(arguments)
    config = configuration.load_config(arguments.config)
    shape = tuple(map(int, arguments.shape.split(",")))
    spec = model_spec(config, "video" if len(shape) == 3 else "series", shape)
    grid = sigma_grid(arguments.steps, spec.sigma_min, spec.sigma_max, spec.rho).tolist()
    values = spec.to_dict()
    values["precision"] = arguments.precision or values["precision"]
    sizes = {"spec": values, "clips": arguments.clips, "length": arguments.length, "grid": grid}
    twin = [arguments.torch_python, str(HERE / "torch_sampling.py"), f"--sizes={json.dumps(sizes)}"]
    theirs = Worker([*twin, f"--device={arguments.device}", f"--threads={cores()}"])
    environment = jemalloc_environment() if arguments.jemalloc else {}
    ours = Worker([sys.executable, __file__, f"--worker={json.dumps(sizes)}"], environment)
    if ours.about["parameters"] != theirs.about["parameters"]:
        print("The two denoisers are not the same: their numbers of parameters differ.")
    machine = describe_machine((ours.about["about"], theirs.about["about"]))
    forms = [f"heun:{arguments.steps}", *arguments.fast.split(",")]
    sides = [(f"torch, {form}", form, theirs) for form in arguments.theirs.split(";")]
    sides += [(f"jax, {form}", form, ours) for form in forms]
    evaluations = {name: 2 * arguments.steps - 1 for name, _, side in sides if side is theirs}
    for form in forms:
        solver, num_steps = form.split(":")
        evaluations[f"jax, {form}"] = SamplerSpec(solver, int(num_steps)).evaluations
    results = measure(sides, arguments.rounds)
    report(results, evaluations)
    print(
        f"{machine}; device {arguments.device}; {arguments.rounds} rounds; "
        f"{ours.about['parameters']:,} parameters of the denoiser; "
        f"{arguments.clips} sequences of {arguments.length} steps {shape}."
    )
    add_record(arguments.out, machine, evaluations=evaluations, seconds=results)
    for worker in (ours, theirs):
        worker.close()


if __name__ == "__main__":
    main()
