"""Published numbers, to stand beside those of a run."""

from collections.abc import Mapping
from typing import NamedTuple

METHODS = ("DiffSDA", "DBSE", "SPYL")
SOURCE = "arXiv 2510.05717"


Values = tuple[float | None, float | None, float | None]


class Published(NamedTuple):
    """One published metric on one data set.

    Attributes:
      metric: its name in ``metrics.json``.
      title: for people.
      unit: such as ``%``, or empty.
      better: ``lower`` or ``higher``.
      values: of each method of ``METHODS``; None where none is published.
    """

    metric: str
    title: str
    unit: str
    better: str
    values: Values


def _faces(aed: Values, akd: Values, prefix: str = "") -> list[Published]:
    """A set of faces or bodies: s kept (AED) and d kept (AKD) by conditional swaps."""
    return [
        Published(f"faces/{prefix}aed", "AED, static factor kept", "", "lower", aed),
        Published("faces/akd_pixels", "AKD, dynamics kept", "px", "lower", akd),
    ]


def _speech(static: Values, dynamic: Values, gap: Values) -> list[Published]:
    """Speaker verification by s and by d."""
    return [
        Published("verification/static_eer_percent", "static EER", "%", "lower", static),
        Published("verification/dynamic_eer_percent", "dynamic EER", "%", "higher", dynamic),
        Published("verification/gap_points", "gap", "points", "higher", gap),
    ]


def _ours(metric: str, title: str, unit: str, better: str, value: float) -> Published:
    """A metric of which only the method's own number is at hand."""
    return Published(metric, title, unit, better, (value, None, None))


# By the name of the data set's source (of latents: of the source that was encoded).
PUBLISHED: Mapping[str, list[Published]] = {
    "mug": [
        *_faces((0.751, 0.773, 0.766), (0.802, 1.118, 1.132)),
        Published(
            "generation/given_d/dynamic_kept_percent",
            "judge: expression kept, static factor sampled",
            "%",
            "higher",
            (81.15, 86.90, 85.71),
        ),
    ],
    "voxceleb1": _faces((0.846, 1.026, 1.058), (2.793, 10.96, 4.705)),
    "celebv_hq": _faces((0.540, 0.751, 0.631), (6.932, 28.69, 39.16)),
    "taichi": _faces((0.326, 0.325, 0.443), (2.143, 6.312, 7.681), "body_"),
    "timit": _speech((4.43, 3.50, 3.41), (46.72, 34.62, 33.22), (42.29, 31.11, 29.81)),
    "librispeech": _speech((11.02, 16.75, 24.87), (45.94, 22.61, 49.76), (34.93, 5.58, 24.89)),
    "physionet": [
        _ours("tasks/mortality_auprc_percent", "mortality from (s, d), AUPRC", "%", "higher", 50.0),
        _ours("tasks/mortality_auroc_percent", "mortality from (s, d), AUROC", "%", "higher", 87.0),
        _ours("tasks/icu_type_accuracy_percent", "type of ICU from s", "%", "higher", 64.6),
    ],
    "air_quality": [
        _ours("tasks/month_accuracy_percent", "month from s, accuracy", "%", "higher", 69.2)
    ],
    "etth1": [
        _ours("tasks/oil_temperature_mae", "oil temperature from (s, d), MAE", "°C", "lower", 9.89)
    ],
}


def published_for(source: str) -> list[Published]:
    """The published numbers on a data set; none where it is not among those of the paper.

    Args:
      source: name of the data source, such as ``timit``.

    References:
      DiffSDA (arXiv 2510.05717), tables of conditional swaps, speaker verification and tasks.
    """
    return PUBLISHED.get(source, [])
