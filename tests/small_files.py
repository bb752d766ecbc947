"""A disk on which no file can grow beyond a size."""

import contextlib
import resource


@contextlib.contextmanager
def small_files(num_bytes):
    """Within it, writing fails as on a full disk."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
