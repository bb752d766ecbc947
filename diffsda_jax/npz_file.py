"""Arrays from ``.npz`` files, whoever wrote them."""

import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np
from etils import epath

# What NumPy and zipfile raise for damaged files; a member may claim to be encrypted (RuntimeError)
# or to be of a later version (NotImplementedError), and a header is read as Python's literals.
DAMAGE = (
    ValueError,
    TypeError,
    OSError,
    EOFError,
    KeyError,
    RuntimeError,
    SyntaxError,
    MemoryError,
    OverflowError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_arrays(path: Path | epath.Path) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file by their names, in their shapes; nothing in it is run.

    Args:
      path: the file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, or holds pickled objects, which could run code.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays}
        if strange := [name for name, value in found.items() if not isinstance(value, np.ndarray)]:
            raise ValueError(f"member {strange[0]} is no array")  # NumPy gives its bytes
        return found
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; give an .npz file.") from None
    except DAMAGE as error:
        raise ValueError(
            f"{path} is no .npz file of plain arrays ({error}); save it again."
        ) from error
