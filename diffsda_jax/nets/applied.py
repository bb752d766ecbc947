"""What a network makes of its inputs."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn


def applied(module: nn.Module, variables: Mapping[str, Any], *args: Any, **how: Any) -> Any:
    """``module.apply`` where no collection is written, so that no second result comes back.

    Flax declares both results in one type, which no caller could use without a check.

    Args:
      module: the network.
      variables: its collections.
      *args: of its method.
      **how: keyword arguments of its method, and ``method`` and ``rngs`` of ``apply``, but not
        ``mutable``, which asks for the second result.

    Returns:
      What the method returns.
    """
    return module.apply(variables, *args, **how)
