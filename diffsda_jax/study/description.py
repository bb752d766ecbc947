"""What a study is: a question, the variants that answer it, and what is compared."""

import ast
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffsda_jax import config as configuration
from diffsda_jax.data.sources.base import unknown_name_message
from diffsda_jax.python_file import execute_file

Overrides = Mapping[str, Any]  # of dotted config keys, such as "model.dynamic_dim"
MODES = ("eval", "prior")
BETTER = ("low", "high", "")
CONFIG_KEY = "config"  # of a variant with a config file of its own
SEED_KEYS = ("seed", "eval.seed")


@dataclasses.dataclass(frozen=True)
class Metric:
    """A column of the table.

    Attributes:
      name: in ``metrics.json``, such as ``verification/static_eer_percent``.
      label: head of the column.
      better: ``"low"`` or ``"high"`` marks the best variant; ``""`` marks none.
    """

    name: str
    label: str
    better: str = ""

    def __post_init__(self):
        """Checks the direction.

        Raises:
          ValueError: it is unknown.
        """
        if self.better not in BETTER:
            raise ValueError(unknown_name_message("better", self.better, BETTER))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Variants of a config over seeds.

    Attributes:
      title: of table and plot.
      question: what the study is to answer, a sentence or two.
      config: file of ``configs/``, with its variant after a colon.
      variants: overrides of each, by name, in the order of the table; the key ``config`` gives one
        another config file.
      metrics: columns of the table and panels of the plot.
      common: overrides of all variants.
      seeds: of training, the order of the data and the evaluation.
      modes: what follows training: ``"eval"``, the evaluation, and ``"prior"``, training a prior
        over the factors and evaluating it.
      x: place of each variant on the horizontal axis of the plot; empty = one after the other.
      x_label: of that axis.
      lines: which variants the plot joins, by a name for each; empty = all.
    """

    title: str
    question: str
    config: str
    variants: Mapping[str, Overrides]
    metrics: Sequence[Metric]
    common: Overrides = dataclasses.field(default_factory=dict)
    seeds: Sequence[int] = (0, 1, 2)
    modes: Sequence[str] = ("eval",)
    x: Mapping[str, int | float] = dataclasses.field(default_factory=dict)
    x_label: str = ""
    lines: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        """Checks the fields.

        Raises:
          ValueError: the study cannot be run or drawn.
        """
        for field in ("variants", "metrics", "seeds", "modes"):
            if not getattr(self, field):
                raise ValueError(f"study {self.title!r}: {field} is empty; give one or more.")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"study {self.title!r}: seeds {tuple(self.seeds)} repeat one.")
        for mode in self.modes:
            if mode not in MODES:
                raise ValueError(unknown_name_message("mode of a study:", mode, MODES))
        for field in ("x", "lines"):
            given = getattr(self, field)
            if given and list(given) != list(self.variants):
                raise ValueError(
                    f"study {self.title!r}: {field} names {', '.join(given)}; it must have the "
                    f"names of the variants, {', '.join(self.variants)}, in their order."
                )
        self._check_overrides()

    def _check_overrides(self):
        """Refuses variants that are the same, and seeds among the options."""
        seen: dict[str, str] = {}
        for name, overrides in self.variants.items():
            for key in SEED_KEYS:
                if key in overrides or key in self.common:
                    raise ValueError(
                        f"study {self.title!r} sets {key}; seeds are given by seeds= and --seeds."
                    )
            same = seen.setdefault(repr(sorted(overrides.items())), name)
            if same != name:
                raise ValueError(f"study {self.title!r}: variants {same!r} and {name!r} are equal.")

    def config_of(self, variant: str) -> str:
        """Config file of a variant."""
        return self.variants[variant].get(CONFIG_KEY, self.config)

    def overrides_of(self, variant: str, seed: int) -> dict[str, Any]:
        """All options of one run that differ from its config file."""
        own = {key: value for key, value in self.variants[variant].items() if key != CONFIG_KEY}
        return dict(self.common) | own | dict.fromkeys(SEED_KEYS, seed)


def load_study(path: str | Path) -> Study:
    """Reads a study file and checks every variant's options.

    Args:
      path: a Python file with ``get_study()``.

    Raises:
      FileNotFoundError: no such file, or a config file of a variant is missing.
      ValueError: it gives no study, or an option is unknown or of another kind.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"study file {path} does not exist; see the folder studies/ for those that do."
        )
    try:
        study = execute_file(path, "study_file").get_study()
    except Exception as error:  # whatever a user's file does; the cause stays chained
        what = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"study file {path} cannot be read: {what}. It needs a function "
            "get_study() that returns a diffsda_jax.study.Study, such as studies/recurrence.py."
        ) from error
    if not isinstance(study, Study):
        raise ValueError(f"study file {path}: get_study() gives {study!r}, which is no Study.")
    check_study(study)
    return study


def check_study(study: Study) -> None:
    """Loads the config of every variant and sets its options.

    Raises:
      FileNotFoundError, ValueError: as ``load_study``.
    """
    for variant in study.variants:
        overrides = study.overrides_of(variant, study.seeds[0])
        try:
            override_config(configuration.load_config(study.config_of(variant)), overrides)
        except ValueError as error:
            raise ValueError(f"variant {variant!r} of study {study.title!r}: {error}") from error


def override_config(config: ConfigDict, overrides: Overrides) -> ConfigDict:
    """Sets dotted keys of a config in place, and gives it back.

    Raises:
      ValueError: an unknown key, or a value of another kind than the option's.
    """
    for key, value in overrides.items():
        configuration.check_overrides(config, [f"--config.{key}="])
        try:
            config.update_from_flattened_dict({key: value})
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(
                f"config.{key}={value!r}: {' '.join(str(error).split())}; it must be like "
                f"{_value_at(config, key)!r}."
            ) from error
    configuration.check_config(config)
    return config


def _value_at(config: ConfigDict, key: str) -> Any:
    for name in key.split("."):
        config = config[name]
    return config


def change_study(study: Study, settings: Sequence[str], seeds: Sequence[int] | None) -> Study:
    """The study with options for all runs from the command line, and maybe other seeds.

    Args:
      study: as its file gives it.
      settings: ``key=value`` or ``config.key=value``; they come before the study's own.
      seeds: None keeps the study's.

    Raises:
      ValueError: no ``key=value``, an unknown key, or one in which the variants differ.
    """
    common = dict(study.common)
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.removeprefix("--").removeprefix("config.")
        if not equals or not key:
            raise ValueError(f"--set={setting}: it must be KEY=VALUE, like train.num_steps=200.")
        if varied := [name for name, own in study.variants.items() if key in own]:
            raise ValueError(
                f"--set={setting}: variant {varied[0]!r} of the study sets {key} itself; choose an "
                "option that is the same in all variants, or write a study file of your own."
            )
        common[key] = parse_value(text)
    study = dataclasses.replace(
        study, common=common, seeds=study.seeds if seeds is None else tuple(seeds)
    )
    check_study(study)
    return study


def parse_value(text: str) -> Any:
    """A Python value as it is written; what is none is a text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text, text)
