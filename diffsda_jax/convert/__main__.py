"""``python -m diffsda_jax.convert``: released PyTorch weights to a checkpoint of this project."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from diffsda_jax.convert.released import CONFIGS, config_of


def parse_frame_size(text: str) -> tuple[int, int]:
    """``"HxW"`` as two integers.

    Raises:
      ArgumentTypeError: the text is something else.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not HxW, such as 48x64")
    return int(parts[0]), int(parts[1])


def make_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        prog="python -m diffsda_jax.convert",
        description="Converts released weights (video, audio and series classes, and latent "
        "diffusion's frame autoencoders VQModel and AutoencoderKL, and priors over the factors) "
        "to a checkpoint that restores like a trained one. Needs no torch and runs nothing of the "
        "file.",
        allow_abbrev=False,
    )
    parser.add_argument("--checkpoint", required=True, help=".pth, .pt or .npz with the state dict")
    parser.add_argument("--out", required=True, help="directory for the checkpoint and the report")
    known = parser.add_mutually_exclusive_group()
    known.add_argument(
        "--name",
        help=f"which released weights these are, for their config: {', '.join(CONFIGS)}",
    )
    known.add_argument("--config", help="configs/X.py whose model must be the file's")
    parser.add_argument("--entry", help="dictionary of the file with the weights, such as ema")
    parser.add_argument(
        "--frame_size",
        "--frame-size",
        type=parse_frame_size,
        metavar="HxW",
        help="of a video model whose frames are not square",
    )
    for name in ("static_dim", "dynamic_dim"):
        parser.add_argument(
            f"--{name}",
            type=int,
            help="of the sequence model that the prior in the file belongs to",
        )
    return parser


def _apply_config(
    path: str, spec: Any, key_report: Any, sizes_of_file: bool
) -> tuple[Any, Any, dict[str, Any]]:
    """Spec and report completed by a configuration file, and that configuration as JSON.

    Fields of ``RELEASED`` that the configuration has otherwise are put right in it and noted, and
    with ``sizes_of_file`` those that the weights fix, too.

    Raises:
      ValueError: the configuration is for other data, or a field that the weights fix differs.
    """
    from diffsda_jax import config as configuration
    from diffsda_jax import experiment
    from diffsda_jax.convert.infer_spec import RELEASED, fixed_sizes, match_spec
    from diffsda_jax.data.sources import SOURCES

    config = configuration.load_config(path)
    name = config.source.name
    known = SOURCES[name].kind if name in SOURCES else ""
    kind = known or spec.kind
    kind = "series" if kind == "audio" else kind  # a series of spectrogram frames
    if kind != spec.kind:
        raise ValueError(
            f"config.source.name is {name!r}, a {kind} source, but the file holds a {spec.kind} "
            f"model; choose a --config (or --name) of {spec.kind} data, or leave it out."
        )
    reasons = dict.fromkeys(RELEASED, "released weights have no other")
    if sizes_of_file:
        reasons |= dict.fromkeys(fixed_sizes(spec.kind), "taken from the file; is it the right one")
    for field, reason in reasons.items():
        released, wanted = getattr(spec, field), config.model[field]
        if released != wanted:
            config.model[field] = released
            key_report = key_report.with_note(
                f"model.{field} is {released!r}, not the configuration's {wanted!r}: {reason}"
            )
    spec = match_spec(spec, experiment.model_spec(config, spec.kind, spec.shape))
    return spec, key_report, configuration.to_json(config)


def convert(options: argparse.Namespace) -> str:
    """Reads, checks, writes; returns what to print.

    Raises:
      ValueError, OSError: one line that says what is wrong.
    """
    from diffsda_jax.convert.weights import ConversionError, convert_file
    from diffsda_jax.model import ModelSpec
    from diffsda_jax.prior_spec import PriorSpec

    config = options.config if options.name is None else config_of(options.name)
    try:
        converted = convert_file(
            options.checkpoint, options.frame_size, options.entry, _factor_dims(options)
        )
    except ConversionError as error:
        print(error.report.summary(), file=sys.stderr)
        raise
    meta = {}
    if config is not None:
        if not isinstance(converted.spec, ModelSpec):
            flag = "config" if options.name is None else "name"
            what = "prior" if isinstance(converted.spec, PriorSpec) else "frame autoencoder"
            raise ValueError(
                f"--{flag} is {getattr(options, flag)!r}, but the file holds a {what} "
                f"({converted.report.classes}), about which configurations say nothing; leave it "
                "out."
            )
        spec, key_report, meta["config"] = _apply_config(
            config, converted.spec, converted.report, sizes_of_file=options.name is not None
        )
        converted = dataclasses.replace(converted, spec=spec, report=key_report)
    text = _save(converted, options.out, meta)
    if converted.first_stage is not None:
        text += "\n" + _save(converted.first_stage, Path(options.out) / "first_stage", {})
    return text


def _factor_dims(options: argparse.Namespace) -> tuple[int, int] | None:
    """S and D for a prior, or None.

    Raises:
      ValueError: only one of the two is given.
    """
    dims = options.static_dim, options.dynamic_dim
    if dims == (None, None):
        return None
    if None in dims:
        raise ValueError(
            f"--static_dim is {dims[0]} and --dynamic_dim {dims[1]}; give both, or none."
        )
    return dims


def _save(converted: Any, out: str | Path, meta: dict[str, Any]) -> str:
    """Writes checkpoint and report; returns what to print of them."""
    from diffsda_jax.first_stage.spec import META_KEY, FirstStageSpec
    from diffsda_jax.prior_spec import PriorSpec
    from diffsda_jax.train.checkpoint import save_converted

    spec, key_report = converted.spec, converted.report
    names = {FirstStageSpec: META_KEY, PriorSpec: "prior"}
    name = names.get(type(spec), "model")
    if name == "prior":
        meta = meta | _prior_meta()
    source = {**converted.source, "classes": key_report.classes}
    meta = meta | {"step": 0, name: spec.to_dict(), "source": source}
    folder = save_converted(out, converted.variables, meta)
    path = key_report.save(out)
    return (
        f"{key_report.summary()}\n{name}: {_describe(spec)}\ncheckpoint: {folder}\nreport: {path}"
    )


def _prior_meta() -> dict[str, Any]:
    """What ``Prior.from_checkpoint`` reads beside the description: factors stay as they are."""
    from diffsda_jax.data.transforms import Normalizer
    from diffsda_jax.diffusion.samplers import SamplerSpec

    same = Normalizer().to_dict()
    return {
        "factors": {"static": same, "dynamic": same},
        "sampler": SamplerSpec().to_dict(),
        "model_step": 0,
    }


def _describe(spec: Any) -> str:
    """The fields that the file fixes, and their values."""
    from diffsda_jax.convert.infer_spec import FIXED, FIXED_ALWAYS, RELEASED
    from diffsda_jax.model import ModelSpec

    fields = spec.to_dict()
    if isinstance(spec, ModelSpec):
        fields = (*FIXED_ALWAYS, *RELEASED, *FIXED[spec.kind])
    return ", ".join(f"{name}={getattr(spec, name)!r}" for name in fields)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    options = make_parser().parse_args(arguments)
    try:
        print(convert(options))
    except (ValueError, OSError) as error:
        text = " ".join(str(error).split())
        if isinstance(error, OSError) and error.errno is not None:  # of the system, not ours
            text += "; --checkpoint and --config must be readable, --out a folder to write in."
        print(f"diffsda_jax: error: {text}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
