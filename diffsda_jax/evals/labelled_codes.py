"""Part ``disentanglement``: how single codes and labels correspond, and how steady codes are."""

from collections.abc import Sequence

import numpy as np

from diffsda_jax.evals import consistency
from diffsda_jax.evals import mutual_information as measure
from diffsda_jax.evals.context import Context
from diffsda_jax.evals.disentanglement import block_shares, code_importance, dci_scores
from diffsda_jax.evals.interface import encode_clips, valid_steps
from diffsda_jax.evals.labels import Label, collect_labels
from diffsda_jax.evals.mutual_information import Codes, FactorTable
from diffsda_jax.factors import Factors

Outcome = tuple[dict[str, float], list[str]]
_NUM_ITEMS = 2000
_NUMBERS = ("position", "factor_dynamic")  # known of every step


def disentanglement(context: Context) -> Outcome:
    """DCI, MIG, SAP, modularity and explicitness over all labels, and consistency.

    Items are clips (codes: ``s`` and the course of each ``d``; factors: all labels), and where
    something is known of each step also steps (codes: ``s`` and ``d`` of the step; factors: static
    labels, or numbers where those are known, and the numbers of the step). Scores of codes that
    belong to other items are given beside as ``..._chance``.
    """
    labels, notes = collect_labels(context)
    metrics: dict[str, float] = {}
    if labels:
        tables = [
            clip_table(context.codes(split), context, labels, split) for split in ("train", "test")
        ]
        metrics |= _scores("clips", tables, context, labels)
    else:
        notes.append("disentanglement of clips skipped: the clips have no labels that vary")
    number = next((key for key in _NUMBERS if key in context.train and key in context.test), None)
    static = [label for label in labels if label.block == "static"]
    if number is not None and (static or "factor_static" in context.train):
        tables = [
            step_table(context.codes(split), context, static, split, number)
            for split in ("train", "test")
        ]
        metrics |= _scores("steps", tables, context, static)
    metrics |= _consistency(context, labels)
    return metrics, notes


def clip_codes(factors: Factors, length: np.ndarray | None) -> Codes:
    """Each static code, and the course of each dynamic code as means over parts of the clip.

    Args:
      factors: of B clips.
      length: number of real steps ``[B]``; None is all.

    Returns:
      The codes of every clip.
    """
    static = np.asarray(factors.static)
    course = measure.segment_means(np.asarray(factors.dynamic), length)
    num_clips, num_parts, num_dynamic = course.shape
    owner = np.concatenate(
        [
            np.arange(static.shape[1]),
            static.shape[1] + np.repeat(np.arange(num_dynamic), num_parts),
        ]
    )
    flat = course.transpose(0, 2, 1).reshape(num_clips, -1)
    return Codes(np.concatenate([static, flat], axis=1), owner)


def clip_table(
    factors: Factors, context: Context, labels: Sequence[Label], split: str
) -> tuple[Codes, FactorTable]:
    """Codes and labels of the clips of a split."""
    data = getattr(context, split)
    values = np.stack([getattr(label, split) for label in labels], axis=1)
    codes = clip_codes(factors, data.get("length"))
    chosen = _choose(len(values), context.settings.seed)
    return (
        Codes(codes.values[chosen], codes.owner),
        FactorTable(values[chosen], np.ones(len(labels), bool)),
    )


def step_table(
    factors: Factors, context: Context, static: list[Label], split: str, number: str
) -> tuple[Codes, FactorTable]:
    """Codes and known factors of random real steps of a split.

    Static factors are the numbers ``factor_static`` where those are known, else labels.
    """
    data = getattr(context, split)
    own, dynamic = np.asarray(factors.static), np.asarray(factors.dynamic)
    clip, step = np.nonzero(valid_steps(dynamic.shape, data.get("length")))
    chosen = _choose(len(clip), context.settings.seed)
    clip, step = clip[chosen], step[chosen]
    if "factor_static" in context.train:
        known, is_class = data["factor_static"], False
    else:
        known, is_class = np.stack([getattr(label, split) for label in static], 1), True
    values = np.concatenate([own[clip], dynamic[clip, step]], axis=1)
    numbers = data[number][clip, step]
    table = np.concatenate([known[clip], numbers], axis=1)
    kinds = np.repeat([is_class, False], [known.shape[1], numbers.shape[1]])
    return Codes(values, np.arange(values.shape[1])), FactorTable(table, kinds)


def _choose(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)[:_NUM_ITEMS]


def _scores(
    name: str,
    tables: list[tuple[Codes, FactorTable]],
    context: Context,
    labels: list[Label],
) -> dict[str, float]:
    """All scores of one kind of items, and those of codes of other items as chance."""
    num_static_codes = context.train_factors.static.shape[-1]
    (codes, known), (test_codes, test_known) = tables
    num_static = sum(label.block == "static" for label in labels)
    if "factor_static" in context.train and name == "steps":
        num_static = context.train["factor_static"].shape[1]
    rng = np.random.default_rng(context.settings.seed)
    result: dict[str, float] = {}
    for suffix in ("", "_chance"):
        if suffix:
            codes, test_codes = (
                Codes(rng.permutation(side.values), side.owner) for side in (codes, test_codes)
            )
        information, entropy = measure.mutual_information(
            measure.bin_codes(test_codes), measure.bin_factors(test_known)
        )
        singles = measure.single_code_scores(codes, known, test_codes, test_known)
        scores = {
            "mig": measure.mutual_information_gap(information, entropy).mean(),
            "sap": measure.separated_predictability(singles).mean(),
        }
        area = measure.explicitness(codes, known, test_codes, test_known)
        if area is not None:
            scores["explicitness_auc"] = area
        if len(entropy) > 1:
            scores["modularity"] = measure.modularity(information)
            importance, told = code_importance(
                codes.values,
                known.values,
                test_codes.values,
                test_known.values,
                is_class=known.is_class,
                reader="lasso",
            )
            by_code = np.zeros((codes.count, len(told)))
            np.add.at(by_code, codes.owner, importance)
            scores |= dci_scores(by_code, told)
            if not suffix and 0 < num_static < len(told):
                shares = block_shares(by_code, num_static_codes, num_static)
                result |= {f"{name}_{key}": value for key, value in shares.items()}
        result |= {f"{name}_{key}{suffix}": float(value) for key, value in scores.items()}
    return result


def _consistency(context: Context, labels: list[Label]) -> dict[str, float]:
    """How near the codes of clips with one label are, and those of the halves of one clip."""
    length = context.test.get("length")
    features = {
        "s": np.asarray(context.codes("test").static),
        "d": measure.segment_means(np.asarray(context.test_factors.dynamic), length).reshape(
            len(context.test["x"]), -1
        ),
    }
    result: dict[str, float | None] = {}
    for label in labels:
        # Clips that share the label and nothing of the other block.
        other = consistency.distinct_pairs(
            [rival.test for rival in labels if rival.block != label.block]
        )
        for name, values in features.items():
            key = f"{name}_same_{label.name}_distance_ratio"
            result[key] = consistency.same_label_ratio(values, label.test, other)
    halves, index = consistency.half_clips(context.test["x"], length, context.test.get("mask"))
    if len(index) > 1:
        first, second = (
            encode_clips(context.model, *half, batch_size=context.settings.batch_size)
            for half in halves
        )
        result["s_of_halves_distance_ratio"] = consistency.windows_ratio(
            np.asarray(first.static), np.asarray(second.static)
        )
    known = {name: value for name, value in result.items() if value is not None}
    return known | {f"{name}_chance": 1.0 for name in known}
