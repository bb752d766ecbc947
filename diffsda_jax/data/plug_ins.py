"""Functions of the user's own that an option names."""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from diffsda_jax.data.sources.base import hash_of
from diffsda_jax.python_file import execute_file


def import_callable(name: str, option: str) -> Callable[..., Any]:
    """Imports what an option names as "module:callable" or "file.py:callable".

    A file is executed once, and again only when it has changed.

    Args:
        name: such as "my_faces:detect" or "tools/my_faces.py:detect".
        option: the option, for messages.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another form, a module or file that cannot be imported, no such attribute in it,
            or one that cannot be called.
    """
    module, _, attribute = name.rpartition(":")
    if not module or not attribute:
        raise ValueError(
            f"{option}={name!r}: write it as 'module:callable' or 'file.py:callable', such as "
            "'my_faces:detect'"
        )
    is_file = module.endswith(".py")
    if is_file and not Path(module).expanduser().is_file():
        raise FileNotFoundError(f"{option}={name!r}: there is no file {module}")
    try:
        found = getattr(
            _import_file(module) if is_file else importlib.import_module(module), attribute
        )
    except Exception as error:  # whatever the user's code does when it is imported
        where = "mend it" if is_file else f"put the folder of {module}.py on PYTHONPATH"
        raise ValueError(
            f"{option}={name!r} cannot be imported ({error}): {where} and define {attribute} in it"
        ) from error
    if not callable(found):
        raise ValueError(
            f"{option}={name!r} is of type {type(found).__name__} and cannot be called: name a "
            "function"
        )
    return found


def _import_file(path: str) -> ModuleType:
    file = Path(path).expanduser().resolve()
    return _execute_file(file, file.stat().st_mtime_ns)


@functools.cache
def _execute_file(file: Path, changed: int) -> ModuleType:
    """The module of a file as it was at its time of change, in ns."""
    name = f"_plug_in_{file.stem}_{hash_of([str(file), changed])}"
    return execute_file(file, name, listed=True)
