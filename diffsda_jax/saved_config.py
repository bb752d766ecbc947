"""The config of a run, from its workdir: what ``diffsda_jax.main`` takes without ``--config``."""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffsda_jax.config import default_config, source_config, with_defaults

CONFIG_FILE = "config.json"
# Options of sources that follow ``data.length`` in the files of ``configs/``.
_LENGTHS = ("length", "num_frames")


def read_record(workdir: Path) -> tuple[dict[str, Any], str]:
    """What a workdir says of its run.

    Args:
      workdir: folder with a ``config.json``.

    Returns:
      The config as plain values, with options that came later at their defaults, and the
      fingerprint of the data.

    Raises:
      FileNotFoundError: the folder has no ``config.json``.
      ValueError: it is not of this program.
    """
    file = workdir / CONFIG_FILE
    try:
        record = json.loads(file.read_text())
        return with_defaults(record["config"]), record["data"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(_damaged(file)) from error


def get_config(workdir: str) -> ConfigDict:
    """The config that a workdir was trained with.

    Args:
      workdir: folder of a run.

    Returns:
      The config. The length of its source follows ``data.length``, if it is the same; no other
      option follows another, as some do in the files of ``configs/``.

    Raises:
      FileNotFoundError, ValueError: see ``read_record``.
    """
    folder = Path(workdir).expanduser()
    values, _ = read_record(folder)
    config = default_config()
    try:
        source = values.pop("source")
        with config.unlocked():
            config.source = source_config(source["name"], **_tuples(source["options"]))
        _set(config, values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(_damaged(folder / CONFIG_FILE)) from error
    options = config.source.options
    for name in _LENGTHS:
        if name in options and options[name] == config.data.length:
            options[name] = config.data.get_ref("length")
    return config


def has_config(workdir: str) -> bool:
    """Whether a folder is the workdir of a run, whose config can be taken."""
    return (Path(workdir).expanduser() / CONFIG_FILE).is_file()


def _damaged(file: Path) -> str:
    return (
        f"{file} was not written by this program or is damaged; use another --workdir, or remove "
        "it if the checkpoints beside it are of the --config that you give."
    )


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
