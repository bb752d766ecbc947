"""Any series or video source of this package as a prepared data set of TensorFlow Datasets.

Importing this registers the builder `diffsda_sequences`, of which each source is a config. Nothing
here needs TensorFlow; importing takes a second, so nothing else in the package does it.
"""

import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from diffsda_jax.data.sources import make_source
from diffsda_jax.data.sources.base import SPLITS, BrokenItemError, Source
from diffsda_jax.data.sources.tfds_source import METADATA_KEY

_LOG = logging.getLogger(__name__)
_BYTES = tfds.features.Encoding.BYTES  # exact, and no number is widened


@dataclasses.dataclass(eq=False)
class SequencesConfig(tfds.core.BuilderConfig):
    """One source as a config of `DiffsdaSequences`.

    Attributes:
        sources: its splits; None in a builder that only reads what was prepared.
    """

    sources: Mapping[str, Source] | None = dataclasses.field(default=None, repr=False)


class DiffsdaSequences(tfds.core.GeneratorBasedBuilder):
    """Sequences of a source with all that it knows of them, in the order of the source."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: list = []  # a config stands for data that someone has; there is none as such
    code_path = None  # only used to find checksums of downloads; looking needs another package

    def _info(self) -> tfds.core.DatasetInfo:
        sources = self.builder_config.sources
        _, first = next(_elements(sources["train"]), (None, None))
        if first is None:
            raise ValueError(f"{sources['train'].describe()}: there is nothing to prepare")
        return tfds.core.DatasetInfo(
            builder=self,
            description=sources["train"].describe(),
            features=tfds.features.FeaturesDict(
                {key: _feature(key, value, sources) for key, value in first.items()}
            ),
            metadata=tfds.core.MetadataDict({METADATA_KEY: facts_of(sources)}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager
        sources = self.builder_config.sources
        return {split: self._generate_examples(sources[split]) for split in SPLITS}

    def _generate_examples(self, source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
        return _elements(source)


def prepare(
    source_name: str,
    options: Mapping[str, Any] | None = None,
    data_dir: str | os.PathLike | None = None,
    set_name: str | None = None,
) -> str:
    """Writes both splits of a source as ArrayRecord, for the source `tfds` and all who use tfds.

    What a source draws at random, such as windows, is drawn once.

    Args:
        source_name: see `sources.make_source`.
        options: of the source.
        data_dir: where; None: TFDS_DATA_DIR, or ~/tensorflow_datasets.
        set_name: the name of the config; None: that of the source.

    Returns:
        The option `dataset` for the source `tfds`, such as "diffsda_sequences/digits:1.0.0".

    Raises:
        ValueError, FileNotFoundError: see `sources.make_source`; an audio source; other data under
            this name.
    """
    sources = {split: make_source(source_name, split, **(options or {})) for split in SPLITS}
    kind = sources["train"].spec.kind
    if kind == "audio":
        raise ValueError(
            f"source {source_name!r} gives audio, which tfds cannot hold without TensorFlow: "
            "prepare sources of series or video, and read audio from its files"
        )
    config = SequencesConfig(name=set_name or source_name, sources=sources)
    builder = DiffsdaSequences(config=config, data_dir=data_dir and str(data_dir))
    _check_same(Path(builder.data_dir), builder, sources)
    builder.download_and_prepare(file_format="array_record")
    _LOG.info("prepared %s in %s", builder.info.full_name, builder.data_dir)
    for source in sources.values():
        source.check_skipped()
    return f"{builder.name}/{config.name}:{builder.version}"


def _check_same(folder: Path, builder: DiffsdaSequences, sources: Mapping[str, Source]) -> None:
    """Refuses a folder that holds other data; tfds would take it for these."""
    if not folder.exists():
        return
    known = tfds.builder_from_directory(str(folder)).info.metadata.get(METADATA_KEY) or {}
    if known.get("fingerprints") != facts_of(sources)["fingerprints"]:
        raise ValueError(
            f"{builder.info.full_name} in {folder} was prepared from other data or options: give "
            "another set_name, or remove that folder"
        )


def facts_of(sources: Mapping[str, Source]) -> dict[str, Any]:
    """What features do not tell of a source, for `metadata.json`."""
    source = sources["train"]
    return {
        "fingerprints": {split: sources[split].fingerprint() for split in SPLITS},
        "feature_names": source.spec.feature_names and list(source.spec.feature_names),
        "fps": source.spec.fps,
        "masked": source.spec.masked,
        "tasks": [dataclasses.asdict(task) for task in source.tasks],
    }


def _elements(source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """All elements that can be read, under their numbers; the others are counted."""
    for index in range(len(source)):
        try:
            element = source.load(index, np.random.default_rng([0, index]))
        except BrokenItemError as error:
            source.skip(source.item_name(index), str(error))
            continue
        yield index, {key: _storable(value) for key, value in element.items()}


def _storable(value: Any) -> Any:
    """An array as it is, a number as one that TensorFlow Datasets knows."""
    value = np.asarray(value)
    if value.ndim:
        return value
    return value.astype(np.int64 if np.issubdtype(value.dtype, np.integer) else np.float32)


def _feature(key: str, value: np.ndarray, sources: Mapping[str, Source]) -> Any:
    """The feature for values like this one; sequences may differ in their number of steps."""
    spec = sources["train"].spec
    names = {"static_label": spec.static_names, "dynamic_label": spec.dynamic_names}.get(key)
    if names:
        return tfds.features.ClassLabel(names=list(names))
    if not value.ndim:
        return tfds.features.Scalar(dtype=value.dtype.type)
    lengths = [source.lengths() for source in sources.values()]
    fixed = all(known is not None and (known == len(value)).all() for known in lengths)
    shape = (len(value) if fixed else None, *value.shape[1:])
    return tfds.features.Tensor(shape=shape, dtype=value.dtype.type, encoding=_BYTES)
