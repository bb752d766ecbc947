"""Sections of a page about a run as a whole: numbers, curves, pictures, tables and settings."""

import json
import math
from collections.abc import Mapping

from diffsda_jax.evals.pictures import Picture
from diffsda_jax.evals.report import format_number, group_metrics
from diffsda_jax.page.blocks import Block, Details, Figure, Panel, Row, Rows, Section, Table, Text
from diffsda_jax.page.charts import Line, axis_of, line_chart
from diffsda_jax.page.media import Shelf, read_animation
from diffsda_jax.page.published import METHODS, SOURCE, published_for
from diffsda_jax.page.records import Curve, Evaluation, Records
from diffsda_jax.page.words import MEANING, TILES, Facts, metric_rows, tables_of

_FIRST_CURVES = ("train/loss", "train/grad_norm", "train/learning_rate", "train/steps_per_second")
_MOST_CURVES = 8
# These get a logarithmic axis where the largest value is so many times the smallest.
_LOG_CURVES, _LOG_FROM = ("loss", "norm"), 10.0
_CAPTIONS = {
    "factors_static": "Static factors of test sequences on their first two principal components, "
    "coloured by their labels.",
    "factors_dynamic": "Dynamic factors of a few test sequences over their steps.",
    "reconstruction_strips": "Test clips above what their factors give.",
    "swap_grid": "Swaps as strips of frames.",
    "swap_series": "A few swaps beside the sequences that gave the factors.",
}
_SHOWN_ABOVE = ("swap_grid",)  # as a video


def numbers_section(facts: Facts, evaluation: Evaluation | None, command: str) -> Section:
    """Metrics beside published numbers and chance.

    Args:
      facts: of the run.
      evaluation: the newest one, or None.
      command: that evaluates the run.
    """
    blocks: list[Block] = [*_published(facts, evaluation)]
    if evaluation is None:
        blocks.append(Text("This run has not been evaluated yet. Run:", True, command))
        return Section("numbers", "Numbers", blocks)
    rows: list[tuple[str, ...]] = []
    for group, lines in group_metrics(evaluation.metrics).items():
        meaning = f". {MEANING[group]}" if group in MEANING else ""
        rows.append((f"{group.replace('_', ' ').capitalize()}{meaning}",))
        rows += metric_rows(lines)
    settings = evaluation.settings
    told = "".join(
        f", {settings[key]} {text}"
        for key, text in (
            ("num_test_clips", "test sequences"),
            ("num_swaps", "swaps"),
            ("num_steps", "sampler steps"),
        )
        if key in settings
    )
    caption = f"Evaluation at step {evaluation.step:,}, form {evaluation.form!r}{told}."
    header = ("metric", "value", "chance")
    blocks.append(Table(caption, header, rows))
    blocks += [Text(f"Note: {note.rstrip('.')}.") for note in evaluation.notes]
    return Section("numbers", "Numbers", blocks)


def _published(facts: Facts, evaluation: Evaluation | None) -> list[Block]:
    """The table of published numbers, or a sentence where there are none."""
    published = published_for(facts.source)
    if not published:
        text = f"The paper ({SOURCE}) gives no numbers on the data {facts.source!r}."
        return [Text(text)] if facts.source else []
    measured = evaluation.metrics if evaluation else {}
    rows = []
    for line in published:
        ours = measured.get(line.metric, math.nan)
        values = ["-" if value is None else f"{value:g}" for value in line.values]
        here = "not measured" if math.isnan(ours) else format_number(ours)
        rows.append((line.title, line.unit, line.better, here, *values))
    header = ("metric", "unit", "better", "this run", *METHODS)
    notes = [Text(_form_note(evaluation.form))] if evaluation else []
    caption = f"Beside the numbers published in {SOURCE} on this data set."
    return [Table(caption, header, rows, num_texts=3), *notes]


def _form_note(form: str) -> str:
    """How far published numbers can be compared."""
    if form == "reference":
        return (
            "This evaluation has the reference form, which keeps the quirks of published numbers."
        )
    return (
        "This evaluation has the corrected form; published numbers follow the reference form "
        "(eval.form=reference), so small differences mean little."
    )


