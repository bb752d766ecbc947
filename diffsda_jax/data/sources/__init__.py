"""Data sources by name: `make_source("digits", "train", canvas=16)`."""

import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from diffsda_jax.data.sources.base import (
    SPLITS,
    BrokenItemError,
    ElementSpec,
    Source,
    unknown_name_message,
)

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
        "voxceleb1": ("face_sets", "VoxCeleb1"),
        "celebv_hq": ("face_sets", "CelebVHQ"),
        "latents": ("latents", "Latents"),
        "csv": ("csv_table", "CsvTable"),
        "timit": ("speech_sets", "Timit"),
        "librispeech": ("speech_sets", "LibriSpeech"),
        "speech_folder": ("speech_sets", "SpeechFolder"),
        "air_quality": ("air_quality", "AirQuality"),
        "etth1": ("etth1", "Etth1"),
        "physionet": ("physionet", "PhysioNet"),
        "known_factors": ("known_factors", "KnownFactors"),
        "tfds": ("tfds_source", "Tfds"),
    }
)


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
        raise ValueError(unknown_name_message("data source", name, SOURCES))
    if split not in SPLITS:
        raise ValueError(unknown_name_message(f"split of source {name!r}:", split, SPLITS))
    cls = SOURCES[name]
    parameters = dict(inspect.signature(cls).parameters)
    del parameters["split"]
    for option in options:
        if option not in parameters:
            raise ValueError(
                unknown_name_message(f"option of source {name!r}:", option, parameters)
            )
    for option, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and option not in options:
            raise ValueError(
                f"source {name!r} needs the option {option!r}: set "
                f"--config.source.options.{option}=..."
            )
    return cls(split, **options)
