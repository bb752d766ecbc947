"""The two factors a sequence is split into, and how those of two sequences are mixed."""

import os
from pathlib import Path
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from diffsda_jax.npz_file import read_arrays

_FIELDS = ("static", "dynamic", "lengths")


class Factors(flax.struct.PyTreeNode):
    """Static and dynamic factors of a batch of sequences.

    Attributes:
      static: ``s_0``, one vector for the whole sequence, ``[B, S]``; of a model with
        ``static_per_step`` one for each place in it, ``[B, V, S]``.
      dynamic: ``d_0^{1:V}``, one vector for each place in the sequence, ``[B, V, D]``.
      lengths: number of real steps of each sequence, the rest being padding; None = all are real,
        or it is known from elsewhere.

    References:
      DiffSDA (arXiv 2510.05717), section 3: ``p(s_0, d_0^{1:V} | x_0^{1:V})``.

    Examples:
      >>> import tempfile
      >>> import numpy as np
      >>> from diffsda_jax import Factors, mix
      >>> who = Factors(static=np.ones((1, 4), np.float32), dynamic=np.ones((1, 6, 2), np.float32))
      >>> what = who.replace(dynamic=np.zeros((1, 9, 2), np.float32))
      >>> mix(static_from=who, dynamic_from=what).dynamic.shape
      (1, 9, 2)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = who.save(f"{folder}/who.npz")
      ...     Factors.load(path).static.shape
      (1, 4)
    """

    static: (
        Float[Array, "B S"]
        | Float[np.ndarray, "B S"]
        | Float[Array, "B V S"]
        | Float[np.ndarray, "B V S"]
    )
    dynamic: Float[Array, "B V D"] | Float[np.ndarray, "B V D"]
    lengths: Int[Array, "B"] | Int[np.ndarray, "B"] | None = None

    def __len__(self) -> int:
        """Number of sequences B."""
        return self.static.shape[0]

    def __getitem__(self, index) -> "Factors":
        """Factors of some sequences of the batch: a slice, or a list or array of places.

        Raises:
          TypeError: the index is a single integer, which would drop the batch axis.
        """
        if isinstance(index, (int, np.integer)):
            raise TypeError(
                f"Factors[{index}] would drop the batch axis; use Factors[{index}:{index} + 1] or "
                f"Factors[[{index}]]."
            )
        index = index if isinstance(index, slice) else np.asarray(index)
        lengths = None if self.lengths is None else self.lengths[index]
        return Factors(static=self.static[index], dynamic=self.dynamic[index], lengths=lengths)

    def save(self, path: str | os.PathLike) -> Path:
        """Writes the factors as an ``.npz`` file, which is arrays only and no code.

        Args:
          path: ``FILE.npz``; the folder is made if missing.

        Returns:
          The path.

        Raises:
          ValueError: another suffix.
          OSError: the file cannot be written.
        """
        path = _npz_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {name: getattr(self, name) for name in _FIELDS}
        given: dict[str, Any] = {k: np.asarray(v) for k, v in arrays.items() if v is not None}
        np.savez(path, **given)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Factors":
        """Reads what ``save`` wrote.

        Args:
          path: ``FILE.npz``.

        Returns:
          The factors, numpy arrays.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: another suffix, a damaged file, or one that does not hold factors.
        """
        path = _npz_path(path)
        found = read_arrays(path)
        arrays = {name: found[name] for name in _FIELDS if name in found}
        static, dynamic = (arrays.get(name, np.zeros(0)) for name in _FIELDS[:2])
        lengths = arrays.get("lengths", np.ones(len(dynamic), np.int32))
        counts = {len(static), len(dynamic), len(lengths)}
        if static.ndim not in (2, 3) or dynamic.ndim != 3 or len(counts) > 1:
            raise ValueError(
                f"{path} does not hold factors (static {static.shape}, dynamic {dynamic.shape}, "
                f"lengths {lengths.shape}); give a file that Factors.save or the verb encode wrote."
            )
        return cls(**arrays)


def _npz_path(path: str | os.PathLike) -> Path:
    """A path that ends in ``.npz``."""
    path = Path(path).expanduser()
    if path.suffix != ".npz":
        raise ValueError(f"factors {path} must end in .npz, not in {path.suffix!r}.")
    return path


def mix(*, static_from: Factors, dynamic_from: Factors) -> Factors:
    """Conditional swap: who from one batch, what happens from another, item by item.

    Args:
      static_from: gives ``s``; B sequences, or one, which then serves for all of the other's.
      dynamic_from: gives ``d^{1:V}``; B sequences, or one.

    Returns:
      Factors with ``static`` of the first and ``dynamic`` of the second argument.

    Raises:
      ValueError: the batch sizes differ and neither is 1, or there is one s for each step and not
        as many as steps of d.

    References:
      DiffSDA (arXiv 2510.05717), section 4: conditional swapping.
    """
    batch = {len(static_from), len(dynamic_from)}
    if len(batch) == 2 and 1 not in batch:
        raise ValueError(
            f"mix: static_from holds {len(static_from)} sequences and dynamic_from "
            f"{len(dynamic_from)}; give the same number on both sides, or one on either side."
        )
    size = max(batch)
    static, dynamic = static_from.static, dynamic_from.dynamic
    if static.ndim == 3 and static.shape[1] != dynamic.shape[1]:
        raise ValueError(
            f"mix: static_from has one static factor for each of {static.shape[1]} steps and "
            f"dynamic_from {dynamic.shape[1]} steps; give sequences of the same length, or a mean "
            "s, [B, S]."
        )
    lengths = dynamic_from.lengths
    return Factors(
        static=static
        if static.shape[0] == size
        else jnp.broadcast_to(static, (size, *static.shape[1:])),
        dynamic=dynamic
        if dynamic.shape[0] == size
        else jnp.broadcast_to(dynamic, (size, *dynamic.shape[1:])),
        lengths=lengths
        if lengths is None or len(lengths) == size
        else jnp.broadcast_to(lengths, (size,)),
    )
