"""``python -m diffsda_jax.convert``: released PyTorch weights to a checkpoint of this project."""

import argparse
import sys
from typing import Any


def parse_frame_size(text: str) -> tuple[int, int]:
    """``"HxW"`` as two integers."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not HxW, such as 48x64")
    return int(parts[0]), int(parts[1])


def make_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        prog="python -m diffsda_jax.convert",
        description="Converts released weights (video, audio and series classes, and latent "
        "diffusion's frame autoencoders VQModel and AutoencoderKL) to a checkpoint that restores "
        "like a trained one. Needs no torch and runs nothing of the file.",
        allow_abbrev=False,
    )
    parser.add_argument("--checkpoint", required=True, help=".pth, .pt or .npz with the state dict")
    parser.add_argument("--out", required=True, help="directory for the checkpoint and the report")
    parser.add_argument("--config", help="configs/X.py whose model must be the file's")
    parser.add_argument("--entry", help="dictionary of the file with the weights, such as ema")
    parser.add_argument(
        "--frame_size",
        "--frame-size",
        type=parse_frame_size,
        metavar="HxW",
        help="of a video model whose frames are not square",
    )
    return parser


def _apply_config(path: str, spec: Any, key_report: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Spec and report completed by a configuration file, and that configuration as JSON.

    Fields of ``RELEASED`` that the configuration has otherwise are put right in it and noted.

    Raises:
      ValueError: the configuration is for other data, or a field that the weights fix differs.
    """
    from diffsda_jax import config as configuration
    from diffsda_jax import experiment
    from diffsda_jax.convert.infer_spec import RELEASED, match_spec
    from diffsda_jax.data.sources import SOURCES

    config = configuration.load_config(path)
    name = config.source.name
    known = SOURCES[name].kind if name in SOURCES else ""
    kind = known or spec.kind
    kind = "series" if kind == "audio" else kind  # a series of spectrogram frames
    if kind != spec.kind:
        raise ValueError(
            f"config.source.name is {name!r}, a {kind} source, but the file holds a {spec.kind} "
            f"model; choose a --config of {spec.kind} data, or leave it out."
        )
    configured = experiment.model_spec(config, spec.kind, spec.shape)
    spec = match_spec(spec, configured)
    for field in RELEASED:
        released, wanted = getattr(spec, field), getattr(configured, field)
        if released != wanted:
            config.model[field] = released
            key_report = key_report.with_note(
                f"model.{field} is {released!r}, not the configuration's {wanted!r}: released "
                "weights have no other"
            )
    return spec, key_report, configuration.to_json(config)


def convert(options: argparse.Namespace) -> str:
    """Reads, checks, writes; returns what to print.

    Raises:
      ValueError, OSError: one line that says what is wrong.
    """
    from diffsda_jax.convert.weights import ConversionError, convert_file
    from diffsda_jax.first_stage.spec import META_KEY, FirstStageSpec
    from diffsda_jax.train.checkpoint import save_converted

    try:
        converted = convert_file(options.checkpoint, options.frame_size, options.entry)
    except ConversionError as error:
        print(error.report.summary(), file=sys.stderr)
        raise
    spec, key_report, meta = converted.spec, converted.report, {}
    first_stage = isinstance(spec, FirstStageSpec)
    if options.config is not None:
        if first_stage:
            raise ValueError(
                f"--config is {options.config!r}, but the file holds a frame autoencoder "
                f"({key_report.classes}), about which configurations say nothing; leave it out."
            )
        spec, key_report, meta["config"] = _apply_config(options.config, spec, key_report)
    source = {**converted.source, "classes": key_report.classes}
    name = META_KEY if first_stage else "model"
    meta |= {"step": 0, name: spec.to_dict(), "source": source}
    folder = save_converted(options.out, converted.variables, meta)
    path = key_report.save(options.out)
    return (
        f"{key_report.summary()}\n{name}: {_describe(spec)}\ncheckpoint: {folder}\nreport: {path}"
    )


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
