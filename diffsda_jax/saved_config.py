"""The config of a run, from its workdir: what ``diffsda_jax.main`` takes without ``--config``."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffsda_jax.config import default_config, source_config, with_defaults

CONFIG_FILE = "config.json"


def get_config(workdir: str) -> ConfigDict:
    """The config that a workdir was trained with.

    Args:
      workdir: folder of a run.

    Returns:
      The config, with options that came later at their defaults. An option that followed another
      in the config file (``data.length`` and that of the source) does so no longer.

    Raises:
      FileNotFoundError: the folder has no ``config.json``.
      ValueError: it is not of this program.
    """
    file = Path(workdir).expanduser() / CONFIG_FILE
    try:
        values = with_defaults(json.loads(file.read_text())["config"])
        source = values.pop("source")
        config = default_config()
        with config.unlocked():
            config.source = source_config(source["name"], **_tuples(source["options"]))
        _set(config, values)
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{file} was not written by this program or is damaged; give --config."
        ) from error
    return config.lock()


def _set(config: ConfigDict, values: dict[str, Any]) -> None:
    """Writes values over those of a config, section by section."""
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(config.get(key), ConfigDict):
            _set(config[key], value)
        else:
            config[key] = _tuples(value)


def _tuples(value: Any) -> Any:
    """Lists, which JSON has for tuples, as tuples."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def add_saved(argv: Sequence[str]) -> list[str]:
    """A command line without ``--config``, but with the workdir of a run, gets its config.

    Args:
      argv: words of the command line, the program's name first.

    Returns:
      The words, with ``--config`` of this file behind the first, if there is a config to be taken.
    """
    words = list(argv)
    workdir = flag_value(words, "workdir")
    if flag_value(words, "config") is None and workdir is not None:
        if (Path(workdir).expanduser() / CONFIG_FILE).is_file():
            words.insert(1, f"--config={__file__}:{workdir}")
    return words


def flag_value(argv: Sequence[str], flag: str) -> str | None:
    """The value of a flag on a command line, given as one word or as two; None = not given."""
    for word, following in zip(argv, [*argv[1:], None], strict=True):
        name, equals, value = word.partition("=")
        if name in (f"--{flag}", f"-{flag}"):
            return value if equals else following
    return None
