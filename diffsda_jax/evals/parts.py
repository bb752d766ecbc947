"""The parts of an evaluation; each takes a `Context` and gives metrics and notes."""

import numpy as np

from diffsda_jax.evals import metrics as measure
from diffsda_jax.evals.context import Context
from diffsda_jax.evals.downstream import known_factors, tasks
from diffsda_jax.evals.faces import face_reconstruction, faces
from diffsda_jax.evals.generation import generation
from diffsda_jax.evals.interface import Clips
from diffsda_jax.evals.interventions import interventions
from diffsda_jax.evals.labelled_codes import disentanglement
from diffsda_jax.evals.probes import chance_level, probe_factors
from diffsda_jax.evals.sounds import cepstral_distances
from diffsda_jax.evals.swap import (
    keep_one_factor,
    mean_factors,
    reconstruct,
    reconstruction_starts,
)
from diffsda_jax.evals.utterances import utterances
from diffsda_jax.evals.verification import speaker_eer
from diffsda_jax.factors import mix

Outcome = tuple[dict[str, float], list[str]]


def verification(context: Context) -> Outcome:
    """Equal error rates of s and d as voice prints of the static label."""
    label = context.test.get("static_label")
    if label is None:
        return {}, ["verification skipped: the test clips have no static_label"]
    recordings = np.unique(context.test.get("group", np.arange(len(label))), return_index=True)[1]
    counts = np.unique(label[recordings], return_counts=True)[1]
    if len(counts) < 2 or counts.max() < 2:
        return {}, [
            f"verification skipped: {len(counts)} static labels on {len(recordings)} test "
            "recordings; it needs two or more, and two recordings of one of them"
        ]
    factors = context.codes("test")
    rates = speaker_eer(
        np.asarray(factors.static),
        np.asarray(factors.dynamic),
        label,
        context.test.get("length"),
        context.test.get("group"),
        form=context.settings.form,
    )
    return {
        "static_eer_percent": rates["static_eer"],
        "static_eer_chance_percent": 50.0,
        "dynamic_eer_percent": rates["dynamic_eer"],
        "dynamic_eer_chance_percent": 50.0,
        "gap_points": rates["gap"],
    }, []


def probes(context: Context) -> Outcome:
    """Linear probes of both factors to both labels."""
    train, test = (context.codes(split) for split in ("train", "test"))
    return probe_factors(train, test, context.train, context.test)


def judge(context: Context) -> Outcome:
    """Accuracy of the judge on real test clips."""
    if context.judge is None:
        return {}, ["judge skipped: the training clips have no static_label and no dynamic_label"]
    trial = {key: values[context.trial] for key, values in context.test.items()}
    accuracy = context.judge.accuracy(trial)
    for name in ("static", "dynamic"):
        if f"{name}_accuracy_percent" in accuracy:
            accuracy[f"{name}_accuracy_chance_percent"] = chance_level(
                context.readers[f"{name}_label"], trial[f"{name}_label"]
            )
    return accuracy, []


def reconstruction(context: Context) -> Outcome:
    """Errors of clips decoded from their own factors, from random noise and from their x_T.

    Only from random noise where the model cannot invert.
    """
    index = context.some_clips()
    if not len(index):
        return {}, ["reconstruction skipped: num_swaps is 0, so there are no clips"]
    x, factors, length = context.test_clips(index)
    result, starts = {}, reconstruction_starts(context.model)
    for start in starts:
        decoded = reconstruct(
            context.model,
            x,
            factors,
            start=start,
            num_steps=context.settings.num_steps,
            seed=context.settings.seed,
            length=length,
            batch_size=context.settings.batch_size,
        )
        for name, value in _errors(context, index, decoded).items():
            result[f"{start}_{name}"] = value
    if "inverted" not in starts:
        return result, ["reconstruction from x_T skipped: a distilled model cannot invert"]
    return result, []


