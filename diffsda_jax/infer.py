"""Command line: ``python -m diffsda_jax.infer VERB --checkpoint=DIR --input=... --output=...``."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from diffsda_jax.command_line import describe, disk_is_full, fail, prepare_jax

VERBS = {
    "encode": "writes the factors of the input as an .npz file",
    "reconstruct": "decodes the input from its own factors, or an .npz file of factors",
    "swap": "puts the static factor of one input together with the dynamics of another",
    "sample": "makes sequences that never were, with the prior of the workdir",
    "traverse": "moves the input along directions of one factor",
    "interpolate": "goes from one input to another through their factors",
}
_INPUT = (
    "Files, or folders of them, as the checkpoint takes them: mp4, webm, mov, gif or a folder of "
    "frames; wav, flac, mp3, ogg; csv; or npz, of arrays or of factors."
)
_URL = re.compile(r"\w{2,}:/")  # a Path has one slash of the two
_AS_WRITTEN = {"webm": "mp4", "mov": "mp4", "mp3": "wav", "ogg": "wav"}  # read, and not written


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with one line.

        Raises:
          SystemExit: always, with status 2.
        """
        fail(f"{message}; see {self.prog} --help.")


def make_parser() -> argparse.ArgumentParser:
    """The options of all verbs."""
    parser = Parser(prog="python -m diffsda_jax.infer", description=__doc__, allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="{" + ",".join(VERBS) + "}")
    for verb, text in VERBS.items():
        options = verbs.add_parser(verb, help=text, description=text, allow_abbrev=False)
        _add_inputs(options, verb)
        _add_own(options, verb)
        _add_common(options, verb)
    return parser


def _add_inputs(options: argparse.ArgumentParser, verb: str) -> None:
    """Where data come from."""
    many: dict[str, Any] = {"nargs": "+", "action": "extend", "metavar": "PATH"}
    if verb == "swap":
        options.add_argument("--static_from", required=True, help="Who or what. " + _INPUT, **many)
        options.add_argument("--dynamic_from", required=True, help="What happens.", **many)
    elif verb == "interpolate":
        options.add_argument(
            "--input", required=True, help="Two, A and B; A's rate is kept. " + _INPUT, **many
        )
    elif verb == "traverse":
        text = "Without it one sample of the prior is moved. "
        options.add_argument("--input", help=text + _INPUT, **many)
    elif verb != "sample":
        options.add_argument("--input", required=True, help=_INPUT, **many)


def _add_own(options: argparse.ArgumentParser, verb: str) -> None:
    """Options of one verb."""
    add = options.add_argument
    if verb == "sample":
        add("--count", type=int, default=4, help="Number of sequences.")
        add("--length", type=int, help="Steps of the model; as in training if left out.")
    if verb == "traverse":
        add("--factor", default="static", help="static or dynamic.")
        add("--along", default="pca", help="pca, ica, varimax, or dimensions of the factor itself.")
        add("--num_components", type=int, default=3, help="Number of directions.")
        add("--num_places", type=int, default=5, help="Places on each direction.")
        add("--reach", type=float, default=2.0, help="Of the last place, in standard deviations.")
        text = "What directions are fitted to; if left out samples of the prior, or the input."
        add("--codes", nargs="+", action="extend", metavar="PATH", help=text)
    if verb == "interpolate":
        add("--factor", default="both", help="What moves: static, dynamic or both.")
        add("--num_points", type=int, default=8, help="Points of the path, both ends among them.")
        add("--path", default="linear", help="Of the static factor: linear or spherical.")


def _add_common(options: argparse.ArgumentParser, verb: str) -> None:
    """Options that all verbs have, or all that decode."""
    add = options.add_argument
    place = (
        "Workdir of a run, or a checkpoint in it; a local path or a URL such as gs://bucket/run."
    )
    add("--checkpoint", required=True, help=place)
    text = (
        "FILE.npz."
        if verb == "encode"
        else ("A file (mp4, gif, wav, flac, csv, npz), or a folder, for a file of each sequence.")
    )
    add("--output", required=True, type=Path, help=text)
    add("--weights", default="ema", help="ema (moving average) or raw.")
    add("--precision", help="float32 or bfloat16; as in training if left out.")
    add("--device", help="Such as cpu, gpu or gpu:1; the first one if left out.")
    add("--first_stage", help="Frame autoencoder of a model of latents; the run's if left out.")
    add("--rate", type=float, help="Steps or samples a second, where the input does not say.")
    if verb == "encode":
        return
    add("--vocoder", help="HiFi-GAN checkpoint; the run's, or else Griffin-Lim, if left out.")
    add("--solver", help="heun, euler, dpmpp_2m, ab2; what --mode=sampling chose if left out.")
    add("--num_steps", type=int, help="Steps of the solver.")
    add("--start", default="random", help="Noise: random, zero (no flicker) or inverted.")
    add("--seed", type=int, default=0, help="Of all that is drawn.")
    add("--format", help="Of the files in a folder: mp4, gif, frames, wav, flac, csv or npz.")
    add("--side_by_side", action="store_true", help="Puts inputs and results into one picture.")


