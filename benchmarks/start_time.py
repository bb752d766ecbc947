"""Seconds from the start of the command to its first training step, the first and the second time.

The command is that of a user, in a process of its own, with an empty cache of compiled programs at
the first start and the filled one at the second; statistics of the data are cached with it. A step
counts when its loss stands in the log. The process is ended then.

    python benchmarks/start_time.py --rounds=3 -- --config=configs/digits.py

What stands after `--` is given to the command. Each round begins with an empty cache.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from turns import add_record, describe_machine, format_ratios

LOG = Path("logs", "metrics.jsonl")
LOOK_SECONDS = 0.02


def first_step_seconds(options: list[str], workdir: Path, cache: Path) -> float:
    """Starts a training and waits for its first loss."""
    command = [sys.executable, "-m", "diffsda_jax.main", f"--workdir={workdir}", *options]
    command += ["--config.train.log_every_steps=1", f"--config.data.cache_dir={cache / 'data'}"]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    os.set_blocking(process.stderr.fileno(), False)
    said = b""
    try:
        while not (workdir / LOG).is_file() or not (workdir / LOG).stat().st_size:
            said = (said + (process.stderr.read() or b""))[-2000:]
            if process.poll() is not None:
                sys.exit(f"start_time: the command ended before a step:\n{said.decode()}")
            time.sleep(LOOK_SECONDS)
        return time.perf_counter() - began
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Starts twice in each round and prints what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="file that results are added to")
    parser.add_argument("options", nargs="+", help="after --: options of the command")
    arguments = parser.parse_args()
    import jax

    machine = describe_machine([f"jax {jax.__version__}"])
    seconds: dict[str, list[float]] = {"first": [], "second": []}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name, values in seconds.items():
                cache = Path(folder, "cache")
                values.append(first_step_seconds(arguments.options, Path(folder, name), cache))
                print(f"{name} start: first step after {values[-1]:.1f} s", flush=True)
    for name, values in seconds.items():
        print(f"{name}: {statistics.median(values):.1f} s")
    print(f"first / second: {format_ratios(seconds['first'], seconds['second'])}\n{machine}")
    add_record(arguments.out, machine, seconds=seconds)


if __name__ == "__main__":
    main()
