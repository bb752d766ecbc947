"""Released PyTorch weights to variables of this project, with a report of every key.

``python -m diffsda_jax.convert [--name=vox1] --checkpoint=FILE --out=DIR`` or
``convert_file(FILE)``.
"""

import importlib

_PUBLIC = ("ConversionError", "Converted", "convert_file", "convert_state_dict")


def __getattr__(name: str):
    """Loads a public name on first use (PEP 562); the modules below need the networks."""
    if name in _PUBLIC:
        return getattr(importlib.import_module("diffsda_jax.convert.weights"), name)
    raise AttributeError(
        f"module 'diffsda_jax.convert' has no attribute {name!r}; public: {_PUBLIC}"
    )
