"""What results keep of the sequences that they were made from."""

import dataclasses
from collections.abc import Sequence

from diffsda_jax.data.sequences import Columns, Sequences


@dataclasses.dataclass(frozen=True)
class Outline:
    """What results have of the sequences that they were made from.

    Attributes:
      names: of each sequence.
      rates: steps or samples a second of each, None where not known.
      lengths: steps (samples of a waveform) of each in its own units; None = what comes out.
      columns: of tables.
    """

    names: tuple[str, ...]
    rates: tuple[float | None, ...]
    lengths: tuple[int, ...] | None = None
    columns: Columns = Columns()

    def pick(self, places: Sequence[int], names: Sequence[str]) -> "Outline":
        """The outline of new sequences that follow those at ``places``."""
        times = self.columns.times
        columns = dataclasses.replace(
            self.columns, times=tuple(times[i] for i in places) if times else ()
        )
        lengths = None if self.lengths is None else tuple(self.lengths[i] for i in places)
        return Outline(tuple(names), tuple(self.rates[i] for i in places), lengths, columns)

    def shortened(self, other: "Outline") -> "Outline":
        """This one with the lengths of the shorter of each of its sequences and another's."""
        if self.lengths is None or other.lengths is None:
            return dataclasses.replace(self, lengths=None)
        return dataclasses.replace(self, lengths=tuple(map(min, self.lengths, other.lengths)))


def outline_of(sequences: Sequences) -> Outline:
    """The outline of sequences that were read."""
    lengths = tuple(int(length) for length in sequences.lengths)
    return Outline(sequences.names, sequences.rates, lengths, sequences.columns)
