"""Configuration: every option with its default, and the checks that catch a wrong one early."""

import inspect
import json
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from diffsda_jax import mode_defaults
from diffsda_jax.data.sources import SOURCES, make_source
from diffsda_jax.data.sources.base import SPLITS, unknown_name_message
from diffsda_jax.evals.network_options import network_defaults
from diffsda_jax.python_file import execute_file

PLACES = {  # options that say where data lie, and how they are read, not what they are
    "data": ("num_threads", "prefetch_batches", "cache_dir"),
    "source.options": ("root", "path", "cache_dir", "data_dir"),
}


def _model_defaults() -> dict[str, Any]:
    """See `model.ModelSpec`."""
    return {
        "static_dim": 16,
        "dynamic_dim": 2,
        "hidden_dim": 64,
        "recurrence": "lstm",  # lstm (paper, causal) | reference (released code)
        "dynamic_activation": "linear",  # linear | tanh (bounded, for loss.dynamic_noise)
        "static_per_step": False,  # one s for each step instead of one for the sequence
        "center_dynamic": False,  # read d from what changes over the steps only (series)
        "channels": 64,  # video: base width of the denoiser's U-Net
        "encoder_channels": 64,  # video: base width of the encoder's U-Net
        "encoder_pooling": False,  # video: adds features that do not depend on place
        "template_channels": 0,  # video: of an image drawn from the factors for the U-Net to see
        "channel_mults": (1, 2, 2, 2),  # video: width of each level
        "attention_levels": (2,),  # video: levels with attention
        "width": 256,  # series: m of the denoiser's MLP
        "encoder_width": 128,  # series: m of the encoder's MLP
        "encoder_sees_mask": True,  # series with missing values: the encoder is told which they are
        "dropout": 0.1,
        "sigma_data": 0.5,
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        "precision": "float32",  # of large products: float32 | bfloat16
        "lstm_backend": "scan",  # scan | cudnn (on one NVIDIA GPU)
        "remat": False,  # gradients compute blocks again: less memory, more work
        "rho": 7.0,
    }


def _training_defaults() -> dict[str, Any]:
    """Sections of training a model, see `train.optimizer` and `train.loop`."""
    return {
        "optimizer": {
            "schedule": "cosine",  # cosine (with warm-up) | reference | constant
            "learning_rate": 1e-4,
            "warmup_steps": 100,  # at most a tenth of the run
            "weight_decay": 1e-5,
            "clip_norm": 1.0,
            "ema_half_life_examples": 10_000.0,  # 0 = no averaging
        },
        "train": {
            "batch_size": 16,  # over all devices
            "accumulation_steps": 1,  # parts of a batch, one after another: for less memory
            "num_steps": 10_000,
            "log_every_steps": 100,
            "checkpoint_every_steps": 1_000,
            "eval_every_steps": 0,  # 0 = only at the end
            "keep_checkpoints": 3,
            "init_from": "",  # checkpoint whose weights a new run starts from
        },
    }


def _eval_defaults() -> dict[str, Any]:
    """See `evals.evaluate`."""
    return {
        "split": "test",
        "weights": "ema",  # ema | raw
        "num_clips": 512,  # at most so many test sequences
        "num_train_clips": 2_000,  # for probes and judges
        "num_swaps": 200,
        "pairs": "",  # CSV file of the swaps to make, see data.sources.pairs; empty = drawn ones
        "solver": "",  # see diffusion.samplers.SOLVERS; empty = what --mode=sampling chose, or heun
        "num_steps": 32,  # of that solver (not of the chosen one); Heun costs 2 N - 1 evaluations
        "precision": "",  # of the networks: float32 | bfloat16; empty = the model's
        "form": "corrected",  # corrected | reference (the released code's quirks)
        "start": "",  # of swaps: random | zero | target | donor; empty = the form's
        "judge_steps": 600,  # of training the judge on real clips
        "task_steps": 1_000,  # of training each probe of the tasks
        "batch_size": 64,
        "num_samples": 256,  # of the part generation: clips that a prior makes in each way
        "interpolation": "linear",  # linear | spherical: between static factors
        "vocoder": "",  # audio: a HiFi-GAN checkpoint; empty = Griffin-Lim
        "parts": (
            "reconstruction",
            "swap",
            "one_factor",
            "probes",
            "judge",
            "verification",
        ),
        "networks": network_defaults(),  # that look at faces and bodies, see evals.networks
        "seed": 0,
    }


