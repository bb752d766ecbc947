"""Seconds of a training step, beside the same model in PyTorch, and the share of the peak.

The model is that of a config of `configs/`, on made-up sequences of the config's shape. All sides
run in processes of their own that take turns on this machine; each waits while another works. The
first step of each, which compiles, is timed apart. The peak is a large square matrix product, of
the precision that our side multiplies in, in the same run. Forms of the twins: see
`torch_video.py` and `torch_series.py`; with `, jemalloc` at its end, a side of either kind gets its
memory from there.

    python benchmarks/train_step.py --config=configs/vox256.py --device=cuda \
        --ours=bfloat16 --theirs="eager;compiled, bfloat16, channels last"
    python benchmarks/train_step.py --config=configs/mug64.py --batch=1 --torch-python=PATH
    python benchmarks/train_step.py --config=configs/air_quality.py:reference --batch=2 \
        --ours="float32;bfloat16" --theirs="original;encode once" --torch-python=PATH

PATH is a Python that has PyTorch, this one if left out. `--out` adds the results, as a line of
JSON, to a file. `--trace` names the kernels that take most of the time of our step on a GPU. With
`--patience=SECONDS` a PyTorch side that has not done its first steps by then is left out.
"""

import argparse
import collections
import glob
import gzip
import json
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from turns import (
    PAUSE_SECONDS,
    Worker,
    add_record,
    cores,
    describe_machine,
    format_ratios,
    prepare,
    split_allocator,
)

HERE = Path(__file__).parent
PEAK_SIZE = {"cpu": 2048, "cuda": 8192}
PEAK_REPEATS = 10
TWINS = {  # by kind: file, forms that are timed if none are named
    "video": ("torch_video.py", ("eager", "eager, channels last")),
    "series": ("torch_series.py", ("original", "encode once", "original, bfloat16")),
}


def load_experiment(sizes: dict[str, Any]) -> Any:
    """The experiment of the config on made-up sequences, with the options of the command line."""
    from diffsda_jax import config as configuration
    from diffsda_jax import experiment as experiments
    from diffsda_jax import plan
    from diffsda_jax.data.sources import ElementSpec
    from diffsda_jax.data.synthetic import Synthetic

    config = configuration.load_config(sizes["config"])
    config.model.precision = sizes["precision"]
    for option, value in sizes["set"].items():
        config.update_from_flattened_dict({option: value})
    config.train.batch_size = sizes["batch"] or config.train.batch_size
    sources = plan.stand_ins(config)
    if sizes["shape"] or sources is None:
        element = ElementSpec("video", tuple(sizes["shape"]))
        sources = {
            split: Synthetic(split, element, num_steps=config.data.length)
            for split in ("train", "test")
        }
    with tempfile.TemporaryDirectory() as scratch:
        config.data.cache_dir = scratch
        return experiments.build(config, sources)


def work(sizes: dict[str, Any]) -> None:
    """The worker of our side: the step that training runs."""
    import jax

    from diffsda_jax import experiment as experiments
    from diffsda_jax import plan, sharding
    from diffsda_jax.command_line import choose_cpu_kernels
    from diffsda_jax.train.step import BATCH_KEYS

    choose_cpu_kernels()
    experiment, mesh = load_experiment(sizes), sharding.make_mesh()
    transformation, step_fn, _ = experiments.make_training(experiment, mesh)
    state = experiments.initial_state(experiment, transformation, mesh)
    batch = next(iter(experiments.make_iterator(experiment, seed=0)))
    batch = {key: batch[key] for key in BATCH_KEYS if key in batch}  # waveforms have no mask
    batch = sharding.shard_batch(batch, mesh)
    key = jax.random.key(0)
    about = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "about": f"jax {jax.__version__} on {jax.device_count()} x {jax.devices()[0].device_kind}",
        "flops": plan.flops(step_fn.trace(state, batch, key).jaxpr),
    }
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request["form"] == "peak":
            answer = {"peak_flops": measure_peak(sizes["precision"])}
        elif request["form"] == "trace":
            with tempfile.TemporaryDirectory() as folder:
                with jax.profiler.trace(folder, create_perfetto_trace=True):
                    state, metrics = step_fn(state, batch, key)
                    float(metrics["loss"])
                answer = {"kernels": read_trace(folder)}
        else:
            began, losses = time.perf_counter(), []
            for _ in range(request["steps"]):
                state, metrics = step_fn(state, batch, key)
                losses.append(metrics["loss"])
            losses = [float(loss) for loss in losses]  # waits for the device
            seconds = (time.perf_counter() - began) / len(losses)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            if statistics := jax.devices()[0].memory_stats():
                peak = statistics["peak_bytes_in_use"] / 2**10
            answer = {"seconds": seconds, "losses": losses, "peak_mib": peak / 2**10}
        print(json.dumps(answer), flush=True)


