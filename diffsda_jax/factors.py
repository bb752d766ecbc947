"""The two factors a sequence is split into, and how those of two sequences are mixed."""

import flax.struct
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float


@flax.struct.dataclass
class Factors:
    """Static and dynamic factors of a batch of sequences.

    Attributes:
      static: ``s_0``, one vector for the whole sequence, ``[B, S]``; of a model with
        ``static_per_step`` one for each place in it, ``[B, V, S]``.
      dynamic: ``d_0^{1:V}``, one vector for each place in the sequence, ``[B, V, D]``.

    References:
      DiffSDA (arXiv 2510.05717), section 3: ``p(s_0, d_0^{1:V} | x_0^{1:V})``.
    """

    static: (
        Float[Array, "B S"]
        | Float[np.ndarray, "B S"]
        | Float[Array, "B V S"]
        | Float[np.ndarray, "B V S"]
    )
    dynamic: Float[Array, "B V D"] | Float[np.ndarray, "B V D"]

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
        return Factors(static=self.static[index], dynamic=self.dynamic[index])


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
    return Factors(
        static=static
        if static.shape[0] == size
        else jnp.broadcast_to(static, (size, *static.shape[1:])),
        dynamic=dynamic
        if dynamic.shape[0] == size
        else jnp.broadcast_to(dynamic, (size, *dynamic.shape[1:])),
    )
