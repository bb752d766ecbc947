"""What the command lines have in common: errors of one line, and kept programs."""

import os
import sys
from pathlib import Path
from typing import NoReturn


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
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