def measure_peak(precision: str) -> float:
    """FLOPs a second of a large matrix product."""
    import jax
    import jax.numpy as jnp

    size = PEAK_SIZE["cuda" if jax.default_backend() == "gpu" else "cpu"]
    keys = jax.random.split(jax.random.key(1))
    left, right = (jax.random.normal(key, (size, size), jnp.dtype(precision)) for key in keys)
    product = jax.jit(jnp.matmul)
    product(left, right).block_until_ready()
    began = time.perf_counter()
    results = [product(left, right) for _ in range(PEAK_REPEATS)]
    results[-1].block_until_ready()
    return PEAK_REPEATS * 2 * size**3 / (time.perf_counter() - began)


def read_trace(folder: str) -> list[tuple[str, float]]:
    """Names and milliseconds of what took longest on the GPU's streams, in a profiler's trace."""
    path = glob.glob(f"{folder}/**/perfetto_trace.json.gz", recursive=True)[0]
    events = json.loads(gzip.open(path).read())["traceEvents"]
    devices = {
        event["pid"]
        for event in events
        if event.get("name") == "process_name" and "GPU" in event["args"].get("name", "")
    }
    streams = {
        (event["pid"], event["tid"])
        for event in events
        if event.get("name") == "thread_name"
        and event["pid"] in devices
        and "Stream" in event["args"].get("name", "")
    }
    total: dict[str, float] = collections.Counter()
    for event in events:
        if event.get("ph") == "X" and (event["pid"], event["tid"]) in streams:
            total[event["name"]] += event["dur"] / 1e3
    kinds: dict[str, float] = collections.Counter()  # fusions, products and so on
    for name, milliseconds in total.items():
        kinds["all " + name.partition("_")[0]] += milliseconds
    kinds["all"] = sum(total.values())
    return sorted((kinds | total).items(), key=lambda item: -item[1])[:30]


def compile_steps(
    workers: dict[str, Worker], together: bool, patience: float | None
) -> dict[str, dict[str, Any]]:
    """The first steps, which compile: one after the other, or all at once where `together`.

    Returns losses and seconds of each. A PyTorch side that is not done `patience` seconds from now
    is ended and left out of `workers` too; ours is not.
    """

    def compile_step(name: str) -> dict[str, Any]:
        answer = workers[name].step(name, 1)
        workers[name].step(name, 1)  # what the first one left to do
        print(f"{name}: first step {answer['seconds']:.1f} s", flush=True)
        return {"first_step_seconds": answer["seconds"], "losses": answer["losses"]}

    results = {}
    with ThreadPoolExecutor(len(workers) if together else 1) as pool:
        answers = {name: pool.submit(compile_step, name) for name in workers}
        wait(answers.values(), timeout=patience)
        for name, answer in answers.items():
            if name.startswith("jax") or answer.done():
                results[name] = answer.result()
            else:
                print(f"{name}: left out, not done after {patience:g} s", flush=True)
                workers.pop(name).kill()
    return results


def measure(
    workers: dict[str, Worker], rounds: int, steps: int, results: dict[str, dict[str, Any]]
) -> None:
    """Adds seconds of a step in each round and memory of each side to `results`."""
    for result in results.values():
        result["seconds"] = []
    for _ in range(rounds):
        for name, worker in workers.items():
            time.sleep(PAUSE_SECONDS)
            answer = worker.step(name, steps)
            results[name]["seconds"].append(answer["seconds"])
            results[name]["peak_mib"] = answer["peak_mib"]


