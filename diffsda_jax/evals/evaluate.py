"""One evaluation of a model on arrays: metrics, notes on what was skipped, and pictures."""

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffsda_jax.audio.wav import encode_wav
from diffsda_jax.data.video_writer import video_suffix, write_video
from diffsda_jax.evals import gallery
from diffsda_jax.evals.choices import check_choice
from diffsda_jax.evals.context import Context, Domain, EvalSettings
from diffsda_jax.evals.enrolment import enrol_unseen
from diffsda_jax.evals.generation_pictures import draw_generation
from diffsda_jax.evals.interface import SequenceModel, encode_clips
from diffsda_jax.evals.judges import Judge, make_judge
from diffsda_jax.evals.parts import PARTS
from diffsda_jax.evals.pictures import Picture, write_gif
from diffsda_jax.evals.report import write_pictures, write_results
from diffsda_jax.evals.result import EvalResult
from diffsda_jax.evals.sounds import make_sounds
from diffsda_jax.factors import Factors

KINDS = ("video", "series")
_EXAMPLES = 4  # swaps to be heard or seen one by one
_LOG = logging.getLogger(__name__)


def evaluate(
    model: SequenceModel,
    train: dict[str, Any],
    test: dict[str, Any],
    *,
    kind: str,
    static_names: Sequence[str] | None = None,
    dynamic_names: Sequence[str] | None = None,
    feature_names: Sequence[str] | None = None,
    denormalize: Callable[[np.ndarray], np.ndarray] | None = None,
    domain: Domain | None = None,
    pictures: bool = True,
    judge: Judge | None = None,
    output_dir: str | Path | None = None,
    **settings: Any,
) -> EvalResult:
    """Evaluate a model; only what the labels allow is computed, the rest is named in the notes.

    Args:
      model: encodes, samples and inverts normalised clips.
      train: arrays of the training split: ``x`` ``[N, V, ...]`` and maybe ``mask``, ``length``,
        ``static_label``, ``dynamic_label``, ``position``. Probes and judges are fitted on it.
      test: the same of the test split; everything is scored on it.
      kind: ``video`` (frames in [-1, 1]) or ``series``.
      static_names: names of the static classes.
      dynamic_names: names of the dynamic classes.
      feature_names: names of the features of a series.
      denormalize: maps ``x`` of a series to natural units for the line plots.
      domain: what is known of the data beside arrays; None is nothing.
      pictures: whether to draw, and to make sounds and videos.
      judge: one trained before on the same data; None trains one if a part needs it.
      output_dir: where to write ``metrics.json`` and pictures; None writes nothing.
      **settings: fields of `EvalSettings`, such as ``num_swaps`` or ``seed``.

    Raises:
      ValueError: unknown kind, part, start or form, or a split without clips.
    """
    chosen = EvalSettings(**settings)
    check_choice("kind", kind, KINDS)
    for split, data in (("train", train), ("test", test)):
        if not len(data["x"]):
            raise ValueError(
                f"evaluate: the {split} split has 0 clips; allowed are 1 or more; give more data."
            )
    domain = domain or Domain()
    readers, trial, enrolled = enrol_unseen(train, test, spare=domain.given_pairs is None)
    judged = {"judge", "swap", "one_factor", "interventions"} | (
        {"generation"} if domain.prior else set()
    )
    if judge is None and judged & set(chosen.parts):
        judge = make_judge(readers, chosen.judge_steps, chosen.seed)
    context = Context(
        model=model,
        kind=kind,
        train=train,
        test=test,
        train_factors=_encode_split(model, train, chosen.batch_size),
        test_factors=_encode_split(model, test, chosen.batch_size),
        judge=judge,
        settings=chosen,
        readers=readers,
        trial=trial,
        **vars(domain),
    )
    result = EvalResult(judge=judge)
    _add_notes(result, enrolled if judge is not None else [])
    for part in chosen.parts:
        _run_part(part, context, result)
    frames: list[Picture] = []
    if pictures:
        names = (static_names, dynamic_names, feature_names)
        result.images, frames, notes = gallery.draw(context, *names, denormalize=denormalize)
        _add_notes(result, notes)
        _add_sounds(result, context)
        if kind == "video" and not context.why_no_swaps():
            _add_videos(result, context)
        if "generation" in chosen.parts:
            images, videos = draw_generation(context, feature_names, denormalize)
            result.images |= images
            result.videos |= videos
    if output_dir is not None:
        _write(result, frames, Path(output_dir), context)
    return result


def _encode_split(model: SequenceModel, data: dict[str, Any], batch_size: int) -> Factors:
    """Factors of all clips of a split."""
    return encode_clips(
        model, data["x"], data.get("length"), data.get("mask"), batch_size=batch_size
    )


def _add_sounds(result: EvalResult, context: Context) -> None:
    """Add what can be heard of speech, or say why there is nothing."""
    if context.sound is None or context.why_no_swaps():
        return
    result.sounds = make_sounds(context, context.sound, _EXAMPLES)
    if not result.sounds:
        _add_notes(result, ["sounds skipped: the test recordings are of one speaker, two needed"])


def _add_videos(result: EvalResult, context: Context) -> None:
    """Add what can be seen of swaps one by one, or say why there is nothing."""
    if reason := context.why_no_frames():
        _add_notes(result, [f"videos skipped, pictures show three channels: {reason}"])
    else:
        result.videos = gallery.swap_videos(context, _EXAMPLES)


def _run_part(part: str, context: Context, result: EvalResult) -> None:
    """Add one part to the result, and log its notes and time."""
    began = time.perf_counter()
    metrics, notes = PARTS[part](context)
    result.metrics.update({f"{part}/{name}": value for name, value in metrics.items()})
    _add_notes(result, notes)
    if metrics:
        _LOG.info("evaluation: %s took %.1f s", part, time.perf_counter() - began)


def _add_notes(result: EvalResult, notes: Sequence[str]) -> None:
    """Add and log the notes that are new."""
    for note in notes:
        if note not in result.notes:
            result.notes.append(note)
            _LOG.info("evaluation: %s", note)


def _write(result: EvalResult, frames: list[Picture], directory: Path, context: Context) -> None:
    """Write the results and the pictures, and note the files in the result."""
    settings = dataclasses.asdict(context.settings)
    form = settings.pop("form")
    settings |= {
        "parts": list(context.settings.parts),
        "num_train_clips": len(context.train["x"]),
        "num_test_clips": len(context.test["x"]),
    }
    result.files.append(
        write_results(result.metrics, directory, form=form, settings=settings, notes=result.notes)
    )
    result.files += write_pictures(result.images, directory)
    if context.sound is not None:
        for name, samples in result.sounds.items():
            result.files.append(directory / "sounds" / f"{name.replace('/', '_')}.wav")
            result.files[-1].parent.mkdir(exist_ok=True)
            result.files[-1].write_bytes(encode_wav(samples, context.sound.sample_rate_hz))
    suffix = video_suffix()
    for name, video in result.videos.items():
        path = directory / "videos" / (name.replace("/", "_") + suffix)
        result.files.append(write_video(video, path, context.fps))
    if frames:  # a GIF is shown by every viewer of Markdown and notebooks
        result.files.append(write_gif(frames, directory / "swap_grid.gif"))
