"""``--mode=report``: one self-contained page about a run, from what lies in its folder."""

import dataclasses
import logging
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from diffsda_jax import config as configuration
from diffsda_jax import experiment as experiments
from diffsda_jax import runs
from diffsda_jax.audio.wav import encode_wav
from diffsda_jax.data.sources.latents import Latents
from diffsda_jax.evals import gallery
from diffsda_jax.evals.choices import check_choice
from diffsda_jax.evals.context import Context
from diffsda_jax.evals.examples import Examples, make_examples
from diffsda_jax.evals.exploration import FACTORS, Components
from diffsda_jax.evals.pictures import Picture
from diffsda_jax.evals.sounds import make_sounds
from diffsda_jax.experiment import Experiment
from diffsda_jax.factor_moves import load_components
from diffsda_jax.page.blocks import Page, Text, render_page
from diffsda_jax.page.example_sections import (
    failures_section,
    swaps_section,
    traversals_section,
)
from diffsda_jax.page.media import Shelf
from diffsda_jax.page.painter import Painter
from diffsda_jax.page.records import Evaluation, Records, read_records
from diffsda_jax.page.run_sections import (
    numbers_section,
    pictures_section,
    settings_section,
    tables_section,
    training_section,
)
from diffsda_jax.page.words import Facts, lead_of, tiles_of
from diffsda_jax.pipeline import DiffSDA
from diffsda_jax.saved_config import CONFIG_FILE
from diffsda_jax.train.checkpoint import package_version

logger = logging.getLogger(__name__)

FILE = "report.html"
COMPUTE = ("auto", "never")
_BATCH_SIZE = 8  # of all that is decoded: one compiled program
_SOUNDS = 4
_PACKAGES = ("diffsda_jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")
_TEXT_MEGABYTES = 2.0  # of the page's room, for all that is no picture, video or sound
_MEGABYTE = 1_000_000


class Made(NamedTuple):
    """What was made for the page with the newest checkpoint.

    Attributes:
      examples: swaps, reconstructions and traversals.
      grid: frames of an animated grid of swaps; empty where an evaluation wrote one.
      pictures: by their names; empty where an evaluation wrote them.
      sounds: WAV files of swaps by role; empty where an evaluation wrote them.
    """

    examples: Examples | None = None
    grid: Sequence[Picture] = ()
    pictures: dict[str, Picture] = {}
    sounds: Sequence[dict[str, bytes]] = ()


def run_report(config: ConfigDict, workdir: str | Path, config_name: str | None = None) -> Path:
    """Writes the page of a run.

    Args:
      config: of the run; its section ``report`` says how.
      workdir: of a run, finished or not.
      config_name: what ``--config`` was given, for commands on the page.

    Returns:
      ``<workdir>/report.html``.

    Raises:
      FileNotFoundError: the folder holds nothing of a run.
      ValueError: an option that is not allowed, a config of another run, or data that do not fit.
    """
    options = check_options(config)
    workdir = Path(workdir).expanduser()
    records = read_records(workdir)
    evaluation = records.evaluations[-1] if records.evaluations else None
    experiment, model, why_not = _load(config, workdir)
    made, why = Made(), why_not
    if experiment is not None and options.compute == "never":
        why = "config.report.compute is 'never'"
    elif experiment is not None and model is not None:
        made = _make(experiment, model, records, evaluation)
    facts = _facts(config, records, experiment, model)
    shelf = Shelf(round((options.max_megabytes - _TEXT_MEGABYTES) * _MEGABYTE))
    page = _page(records, facts, made, _painter(experiment, shelf, made), why, config_name)
    path, scratch = workdir / FILE, workdir / f"{FILE}.part"
    scratch.write_text(render_page(page), encoding="utf-8")
    scratch.replace(path)
    logger.info("wrote %s, %.1f MB", path, path.stat().st_size / _MEGABYTE)
    return path


