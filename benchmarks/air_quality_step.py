"""Seconds of a training step on Air Quality sequences, against the same model in PyTorch.

Sizes are those of configs/air_quality.py:reference, 672 steps and 10 noisy copies of each sequence.
Both sides run in processes of their own that take turns on this machine; each waits while the other
works. `torch, original` encodes every copy anew, as the released code does; `torch, encode once` is
the same network with one of our savings; `torch, original, bfloat16` uses PyTorch's automatic mixed
precision. Ours is timed with `model.precision` float32 and bfloat16.

    python benchmarks/air_quality_step.py --torch-python=PATH --batch=2 --rounds=5

PATH is a Python that has PyTorch, this one if left out. `--smoke` tries it all on tiny sizes.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from diffsda_jax import config as configuration

HERE = Path(__file__).parent
OURS = ("jax, float32", "jax, bfloat16")
THEIRS = ("torch, original", "torch, encode once", "torch, original, bfloat16")
MODEL_SIZES = ("static_dim", "dynamic_dim", "hidden_dim", "width", "encoder_width")
SMOKE = {"length": 24, "hidden_dim": 16, "width": 8, "encoder_width": 8}
PAUSE_SECONDS = 0.5  # until the threads of the other process sleep


def load_config(sizes: dict[str, int | str]) -> configuration.ConfigDict:
    """The config that is timed, with other sizes where these are given."""
    config = configuration.load_config(str(HERE.parent / "configs" / "air_quality.py:reference"))
    config.model.update({name: sizes[name] for name in MODEL_SIZES if name in sizes})
    config.data.length = sizes.get("length", config.data.length)
    config.loss.noise_draws = sizes.get("draws", config.loss.noise_draws)
    config.train.batch_size = sizes["batch"]
    config.model.precision = sizes.get("precision", config.model.precision)
    return config


def all_sizes(batch: int, smoke: bool) -> dict[str, int]:
    """Every size that both sides need."""
    from diffsda_jax.data.sources.air_quality import FEATURES

    config = load_config({"batch": batch} | (SMOKE if smoke else {}))
    return {name: config.model[name] for name in MODEL_SIZES} | {
        "features": len(FEATURES),
        "length": config.data.length,
        "draws": config.loss.noise_draws,
        "batch": batch,
    }


class Worker:
    """A process that times training steps when asked.

    Attributes:
      about: what it said of itself: number of parameters and versions.
    """

    def __init__(self, command: list[str]):
        """Starts it and waits until it is ready."""
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.about = self._read()

    def step(self, form: str, count: int) -> dict:
        """Seconds and losses of some steps, and the process's largest memory so far."""
        self._process.stdin.write(json.dumps({"form": form, "steps": count}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"air_quality_step: a worker ended with status {self._process.wait()}.")
        return json.loads(line)


def work(sizes: dict[str, int | str]) -> None:
    """The worker of our side: the step that training runs, on synthetic sequences."""
    import jax

    from diffsda_jax import experiment as experiments
    from diffsda_jax import sharding
    from diffsda_jax.data.sources import ElementSpec
    from diffsda_jax.data.synthetic import Synthetic
    from diffsda_jax.train.step import BATCH_KEYS

    config = load_config(sizes)
    element = ElementSpec("series", (sizes["features"],))
    sources = {
        split: Synthetic(split, element, num_items=2 * sizes["batch"], num_steps=sizes["length"])
        for split in ("train", "test")
    }
    experiment, mesh = experiments.build(config, sources), sharding.make_mesh()
    transformation, step_fn, _ = experiments.make_training(experiment, mesh)
    state = experiments.initial_state(experiment, transformation, mesh)
    batch = experiments.load_split(experiment, "train", sizes["batch"])
    batch = sharding.shard_batch({key: batch[key] for key in BATCH_KEYS}, mesh)
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    about = f"jax {jax.__version__} on {jax.device_count()} x {jax.devices()[0].device_kind}"
    print(json.dumps({"parameters": count, "about": about}), flush=True)
    for line in sys.stdin:
        seconds, losses = [], []
        for _ in range(json.loads(line)["steps"]):
            began = time.perf_counter()
            state, metrics = step_fn(state, batch, jax.random.key(0))
            losses.append(float(metrics["loss"]))  # waits for the device
            seconds.append(time.perf_counter() - began)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(json.dumps({"seconds": seconds, "losses": losses, "peak_mib": peak}), flush=True)


def measure(workers: dict[str, Worker], rounds: int, steps: int) -> dict[str, dict[str, list]]:
    """Median seconds of a step in each round, the first losses and the memory of each side."""
    results: dict[str, dict[str, list]] = {
        name: {"seconds": [], "losses": [], "peak_mib": []} for name in workers
    }
    for number in range(rounds + 1):  # the first round compiles
        for name, worker in workers.items():
            time.sleep(PAUSE_SECONDS)
            answer = worker.step(name.removeprefix("torch, "), steps if number else 1)
            results[name]["losses"] += answer["losses"]
            results[name]["peak_mib"].append(answer["peak_mib"])
            if number:
                results[name]["seconds"].append(statistics.median(answer["seconds"]))
    return results


def format_ratios(theirs: list[float], own: list[float]) -> str:
    """Median of the ratios of each round, with the smallest and the largest."""
    ratios = [their / mine for their, mine in zip(theirs, own, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def report(workers: dict[str, Worker], results: dict[str, dict[str, list]]) -> None:
    """Prints the table; ratios are medians over rounds, with the smallest and the largest."""
    print("| | parameters | s/step |", *(f"times {name} |" for name in OURS), end=" ")
    print("first loss | peak MiB of the process |")
    print("|---" * (5 + len(OURS)) + "|")
    for name, result in results.items():
        cells = [name, f"{workers[name].about['parameters']:,}"]
        cells.append(f"{statistics.median(result['seconds']):.3f}")
        for ours in OURS:
            cells.append(format_ratios(result["seconds"], results[ours]["seconds"]))
        cells += [f"{result['losses'][0]:.3f}", f"{result['peak_mib'][-1]:.0f}"]
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    """Starts both workers, lets them take turns and prints what they took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable, help="a Python with PyTorch")
    parser.add_argument("--batch", type=int, default=2, help="sequences, before they are copied")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of each side in each round")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="of both sides")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        return work(arguments.worker)
    if not Path(arguments.torch_python).is_file():
        sys.exit(f"air_quality_step: --torch-python={arguments.torch_python} is no file.")
    os.environ["JAX_PLATFORMS"] = arguments.device
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # all sides share one GPU
    sizes = all_sizes(arguments.batch, arguments.smoke)
    text, threads = json.dumps(sizes), os.cpu_count()
    twin = [arguments.torch_python, str(HERE / "torch_twin.py"), f"--sizes={text}"]
    theirs = Worker([*twin, f"--device={arguments.device}", f"--threads={threads}"])
    workers = {}
    for name in OURS:
        own = json.dumps(sizes | {"precision": name.removeprefix("jax, ")})
        workers[name] = Worker([sys.executable, __file__, f"--worker={own}"])
    workers |= dict.fromkeys(THEIRS, theirs)
    ours = workers[OURS[0]]
    if ours.about["parameters"] != theirs.about["parameters"]:
        print("The two models are not the same: their numbers of parameters differ.")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    report(workers, measure(workers, arguments.rounds, arguments.steps))
    print(
        f"Machine: {threads} CPUs ({platform.machine()}), load {load:.1f} before; "
        f"{ours.about['about']}; {theirs.about['about']}; device {arguments.device}; "
        f"{arguments.rounds} rounds of {arguments.steps} steps; sizes {sizes}."
    )
    for worker in set(workers.values()):
        worker.close()


if __name__ == "__main__":
    main()
