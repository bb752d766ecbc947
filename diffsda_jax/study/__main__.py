"""Command line: ``python -m diffsda_jax.study --study=studies/X.py --out=DIR``."""

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffsda_jax.study.description import Study, change_study, load_study
from diffsda_jax.study.launch import Launcher, make_slots
from diffsda_jax.study.runs import Run, make_runs, run_study
from diffsda_jax.study.table import csv_table, find_missing, markdown_table, write_plot
from diffsda_jax.train.checkpoint import package_version

EXIT_FAILED, EXIT_MISUSED, EXIT_INTERRUPTED = 1, 2, 3  # statuses; those of diffsda_jax.main
PACKAGES = ("diffsda_jax", "jax", "flax", "optax", "numpy")


def make_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        prog="python -m diffsda_jax.study",
        description="Runs what is missing of a study (variants of a config over seeds) and writes "
        "its table and plot. The same command again goes on where it was stopped.",
        allow_abbrev=False,
    )
    parser.add_argument("--study", required=True, help="file with get_study(), see studies/")
    parser.add_argument("--out", required=True, type=Path, help="folder of runs, table and plot")
    parser.add_argument("--seeds", help="other seeds than the study's, such as 0,1,2")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of all runs, such as train.num_steps=200; may be given several times",
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, that divide the cores")
    parser.add_argument("--devices", help="GPUs or TPU chips to use, such as 0,1; one run on each")
    return parser


def parse_seeds(text: str | None) -> list[int] | None:
    """``"0,1"`` as numbers; None stays None.

    Raises:
      ValueError: no list of numbers.
    """
    try:
        return None if text is None else [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--seeds={text}: give numbers with commas, such as 0,1,2.") from error


def conduct(
    study: Study,
    out: Path,
    *,
    jobs: int = 1,
    devices: Sequence[str] = (),
    launcher: Launcher | None = None,
) -> list[str]:
    """Runs what is missing, writes table, plot and records, and prints the table.

    Args:
      study: checked.
      out: folder; made if missing.
      jobs: see ``make_slots``.
      devices: see ``make_slots``.
      launcher: runs the commands; None makes one.

    Returns:
      What went wrong, a sentence each; empty if nothing did.

    Raises:
      KeyboardInterrupt: it was stopped; table and plot show what is done.
    """
    slots, runs = make_slots(jobs, devices), make_runs(study, out)
    began, failures = time.perf_counter(), {}
    launcher = launcher or Launcher()
    with launcher.stopping_on_signals():
        try:
            failures = run_study(runs, slots, launcher, lambda line: print(line, flush=True))
        finally:
            problems = write_study(study, out, runs, failures, time.perf_counter() - began)
    return problems


def write_study(
    study: Study, out: Path, runs: Sequence[Run], failures: dict[Run, str], seconds: float
) -> list[str]:
    """Writes ``table.md``, ``table.csv``, ``plot.png`` and ``study.json``, and prints the table.

    Returns:
      What went wrong, a sentence each.
    """
    results = [(run, result) for run in runs if (result := run.result()) is not None]
    measured = {
        variant: [result["metrics"] for run, result in results if run.variant == variant]
        for variant in study.variants
    }
    problems = [f"{run.name} failed: {problem}" for run, problem in failures.items()]
    problems += find_missing(study, measured)
    machine = describe_machine()
    spent = [sum(result["seconds"].values()) for _, result in results]
    cpu = sum(result["cpu_seconds"] for _, result in results)
    note = (
        f"Mean ± standard deviation over seeds. {len(results)} of {len(runs)} runs, "
        f"{sum(spent):.0f} s in all ({cpu:.0f} s of CPU), {machine['processor']}, "
        f"{machine['cores']} cores. Command: `{machine['command']}`"
    )
    table = markdown_table(study, measured)
    parts = [f"# {study.title}", study.question, table, *(f"- {x}" for x in problems), note]
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text("\n\n".join(parts) + "\n")
    (out / "table.csv").write_text(csv_table(study, measured))
    if results:
        write_plot(study, measured, out / "plot.png")
    record = {
        "title": study.title,
        "question": study.question,
        "machine": machine,
        "seconds_of_this_call": round(seconds, 1),
        "seconds_of_all_runs": round(sum(spent), 1),
        "cpu_seconds_of_all_runs": round(cpu, 1),
        "problems": problems,
        "runs": [result | {"folder": str(run.folder)} for run, result in results],
    }
    (out / "study.json").write_text(json.dumps(record, indent=2) + "\n")
    print("\n".join(["", table, "", note, *problems]), flush=True)
    return problems


def describe_machine() -> dict[str, Any]:
    """Where a study ran, with what, and how."""
    processor = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    words = ["python", "-m", "diffsda_jax.study", *sys.argv[1:]]
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: package_version(name) for name in PACKAGES},
        "command": shlex.join(words),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a study; returns the exit status."""
    arguments = make_parser().parse_args(argv)
    devices = arguments.devices.split(",") if arguments.devices else ()
    try:
        study = load_study(arguments.study)
        study = change_study(study, arguments.set, parse_seeds(arguments.seeds))
        make_slots(arguments.jobs, devices)
    except (ValueError, OSError) as error:
        print(f"diffsda_jax.study: error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_MISUSED
    try:
        problems = conduct(study, arguments.out, jobs=arguments.jobs, devices=devices)
    except KeyboardInterrupt:
        print("diffsda_jax.study: stopped; the same command goes on.", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_FAILED if problems else 0


if __name__ == "__main__":
    sys.exit(main())
