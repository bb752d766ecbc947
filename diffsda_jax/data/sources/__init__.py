"""Data sources by name: `make_source("digits", "train", canvas=16)`."""

import difflib
import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from diffsda_jax.data.sources.base import BrokenItemError, ElementSpec, Source

__all__ = ["SOURCES", "BrokenItemError", "ElementSpec", "Source", "make_source"]

_PACKAGE = "diffsda_jax.data.sources"


class _Registry(Mapping[str, type[Source]]):
    """Names of the sources and their classes; a class is imported when it is asked for."""

    def __init__(self, places: dict[str, tuple[str, str]]):
        self._places = places

    def __getitem__(self, name: str) -> type[Source]:
        module, cls = self._places[name]
        return getattr(importlib.import_module(f"{_PACKAGE}.{module}"), cls)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


SOURCES: Mapping[str, type[Source]] = _Registry(
    {
        "japanese_vowels": ("japanese_vowels", "JapaneseVowels"),
        "digits": ("digits", "Digits"),
        "video_folder": ("video_folder", "VideoFolder"),
        "mug": ("video_sets", "Mug"),
        "taichi": ("video_sets", "TaiChi"),
        "csv": ("csv_table", "CsvTable"),
    }
)


def _unknown(what: str, name: str, allowed: list[str]) -> ValueError:
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    hint = f", did you mean {near[0]!r}?" if near else ""
    return ValueError(f"unknown {what} {name!r}{hint} Use one of: {', '.join(allowed)}")


def make_source(name: str, split: str, **options: Any) -> Source:
    """Makes a data source.

    Args:
        name: a key of `SOURCES`.
        split: "train" or "test".
        **options: keyword arguments of the source's class.

    Returns:
        The source.

    Raises:
        ValueError: an unknown name, split or option (naming the nearest known one), a missing
            option, or a value that the source refuses.
        FileNotFoundError: data that is not where an option says.
    """
    if name not in SOURCES:
        raise _unknown("data source", name, sorted(SOURCES))
    if split not in ("train", "test"):
        raise _unknown(f"split of source {name!r}", split, ["train", "test"])
    cls = SOURCES[name]
    parameters = dict(inspect.signature(cls).parameters)
    del parameters["split"]
    for option in options:
        if option not in parameters:
            raise _unknown(f"option of source {name!r}", option, sorted(parameters))
    for option, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and option not in options:
            raise ValueError(f"source {name!r} needs the option {option!r}: give {option}=...")
    return cls(split, **options)
