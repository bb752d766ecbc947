"""Models that know the true factors of moving digits, and models that know nothing."""

import numpy as np

from diffsda_jax.data.sources.digits import Digits, load_scans, render
from diffsda_jax.factors import Factors

CANVAS = 16


def digit_arrays(split: str, num_clips: int) -> dict[str, np.ndarray]:
    """The first clips of the digits source, stacked."""
    source = Digits(split, num_clips=num_clips)
    rng = np.random.default_rng(0)
    clips = [source.load(index, rng) for index in range(num_clips)]
    return {key: np.stack([np.asarray(clip[key]) for clip in clips]) for key in clips[0]}


class DigitOracle:
    """Static factor: the scan itself; dynamic factor: the place in each frame."""

    def __init__(self, *splits: dict[str, np.ndarray]):
        """Remembers the factors of every clip that will be encoded."""
        scans = load_scans()[0]
        self.calls = []
        self._known = {}
        for data in splits:
            for clip, scan, place in zip(
                data["x"], data["static_id"], data["position"], strict=True
            ):
                self._known[clip.tobytes()] = (scans[scan].ravel(), place)

    def encode(self, x, length=None, mask=None) -> Factors:
        """The true factors."""
        self.calls.append(len(x))
        static, dynamic = zip(*(self._known[clip.tobytes()] for clip in x), strict=True)
        return Factors(static=np.stack(static), dynamic=np.stack(dynamic))

    def decode(self, factors, start=None, num_steps=32, seed=0):
        """The ideal clip."""
        self.calls.append(len(factors))
        scans = np.asarray(factors.static).reshape(-1, 8, 8)
        return render(scans, np.asarray(factors.dynamic), CANVAS)

    def invert(self, x, factors, num_steps=32):
        """The clip itself."""
        return np.asarray(x)


class Clueless(DigitOracle):
    """Factors are noise, samples are clips of other factors."""

    def __init__(self, *splits, seed=0):
        """Remembers clips to draw samples from."""
        super().__init__(*splits)
        self._rng = np.random.default_rng(seed)
        self._clips = splits[-1]["x"]

    def encode(self, x, length=None, mask=None) -> Factors:
        """Noise."""
        draw = self._rng.standard_normal
        return Factors(
            static=draw((len(x), 8), dtype=np.float32),
            dynamic=draw((len(x), x.shape[1], 2), dtype=np.float32),
        )

    def decode(self, factors, start=None, num_steps=32, seed=0):
        """Random real clips."""
        return self._clips[self._rng.integers(len(self._clips), size=len(factors))]