def default_config() -> ConfigDict:
    """Every option and its default; a file of ``configs/`` changes what it needs.

    Returns:
      A locked ConfigDict: setting a key that is not here raises.
    """
    return ConfigDict(
        {
            "seed": 0,
            "source": {"name": "", "options": {}},
            "mesh": mode_defaults.mesh_defaults(),
            "profile": {"steps": 0, "skip": 10},  # training steps to trace, and those before
            "data": {
                "length": 10,  # steps of a sequence
                "length_mode": "crop",  # resample | crop | pad
                "front_end": "mel",  # audio: mel (HiFi-GAN's) | linear
                "cache_dir": "~/.cache/diffsda_jax",  # audio: where statistics are kept
                "target_std": 0.5,  # of a series after normalising; frames stay in [-1, 1]
                "num_threads": 2,  # that make batches
                "prefetch_batches": 8,
            },
            "model": _model_defaults(),
            "noise": {
                "distribution": "log_normal",  # log_normal | uniform
                "p_mean": -0.4,
                "p_std": 1.0,
            },
            "loss": {
                "weighting": "edm",  # edm | uniform | min_snr
                "noise_draws": 1,  # noisy copies of a sequence, which is encoded once
                "dynamic_noise": 0.0,  # std of noise added to d in training: a bottleneck on d
                "encoder_noise": 0.0,  # std of noise added to what the encoder sees in training
            },
            **_training_defaults(),
            "first_stage": {
                "checkpoint": "",  # of the frame autoencoder, where there are latents
                "chunk_frames": 8,  # that a device encodes or decodes at once; bounds its memory
            },
            "first_stage_training": mode_defaults.first_stage_training_defaults(),
            "latents": mode_defaults.latents_defaults(),
            "prior": mode_defaults.prior_defaults(),
            "sampling": mode_defaults.sampling_defaults(),
            "report": mode_defaults.report_defaults(),
            "explore": mode_defaults.explore_defaults(),
            "distill": mode_defaults.distill_defaults(),
            "eval": _eval_defaults(),
        }
    ).lock()


def use_reference_form(config: ConfigDict) -> None:
    """Sets what the released code does otherwise, from the recurrence to metrics."""
    config.model.recurrence = "reference"
    config.model.precision = "float32"
    config.model.dynamic_activation = "linear"
    config.model.static_per_step = False
    config.model.center_dynamic = False
    config.model.encoder_sees_mask = False
    config.optimizer.schedule = "reference"
    config.optimizer.ema_half_life_examples = 0.0
    config.loss.weighting = "edm"
    config.loss.dynamic_noise = 0.0
    config.loss.encoder_noise = 0.0
    config.eval.weights = "raw"
    config.eval.form = "reference"
    config.eval.start = ""
    if "last_chunk" in config.source.options:  # of speech
        config.source.options.last_chunk = "pad"


def check_variant(variant: str, allowed: Sequence[str]) -> None:
    """Refuses an unknown argument of a config file.

    Raises:
      ValueError: ``variant`` is not among the allowed ones.
    """
    if variant not in allowed:
        raise ValueError(unknown_name_message("variant", variant, allowed))