def swap(context: Context) -> Outcome:
    """What conditional swaps keep of either donor, by the judge and by the tracked object."""
    if reason := context.why_no_swaps():
        return {}, [f"swap skipped: {reason}"]
    static_index, dynamic_index = context.pairs()
    mixed = mix(
        static_from=context.test_factors[static_index],
        dynamic_from=context.test_factors[dynamic_index],
    )
    x_swap = context.decode(mixed, static_index, dynamic_index)
    result, notes = _kept(context, x_swap, static_index, dynamic_index)
    if context.kind == "video" and "position" in context.test:
        result.update(_trajectory(context, x_swap, static_index, dynamic_index))
    if context.sound is not None:
        voices = cepstral_distances(
            x_swap,
            context.test["x"][static_index],
            context.test["x"][dynamic_index],
            context.sound.denormalize,
            context.pick("length", static_index),
            context.pick("length", dynamic_index),
        )
        result.update(voices)
    if not result:
        notes.append("swap metrics skipped: they need a judge or positions; see the pictures")
    return result, notes


def one_factor(context: Context) -> Outcome:
    """What is left when the other factor is set to its mean over the training clips.

    Always decoded from random noise, whatever the start of swaps: ``x_T`` of a clip would bring
    back what was taken out of its factors.
    """
    index = context.some_clips()
    if not len(index):
        return {}, ["one_factor skipped: num_swaps is 0, so there are no clips"]
    mean = mean_factors(context.train_factors, context.train.get("length"))
    result: dict[str, float] = {}
    notes: list[str] = []
    for keep in ("static", "dynamic"):
        factors = keep_one_factor(context.test_factors[index], mean, keep)
        decoded = context.decode(factors, index, index, start="random")
        errors = _errors(context, index, decoded)
        result[f"{keep}_only_nmse"] = errors["nmse"]
        result[f"{keep}_only_nmse_chance"] = 1.0
        kept, notes = _kept(context, decoded, index, index)
        result.update(
            {f"{keep}_only_{name}": value for name, value in kept.items() if "both" not in name}
        )
    return result, notes


PARTS = {
    "verification": verification,
    "probes": probes,
    "judge": judge,
    "reconstruction": reconstruction,
    "swap": swap,
    "one_factor": one_factor,
    "utterances": utterances,
    "tasks": tasks,
    "known_factors": known_factors,
    "disentanglement": disentanglement,
    "interventions": interventions,
    "faces": faces,
    "face_reconstruction": face_reconstruction,
    "generation": generation,
}


def _errors(context: Context, index: np.ndarray, decoded: Clips) -> dict[str, float]:
    """Distances of decoded clips from the test clips they should show."""
    x, mask = context.test["x"][index], context.observed(index)
    errors = {
        "mse": measure.masked_mse(x, decoded, mask),
        "nmse": measure.normalized_mse(x, decoded, mask),
        "nmse_chance": 1.0,
    }
    if context.kind == "video":
        errors["psnr_db"] = measure.psnr(x, decoded, mask)
        errors["ssim"] = measure.ssim(x, decoded, mask)
    return errors


def _kept(
    context: Context, x: Clips, static_index: np.ndarray, dynamic_index: np.ndarray
) -> Outcome:
    """Shares of clips that keep the labels of their donors, by the judge.

    The judge sees what is observed in the donors of the dynamics, as it did in training.
    """
    if context.judge is None:
        return {}, ["kept labels skipped: there is no judge, a classifier of labelled clips"]
    judged = context.judge.predict(
        x, context.pick("length", dynamic_index), context.pick("mask", dynamic_index)
    )
    result = measure.kept_percent(
        judged,
        context.pick("static_label", static_index),
        context.pick("dynamic_label", dynamic_index),
    )
    for name in ("static", "dynamic"):
        if f"{name}_kept_percent" in result:
            classes = len(np.unique(context.readers[f"{name}_label"]))
            result[f"{name}_kept_chance_percent"] = 100.0 / classes
    return result, []


def _trajectory(
    context: Context, x_swap: Clips, static_index: np.ndarray, dynamic_index: np.ndarray
) -> dict[str, float]:
    """Distance of the tracked object from its path, and from the path of other clips (chance)."""
    x_static, _, _ = context.test_clips(static_index)
    position = context.test["position"]
    length = context.pick("length", dynamic_index)
    errors = []
    for place in (dynamic_index, np.roll(dynamic_index, 1)):
        errors.append(
            measure.trajectory_error(
                x_swap, position[place], x_static, position[static_index], length
            )
        )
    return {
        "trajectory_error_pixels": errors[0][0],
        "trajectory_error_chance_pixels": errors[1][0],
        "untracked_percent": errors[0][1],
    }
