"""Japanese Vowels: real utterances of /ae/ by nine speakers, as cepstra (ships in the package).

Kudo, Toyama, Shimbo (1999), UCI Machine Learning Repository, CC BY 4.0; see assets/ATTRIBUTION.md.
The static factor is the speaker. The usual protocol resamples every utterance to 20 frames.
"""

import hashlib
import importlib.resources
import io
from typing import Any

import numpy as np

from diffsda_jax.data.sources.base import ElementSpec, Source

NUM_COEFFICIENTS = 12
NUM_SPEAKERS = 9
_ASSET = "japanese_vowels.npz"


class JapaneseVowels(Source):
    """Utterances of 7 to 29 frames of 12 LPC cepstrum coefficients; 270 train, 370 test.

    `static_label` is the speaker, 0 to 8.
    """

    name, kind = "japanese_vowels", "series"

    def __init__(self, split: str):
        """Reads the split from the package.

        Args:
            split: "train" (270 utterances) or "test" (370).
        """
        super().__init__(split)
        asset = importlib.resources.files("diffsda_jax.data") / "assets" / _ASSET
        data = asset.read_bytes()
        with np.load(io.BytesIO(data)) as arrays:
            values = arrays[f"{split}_values"].astype(np.float32)
            self._lengths = arrays[f"{split}_lengths"].astype(np.int64)
            self._speakers = arrays[f"{split}_speakers"].astype(np.int64) - 1
        self._utterances = np.split(values, np.cumsum(self._lengths)[:-1])
        self._digest = hashlib.sha256(data).hexdigest()
        self.spec = ElementSpec(
            kind="series",
            shape=(NUM_COEFFICIENTS,),
            static_names=tuple(f"speaker {number}" for number in range(1, NUM_SPEAKERS + 1)),
            feature_names=tuple(f"lpcc {number}" for number in range(1, NUM_COEFFICIENTS + 1)),
        )

    def __len__(self) -> int:
        """Number of utterances."""
        return len(self._utterances)

    def lengths(self) -> np.ndarray:
        """Frames of each utterance."""
        return self._lengths

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Utterance `index`: `x` `[V, 12]` and `static_label`; draws nothing from `rng`."""
        del rng
        return {"x": self._utterances[index].copy(), "static_label": int(self._speakers[index])}

    def _identity(self) -> Any:
        return self._digest
