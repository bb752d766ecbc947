"""What a page says in words: what was trained, what the numbers mean, and what is missing."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffsda_jax.evals.report import MetricLine, group_metrics
from diffsda_jax.page.blocks import Table, Tile
from diffsda_jax.page.records import Evaluation, Records

_KINDS = {
    "video": ("videos", "who or what is seen", "how it moves"),
    "series": (
        "time series",
        "what stays the same in a sequence",
        "what changes from step to step",
    ),
    "audio": ("speech", "whose voice it is", "what is said"),
}
MEANING = {
    "reconstruction": "Test sequences decoded from their own factors: from random noise (what the "
    "factors hold) and from their own noise (nearly lossless by construction). nmse is the mean "
    "squared error over the variance of the data.",
    "swap": "s of one test sequence with d of another; a judge, a classifier trained on real "
    "sequences, says whether each label was kept.",
    "one_factor": "One factor kept, the other set to its mean: what each of them holds alone.",
    "probes": "Linear classifiers that read labels from a factor; d should tell nothing of the "
    "static label.",
    "judge": "How well the judge of the swaps does on real test sequences.",
    "verification": "Equal error rate of telling by s, and by d, whether two sequences share "
    "their static label: low is good for s, 50 % is ideal for d.",
    "utterances": "The same for whole recordings, and what probes read from them.",
    "tasks": "What the data set is used for, predicted from the factors.",
    "known_factors": "Against the true factors, which are known here.",
    "disentanglement": "Disentanglement, completeness and informativeness of single numbers of "
    "the factors.",
    "interventions": "Factors swapped or sampled, and what a judge says of the result.",
    "faces": "Distances of swapped faces or bodies to those who gave the factors.",
    "face_reconstruction": "The same for reconstructions.",
    "generation": "Sequences whose factors a prior made up.",
}
TILES = {
    "faces/aed": ("AED, static factor kept", "low is good"),
    "faces/akd_pixels": ("AKD, dynamics kept", "low is good"),
    "verification/static_eer_percent": ("static EER", "low is good"),
    "verification/dynamic_eer_percent": ("dynamic EER", "near 50 % is good"),
    "swap/static_kept_percent": ("swaps keep the static label", "100 % is best"),
    "swap/dynamic_kept_percent": ("swaps keep the dynamic label", "100 % is best"),
    "reconstruction/random_nmse": ("error of reconstructions", "0 is best"),
}
_NUMTILES = 4


@dataclass(frozen=True)
class Facts:
    """What is known of a run beside its records.

    Attributes:
      config: its config as JSON values.
      source: name of its data source; of latents, of the one that was encoded.
      kind: ``video``, ``series`` or ``audio``; empty where it is not known.
      num_sequences: of each split; empty where the data are not here.
      shape: of one step, ``(F,)`` or ``(H, W, C)``; empty where it is not known.
      step: of the newest checkpoint, or None without one.
      num_parameters: of the model, or None.
      versions: of packages that trained it.
      versions_here: of those that made the page.
    """

    config: Mapping[str, Any]
    source: str
    kind: str = ""
    num_sequences: Mapping[str, int] = field(default_factory=dict)
    shape: Sequence[int] = ()
    step: int | None = None
    num_parameters: int | None = None
    versions: Mapping[str, str | None] = field(default_factory=dict)
    versions_here: Mapping[str, str | None] = field(default_factory=dict)


def lead_of(facts: Facts, records: Records) -> str:
    """What was trained, on what, how long, in plain words."""
    config = facts.config
    noun, same, changing = _KINDS.get(facts.kind, ("sequences", *_KINDS["series"][1:]))
    step = _step_of(facts.shape)
    model, steps = config["model"], config["data"]["length"]
    done = facts.step
    if done is None and records.curves:
        done = int(max(curve.steps[-1] for curve in records.curves.values()))
    count = facts.num_parameters
    size = f" The model has {_count(count)} parameters." if count else ""
    batch = config["train"]["batch_size"]
    trained = "It has not been trained yet."
    if done:
        took = "" if math.isnan(records.seconds) else f", in {_duration(records.seconds)}"
        trained = (
            f"It was trained for {done:,} steps of {batch} sequences ({done * batch:,}){took}."
        )
    elif done == 0:
        trained = "Its weights were not trained in this folder."
    return (
        f"A model that splits {noun} of the data set {facts.source!r}{step} in two parts, without "
        "any labels: a static "
        f"factor s of {model['static_dim']} numbers for the whole sequence ({same}), and a dynamic "
        f"factor d of {model['dynamic_dim']} numbers for each of its {steps} steps ({changing}). "
        f"A diffusion decoder makes sequences from both. {trained}{size}"
        f"{_data_of(facts.num_sequences)}"
    )


def tiles_of(evaluation: Evaluation | None) -> list[Tile]:
    """Some of the numbers of an evaluation, those first that papers report."""
    if evaluation is None:
        return []
    lines = {
        line.name: line for group in group_metrics(evaluation.metrics).values() for line in group
    }
    tiles = []
    for name, (title, hint) in TILES.items():
        if name in lines and not math.isnan(evaluation.metrics[name]):
            line = lines[name]
            chance = f", chance {line.chance}" if line.chance else ""
            tiles.append(Tile(f"{line.value} {line.unit}".strip(), title, hint + chance))
    return tiles[:_NUMTILES]


def metric_rows(lines: Sequence[MetricLine]) -> list[tuple[str, ...]]:
    """Cells of one group of metrics."""
    return [(line.title, f"{line.value} {line.unit}".strip(), line.chance) for line in lines]


def tables_of(text: str, title: str) -> list[Table]:
    """The tables of a Markdown text.

    Args:
      text: with tables whose lines begin with ``|``.
      title: caption of those without a heading above them.
    """
    tables, rows, heading = [], [], title
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            rows.append([_plain(cell) for cell in line.strip().strip("|").split("|")])
        elif rows:
            header, *body = rows
            body = [row for row in body if not all(set(cell) <= set("-: ") for cell in row)]
            tables.append(Table(heading, header, body))
            rows = []
        if line.startswith("#"):
            heading = f"{title}: {line.strip('# ')}"
    return tables


def _plain(cell: str) -> str:
    """A cell of a Markdown table without its marks."""
    return cell.strip().replace("**", "").replace("`", "")


def _step_of(shape: Sequence[int]) -> str:
    """What one step of a sequence is."""
    if len(shape) == 3:
        height, width, channels = shape
        return f" (frames of {width} x {height}, {channels} channel{'s' * (channels > 1)})"
    return f" ({shape[0]} values a step)" if shape else ""


def _data_of(counts: Mapping[str, int]) -> str:
    """How many sequences there are."""
    if not counts:
        return ""
    parts = (f"{count:,} sequences for {split}ing" for split, count in counts.items())
    return f" The data set has {' and '.join(parts)}."


def _count(number: int) -> str:
    return f"{number / 1e6:.2f} million" if number >= 1e5 else f"{number:,}"


def _duration(seconds: float) -> str:
    """Such as ``2 h 5 min``, ``61 min`` or ``48 s``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