def run(options: argparse.Namespace) -> list[Path]:
    """Carries out a command.

    Args:
      options: of ``make_parser``.

    Returns:
      The files that were written.

    Raises:
      ValueError, OSError, ImportError: one sentence that says what is wrong.
    """
    if options.verb == "encode" and options.output.suffix != ".npz":
        raise ValueError(f"--output is {options.output}; factors are written to a file in .npz.")
    if options.verb == "interpolate" and len(options.input) != 2:
        raise ValueError(
            f"--input names {len(options.input)} files; interpolate needs two, A and B."
        )
    check_place(options.output, _taken(options))
    from diffsda_jax.pipeline import DiffSDA  # not above: mistakes and --help answer without jax

    model = DiffSDA.from_checkpoint(
        options.checkpoint,
        options.weights,
        precision=options.precision,
        device=options.device,
        first_stage=options.first_stage,
        vocoder=getattr(options, "vocoder", None),
    )
    if options.verb == "encode":
        given = _load(model, options.input, options.rate)
        return [model.encode(given, progress=True).save(options.output)]
    model = model.using(options.solver, options.num_steps)
    return Command(model, options).run()


def _taken(options: argparse.Namespace) -> list[Path]:
    """Where results would be written over inputs."""
    names = ("input", "static_from", "dynamic_from", "codes")
    inputs = [Path(path) for name in names for path in getattr(options, name, None) or ()]
    if options.verb == "reconstruct":  # which in a folder names its results like its inputs
        inputs += [path.expanduser().absolute().parent for path in inputs]
    return inputs


def check_place(output: Path, taken: Sequence[Path] = ()) -> None:
    """Refuses, before anything is computed, an output that cannot be written.

    Args:
      output: a file, or a folder if it has no suffix; it need not exist.
      taken: files and folders of inputs, which must not be written over.

    Raises:
      ValueError: what is in the way.
    """
    if _URL.match(str(output)):
        raise ValueError(f"--output is {output}; results are written to local files and folders.")
    output = output.expanduser().absolute()
    if output.resolve() in (place.expanduser().resolve() for place in taken):
        raise ValueError(
            f"--output is {output}, where the input would be written over; give another."
        )
    folder = output.parent if output.suffix else output
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(
            f"--output is {output}, but {folder} is no folder to write to; give another."
        )
    if output.suffix and output.is_dir():
        raise ValueError(f"--output is {output}, which is a folder; give the name of a file.")


def _load(model: Any, paths: Sequence[str] | None, rate: float | None) -> Any:
    """Sequences of the model, or factors where the path is a file of them."""
    from diffsda_jax.factors import Factors
    from diffsda_jax.npz_file import read_arrays

    if paths is None:
        return None
    first = Path(paths[0]).expanduser()
    if len(paths) == 1 and first.suffix == ".npz" and "static" in read_arrays(first):
        return Factors.load(first)
    return model.read(list(paths), rate)


# Sequences, and the same in columns to be put side by side, with their titles.
Result = tuple[Any, list[tuple[str, Any]]]


