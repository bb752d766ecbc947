"""Probes of whole recordings that were cut into chunks: who speaks, and what is said."""

import numpy as np

from diffsda_jax.evals.context import Context
from diffsda_jax.evals.probes import ProbeResult, linear_probe
from diffsda_jax.evals.verification import content_features, speaker_probe_on, utterance_factors
from diffsda_jax.factors import Factors

Outcome = tuple[dict[str, ProbeResult], list[str]]
_FOLDS = 5


def utterances(context: Context) -> tuple[dict[str, float], list[str]]:
    """What either factor of a recording tells of the speaker and of the content.

    - Speaker: probes within the test split, whose speakers training may never have seen, scored on
      contents (recordings, where contents have no label) that the probe never saw.
    - Content: probes fitted on the training split and scored on the test split.

    s is the mean over the chunks; for the content, d is all chunks in their order, resampled to one
    length; for the speaker it is the mean over all steps, as in verification.
    """
    test = context.test
    if "group" not in test or "static_label" not in test:
        return {}, ["utterances skipped: the test clips are not cut from labelled recordings"]
    parts = (_speaker_probes(context), _content_probes(context))
    results = {name: result for found, _ in parts for name, result in found.items()}
    return _flat(results), [note for _, notes in parts for note in notes]


def _speaker_probes(context: Context) -> Outcome:
    """The speaker from either factor, within the test split."""
    test, factors = context.test, context.codes("test")
    content = test.get("dynamic_label", test["group"])
    try:
        results = speaker_probe_on(
            np.asarray(factors.static),
            np.asarray(factors.dynamic),
            test["static_label"],
            np.unique(content, return_inverse=True)[1] % _FOLDS,
            test.get("length"),
            test["group"],
        )
    except ValueError as error:  # too few speakers or recordings to learn from
        return {}, [f"speaker probes skipped: {error}"]
    left_out = results["s"].num_left_out
    notes = [f"speaker probes: {left_out} recordings left out, their speaker says nothing else"]
    return {f"{name}_to_speaker": r for name, r in results.items()}, notes if left_out else []


def _content_probes(context: Context) -> Outcome:
    """The sentence from either factor, learned on the training split."""
    train, test = context.train, context.test
    if "dynamic_label" not in test or "dynamic_label" not in train:
        return {}, ["content probes skipped: no sentence is said by several speakers"]
    if len(np.unique(train["dynamic_label"])) < 2:
        return {}, ["content probes skipped: all training recordings say one sentence"]
    on_train = _content(context.codes("train"), train)
    on_test = _content(context.codes("test"), test)
    known = np.isin(on_test["label"], on_train["label"])
    if not known.any():
        return {}, ["content probes skipped: training has no sentence of the test split"]
    results = {
        f"{name}_to_content": linear_probe(
            on_train[name], on_train["label"], on_test[name][known], on_test["label"][known]
        )
        for name in ("s", "d")
    }
    left_out = int((~known).sum())
    notes = [f"content probes: {left_out} recordings left out, their sentence is not in training"]
    return results, notes if left_out else []


def _content(factors: Factors, data: dict) -> dict[str, np.ndarray]:
    """Features of each recording for probes of the content, and its label."""
    static, dynamic = np.asarray(factors.static), np.asarray(factors.dynamic)
    length, group = data.get("length"), data["group"]
    mean, _, first = utterance_factors(static, dynamic, group, length)
    order = np.arange(len(group))
    return {
        "s": mean,
        "d": content_features(dynamic, group, order, length=length),
        "label": data["dynamic_label"][first],
    }


def _flat(results: dict[str, ProbeResult]) -> dict[str, float]:
    """``s_to_speaker_percent``, ``s_to_speaker_chance_percent``, ... of all probes."""
    metrics = {}
    for name, result in results.items():
        metrics[f"{name}_percent"] = result.accuracy_percent
        metrics[f"{name}_chance_percent"] = result.chance_percent
        metrics[f"{name}_over_chance_points"] = result.over_chance_points
    return metrics
