"""What the command lines have in common: errors of one line, and kept programs."""

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

# Of OSError, and within the messages of libraries in C++.
_DISK_FULL = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)))

_YNNPACK = "--xla_cpu_experimental_ynn_fusion_type"
_KNOWN_JAXLIB = ((0, 10), (0, 11))  # that have this flag


def disk_is_full(error: BaseException) -> bool:
    """Whether an error, of whatever type, is for want of room on the disk."""
    return any(words in str(error) for words in _DISK_FULL)


def describe(error: BaseException) -> str:
    """One line about an error that a user can mend."""
    text = " ".join(str(error).split()) or repr(error)
    if not disk_is_full(error):
        return text
    return (
        f"the disk is full, or a quota or the limit of file sizes is reached ({text[:300]}); make "
        "room and run the same command again: what is finished is kept."
    )


def fail(message: str) -> NoReturn:
    """Ends the program with one line on standard error.

    Raises:
      SystemExit: always, with status 2.
    """
    print(f"diffsda_jax: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def flag_value(argv: Sequence[str], flag: str) -> str | None:
    """The value of a flag on a command line, the last if it is there again; None = not given.

    Args:
      argv: words, such as ``--flag=value`` or ``--flag value``.
      flag: its name, without dashes.
    """
    found = None
    for word, following in zip(argv, [*argv[1:], None], strict=True):
        name, equals, value = word.partition("=")
        if name in (f"--{flag}", f"-{flag}"):
            found = value if equals else following
    return found


def prepare_jax() -> None:
    """What a command does before JAX has devices."""
    use_compilation_cache()
    choose_cpu_kernels()


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, unless JAX_COMPILATION_CACHE_DIR says where already."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(base / "diffsda_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def choose_cpu_kernels() -> None:
    """Keeps XLA on CPUs from giving convolutions to YNNPACK; call it before JAX has devices.

    Its own convolutions make training steps of U-Nets 1.2 times as fast (docs/results.md, "On a
    CPU"). XLA ends a process at a flag that it does not know, so only versions that were tried get
    it. What ``XLA_FLAGS`` says of that flag already stays.
    """
    from jaxlib.version import __version_info__

    flags = os.environ.get("XLA_FLAGS", "")
    if __version_info__[:2] in _KNOWN_JAXLIB and _YNNPACK not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_YNNPACK}=-individual_convolution".strip()