def check_options(config: ConfigDict) -> ConfigDict:
    """The section ``report``, checked before anything is loaded.

    Raises:
      ValueError: names the option, its value and what is allowed.
    """
    options = config.report
    check_choice("report.compute", options.compute, COMPUTE)
    least = {"num_codes": 2, "num_clips": 1, "num_components": 1, "num_places": 3}
    for name, smallest in (least | {"max_megabytes": 2 * _TEXT_MEGABYTES}).items():
        if options[name] < smallest:
            raise ValueError(
                f"config.report.{name} is {options[name]}; allowed: {smallest} or more."
            )
    if options.num_places % 2 == 0:
        raise ValueError(
            f"config.report.num_places is {options.num_places}; use an odd number, so that the "
            "middle of a slider is the sequence itself."
        )
    return options


def _load(
    config: ConfigDict, workdir: Path
) -> tuple[Experiment | None, DiffSDA | None, str | None]:
    """Experiment and newest model; None, and why, for what is not on this machine."""
    if not any(workdir.glob("checkpoints/[0-9]*")):
        return None, None, "there is no checkpoint yet"
    try:
        return *runs.load_trained(config, workdir), None
    except (FileNotFoundError, ImportError) as error:
        why = " ".join(str(error).split())
        logger.warning("report: no examples are decoded: %s", why)
    except ValueError as error:
        if config.report.compute == "auto":
            raise ValueError(
                f"{error} Or show only what lies in {workdir}: --config.report.compute=never."
            ) from None
        why = str(error)
    try:
        return None, DiffSDA.from_checkpoint(workdir, weights=config.eval.weights), why
    except (FileNotFoundError, ValueError):
        return None, None, why


def _make(
    experiment: Experiment, model: DiffSDA, records: Records, evaluation: Evaluation | None
) -> Made:
    """Decodes what the page needs and no evaluation wrote."""
    config = experiment.config.copy_and_resolve_references()
    options, element = config.report, experiment.element
    for name in ("num_clips", "num_train_clips"):
        config.eval[name] = min(config.eval[name], options.num_codes)
    model, settings = experiments.as_evaluated(config, model)
    settings = dataclasses.replace(settings, batch_size=_BATCH_SIZE)
    runner = runs.EvalRunner(dataclasses.replace(experiment, config=config))
    context = runner.make_context(model, settings, with_judge=False)
    examples = make_examples(
        context,
        num_clips=options.num_clips,
        num_components=options.num_components,
        num_places=options.num_places,
        known=_known_components(records, int(model.meta.get("step", 0))),
        label_names={"static": element.static_names, "dynamic": element.dynamic_names},
    )
    pictures: dict[str, Picture] = {}
    grid: Sequence[Picture] = ()
    hidden = context.kind == "video" and context.why_no_frames()
    if not hidden and (evaluation is None or not evaluation.pictures()):
        names = (element.static_names, element.dynamic_names, element.feature_names)
        denormalize = experiment.normalizer.invert
        pictures, grid, _ = gallery.draw(context, *names, denormalize=denormalize)
        pictures = {name.replace("/", "_"): picture for name, picture in pictures.items()}
    sounds = () if evaluation and evaluation.swaps("sounds") else _sounds(context)
    return Made(examples, grid, pictures, sounds)


def _sounds(context: Context) -> list[dict[str, bytes]]:
    """Swaps of speech to be heard, as WAV files by role."""
    if context.sound is None or context.why_no_swaps() or "static_label" not in context.test:
        return []
    files: dict[str, dict[str, bytes]] = {}
    for name, wave in make_sounds(context, context.sound, _SOUNDS).items():
        swap, _, role = name.partition("/")
        files.setdefault(swap, {})[role] = encode_wav(wave, context.sound.sample_rate_hz)
    return list(files.values())


def _known_components(records: Records, step: int) -> list[tuple[Components, list[str]]]:
    """Components that ``--mode=explore`` found for the checkpoint of a step, and their titles."""
    found = []
    for exploration in records.explorations:
        path = exploration.folder / "components.npz"
        if exploration.step != step or not path.is_file():
            continue
        found += [load_components(path, factor) for factor in FACTORS]
    return found


