"""Few fixed shapes for batches of any size and length, so that few programs are compiled."""

import dataclasses
from collections.abc import Iterator, Sequence

_LEAST = 4


def length_bucket(length: int) -> int:
    """The size that a length is filled up to: multiples of 4 up to 32, then four a doubling.

    Args:
      length: 1 or more.
    """
    step = max(_LEAST, 1 << max(0, (length - 1).bit_length() - 3))
    return -(-length // step) * step


def fitting_stride(stride: int, steps: int, length: int | None) -> int:
    """The largest stride, up to the wanted one, at which ``length`` of so many steps can be taken.

    Args:
      stride: wanted, in steps, 1 or more.
      steps: of the sequence.
      length: to be taken; None takes 2 or more.

    Returns:
      Steps, 1 or more.
    """
    return max(1, min(stride, (steps - 1) // max(1, (length or 2) - 1)))


def batch_bucket(count: int, most: int) -> int:
    """The batch size for so many items: the next power of two, or ``most`` if that is less."""
    return min(most, 1 << (count - 1).bit_length())


@dataclasses.dataclass(frozen=True)
class Window:
    """A part of a sequence that goes through a network at once.

    Attributes:
      sequence: place of the sequence in its batch.
      start: first step.
      stop: the step after the last.
      size: steps of the program; what is beyond ``stop - start`` is padding.
      own: the first step that no earlier window of the sequence holds.
    """

    sequence: int
    start: int
    stop: int
    size: int
    own: int


def cut_windows(lengths: Sequence[int], size: int | None) -> list[Window]:
    """Windows that cover sequences, all of them full where a sequence is long enough.

    The last window of a longer sequence reaches back into the one before it instead of being
    filled up.

    Args:
      lengths: of the sequences, 1 or more.
      size: steps of a window; shorter sequences are filled up to a bucket of at most this size.
        None takes each sequence whole.

    Returns:
      The windows, sequence by sequence.
    """
    windows = []
    for sequence, length in enumerate(lengths):
        if size is None or length < size:
            bucket = length_bucket(length) if size is None else min(size, length_bucket(length))
            windows.append(Window(sequence, 0, length, bucket, 0))
            continue
        for own in range(0, length, size):
            start = min(own, length - size)
            windows.append(Window(sequence, start, start + size, size, own))
    return windows


def batches(
    windows: Sequence[Window], most: int
) -> Iterator[tuple[list[tuple[int, Window]], int, int]]:
    """Groups windows of one size into batches of few sizes.

    Args:
      windows: of ``cut_windows``.
      most: windows of a batch at most.

    Yields:
      The windows of a batch with their places in ``windows``, the number of rows of the program,
      and its number of steps.
    """
    for size in sorted({window.size for window in windows}):
        group = [(place, window) for place, window in enumerate(windows) if window.size == size]
        for first in range(0, len(group), most):
            part = group[first : first + most]
            yield part, batch_bucket(len(part), most), size