def report(results: dict[str, dict[str, Any]], flops: float, peak: float) -> None:
    """Prints the table; ratios are medians over rounds, with the smallest and the largest."""
    theirs = [name for name in results if name.startswith("torch")]
    print("| | s | TFLOP/s | of the peak | MiB | first step s | loss | ", end="")
    print(" | ".join(f"{name} / this" for name in theirs) + " |")
    print("|---" * (7 + len(theirs)) + "|")
    for name, result in results.items():
        seconds = statistics.median(result["seconds"])
        cells = [name, f"{seconds:.4g}", f"{flops / seconds / 1e12:.3g}"]
        cells += [f"{100 * flops / seconds / peak:.0f} %", f"{result['peak_mib']:.0f}"]
        cells += [f"{result['first_step_seconds']:.1f}", f"{result['losses'][0]:.3f}"]
        for other in theirs:
            cells.append(format_ratios(results[other]["seconds"], result["seconds"]))
        print("| " + " | ".join(cells) + " |")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable, help="a Python with PyTorch")
    parser.add_argument("--config", default=str(HERE.parent / "configs" / "mug64.py"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--batch", type=int, default=0, help="0 = the config's")
    parser.add_argument("--shape", default="", help="height,width,channels; empty = the config's")
    parser.add_argument("--ours", default="float32", help="precisions, several by ;")
    parser.add_argument("--theirs", help="forms of the twin, several by ;")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="of each side in each round")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="of both sides")
    parser.add_argument(
        "--compile-together", action="store_true", help="first steps at once: sooner done"
    )
    parser.add_argument("--patience", type=float, help="seconds until a late side is left out")
    parser.add_argument("--trace", action="store_true", help="name our longest kernels")
    parser.add_argument("--out", type=Path, help="file that results are added to")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def start(arguments: argparse.Namespace) -> tuple[dict[str, Worker], dict[str, Any]]:
    """All sides, ours first, and what they are given."""
    from diffsda_jax.study.description import parse_value

    pairs = (item.partition("=") for item in arguments.set)
    sizes = {
        "config": arguments.config,
        "set": {key: parse_value(value) for key, _, value in pairs},
        "batch": arguments.batch,
        "shape": [int(size) for size in arguments.shape.split(",") if size],
    }
    workers = {}
    for precision in arguments.ours.split(";"):
        bare, environment = split_allocator(precision)
        own = [sys.executable, __file__, f"--worker={json.dumps(sizes | {'precision': bare})}"]
        workers[f"jax, {precision}"] = Worker(own, environment)
    experiment = load_experiment(sizes | {"precision": "float32"})
    config = experiment.config
    sizes |= {
        "spec": experiment.spec.to_dict(),
        "batch": config.train.batch_size,
        "length": config.data.length,
        "p_mean": config.noise.p_mean,
        "p_std": config.noise.p_std,
        "draws": config.loss.noise_draws,
    }
    file, forms = TWINS[experiment.spec.kind]
    twin = [arguments.torch_python, str(HERE / file), f"--sizes={json.dumps(sizes)}"]
    twin += [f"--device={arguments.device}", f"--threads={cores()}"]
    for form in forms if arguments.theirs is None else filter(None, arguments.theirs.split(";")):
        bare, environment = split_allocator(form)
        workers[f"torch, {form}"] = Worker([*twin, f"--form={bare}"], environment)
    return workers, sizes


def main() -> None:
    """Starts all sides, lets them take turns and prints what they took."""
    arguments = parse_arguments()
    if arguments.worker is not None:
        return work(arguments.worker)
    prepare(arguments)
    workers, sizes = start(arguments)
    ours = next(iter(workers.values()))
    machine = describe_machine(worker.about["about"] for worker in workers.values())
    for name, worker in workers.items():
        ratio = worker.about["parameters"] / ours.about["parameters"]
        if abs(ratio - 1) > 1e-3:  # PyTorch's LSTMs have a second bias
            print(f"{name} is not the same model: it has {ratio:.3f} times the parameters.")
    results = compile_steps(workers, arguments.compile_together, arguments.patience)
    measure(workers, arguments.rounds, arguments.steps, results)
    peak = ours.step("peak", 1)["peak_flops"]
    report(results, ours.about["flops"], peak)
    print(
        f"{sizes['batch']} sequences of {sizes['length']} steps {sizes['spec']['shape']}; "
        f"{ours.about['parameters']:,} parameters; {ours.about['flops'] / 1e12:.3g} TFLOP a step; "
        f"peak {peak / 1e12:.4g} TFLOP/s; {arguments.rounds} rounds of {arguments.steps} steps; "
        f"{machine}"
    )
    if arguments.trace:
        for kernel, milliseconds in ours.step("trace", 1)["kernels"]:
            print(f"{milliseconds:9.3f} ms  {kernel[:110]}")
    measured = {"flops": ours.about["flops"], "peak_flops": peak, "results": results}
    add_record(arguments.out, machine, **measured)
    for worker in workers.values():
        worker.close()


if __name__ == "__main__":
    main()
