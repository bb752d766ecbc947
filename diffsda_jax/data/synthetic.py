"""Made-up sequences of any element spec, for trying a configuration without its data."""

from typing import Any

import numpy as np

from diffsda_jax.data.sources.base import ElementSpec, Source


class Synthetic(Source):
    """Smooth random sequences: an offset for each static class, a wave for each dynamic class.

    Audio is the same with samples for steps; then four elements make up a recording (`group`).

    Args:
        split: "train" or "test"; they hold other sequences.
        spec: what the sequences look like; its names give the numbers of classes (2 if none).
        num_items: number of sequences.
        num_steps: V.
    """

    name = "synthetic"

    def __init__(self, split: str, spec: ElementSpec, num_items: int = 32, num_steps: int = 10):
        """Nothing is made before `load`."""
        super().__init__(split)
        self.spec = spec
        self._num_items, self._num_steps = num_items, num_steps

    def __len__(self) -> int:
        """Number of sequences."""
        return self._num_items

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Makes a sequence from its number alone; `rng` is not used."""
        own = np.random.default_rng([index, self.split == "test"])
        static = index % len(self.spec.static_names or "ab")
        dynamic = int(own.integers(len(self.spec.dynamic_names or "ab")))
        place = np.arange(float(self._num_steps)).reshape((-1,) + (1,) * len(self.spec.shape))
        pattern = np.random.default_rng(static).uniform(-0.5, 0.5, self.spec.shape)
        wave = 0.4 * np.sin((dynamic + 1) * place + own.uniform(0, 2 * np.pi))
        noise = own.uniform(-0.1, 0.1, (self._num_steps, *self.spec.shape))
        element = {
            "x": (pattern + wave + noise).astype(np.float32),
            "static_label": static,
            "dynamic_label": dynamic,
        }
        if self.spec.kind == "audio":
            group = index // 4
            element |= {"group": group, "static_label": group % 2, "dynamic_label": group // 2 % 2}
        return element

    def lengths(self) -> np.ndarray:
        """V for each sequence."""
        return np.full(self._num_items, self._num_steps)

    def groups(self) -> np.ndarray | None:
        """Recordings of audio."""
        return np.arange(self._num_items) // 4 if self.spec.kind == "audio" else None

    def _identity(self) -> Any:
        """All that the sequences depend on besides the spec."""
        return [self._num_items, self._num_steps]
