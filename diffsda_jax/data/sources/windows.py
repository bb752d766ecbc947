"""Windows of a source's items as a data set of their own: each once, several of long items."""

from typing import Any

import numpy as np

from diffsda_jax.data.sources.base import Source
from diffsda_jax.data.transforms import fit_length

_CUT = ("crop", "pad")  # length modes that cut a window out of a longer item


def list_windows(
    source: Source, length: int, length_mode: str, windows_per_item: int
) -> list[tuple[int, int]]:
    """Which windows there are, as (item, number of its window).

    Args:
        source: whose items are cut.
        length: V.
        length_mode: see `transforms.fit_length`.
        windows_per_item: of items longer than V; all others have one.

    Raises:
        ValueError: `windows_per_item` below 1.
    """
    if windows_per_item < 1:
        raise ValueError(f"windows_per_item={windows_per_item}: use 1 or more")
    if windows_per_item == 1:
        return [(item, 0) for item in range(len(source))]
    lengths = source.lengths() if length_mode in _CUT and source.spec.kind != "audio" else None

    def is_longer(item: int) -> bool:
        if hasattr(source, "last_start"):  # it cuts windows itself
            return source.last_start(item) > 0
        return lengths is not None and bool(lengths[item] > length)

    return [
        (item, number)
        for item in range(len(source))
        for number in range(windows_per_item if is_longer(item) else 1)
    ]


class Windows(Source):
    """Some windows of a source, each always the same: what it draws depends on its number only.

    The first window of an item is the one that an evaluation sees; the others lie anywhere.
    """

    def __init__(
        self,
        source: Source,
        windows: list[tuple[int, int]],
        length: int,
        length_mode: str,
        seed: int,
    ):
        """Reads nothing yet.

        Args:
            source: what the windows are of.
            windows: of `list_windows`, or a part of them.
            length: V.
            length_mode: see `transforms.fit_length`.
            seed: of where windows lie.
        """
        super().__init__(source.split)
        self.name, self.kind, self.spec = source.name, source.kind, source.spec
        self._source, self._windows = source, windows
        self._length, self._length_mode, self._seed = length, length_mode, seed

    def __len__(self) -> int:
        """Number of windows."""
        return len(self._windows)

    def item_name(self, index: int) -> str:
        """Name of the item of a window."""
        return self._source.item_name(self._windows[index][0])

    def lengths(self) -> np.ndarray | None:
        """Steps of the item of each window."""
        lengths = self._source.lengths()
        return None if lengths is None else lengths[[item for item, _ in self._windows]]

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The item of a window, cut already where it is not the first; draws nothing from `rng`."""
        del rng
        item, number = self._windows[index]
        own = np.random.default_rng([self._seed, item, *([number] if number else [])])
        element = self._source.load(item, own)
        if number == 0 or self.spec.kind == "audio":
            return element
        return fit_length(element, self._length, self._length_mode, own, random=True)

    def skip(self, item: str, reason: str, check: bool = True) -> None:
        """Counts an item that is left out, in the source too, whose cap holds."""
        self._source.skip(item, reason, check)
        self.skipped[item] = reason

    def _identity(self) -> Any:
        return [self._source.fingerprint(), self._windows, self._length, self._length_mode]