def training_section(records: Records) -> Section:
    """Curves of the log."""
    curves = records.curves
    names = [name for name in _FIRST_CURVES if name in curves]
    names += [name for name in curves if "loss" in name and name not in names]
    blocks: list[Block] = []
    if names:
        loss = curves.get("train/loss")
        if loss is not None:
            text = f"The loss went from {loss.values[0]:.4g} to {loss.values[-1]:.4g}"
            blocks.append(Text(f"{text} (steps {loss.steps[0]:,.0f} to {loss.steps[-1]:,.0f})."))
        panels = [_curve_panel(name, curves[name]) for name in names[:_MOST_CURVES]]
        blocks.append(Rows([Row(panels)]))
    else:
        blocks.append(
            Text(
                f"There is no log of a training in {records.workdir / 'logs'}; --mode=train writes "
                "one.",
                missing=True,
            )
        )
    over_time = _metrics_over_time(curves)
    if over_time:
        blocks += [Text("Metrics of evaluations during training."), Rows([Row(over_time)])]
    return Section("training", "Training", blocks)


def _metrics_over_time(curves: Mapping[str, Curve]) -> list[Panel]:
    """Charts of the metrics that tiles show, where there was more than one evaluation."""
    found = {
        name.removeprefix("eval/"): curve
        for name, curve in curves.items()
        if name.startswith("eval/") and len(curve.steps) > 1
    }
    return [_curve_panel(name, curve) for name, curve in found.items() if name in TILES]


def _curve_panel(name: str, curve: Curve) -> Panel:
    """One scalar as a chart."""
    positive = curve.values[curve.values > 0]
    log = any(word in name for word in _LOG_CURVES) and len(positive) == len(curve.values) > 0
    log = log and positive.max() > _LOG_FROM * positive.min()
    title = name.removeprefix("train/").replace("_", " ").replace("/", ", ")
    y_axis = axis_of([curve.values], "", bool(log))
    first, last = (float(value) for value in (curve.values[0], curve.values[-1]))
    alt = f"{title} over the steps of training: from {first:.4g} to {last:.4g}"
    lines = [Line(title, curve.steps, curve.values)]
    return Panel(title, line_chart(lines, axis_of([curve.steps], "step"), y_axis, alt), alt)


def pictures_section(
    evaluation: Evaluation | None, drawn: Mapping[str, Picture], shelf: Shelf, command: str
) -> Section:
    """The still pictures of the newest evaluation.

    Args:
      evaluation: the newest one, or None.
      drawn: pictures by their names, where no evaluation wrote them.
      shelf: that they are embedded in.
      command: that evaluates the run.
    """
    found = {path.stem: path for path in evaluation.pictures()} if evaluation else {}
    blocks: list[Block] = []
    for name in sorted(found.keys() | drawn.keys()):
        if name in _SHOWN_ABOVE:
            continue
        caption = _CAPTIONS.get(name, name.replace("_", " ").capitalize() + ".")
        media = (
            shelf.add_file(found[name]) if name in found else shelf.add_picture(name, drawn[name])
        )
        blocks.append(Figure(Panel("", media, caption), caption))
    if not blocks:
        blocks.append(Text("No evaluation drew pictures of this run yet. Run:", True, command))
    return Section("pictures", "Pictures of the evaluation", blocks)


def tables_section(records: Records, shelf: Shelf, command: str) -> Section:
    """What ``--mode=explore`` and others found, as tables and pictures."""
    blocks: list[Block] = []
    for title, text in records.tables.items():
        blocks += tables_of(text, title)
    for exploration in records.explorations[-1:]:
        for path in sorted(exploration.folder.glob("*_0.gif")):
            frames, fps = read_animation(path)
            alt = f"{path.stem.split('_')[0]} factor: a clip moved along each component, a row each"
            media = shelf.add_animation(path.name, frames, fps)
            blocks.append(Figure(Panel("", media, alt), f"{alt}."))
        for path in exploration.pictures():
            if not path.with_suffix(".gif").is_file() and path.stem.endswith("_0"):
                alt = f"{path.stem.split('_')[0]} factor: a sequence moved along each component"
                blocks.append(Figure(Panel("", shelf.add_file(path), alt), f"{alt}."))
    if not records.explorations:
        text = "The components of the factors have not been explored and named yet. Run:"
        blocks.append(Text(text, True, command))
    return Section("tables", "Exploration and studies", blocks)


def settings_section(facts: Facts) -> Section:
    """Config and versions."""
    rows = [
        (name, facts.versions.get(name) or "-", facts.versions_here.get(name) or "-")
        for name in dict.fromkeys((*facts.versions, *facts.versions_here))
    ]
    blocks: list[Block] = [
        Details("Every option of the config", json.dumps(facts.config, indent=2, sort_keys=True)),
        Table("Versions of packages.", ("package", "trained with", "page made with"), rows, 3),
    ]
    return Section("settings", "Config and versions", blocks)
