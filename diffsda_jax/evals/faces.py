"""What a swap keeps of persons and their motion, by networks that look at the frames.

AED: distance of identity embeddings between the result and the donor of the static factor.
AKD: distance of landmarks between the result and the donor of the dynamics. Frame by frame: the
first frame of a result against the first of its donor, and so on.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer

from diffsda_jax.evals.choices import check_choice
from diffsda_jax.evals.context import FORMS, Context
from diffsda_jax.evals.face_verification import verify
from diffsda_jax.evals.frames import frame_errors, mean_errors
from diffsda_jax.evals.interface import Clips, Lengths, padded_batches, valid_steps
from diffsda_jax.evals.networks import FrameNetwork
from diffsda_jax.evals.swap import make_pairs, reconstruct, reconstruction_starts
from diffsda_jax.factors import mix

Outcome = tuple[dict[str, float], list[str]]
Video = Float[np.ndarray, "P V H W 3"]
Valid = Bool[np.ndarray, "P V"]
Distances = Float[np.ndarray, "P V"]
Views = dict[str, np.ndarray]  # by role: embeddings [P, V, E] or points [P, V, K, 2]
Networks = Mapping[str, FrameNetwork]
Labels = Sequence[Integer[np.ndarray, " P"]]

_EMBEDDINGS = {"identity": "", "body": "body_"}  # prefixes of metrics by role
_ROLES = (*_EMBEDDINGS, "landmarks")  # networks for other things are not asked
_NO_NETWORK = "eval.networks names no network for faces: set eval.networks.identity.path and others"


def look(networks: Networks, frames: Video) -> Views:
    """What all networks see in clips.

    Args:
      networks: by role: ``identity`` and ``body`` embed, ``landmarks`` finds points.
      frames: RGB in [-1, 1]; what a decoder made beyond is cut, as in a picture.

    Returns:
      By role, embeddings ``[P, V, E]`` or points ``[P, V, K, 2]``, NaN where nothing was found.
    """
    flat = np.clip(frames, -1.0, 1.0).reshape(-1, *frames.shape[2:])
    views = {}
    for role in _ROLES:
        if role not in networks:
            continue
        network = networks[role]
        values, found = (network.identity if role in _EMBEDDINGS else network.landmarks)(flat)
        values = np.asarray(values, np.float64)
        found = np.asarray(found).reshape(-1, *(1,) * (values.ndim - 1))
        views[role] = np.where(found, values, np.nan).reshape(*frames.shape[:2], *values.shape[1:])
    return views


def swap_scores(
    result: Video,
    static_donor: Video,
    dynamic_donor: Video,
    networks: Networks,
    *,
    static_length: Lengths | None = None,
    dynamic_length: Lengths | None = None,
    static_labels: Labels = (),
    dynamic_labels: Labels = (),
    form: str = "corrected",
    seed: int = 0,
) -> dict[str, float]:
    """What swaps keep of both donors; see `compare_views` for the numbers.

    Args:
      result: swapped clips, RGB in [-1, 1], as long as the donors of the dynamics.
      static_donor: real clips that give the static factor.
      dynamic_donor: real clips that give the dynamics.
      networks: by role, see `look`.
      static_length: real frames of the donors of the static factor.
      dynamic_length: real frames of the donors of the dynamics and of the results.
      static_labels: what tells persons apart, see `compare_views`.
      dynamic_labels: what tells motions apart.
      form: ``corrected`` or ``reference``.
      seed: of the other donors that give the chance levels.
    """
    steps = result.shape[:2]
    return compare_views(
        look(networks, result),
        look(networks, static_donor),
        look(networks, dynamic_donor),
        valid_steps(steps, static_length),
        valid_steps(steps, dynamic_length),
        static_labels=static_labels,
        dynamic_labels=dynamic_labels,
        form=form,
        seed=seed,
    )


def compare_views(
    result: Views,
    static_donor: Views,
    dynamic_donor: Views,
    static_valid: Valid,
    dynamic_valid: Valid,
    *,
    static_labels: Labels = (),
    dynamic_labels: Labels = (),
    form: str = "corrected",
    seed: int = 0,
) -> dict[str, float]:
    """AED, AKD, verification and missing detections of swaps, beside their chance levels.

    Chance is the same number with donors exchanged at random between the swaps.

    In the form `corrected`, frames where nothing was found in the result or the donor are left out
    of AED and AKD. In `reference` they count as frames of distance 0, so that failures improve
    both, and the body's AED is the mean of squared distances.

    Args:
      result: what networks see in the results, from `look`.
      static_donor: in the donors of the static factor.
      dynamic_donor: in the donors of the dynamics.
      static_valid: real frames of the donors of the static factor.
      dynamic_valid: real frames of the donors of the dynamics and of the results.
      static_labels: integers in which exchanged donors of the static factor should differ, such as
        the number of the clip and the person; the most important first.
      dynamic_labels: the same for the donors of the dynamics.
      form: ``corrected`` or ``reference``.
      seed: of the exchange.

    Returns:
      ``aed`` and ``body_aed``; ``akd_pixels``; ``verified_percent`` and ``body_verified_percent``
      with ``verification_eer_percent``, see `verify`; all with a ``chance`` beside them, if there
      are two swaps or more; and for each network what share it did not find in the real clips and
      in the results. NaN where no frame is left.

    Raises:
      ValueError: an unknown form.
    """
    check_choice("form", form, FORMS)
    count = len(static_valid)
    scores: dict[str, float] = {}
    for role, prefix in _EMBEDDINGS.items():
        if role not in result:
            continue
        real = static_donor[role]
        for name, donor in _donors(count, static_labels, seed).items():
            distance = np.linalg.norm(result[role] - real[donor], axis=-1)
            if role == "body" and form == "reference":
                distance = np.square(distance)
            valid = dynamic_valid & static_valid[donor]
            scores[f"{prefix}aed{name}"] = _mean(distance, valid, form)
            if name:
                verified = verify(result[role], real, dynamic_valid, static_valid, donor)
                scores |= {f"{prefix}{key}": value for key, value in verified.items()}
    if "landmarks" in result:
        real = dynamic_donor["landmarks"]
        for name, donor in _donors(count, dynamic_labels, seed).items():
            distance = _point_distance(result["landmarks"], real[donor])
            valid = dynamic_valid & dynamic_valid[donor]
            scores[f"akd{name}_pixels"] = _mean(distance, valid, form)
    for role, seen in result.items():
        real, valid = static_donor[role], static_valid
        if role == "landmarks":
            real, valid = dynamic_donor[role], dynamic_valid
        scores[f"{role}_missing_in_source_percent"] = _missing_percent(real, valid)
        scores[f"{role}_missing_in_result_percent"] = _missing_percent(seen, dynamic_valid)
    return scores


def faces(context: Context) -> Outcome:
    """What conditional swaps keep of persons and motions, by the networks of the config."""
    reason = context.why_no_swaps() or context.why_no_frames()
    if reason or not set(_ROLES) & set(context.networks):
        return {}, [f"faces skipped: {reason or _NO_NETWORK}"]
    pairs = context.pairs()
    static_index, dynamic_index = pairs
    mixed = mix(
        static_from=context.test_factors[static_index],
        dynamic_from=context.test_factors[dynamic_index],
    )
    x_swap = context.decode(mixed, static_index, dynamic_index)
    used, place = np.unique(np.stack(pairs), return_inverse=True)
    static_rows, dynamic_rows = place.reshape(2, -1)
    x = context.test["x"]
    real = _by_blocks(context, len(used), lambda block: _look_at(context, x[used[block]]))
    result = _by_blocks(context, len(x_swap), lambda block: _look_at(context, x_swap[block]))
    scores = compare_views(
        result,
        {role: seen[static_rows] for role, seen in real.items()},
        {role: seen[dynamic_rows] for role, seen in real.items()},
        context.observed(static_index),
        context.observed(dynamic_index),
        static_labels=_labels_of(context, "static_label", static_index),
        dynamic_labels=_labels_of(context, "dynamic_label", dynamic_index),
        form=context.settings.form,
        seed=context.settings.seed,
    )
    return scores, _notes(context, "faces", len(x_swap))


def face_reconstruction(context: Context) -> Outcome:
    """How near decoded clips are to their own frames, from random noise and from their x_T.

    MSE, PSNR and SSIM of frames, and what the networks of the config see. From ``x_T`` all are
    nearly perfect by construction; from random noise they say what the codes hold.
    """
    index = context.some_clips()
    reason = context.why_no_frames() if len(index) else "num_swaps is 0, so there are no clips"
    if reason:
        return {}, [f"face_reconstruction skipped: {reason}"]
    x, factors, length = context.test_clips(index)
    settings, starts = context.settings, reconstruction_starts(context.model)
    decoded = {
        start: reconstruct(
            context.model,
            x,
            factors,
            start=start,
            num_steps=settings.num_steps,
            seed=settings.seed,
            length=length,
            batch_size=settings.batch_size,
        )
        for start in starts
    }

    def see(block: np.ndarray) -> dict[str, np.ndarray]:
        frames = context.to_rgb(x[block])
        seen = _prefixed("real", look(context.networks, frames))
        for start, shown in decoded.items():
            shown = context.to_rgb(shown[block])
            seen |= _prefixed(start, look(context.networks, shown))
            seen |= _prefixed(f"{start}_errors", frame_errors(frames, shown))
        return seen

    seen = _by_blocks(context, len(index), see)
    valid, real = context.observed(index), _without_prefix("real", seen)
    scores: dict[str, float] = {}
    for start in starts:
        own = mean_errors(_without_prefix(f"{start}_errors", seen), mask=valid)
        own |= compare_views(
            _without_prefix(start, seen),
            real,
            real,
            valid,
            valid,
            static_labels=_labels_of(context, "static_label", index),
            dynamic_labels=_labels_of(context, "dynamic_label", index),
            form=settings.form,
            seed=settings.seed,
        )
        scores |= {f"{start}_{name}": value for name, value in own.items()}
    return scores, _notes(context, "face_reconstruction", len(index))


def _donors(count: int, labels: Labels, seed: int) -> dict[str, Integer[np.ndarray, " P"]]:
    """Each swap's own donor, and by ``_chance`` another swap's, where there are two or more."""
    donors = {"": np.arange(count)}
    if count > 1:
        other, own = make_pairs(count, count, seed=seed, labels=labels)
        donors["_chance"] = other[np.argsort(own)]
    return donors


def _mean(distance: Distances, valid: Valid, form: str) -> float:
    """Mean over real frames; NaN marks those where nothing was found, see `compare_views`."""
    distance = distance[valid]
    if form == "reference":
        distance = np.nan_to_num(distance, nan=0.0)
    distance = distance[np.isfinite(distance)]
    return float(distance.mean()) if distance.size else float("nan")


def _point_distance(
    points: Float[np.ndarray, "P V K 2"], other: Float[np.ndarray, "P V K 2"]
) -> Distances:
    """Mean absolute difference in x and y over the points found in both; NaN without any."""
    difference = np.abs(points - other).mean(-1)
    found = np.isfinite(difference)
    count = found.sum(-1)
    return np.where(found, difference, 0.0).sum(-1) / np.where(count > 0, count, np.nan)


def _missing_percent(values: np.ndarray, valid: Valid) -> float:
    """Share of real frames without a finding; of points, the share of those that are missing."""
    return 100.0 * float(1.0 - np.isfinite(values).all(-1)[valid].mean())


def _labels_of(context: Context, name: str, index: Integer[np.ndarray, " P"]) -> Labels:
    """What exchanged donors should differ in: the clip, then its label if there is one."""
    label = context.pick(name, index)
    return [index] if label is None else [index, label]


def _look_at(context: Context, x: Clips) -> Views:
    return look(context.networks, context.to_rgb(x))


def _by_blocks(
    context: Context, count: int, see: Callable[[np.ndarray], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """What is seen of all clips; the frames of one block of them are in memory at a time."""
    parts = [
        {name: values[:real] for name, values in see(block).items()}
        for block, real in padded_batches(count, context.settings.batch_size)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _prefixed(prefix: str, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{prefix}/{name}": value for name, value in values.items()}


def _without_prefix(prefix: str, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those that have the prefix, without it."""
    start = f"{prefix}/"
    return {name.removeprefix(start): v for name, v in values.items() if name.startswith(start)}


def _notes(context: Context, part: str, count: int) -> list[str]:
    """What was left out and why."""
    notes = []
    if not set(_EMBEDDINGS) & set(context.networks):
        notes.append(
            f"{part}: AED and verification skipped: set eval.networks.identity.path or "
            "eval.networks.body.path"
        )
    if "landmarks" not in context.networks:
        notes.append(f"{part}: AKD skipped: set eval.networks.landmarks.path")
    if count < 2:
        notes.append(f"{part}: chance levels and verification skipped: 1 clip, 2 are needed")
    return notes
