"""The runs of a study: which models are trained, what is evaluated on each, and what is done."""

import dataclasses
import hashlib
import json
import os
import queue
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from diffsda_jax import config as configuration
from diffsda_jax.study.description import Study, override_config
from diffsda_jax.study.launch import Launcher, Slot

# Sections that say what is done with a trained model; runs that differ in them only share one.
AFTER_TRAINING = ("eval", "prior", "explore", "sampling", "distill", "report")
RESULT_FILE = "metrics.json"
LOG_FILE = "log.txt"
TIMES_FILE = "times.json"
TRAINED_FILE = "trained.json"
# Where each mode writes metrics; the first folder of each belongs to one run.
METRICS = {"eval": "eval/*/metrics.json", "prior": "prior/eval/*/metrics.json"}


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One variant with one seed.

    Attributes:
      variant: its name.
      seed: of training and evaluation.
      config: file of ``configs/``.
      overrides: all options that differ from it.
      modes: see ``Study``.
      folder: of its results and its log.
      workdir: of the trained model, which other runs may share.
    """

    variant: str
    seed: int
    config: str
    overrides: Mapping[str, Any]
    modes: Sequence[str]
    folder: Path
    workdir: Path

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.variant}, seed {self.seed}"

    def command(self, mode: str) -> list[str]:
        """The command line of one mode."""
        options = [f"--config.{key}={value}" for key, value in self.overrides.items()]
        return [
            sys.executable,
            "-m",
            "diffsda_jax.main",
            f"--mode={mode}",
            f"--config={self.config}",
            f"--workdir={self.workdir}",
            *options,
        ]

    def result(self) -> dict[str, Any] | None:
        """What was measured, or None where the run is not finished."""
        return _read_json(self.folder / RESULT_FILE)


def make_runs(study: Study, out: Path) -> list[Run]:
    """All runs of a study, those of a variant after each other.

    Args:
      study: what is compared.
      out: folder of the study. A run lies in a folder that is named after the values of all
        options, wherever they are set, and a trained model in one that is named after those that
        training depends on.
    """
    runs = []
    for variant in study.variants:
        for seed in study.seeds:
            config, overrides = study.config_of(variant), study.overrides_of(variant, seed)
            options = configuration.to_json(
                override_config(configuration.load_config(config), overrides)
            )
            trained = {key: options[key] for key in options if key not in AFTER_TRAINING}
            slug = re.sub(r"[^A-Za-z0-9.]+", "_", variant).strip("_")
            run = f"{slug}_seed{seed}_{_digest(options, *study.modes)}"
            runs.append(
                Run(
                    variant,
                    seed,
                    config,
                    overrides,
                    study.modes,
                    folder=out / "runs" / run,
                    workdir=out / "models" / f"seed{seed}_{_digest(trained)}",
                )
            )
    return runs


def _digest(*parts: Any) -> str:
    """A short name that is another one wherever a part is."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]


def run_study(
    runs: Sequence[Run],
    slots: Sequence[Slot],
    launcher: Launcher,
    report: Callable[[str], None] = print,
) -> dict[Run, str]:
    """Does what is not done yet; runs that share a model one after the other.

    Args:
      runs: of ``make_runs``.
      slots: as many models are worked on at once.
      launcher: runs commands.
      report: is told what happens, a line at a time.

    Returns:
      What went wrong, for each run that failed.

    Raises:
      KeyboardInterrupt: after all commands were stopped.
    """
    models: dict[Path, list[int]] = {}
    for number, run in enumerate(runs):
        models.setdefault(run.workdir, []).append(number)
    failures: dict[int, str] = {}
    free: queue.Queue[Slot] = queue.Queue()
    for slot in slots:
        free.put(slot)

    def work_on(numbers: Sequence[int]) -> None:
        slot = free.get()
        try:
            for number in numbers:
                place = f"[{number + 1}/{len(runs)}] {runs[number].name}"
                if (problem := _do_run(runs[number], slot, launcher, place, report)) is not None:
                    failures[number] = problem
        finally:
            free.put(slot)

    with ThreadPoolExecutor(len(slots)) as pool:
        futures = [pool.submit(work_on, numbers) for numbers in models.values()]
        try:
            for future in futures:
                future.result()
        except BaseException:  # Ctrl-C above all; whatever it is, nothing goes on behind it
            launcher.stop()
            raise
    return {runs[number]: failures[number] for number in sorted(failures)}


