"""``python -m diffsda_jax.convert``: released PyTorch weights to a checkpoint of this project."""

import argparse
import sys


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
        description="Converts released weights (video, audio and series classes) to a checkpoint "
        "that restores like a trained one. Needs no torch and runs nothing of the file.",
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


def convert(options: argparse.Namespace) -> str:
    """Reads, checks, writes; returns what to print.

    Raises:
      ValueError, FileNotFoundError: one line that says what is wrong.
    """
    from diffsda_jax.convert.infer_spec import FIXED, FIXED_ALWAYS, match_spec
    from diffsda_jax.convert.weights import ConversionError, convert_file
    from diffsda_jax.train.checkpoint import save_converted

    try:
        converted = convert_file(options.checkpoint, options.frame_size, options.entry)
    except ConversionError as error:
        print(error.report.summary(), file=sys.stderr)
        raise
    spec, key_report, meta = converted.spec, converted.report, {}
    if options.config is not None:
        from diffsda_jax import config as configuration
        from diffsda_jax import experiment

        config = configuration.load_config(options.config)
        configured = experiment.model_spec(config, spec.kind, spec.shape)
        spec = match_spec(spec, configured)
        if configured.recurrence != spec.recurrence:
            config.model.recurrence = spec.recurrence
            key_report = key_report.with_note(
                f"model.recurrence is {spec.recurrence!r}, not the configuration's "
                f"{configured.recurrence!r}: released weights have no other"
            )
        meta["config"] = configuration.to_json(config)
    source = {**converted.source, "classes": key_report.classes}
    meta |= {"step": 0, "model": spec.to_dict(), "source": source}
    folder = save_converted(options.out, converted.variables, meta)
    path = key_report.save(options.out)
    fields = (*FIXED_ALWAYS, "recurrence", *FIXED[spec.kind])
    values = ", ".join(f"{name}={getattr(spec, name)!r}" for name in fields)
    return f"{key_report.summary()}\nmodel: {values}\ncheckpoint: {folder}\nreport: {path}"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    options = make_parser().parse_args(arguments)
    try:
        print(convert(options))
    except (ValueError, FileNotFoundError) as error:
        print(f"diffsda_jax: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
