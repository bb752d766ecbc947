"""What fixes a prior over the factors: its form and sizes, as plain values."""

import dataclasses
from collections.abc import Mapping
from typing import Any

FORMS = ("joint", "reference", "independent")
CHAINS = ("ddim", "ddpm")
MIN_WIDTH = 128  # of a token, where none is given


@dataclasses.dataclass(frozen=True)
class PriorSpec:
    """Everything that fixes the prior's parameters and behaviour; plain values only.

    Attributes:
      form: ``"joint"`` (a transformer over one static and V dynamic tokens), ``"reference"`` (the
        released flat MLP) or ``"independent"`` (two of them, one for s and one for d).
      static_dim: S.
      dynamic_dim: D.
      length: V of the training set; ``joint`` samples any other length, too.
      width: of a token (``joint``); 0 = ``token_width`` chooses.
      num_layers: number of blocks (``joint``).
      num_heads: attention heads, a divisor of ``width`` (``joint``).
      dropout: rate (``joint``).
      sigma_data: standard deviation of the factors that the preconditioning assumes (``joint``).
      sigma_min: lowest noise level of the sampler (``joint``).
      sigma_max: highest noise level of the sampler (``joint``).
      rho: how strongly the sampler's levels crowd at low noise (``joint``).
      diffusion_steps: number of discrete steps (``reference`` and ``independent``).
      beta_start: variance of the first step's noise (``reference`` and ``independent``).
      beta_end: that of the last step (``reference`` and ``independent``).
      chain: which sampler goes through them, ``"ddim"`` (the released one) or ``"ddpm"``
        (``reference`` and ``independent``).
    """

    form: str
    static_dim: int
    dynamic_dim: int
    length: int
    width: int = 0
    num_layers: int = 2
    num_heads: int = 4
    dropout: float = 0.1
    sigma_data: float = 1.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    diffusion_steps: int = 1000
    beta_start: float = 1e-5
    beta_end: float = 1e-2
    chain: str = "ddim"

    def __post_init__(self):
        """Checks values.

        Raises:
          ValueError: one that is not allowed, with the field and what is.
        """
        for field, allowed in {"form": FORMS, "chain": CHAINS}.items():
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"prior.{field} is {getattr(self, field)!r}; allowed: "
                    f"{', '.join(map(repr, allowed))}."
                )
        for field in ("static_dim", "dynamic_dim", "length", "num_layers", "num_heads"):
            if getattr(self, field) < 1:
                raise ValueError(f"prior.{field} is {getattr(self, field)}; it must be at least 1.")
        if self.width < 0:
            raise ValueError(f"prior.width is {self.width}; it must be at least 1, or 0.")
        if self.width % self.num_heads:
            raise ValueError(
                f"prior.width is {self.width}, which prior.num_heads={self.num_heads} does not "
                "divide; choose a multiple."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"prior.dropout is {self.dropout}; it must be 0 or more and below 1.")
        for field in ("sigma_data", "sigma_min", "rho"):
            if not getattr(self, field) > 0:
                raise ValueError(f"prior.{field} is {getattr(self, field)}; it must be above 0.")
        if not self.sigma_max > self.sigma_min:
            raise ValueError(
                f"prior.sigma_max is {self.sigma_max}; it must be above sigma_min={self.sigma_min}."
            )
        if self.diffusion_steps < 2:
            raise ValueError(
                f"prior.diffusion_steps is {self.diffusion_steps}; it must be at least 2."
            )
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"prior.beta_start is {self.beta_start} and beta_end {self.beta_end}; needed: 0 < "
                "beta_start <= beta_end < 1."
            )

    @property
    def token_width(self) -> int:
        """Width of a token: ``width``, or else 128 or what holds the widest factor.

        A token narrower than a factor cannot tell its noise: with 64 for an s of 32 numbers the
        samples of digits lay farther from real ones than those of the flat networks.
        """
        if self.width:
            return self.width
        widest = max(MIN_WIDTH, self.static_dim, self.dynamic_dim)
        return -(-widest // self.num_heads) * self.num_heads

    @property
    def flat_dim(self) -> int:
        """Coordinates of s and all d together, ``S + V D``."""
        return self.static_dim + self.length * self.dynamic_dim

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PriorSpec":
        """Inverse of ``to_dict``.

        Raises:
          ValueError: a field is unknown or missing.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(
                f"prior.{unknown[0]} is unknown; known fields: {', '.join(sorted(known))}."
            )
        required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
        if missing := sorted(required - set(values)):
            raise ValueError(f"prior.{missing[0]} is missing from the prior's description.")
        return cls(**values)
