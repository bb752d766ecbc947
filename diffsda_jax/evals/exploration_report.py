"""An exploration for people and programs: metrics, Markdown tables, and arrays to be saved."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from diffsda_jax.evals.component_names import Attribute, Meaning
from diffsda_jax.evals.exploration import Components
from diffsda_jax.evals.report import write_results

_SHARE = "variance"
_SAMPLES, _MODELS = "same in other samples", "same in other models"


@dataclass(frozen=True)
class Stability:
    """How much of the components is found again elsewhere.

    Attributes:
      found: similarity of each component with its partner, 0 to 1, ``[K]``.
      chance: what random directions get, mean over components.
    """

    found: Float[np.ndarray, " K"]
    chance: float


@dataclass(frozen=True)
class FactorReport:
    """What an exploration says of the components of one factor.

    Attributes:
      components: of that factor.
      meaning: their names and what these are made from.
      samples: ``|cosine|`` with components of other samples.
      models: ``|correlation|`` with components of other models, or None without any.
    """

    components: Components
    meaning: Meaning
    samples: Stability
    models: Stability | None = None

    def labels(self) -> list[str]:
        """``s1``, ``s2``, ... or ``d1``, ``d2``, ..."""
        return [f"{self.components.factor[0]}{k + 1}" for k in range(len(self.components))]

    def titles(self) -> list[str]:
        """``d1: x position (r = 0.97), also moves ...`` for each component."""
        pairs = zip(self.labels(), self.meaning.names, strict=True)
        return [f"{label}: {name}" for label, name in pairs]

    def short_titles(self) -> list[str]:
        """Titles without what else is moved, for pictures."""
        return [
            title.split(", ")[0].replace("nothing that is known", "-") for title in self.titles()
        ]


def metrics_of(report: FactorReport) -> dict[str, float]:
    """Flat metrics, ``dynamic/d1_x_position_r`` and the like; see `Meaning` for what they are."""
    meaning, factor = report.meaning, report.components.factor
    metrics: dict[str, float] = {}
    for place, label in enumerate(report.labels()):
        name = f"{factor}/{label}"
        metrics[f"{name}_variance_percent"] = 100.0 * report.components.share[place]
        for column, item in enumerate(meaning.attributes):
            kind = "eta" if item.is_class else "r"
            metrics[f"{name}_{item.key}_{kind}"] = meaning.association[place, column]
            if np.isfinite(meaning.effect[place, column]):
                metrics[f"{name}_{_effect(item)}"] = meaning.effect[place, column]
        metrics[f"{name}_same_in_samples"] = report.samples.found[place]
        if report.models is not None:
            metrics[f"{name}_same_in_models"] = report.models.found[place]
    for column, item in enumerate(meaning.attributes):
        strength = np.abs(meaning.association[:, column])
        name = f"{factor}/{item.key}"
        metrics[f"{name}_best"] = strength.max()
        metrics[f"{name}_best_chance"] = meaning.association_chance[column]
        if not item.is_class:
            metrics[f"{name}_first_two_together"] = meaning.together[column, 0]
            metrics[f"{name}_first_two_together_chance"] = meaning.together_chance[column]
            metrics[f"{name}_all_together"] = meaning.together[column, 1]
        if np.isfinite(meaning.effect_chance[column]):
            metrics[f"{factor}/random_{_effect(item)}"] = meaning.effect_chance[column]
    for name, side in (("samples", report.samples), ("models", report.models)):
        if side is not None:
            metrics[f"{factor}/same_in_{name}"] = side.found.mean()
            metrics[f"{factor}/same_in_{name}_chance"] = side.chance
    return {name: float(value) for name, value in metrics.items()}


def _effect(item: Attribute) -> str:
    return f"{item.key}_relabelled_percent" if item.is_class else f"{item.key}_moved_std"


def markdown_of(report: FactorReport) -> str:
    """A table with a row for each component and one for chance, and the names below it."""
    meaning = report.meaning
    header = ["component", _SHARE]
    for item in meaning.attributes:
        header += [f"{item.name}: {'eta' if item.is_class else 'r'}"]
        header += ["relabelled" if item.is_class else "moved by"] if item.measure else []
    header += [_SAMPLES] + [_MODELS] * (report.models is not None)
    rows = []
    for place, label in enumerate(report.labels()):
        row = [label, f"{100 * report.components.share[place]:.1f} %"]
        row += _cells(meaning.attributes, meaning.association[place], meaning.effect[place])
        rows.append(row + _stability(report, place))
    chance = ["random direction", ""]
    chance += _cells(meaning.attributes, meaning.association_chance, meaning.effect_chance)
    rows.append(chance + _stability(report, None))
    together = [
        f"- {item.name}: first two components together R = {meaning.together[column, 0]:.3f} "
        f"(two random directions {meaning.together_chance[column]:.3f}), all components "
        f"R = {meaning.together[column, 1]:.3f}"
        for column, item in enumerate(meaning.attributes)
        if not item.is_class
    ]
    lines = [f"## {report.components.factor} factor, by {report.components.level}", ""]
    lines += [_row(header), _row(["---"] * len(header)), *map(_row, rows), ""]
    lines += [f"- {title}" for title in report.titles()]
    return "\n".join(lines + ([""] + together if together else [])) + "\n"


def _cells(
    attributes: Sequence[Attribute],
    association: Float[np.ndarray, " A"],
    effect: Float[np.ndarray, " A"],
) -> list[str]:
    """Association, and what moving does where it can be measured."""
    cells = []
    for item, strength, size in zip(attributes, association, effect, strict=True):
        cells.append(f"{strength:.2f}")
        if item.measure:
            cells.append(f"{size:.0f} %" if item.is_class else f"{size:.2f} std")
    return cells


def _stability(report: FactorReport, place: int | None) -> list[str]:
    """Cells of one component, or of chance for None."""
    sides = [side for side in (report.samples, report.models) if side is not None]
    return [f"{side.chance if place is None else side.found[place]:.2f}" for side in sides]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def arrays_of(report: FactorReport) -> dict[str, np.ndarray]:
    """What a program needs to move codes along the components, for one ``.npz`` file.

    Args:
      report: of one factor.

    Returns:
      By names that begin with the factor's: ``mean`` and ``std`` ``[E]`` of the codes, for K
      components ``directions`` ``[K, E]``, ``spread``, ``share`` and ``names`` ``[K]``, and whether
      the factor is the tanh of the codes (``bounded``).
    """
    components = report.components
    arrays = {
        "mean": components.mean,
        "std": components.std,
        "directions": components.directions,
        "spread": components.spread,
        "share": components.share,
        "names": np.array(report.titles()),
        "bounded": np.array(components.bounded),
    }
    return {f"{components.factor}_{name}": values for name, values in arrays.items()}


def write_reports(
    reports: Sequence[FactorReport],
    directory: Path,
    *,
    form: str,
    settings: dict[str, Any],
    notes: Sequence[str],
) -> tuple[dict[str, float], str, list[Path]]:
    """Writes ``metrics.json``, ``components.npz`` and ``components.md``.

    Args:
      reports: of the factors.
      directory: made if missing.
      form: of the evaluation.
      settings: what the numbers depend on.
      notes: where codes came from, and what was skipped and why.

    Returns:
      All metrics, the Markdown text, and the files.
    """
    metrics = {name: value for side in reports for name, value in metrics_of(side).items()}
    arrays: dict[str, Any] = {}
    for side in reports:
        arrays |= arrays_of(side)
    text = "\n".join([*map(markdown_of, reports), *(f"- {note}" for note in notes)])
    first = write_results(metrics, directory, form=form, settings=settings, notes=notes)
    files = [first, directory / "components.npz", directory / "components.md"]
    np.savez(files[1], **arrays)
    files[2].write_text(text + "\n")
    return metrics, text, files