class Command:
    """One verb that gives sequences, with its options."""

    def __init__(self, model: Any, options: argparse.Namespace):
        """Refuses an output that the model's data cannot be written to.

        Args:
          model: a ``DiffSDA``.
          options: of ``make_parser``.

        Raises:
          ValueError: it names the output and what is allowed.
        """
        from diffsda_jax.data.media_writer import check_format

        self.model, self.options = model, options
        self.form = check_format(model.form.kind, options.output, options.format)
        self.drawn = {"start": options.start, "seed": options.seed, "progress": True}

    def run(self) -> list[Path]:
        """Makes the sequences and writes them."""
        result, columns = getattr(self, f"_{self.options.verb}")()  # which first checks the room
        if self.options.side_by_side:
            from diffsda_jax.data.sequences import side_by_side

            result = side_by_side([part for _, part in columns], [title for title, _ in columns])
        return result.save(self.options.output, self.form)

    def _check_room(self, count: int, groups: int) -> None:
        """Refuses, before anything is computed, several results for a file that holds one."""
        from diffsda_jax.data.media_writer import check_new

        written = groups if self.options.side_by_side else count
        if self.form == "frames" and written == 1:
            check_new(self.options.output.expanduser())
        several = self.options.output.suffix and self.form not in ("csv", "npz", "frames")
        if several and written > 1:
            raise ValueError(
                f"--output is {self.options.output}, and there will be {written} results; give a "
                "folder (a name without suffix), or one input with --side_by_side."
            )

    def _reconstruct(self) -> Result:
        given = _load(self.model, self.options.input, self.options.rate)
        self._choose_form(self.options.input)
        self._check_room(len(given), len(given))
        result = self.model.reconstruct(given, **self.drawn)
        return result, _shown(("input", given), ("reconstruction", result))

    def _swap(self) -> Result:
        names = self.options.static_from, self.options.dynamic_from
        who, what = (_load(self.model, paths, self.options.rate) for paths in names)
        self._choose_form(self.options.dynamic_from)
        count = max(len(who), len(what))
        self._check_room(count, count)
        result = self.model.swap(static_from=who, dynamic_from=what, **self.drawn)
        who, what = (one[[0] * count] if len(one) == 1 else one for one in (who, what))
        return result, _shown(("static", who), ("dynamic", what), ("swap", result))

    def _sample(self) -> Result:
        count = self.options.count
        self._check_room(count, 1)
        result = self.model.sample(count, self.options.length, **self.drawn)
        return result, [(f"sample_{i}", result[[i]]) for i in range(count)]

    def _traverse(self) -> Result:
        options = self.options
        given = _load(self.model, options.input, options.rate)
        self._choose_form(options.input)
        dims = {"static": self.model.spec.static_dim, "dynamic": self.model.spec.dynamic_dim}
        directions = min(options.num_components, dims.get(options.factor, 1))
        groups = directions * (1 if given is None else len(given))
        self._check_room(groups * options.num_places, groups)
        result = self.model.traverse(
            given,
            factor=options.factor,
            along=options.along,
            num_components=options.num_components,
            num_places=options.num_places,
            reach=options.reach,
            codes=_load(self.model, options.codes, options.rate),
            **self.drawn,
        )
        places = options.num_places
        return result, [(f"place_{i}", result[i::places]) for i in range(places)]

    def _interpolate(self) -> Result:
        options = self.options
        begin, end = (_load(self.model, [path], options.rate) for path in options.input)
        self._choose_form(options.input)
        points = options.num_points
        self._check_room(len(begin) * points, len(begin))
        result = self.model.interpolate(
            begin, end, factor=options.factor, num_points=points, path=options.path, **self.drawn
        )
        return result, [(f"point_{i}", result[i::points]) for i in range(points)]

    def _choose_form(self, paths: Sequence[str] | None) -> None:
        """Files in a folder are of the form of the input, unless told otherwise."""
        options = self.options
        if options.format is not None or options.output.suffix or not paths:
            return
        from diffsda_jax.data.media_reader import find_files

        first = find_files(paths[:1], self.model.form.kind)[0]
        found = "frames" if first.is_dir() else first.suffix.lstrip(".").lower()
        if found != "npz":
            self.form = _AS_WRITTEN.get(found, found)


def _shown(*columns: tuple[str, Any]) -> list[tuple[str, Any]]:
    """Columns of sequences; factors cannot be seen."""
    from diffsda_jax.factors import Factors

    return [column for column in columns if not isinstance(column[1], Factors)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; what a user can mend ends in one line, not in a traceback.

    Args:
      arguments: of the command line; None takes the program's.

    Returns:
      The exit status.

    Raises:
      SystemExit: with status 2, after that line.
    """
    options = make_parser().parse_args(arguments)
    prepare_jax()
    try:
        for path in run(options):
            print(f"wrote {path}")
    except KeyboardInterrupt:
        fail("stopped by Ctrl-C; run the same command again.")
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        memory = "RESOURCE_EXHAUSTED" in str(error) and not disk_is_full(error)
        unknown = isinstance(error, RuntimeError) and not memory and not disk_is_full(error)
        if unknown or os.environ.get("DIFFSDA_TRACEBACK"):  # for errors that look wrong
            raise
        first = " ".join(str(error).splitlines()[0].split()) if memory else describe(error)
        way_out = "; give shorter or fewer inputs, or --precision=bfloat16" if memory else ""
        fail(first + way_out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
