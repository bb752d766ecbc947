"""Python files of the user: configs, studies, plug-ins."""

import importlib.util
import os
import sys
from types import ModuleType


def execute_file(path: str | os.PathLike, name: str, listed: bool = False) -> ModuleType:
    """The module that a Python file makes when it runs.

    Args:
      path: of the file.
      name: of the module.
      listed: it stays in ``sys.modules``, where dataclasses and pickle look for what it defines.

    Returns:
      The module.

    Raises:
      ImportError: the name of the file is not that of a Python file.
      Exception: whatever the file raises.
    """
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file: its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    if listed:
        sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if listed:
            del sys.modules[name]
        raise
    return module
