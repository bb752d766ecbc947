"""What the benchmarks share: processes that take turns on one machine, ratios, a file of results.

Nothing here needs jax or torch.
"""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAUSE_SECONDS = 0.5  # until the threads of the other process sleep


class Worker:
    """A process that does timed work when asked, in lines of JSON.

    Attributes:
      about: what it said of itself, such as number of parameters and versions.
    """

    def __init__(self, command: list[str], environment: dict[str, str] | None = None):
        """Starts it, with more in its environment, and waits until it is ready."""
        self._process = subprocess.Popen(
            command,
            env=os.environ | (environment or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.about = self._read()

    def step(self, form: str, count: int) -> dict[str, Any]:
        """Its answer to a request for some steps, such as seconds, losses and largest memory."""
        self._process.stdin.write(json.dumps({"form": form, "steps": count}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def kill(self) -> None:
        """Ends the process in the middle of its work; it answers no more."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            name = Path(sys.argv[0]).stem
            sys.exit(f"{name}: a worker ended with status {self._process.wait()}.")
        return json.loads(line)


def jemalloc_environment() -> dict[str, str]:
    """What a process needs to start with to use jemalloc, as the launchers set it."""
    script = 'source launch/common.sh; find_allocator; printf "%s\\n" "${allocator[@]}"'
    words = ["bash", "-c", script]
    printed = subprocess.run(words, cwd=HERE.parent, capture_output=True, text=True).stdout.split()
    if not printed:
        sys.exit(
            f"{Path(sys.argv[0]).stem}: there is no jemalloc (Debian has it as libjemalloc2), or "
            "LD_PRELOAD or MALLOC_CONF is set; install it, and unset these."
        )
    return dict(word.split("=", 1) for word in printed)


def split_allocator(form: str) -> tuple[str, dict[str, str]]:
    """A form without `, jemalloc` at its end, and the environment for its process."""
    bare = form.removesuffix(", jemalloc")
    return bare, {} if bare == form else jemalloc_environment()


def cores() -> int:
    """Those that this process may use; `taskset` limits them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def prepare(arguments: Any) -> None:
    """Checks `torch_python`, and makes workers use `device` and share its memory."""
    if not Path(arguments.torch_python).is_file():
        name = Path(sys.argv[0]).stem
        sys.exit(f"{name}: --torch-python={arguments.torch_python} is no file.")
    os.environ["JAX_PLATFORMS"] = arguments.device
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"


def format_ratios(theirs: list[float], own: list[float]) -> str:
    """Median of the ratios of each round, with the smallest and the largest."""
    ratios = [their / mine for their, mine in zip(theirs, own, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def processor() -> str:
    """Name of the CPU where Linux says it, else its architecture."""
    info = Path("/proc/cpuinfo")
    names = re.findall("model name\\s*: (.*)", info.read_text()) if info.is_file() else []
    return names[0] if names else platform.machine()


def describe_machine(abouts: Iterable[str] = ()) -> str:
    """Cores, load at this moment, and versions; to be called before the work."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    names = "; ".join(dict.fromkeys(abouts))
    return (
        f"{cores()} CPU cores ({processor()}), load {load:.1f} before; "
        f"Python {platform.python_version()}; {names}"
    )


def add_record(path: Path | None, machine: str, **measured: Any) -> None:
    """Adds a line of JSON with time, command and machine to a file; none if `path` is None."""
    if path is None:
        return
    options = [
        re.sub("^(--torch-python|--out|--workdir)=.*", r"\1=PATH", option)
        for option in sys.argv[1:]
    ]
    command = [Path(sys.argv[0]).name, *options]
    record = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "command": command}
    with path.open("a") as file:
        file.write(json.dumps(record | {"machine": machine} | measured) + "\n")
