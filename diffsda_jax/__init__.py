"""diffsda_jax: unsupervised sequential disentanglement with diffusion models, in JAX/Flax.

The public names are loaded on first use, so that ``import diffsda_jax`` costs nothing.
"""

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "DiffSDA": "diffsda_jax.pipeline",
    "Factors": "diffsda_jax.factors",
    "FirstStage": "diffsda_jax.first_stage_api",
    "Prior": "diffsda_jax.prior_api",
    "Sequences": "diffsda_jax.data.sequences",
    "mix": "diffsda_jax.factors",
}

__all__ = ["DiffSDA", "Factors", "FirstStage", "Prior", "Sequences", "__version__", "mix"]


def __getattr__(name: str):
    """Loads a public name from its module (PEP 562)."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'diffsda_jax' has no attribute {name!r}; public names: {__all__}")


def __dir__():
    """Public names, the lazy ones included."""
    return sorted(__all__)
