"""What the command lines have in common: errors of one line, and kept programs."""

import errno
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

# Of OSError, and within the messages of libraries in C++.
_DISK_FULL = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)))

_YNNPACK = "--xla_cpu_experimental_ynn_fusion_type"
_TRIED_JAXLIB = (0, 10, 2), (0, 13)  # from the first on, before the second
_X86 = ("x86_64", "AMD64")


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

    XLA's own make training steps of U-Nets 1.2 to 1.3 times as fast (docs/results.md, "A training
    step"). Measured on x86 with the versions below (of 0.12 single convolutions). Libraries that
    read ``XLA_FLAGS`` end the process at a flag that they do not know, so nothing is set for other
    versions, nor where libtpu or a plugin of a GPU, which have their own XLA, may be loaded. What
    ``XLA_FLAGS`` says of YNNPACK stays, and so does the name of a file of flags.
    """
    from jaxlib.version import __version_info__

    flags = os.environ.get("XLA_FLAGS", "").strip()
    names_a_file = flags and not flags.startswith("-")
    known = platform.machine() in _X86 and _TRIED_JAXLIB[0] <= __version_info__ < _TRIED_JAXLIB[1]
    if known and not names_a_file and _YNNPACK not in flags and not _may_use_accelerators():
        os.environ["XLA_FLAGS"] = f"{flags} {_YNNPACK}=-individual_convolution".strip()


def _may_use_accelerators() -> bool:
    """Whether JAX is installed with something for TPUs or GPUs, and was not told to leave it."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    return find_spec("libtpu") is not None or bool(entry_points(group="jax_plugins"))
