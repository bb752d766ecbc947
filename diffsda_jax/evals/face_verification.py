"""Face verification of swaps: would a system that knows real faces take them for the person?"""

import numpy as np
from jaxtyping import Bool, Float, Integer

Valid = Bool[np.ndarray, "P V"]


def verify(
    result: Float[np.ndarray, "P V E"],
    real: Float[np.ndarray, "P V E"],
    result_valid: Valid,
    real_valid: Valid,
    other: Integer[np.ndarray, " P"],
) -> dict[str, float]:
    """Whether a verification system takes a result for the person it should show.

    It takes two frames for one person if their embeddings are no farther apart than a threshold,
    which is set on real frames alone: same pairs are all pairs of frames of one clip, different
    pairs all pairs of a frame of a clip and one of the exchanged clip. The threshold is where it
    errs equally often on both, in the middle between two neighbouring distances.

    A frame of the result is compared with the same frame of its donor. Where nobody was found in
    the result it is not verified; frames where nobody was found in the donor are left out.

    Args:
      result: embeddings of the results, NaN where nobody was found.
      real: of the donors that they should show.
      result_valid: real frames of the results.
      real_valid: real frames of the donors.
      other: the exchanged donor of each.

    Returns:
      ``verified_percent``, with its chance level (results against exchanged donors), and
      ``verification_eer_percent``: how often the system errs on the real pairs, at best 0.
    """
    real = np.where(real_valid[..., None], real, np.nan)
    later = np.triu(np.ones((real.shape[1],) * 2, bool), 1)
    same = _pair_distances(real, real)[:, later].ravel()
    different = _pair_distances(real, real[other]).ravel()
    same, different = same[np.isfinite(same)], different[np.isfinite(different)]
    if not (same.size and different.size):
        names = ("verified_percent", "verified_chance_percent", "verification_eer_percent")
        return dict.fromkeys(names, float("nan"))
    threshold, error_rate = calibrate_threshold(same, different)

    def accepted(donor: Float[np.ndarray, "P V E"]) -> float:
        near = np.linalg.norm(result - donor, axis=-1) <= threshold  # False for NaN
        use = result_valid & np.isfinite(donor).all(-1)
        return 100.0 * float(near[use].mean()) if use.any() else float("nan")

    return {
        "verified_percent": accepted(real),
        "verified_chance_percent": accepted(real[other]),
        "verification_eer_percent": 100.0 * error_rate,
    }


def calibrate_threshold(
    same: Float[np.ndarray, " S"], different: Float[np.ndarray, " D"]
) -> tuple[float, float]:
    """The distance at which as many same pairs are rejected as different pairs are accepted.

    Args:
      same: distances of pairs of one person, at least one.
      different: distances of pairs of two persons, at least one.

    Returns:
      ``(threshold, error rate)``: pairs up to the threshold count as one person; it lies in the
      middle between two neighbouring distances. The rate is the mean of both, in [0, 1].
    """
    places = np.unique(np.concatenate([same, different]))
    middles = np.append((places[1:] + places[:-1]) / 2.0, places[-1])
    rejected = 1.0 - np.searchsorted(np.sort(same), middles, side="right") / len(same)
    accepted = np.searchsorted(np.sort(different), middles, side="right") / len(different)
    best = np.argmin(np.abs(rejected - accepted))
    return float(middles[best]), float(rejected[best] + accepted[best]) / 2.0


def _pair_distances(
    a: Float[np.ndarray, "P V E"], b: Float[np.ndarray, "P V E"]
) -> Float[np.ndarray, "P V V"]:
    """Distances of all frames of a clip from all frames of another."""
    squares = np.square(a).sum(-1)[:, :, None] + np.square(b).sum(-1)[:, None, :]
    return np.sqrt(np.maximum(squares - 2.0 * a @ b.transpose(0, 2, 1), 0.0))
