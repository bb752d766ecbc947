"""What the metrics need of a model, and how they call it: in batches of one fixed size."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Integer

from diffsda_jax.data.transforms import expand_mask
from diffsda_jax.factors import Factors

Clips = Float[np.ndarray, "B V *element"]
Lengths = Integer[np.ndarray, "B"]
Labels = Integer[np.ndarray, "B"]


@runtime_checkable
class SequenceModel(Protocol):
    """Any object that encodes clips to factors and decodes factors to clips.

    Its solver and the precision of its network are its own affair, see ``DiffSDA.using``. One that
    cannot invert says so by an attribute ``can_invert`` that is False; then nothing is inverted.
    One whose d is bounded by tanh says so by ``bounded_dynamic``, which is True.
    """

    def encode(self, x: Any, length: Any = None, mask: Any = None) -> Factors:
        """Factors of clips ``[B, V, ...]``; ``length`` int32 ``[B]``, ``mask`` True = observed."""

    def decode(
        self, factors: Factors, start: Any = None, num_steps: int = 32, seed: int = 0
    ) -> Any:
        """Clips from factors; ``start`` is unit-variance noise shaped like the clips."""

    def invert(self, x: Any, factors: Factors, num_steps: int = 32) -> Any:
        """Unit-variance ``x_T``, of the shape of ``x``, from which ``decode`` gives ``x`` back."""


@runtime_checkable
class FactorPrior(Protocol):
    """Any object that samples factors, in the units that the model's ``encode`` gives.

    ``lengths``, int32 ``[B]``, are the numbers of real steps, what follows being padding; None: all
    are real. A prior that cannot do what it is asked, such as another length than it was made for,
    raises ValueError; an evaluation then names it in its notes.
    """

    def sample(
        self, count: int, length: int | None = None, *, seed: int = 0, lengths: Any = None
    ) -> Factors:
        """Both factors of B = ``count`` sequences of ``length`` steps (None: as in training).

        ``lengths``, ``[B]``, as above.
        """

    def sample_dynamic(
        self, static: Any, length: int | None = None, *, seed: int = 0, lengths: Any = None
    ) -> Factors:
        """Dynamics for given static factors ``[B, S]``, which the answer holds unchanged."""

    def sample_static(self, dynamic: Any, *, seed: int = 0, lengths: Any = None) -> Factors:
        """Static factors for given dynamics ``[B, V, D]``, which the answer holds unchanged."""


@dataclasses.dataclass(frozen=True)
class Sound:
    """How normalised frames become sound.

    Attributes:
      denormalize: normalised frames to log spectrogram frames.
      vocoder: log spectrogram ``[B, V, F]`` to waveforms ``[B, N]``.
      sample_rate_hz: of the waveforms.
    """

    denormalize: Callable[[Clips], Clips]
    vocoder: Callable[[Clips], Float[np.ndarray, "B N"] | Float[Array, "B N"]]
    sample_rate_hz: int


def padded_batches(num_items: int, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Index blocks of one fixed size; the last one repeats its last item as padding.

    One size means one compiled program, whatever the number of items.

    Args:
      num_items: number of items N.
      batch_size: size of every block; N when N is smaller.

    Yields:
      ``(index, count)``: int64 ``[batch_size]`` and how many of its leading entries are real.
    """
    batch_size = min(batch_size, num_items)
    for first in range(0, num_items, batch_size):
        index = np.arange(first, first + batch_size)
        yield np.minimum(index, num_items - 1), min(batch_size, num_items - first)


def map_batches(
    function: Callable[[np.ndarray], Any], num_items: int, batch_size: int
) -> np.ndarray:
    """Call ``function(index)`` block by block and join the real rows of its answers.

    Args:
      function: takes an index block and returns an array with that leading size.
      num_items: number of items N, at least 1.
      batch_size: size of every block.

    Returns:
      Array ``[N, ...]``.
    """
    parts = [
        np.asarray(function(index))[:count]
        for index, count in padded_batches(num_items, batch_size)
    ]
    return np.concatenate(parts)


def encode_clips(
    model: SequenceModel,
    x: Clips,
    length: Lengths | None = None,
    mask: Bool[np.ndarray, "B V *maskdims"] | None = None,
    *,
    batch_size: int = 64,
) -> Factors:
    """Factors of any number of clips, as numpy arrays ``static [N, S]``, ``dynamic [N, V, D]``."""
    static, dynamic = [], []
    for index, count in padded_batches(len(x), batch_size):
        factors = model.encode(
            x[index],
            length=None if length is None else length[index],
            mask=None if mask is None else mask[index],
        )
        static.append(np.asarray(factors.static)[:count])
        dynamic.append(np.asarray(factors.dynamic)[:count])
    return Factors(static=np.concatenate(static), dynamic=np.concatenate(dynamic))


def valid_steps(shape: tuple[int, ...], length: Lengths | None = None) -> Bool[np.ndarray, "B V"]:
    """True where a step of ``[B, V, ...]`` is real, False where it is padding after the end."""
    num_clips, num_steps = shape[:2]
    if length is None:
        return np.ones((num_clips, num_steps), bool)
    return np.arange(num_steps)[None, :] < np.asarray(length)[:, None]


def observed_values(
    shape: tuple[int, ...],
    length: Lengths | None = None,
    mask: Bool[np.ndarray, "B V *maskdims"] | None = None,
) -> Bool[np.ndarray, "B V *maskdims"]:
    """True where a value is observed and not padding; ``[B, V]`` without a mask."""
    valid = valid_steps(shape, length)
    return valid if mask is None else mask & expand_mask(valid, mask.ndim)


def with_one_static(factors: Factors, length: Lengths | None = None) -> Factors:
    """Factors with one s a sequence: where there is one for each step, its mean over real steps."""
    static = np.asarray(factors.static)
    return factors if static.ndim == 2 else factors.replace(static=mean_over_steps(static, length))


def mean_over_steps(
    values: Float[np.ndarray, "B V D"], length: Lengths | None = None
) -> Float[np.ndarray, "B D"]:
    """Mean over the real steps of each sequence."""
    valid = valid_steps(values.shape, length)[..., None]
    return np.where(valid, values, 0).sum(1) / np.maximum(valid.sum(1), 1)
