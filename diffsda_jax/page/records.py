"""What a run left in its folder: scalars, evaluations, explorations, pictures and sounds."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

_STEP_FOLDER = re.compile(r"\d{8}")
_SWAP_FILE = re.compile(r"swap_(\d+)_(\w+)")


@dataclass(frozen=True)
class Curve:
    """One scalar over the steps of a run.

    Attributes:
      steps: increasing ``[N]``.
      values: ``[N]``; NaN where a value was not finite.
    """

    steps: Float[np.ndarray, " N"]
    values: Float[np.ndarray, " N"]


@dataclass(frozen=True)
class Evaluation:
    """One folder with a ``metrics.json``.

    Attributes:
      folder: where.
      step: of training.
      metrics: NaN where a value was not finite.
      form: ``corrected`` or ``reference``.
      settings: what the numbers depend on.
      notes: what was skipped and why.
    """

    folder: Path
    step: int
    metrics: dict[str, float]
    form: str
    settings: dict[str, Any]
    notes: list[str]

    def pictures(self) -> list[Path]:
        """PNG files in alphabetical order."""
        return sorted(self.folder.glob("*.png"))

    def swaps(self, kind: str) -> list[dict[str, Path]]:
        """The files of each swap by role.

        Args:
          kind: ``sounds`` (roles voice, words, result, reconstruction) or ``videos`` (roles
            static, dynamic, result).
        """
        found: dict[int, dict[str, Path]] = {}
        for path in sorted((self.folder / kind).glob("swap_*")):
            match = _SWAP_FILE.fullmatch(path.stem)
            if match:
                found.setdefault(int(match[1]), {})[match[2]] = path
        return [found[number] for number in sorted(found)]


@dataclass(frozen=True)
class Records:
    """All of a run's folder that a page shows.

    Attributes:
      workdir: the folder.
      config: of the run, as it was written down; empty where it was not.
      curves: scalars of ``logs/metrics.jsonl`` by name.
      seconds: that the steps of training took, by the log; NaN without one.
      evaluations: in the order of their steps.
      explorations: the same, of ``explore``.
      tables: Markdown files with tables, by a title.
    """

    workdir: Path
    config: dict[str, Any]
    curves: dict[str, Curve]
    seconds: float
    evaluations: list[Evaluation]
    explorations: list[Evaluation]
    tables: dict[str, str] = field(default_factory=dict)


def read_records(workdir: Path) -> Records:
    """Reads what is there; what a run has not made yet is empty.

    Args:
      workdir: of a run.

    Raises:
      FileNotFoundError: the folder is missing, or holds nothing of a run.
      ValueError: a file that is not what it should be.
    """
    known = ("config.json", "logs", "checkpoints", "eval")
    if not any((workdir / name).exists() for name in known):
        raise FileNotFoundError(
            f"workdir {workdir} holds no run (none of {', '.join(known)}); give the --workdir of a "
            "training, or train one: python -m diffsda_jax.main --config=... --workdir=..."
        )
    config = _read_json(workdir / "config.json").get("config", {})
    curves, seconds = _read_curves(workdir / "logs" / "metrics.jsonl")
    tables = _read_tables(workdir)
    return Records(
        workdir,
        config,
        curves,
        seconds,
        _read_evaluations(workdir / "eval"),
        _read_evaluations(workdir / "explore"),
        tables,
    )


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON file, empty where there is none."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path} is no JSON ({error}); move it away, or make it anew with the mode that wrote "
            "it."
        ) from None


def _read_curves(path: Path) -> tuple[dict[str, Curve], float]:
    """Scalars by name, and the seconds of training; see `train.writers.MetricWriter`."""
    values: dict[str, dict[int, float]] = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:  # a killed process ends in the middle of a line
            continue
        step = int(record.pop("step"))
        record.pop("time", None)
        for name, value in record.items():
            values.setdefault(name, {})[step] = float(value)
    curves = {}
    for name, by_step in values.items():
        steps = np.array(sorted(by_step), float)
        found = np.array([by_step[int(step)] for step in steps])
        curves[name] = Curve(steps, np.where(np.isfinite(found), found, np.nan))
    return curves, _training_seconds(curves)


def _training_seconds(curves: Mapping[str, Curve]) -> float:
    """Sum over the log's lines of steps divided by steps a second; NaN without a log."""
    rate = curves.get("train/steps_per_second")
    if rate is None:
        return math.nan
    steps = np.diff(np.concatenate([[0.0], rate.steps]))
    return float(np.nansum(steps / np.maximum(rate.values, 1e-9)))


def _read_evaluations(folder: Path) -> list[Evaluation]:
    """Every ``<folder>/<step>/metrics.json``."""
    found = []
    for path in sorted(folder.glob("*/metrics.json")):
        if not _STEP_FOLDER.fullmatch(path.parent.name):
            continue
        content = _read_json(path)
        metrics = {
            name: math.nan if value is None else float(value)
            for name, value in content.get("metrics", {}).items()
        }
        found.append(
            Evaluation(
                path.parent,
                int(path.parent.name),
                metrics,
                content.get("form", "corrected"),
                content.get("settings", {}),
                content.get("notes", []),
            )
        )
    return found


def _read_tables(workdir: Path) -> dict[str, str]:
    """Markdown of the newest folder of each mode, and of a study around the run."""
    places = {
        "Components of the factors": "explore/*/components.md",
        "Samplers": "sampling/*/quality.md",
        "Distilled model beside its teacher": "distilled/comparison/*/quality.md",
        "Study": "table.md",
    }
    found = {}
    for title, pattern in places.items():
        paths = sorted(workdir.glob(pattern))
        if paths:
            found[title] = paths[-1].read_text()
    around = workdir.parent.parent / "table.md"  # <study>/models/<run> lies below it
    if workdir.parent.name == "models" and around.is_file():
        found["Study"] = around.read_text()
    return found
