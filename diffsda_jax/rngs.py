"""Random keys folded from a root by stream name and step; keys are never threaded."""

import zlib

import jax
from jax import Array


def stream(root: Array, name: str, step: int | Array = 0) -> Array:
    """The key of one named stream at one step.

    The same (root, name, step) always gives the same key, on any device count and after any
    restart; different names or steps give independent keys.

    Args:
      root: typed scalar key, ``jax.random.key(seed)``.
      name: stream name, such as ``"noise"`` or ``"dropout"``.
      step: training step or item number, python int or int32 scalar.

    Returns:
      A typed scalar key.
    """
    return jax.random.fold_in(jax.random.fold_in(root, zlib.crc32(name.encode())), step)