def _do_run(
    run: Run, slot: Slot, launcher: Launcher, place: str, report: Callable[[str], None]
) -> str | None:
    """Does one run unless it is done; what went wrong, or None.

    Raises:
      KeyboardInterrupt: the launcher was stopped.
    """
    if run.result() is not None:
        report(f"{place}: done before")
        return None
    report(f"{place}: started, see {run.folder / LOG_FILE}")
    for output in ("eval", *run.modes):
        _lead_to(run.workdir / output, run.folder / output)
    times = _read_json(run.folder / TIMES_FILE) or {}  # of earlier starts, whose work it goes on
    for mode in _steps(run):
        ended = launcher(run.command(mode), run.folder / LOG_FILE, slot)
        before = times.get(mode, {"seconds": 0.0, "cpu_seconds": 0.0})
        times[mode] = {name: value + getattr(ended, name) for name, value in before.items()}
        _write_json(run.folder / TIMES_FILE, times)
        if ended.status and launcher.stopped:
            raise KeyboardInterrupt
        if ended.status:
            problem = f"--mode={mode} ended with status {ended.status}: {_last_line(run)}"
            report(f"{place}: FAILED, {problem}")
            return problem
        if mode == "train":
            _write_json(run.workdir / TRAINED_FILE, times[mode])
    metrics = _read_metrics(run)
    if not metrics:
        return f"no metrics were written; see {run.folder / LOG_FILE}"
    seconds = {mode: spent["seconds"] for mode, spent in times.items()}
    cpu_seconds = sum(spent["cpu_seconds"] for spent in times.values())
    _write_json(
        run.folder / RESULT_FILE,
        {
            "variant": run.variant,
            "seed": run.seed,
            "config": run.config,
            "overrides": dict(run.overrides),
            "seconds": {mode: round(value, 1) for mode, value in seconds.items()},
            "cpu_seconds": round(cpu_seconds, 1),
            "metrics": metrics,
        },
    )
    report(f"{place}: {sum(seconds.values()):.0f} s ({cpu_seconds:.0f} s of CPU)")
    return None


def _steps(run: Run) -> list[str]:
    """The modes of ``main`` that are still to be run; training ends with an evaluation."""
    trained = (run.workdir / TRAINED_FILE).exists()
    if trained:
        return list(run.modes)
    return ["train", *(mode for mode in run.modes if mode != "eval")]


def _lead_to(link: Path, folder: Path) -> None:
    """Makes a folder of a shared workdir that of one run, for ``main`` to write there."""
    folder.mkdir(parents=True, exist_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        link.unlink()
    link.symlink_to(os.path.relpath(folder, link.parent), target_is_directory=True)


def _last_line(run: Run) -> str:
    """The last line of a run's log that says something."""
    text = (run.folder / LOG_FILE).read_text(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{lines[-1] if lines else 'no output'} ({run.folder / LOG_FILE})"


def _read_metrics(run: Run) -> dict[str, float]:
    """Metrics of the newest evaluation of each of a run's modes.

    What the training of a shared model measured counts only where the others measure it, too.
    """
    metrics: dict[str, float] = {}
    for mode in run.modes:
        if files := sorted(run.folder.glob(METRICS[mode])):
            metrics |= json.loads(files[-1].read_text())["metrics"]
    return metrics


def _read_json(path: Path) -> dict[str, Any] | None:
    """What a file holds; None if it is missing, or cut off as on a full disk."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a file in one piece."""
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(values, indent=2) + "\n")
    scratch.replace(path)