def _facts(
    config: ConfigDict, records: Records, experiment: Experiment | None, model: DiffSDA | None
) -> Facts:
    """What the page says of the run beside its records."""
    meta = model.meta if model is not None else {}
    known = configuration.with_defaults(
        records.config or meta.get("config") or configuration.to_json(config)
    )
    source, kind, counts = known["source"]["name"], model.spec.kind if model else "", {}
    if experiment is not None:
        kind = "audio" if experiment.front_end is not None else experiment.element.kind
        counts = {split: len(items) for split, items in experiment.sources.items()}
        if isinstance(experiment.sources["train"], Latents):
            facts = experiment.sources["train"].facts
            source = facts.get("config.source.name", source)
    count = None
    if model is not None:
        count = sum(leaf.size for leaf in jax.tree.leaves(model.variables["params"]))
    here = {name: package_version(name) for name in _PACKAGES}
    return Facts(
        config=known,
        source=source,
        kind=kind,
        num_sequences=counts,
        shape=model.spec.shape if model is not None else (),
        step=None if model is None else int(meta.get("step", 0)),
        num_parameters=count,
        versions=meta.get("versions", {}),
        versions_here=here | {"python": platform.python_version()},
    )


def _painter(experiment: Experiment | None, shelf: Shelf, made: Made) -> Painter:
    """How the data are drawn."""
    if experiment is None or made.examples is None:
        return Painter(shelf, "series")
    context, element = made.examples.context, experiment.element
    if context.kind == "video":
        to_frames = None if context.why_no_frames() else context.to_frames
        return Painter(shelf, "video", to_frames=to_frames, fps=context.fps)
    return Painter(
        shelf,
        "series",
        denormalize=experiment.normalizer.invert,
        feature_names=element.feature_names,
    )


def _page(
    records: Records,
    facts: Facts,
    made: Made,
    painter: Painter,
    why: str | None,
    config_name: str | None,
) -> Page:
    """All sections; what is missing is a sentence in its place."""
    evaluation = records.evaluations[-1] if records.evaluations else None
    workdir, examples, shelf = records.workdir, made.examples, painter.shelf

    def command(mode: str) -> str:
        words = [f"--workdir={workdir}", f"--mode={mode}"]
        if config_name or not (Path(workdir) / CONFIG_FILE).is_file():  # else that one is taken
            words.insert(0, f"--config={config_name or 'CONFIG'}")
        return f"python -m diffsda_jax.main {shlex.join(words)}"

    missing = []
    if examples is None:
        text = f"No examples were decoded, as {(why or '').rstrip('.')}. With checkpoint and data"
        missing.append(Text(f"{text} on one machine they come with:", True, command("report")))
    elif not painter.can_draw:
        missing.append(Text(f"Nothing can be drawn: {examples.context.why_no_frames()}.", True))
    no_swaps, no_traversals = list(missing), list(missing)
    if examples is not None and examples.swaps is None:
        no_swaps.append(Text(f"There are no swaps: {examples.context.why_no_swaps()}.", True))
    if examples is not None:
        no_traversals += [Text(reason, True) for reason in examples.unmoved]
    sections = [
        swaps_section(
            examples,
            painter,
            evaluation,
            made.grid,
            made.sounds,
            no_swaps,
        ),
        traversals_section(examples, painter, no_traversals),
        numbers_section(facts, evaluation, command("eval")),
        training_section(records),
        failures_section(examples, painter, missing),
        pictures_section(evaluation, made.pictures, shelf, command("eval")),
        tables_section(records, shelf, command("explore")),
        settings_section(facts),
    ]
    footer = [f"Run folder: {workdir.name}."]
    if shelf.left_out:
        footer.append(f"Left out to keep this page light: {', '.join(shelf.left_out)}.")
    title = facts.source.replace("_", " ").capitalize() or workdir.name
    return Page(title, lead_of(facts, records), tiles_of(evaluation), sections, footer)
