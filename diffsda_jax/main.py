"""Command line: ``python -m diffsda_jax.main --config=configs/X.py --workdir=DIR``."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags
from ml_collections import config_flags

MODES = ("train", "eval", "plan")

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file; override options with --config.section.option=value."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run: checkpoints, logs, evaluations. The same again resumes."
)
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    MODES,
    "train: train or resume, then evaluate; eval: evaluate the newest checkpoint; plan: print "
    "config, parameters, FLOPs, memory and data, and train nothing.",
)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the command line; a mistake ends in one line that says what is known instead."""
    from diffsda_jax import config as configuration

    try:
        if path := config_path(argv):
            config = configuration.load_config(path)
            configuration.check_overrides(config, argv)
        return flags.FLAGS(argv)
    except (flags.Error, ValueError, OSError) as error:
        fail(" ".join(str(error).split()))


def config_path(argv: Sequence[str]) -> str | None:
    """The value of ``--config`` on a command line, given as one word or as two."""
    for word, following in zip(argv, [*argv[1:], None], strict=True):
        name, equals, value = word.partition("=")
        if name in ("--config", "-config"):
            return value if equals else following
    return None


def fail(message: str) -> NoReturn:
    """Ends the program with one line on standard error."""
    print(f"diffsda_jax: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, unless JAX_COMPILATION_CACHE_DIR says where already."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(base / "diffsda_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def main(argv: Sequence[str]) -> None:
    """Runs one mode; what a user can mend ends in one line, not in a traceback."""
    if len(argv) > 1:
        fail(f"unknown argument {argv[1]!r}; options start with --, see --help.")
    if CONFIG.value is None:
        fail("--config is missing; give a file of configs/, such as --config=configs/digits.py.")
    if WORKDIR.value is None and MODE.value != "plan":
        fail(f"--workdir is missing; --mode={MODE.value} needs the folder of the run.")
    use_compilation_cache()
    from diffsda_jax.train.console import setup_console
    from diffsda_jax.train.interrupt import EXIT_INTERRUPTED
    from diffsda_jax.train.loop import NonFiniteLossError

    setup_console()
    try:
        if MODE.value == "plan":
            from diffsda_jax import plan

            print(plan.make_plan(CONFIG.value))
            return
        from diffsda_jax import runs

        if MODE.value == "eval":
            runs.run_eval(CONFIG.value, WORKDIR.value)
            return
        result = runs.run_train(CONFIG.value, WORKDIR.value)
        if result.interrupted:
            raise SystemExit(EXIT_INTERRUPTED)
    except KeyboardInterrupt:
        fail("stopped by Ctrl-C; run the same command again.")
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or os.environ.get("DIFFSDA_TRACEBACK"):
            raise
        first = str(error).splitlines()[0]
        fail(
            f"out of memory: {first}. Lower train.batch_size or eval.batch_size, or the widths in "
            "model.*; --mode=plan prints what a step needs."
        )
    except (ValueError, OSError, ImportError, NonFiniteLossError) as error:
        if os.environ.get("DIFFSDA_TRACEBACK"):  # for reports of errors that look wrong
            raise
        fail(" ".join(str(error).split()) or repr(error))


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
