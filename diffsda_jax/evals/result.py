"""What an evaluation gives, whatever it was made of."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diffsda_jax.evals.judges import Judge
from diffsda_jax.evals.pictures import Picture


@dataclass
class EvalResult:
    """What an evaluation gives.

    Attributes:
      metrics: flat, hierarchical names such as ``verification/static_eer_percent``.
      files: what was written, `metrics.json` first; empty without an output directory.
      images: pictures by name, uint8 ``[height, width, 3]``.
      sounds: waveforms by name, float ``[N]``; of speech only.
      videos: frames by name, uint8 ``[V, height, width, 3]``; of video only.
      notes: what was skipped and why.
      judge: the judge that was used, to be given to the next evaluation; None without labels.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    images: dict[str, Picture] = field(default_factory=dict)
    sounds: dict[str, np.ndarray] = field(default_factory=dict)
    videos: dict[str, np.ndarray] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    judge: Judge | None = None