def _placeholder_for(annotation: Any) -> Any:
    """A typed stand-in for None, so that the command line can set the option."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        allowed = [a for a in typing.get_args(annotation) if a is not type(None)]
        annotation = allowed[0]
    origin = typing.get_origin(annotation) or annotation
    return placeholder(origin if origin in (int, float, str, bool) else tuple)


def source_config(name: str, **options: Any) -> ConfigDict:
    """The ``source`` section: a data source with all of its options, so that each can be set.

    Args:
      name: of the source, see ``data.sources.SOURCES``.
      **options: those that differ from the source's own defaults; a required option that is left
        out becomes empty and is asked for when the source is made.

    Returns:
      A ConfigDict with ``name`` and ``options``.

    Raises:
      ValueError: unknown source or option.
    """
    if name not in SOURCES:
        raise ValueError(unknown_name_message("source", name, sorted(SOURCES)))
    values = {}
    for option, parameter in inspect.signature(SOURCES[name]).parameters.items():
        if option == "split":
            continue
        value = options.pop(option, parameter.default)
        if value is None or value is inspect.Parameter.empty:
            value = _placeholder_for(parameter.annotation)
        values[option] = value
    if options:
        raise ValueError(
            unknown_name_message(f"option of source {name!r}:", next(iter(options)), list(values))
        )
    return ConfigDict({"name": name, "options": values})


def load_config(path: str) -> ConfigDict:
    """Reads a config file, ``FILE.py`` or ``FILE.py:argument``, and checks it.

    Args:
      path: a Python file with ``get_config()`` (or ``get_config(argument)``).

    Returns:
      The config.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it has no ``get_config``, is no Python, or sets an unknown key.
    """
    file, _, argument = str(path).partition(":")
    if not Path(file).is_file():
        raise FileNotFoundError(
            f"config file {file} does not exist; see the folder configs/ for those that do."
        )
    try:
        module = execute_file(file, "config")
        config = module.get_config(argument) if argument else module.get_config()
    except Exception as error:  # whatever a user's file does; the cause stays chained
        what = " ".join(str(error).replace("\\n", " ").split()).strip("'\"").rstrip(".")
        raise ValueError(
            f"config file {path} cannot be read: {what}. It needs a function get_config() that "
            "changes diffsda_jax.config.default_config(), such as configs/digits.py."
        ) from error
    check_config(config)
    return config


def check_config(config: ConfigDict) -> None:
    """Refuses unknown keys and values of another kind than the default's.

    Raises:
      ValueError: names the key, and the nearest known one or the kind that is allowed.
    """
    _check_section(config.to_dict(), default_config().to_dict(), "config")
    name = config.source.name
    if not name:
        raise ValueError(f"config.source.name is empty; allowed: {', '.join(sorted(SOURCES))}.")
    if name not in SOURCES:
        raise ValueError(unknown_name_message("config.source.name", name, sorted(SOURCES)))


def check_overrides(config: ConfigDict, argv: Sequence[str]) -> None:
    """Refuses ``--config.a.b=value`` on a command line where ``a.b`` is not an option.

    Raises:
      ValueError: names the key and the nearest known one.
    """
    for word in argv:
        name = word.partition("=")[0].lstrip("-")
        if not word.startswith("-") or not name.startswith("config."):
            continue
        section, path = config, "config"
        for key in name.split(".")[1:]:
            if not isinstance(section, ConfigDict):
                raise ValueError(f"{path} is an option and has none below it: {name} is unknown.")
            if key not in section:
                raise ValueError(unknown_name_message(f"key of {path}:", key, list(section)))
            section, path = section[key], f"{path}.{key}"


def _check_section(values: dict, known: dict, path: str) -> None:
    """Compares one section with the defaults, and those below it."""
    for key, value in values.items():
        if key not in known:
            raise ValueError(unknown_name_message(f"key of {path}:", key, list(known)))
        default = known[key]
        if isinstance(default, dict) != isinstance(value, dict):
            raise ValueError(
                f"{path}.{key} is {value!r}; it must be like its default, {default!r}."
            )
        if isinstance(default, dict):
            if f"{path}.{key}" != "config.source.options":
                _check_section(value, default, f"{path}.{key}")
        elif not _same_kind(value, default):
            raise ValueError(
                f"{path}.{key} is {value!r} ({type(value).__name__}); it must be "
                f"{type(default).__name__}, such as {default!r}."
            )
    if missing := [key for key in known if key not in values]:
        raise ValueError(
            f"{path}.{missing[0]} is missing; start from diffsda_jax.config.default_config()."
        )


def _same_kind(value: Any, default: Any) -> bool:
    """Whether a value may stand where the default stood; an int may stand for a float."""
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, (int, float))
    if isinstance(default, (tuple, list)):
        return isinstance(value, (tuple, list))
    return isinstance(value, type(default))


def to_json(config: ConfigDict) -> dict[str, Any]:
    """The config as plain JSON values, in the form that checkpoints hold."""
    return json.loads(json.dumps(config.to_dict(), sort_keys=True))


def with_defaults(values: dict[str, Any], defaults: dict[str, Any] | None = None) -> dict[str, Any]:
    """A config as it was written down, with the options that came later at their defaults."""
    defaults = to_json(default_config()) if defaults is None else defaults
    known = {
        key: with_defaults(value, defaults[key])
        if isinstance(value, dict) and isinstance(defaults.get(key), dict)
        else value
        for key, value in values.items()
    }
    return defaults | known


def differences(old: dict[str, Any], new: dict[str, Any], path: str = "config") -> list[str]:
    """Every place where two configs differ, each as ``path was X and is now Y``."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{path}.{key}")
        elif before != after:
            found.append(f"{path}.{key} was {before!r} and is now {after!r}")
    return found


def make_mesh(options: ConfigDict, devices: Sequence[Any] | None = None) -> Any:
    """The ``Mesh`` that section ``mesh`` of a config describes, over the given devices or all.

    Raises:
      ValueError: sizes that do not multiply to the number of devices.
    """
    from diffsda_jax import sharding  # not above: --help and mistakes answer without loading jax

    return sharding.make_mesh(devices, data=options.data, fsdp=options.fsdp)


def make_sources(config: ConfigDict) -> dict[str, Any]:
    """The training and the test split of the config's source.

    Raises:
      ValueError, FileNotFoundError: see the sources.
    """
    from diffsda_jax import distributed

    options = {k: v for k, v in config.source.options.to_dict().items() if v is not None}
    return distributed.together(
        lambda: {split: make_source(config.source.name, split, **options) for split in SPLITS}
    )


def same_everywhere(config: ConfigDict) -> dict[str, Any]:
    """What of a config must be the same on all processes: all but where their data lie."""
    values = to_json(config)
    for section, names in PLACES.items():
        options = values["source"]["options"] if section == "source.options" else values[section]
        for name in names:
            options.pop(name, None)
    return values
