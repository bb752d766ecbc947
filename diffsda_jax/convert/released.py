"""Names of the released weights, and the configuration that is each one's.

References:
  DiffSDA (arXiv 2510.05717), hyper-parameters of the appendix; the names are the release's.
"""

from pathlib import Path

from diffsda_jax.data.sources.base import unknown_name_message

# In the folder configs/ of a checkout, which an installed wheel does not have.
CONFIGS = {
    "vox1": "vox256.py:reference",
    "celebv": "celebv256.py:reference",
    "mug": "mug64.py:reference",
    "mug_small": "mug64.py:small",
    "taichi": "taichi64.py:reference",
    "physionet": "physionet.py:reference",
    "airq": "air_quality.py:reference",
    "etth": "etth1.py:reference",
}
FOLDER = Path(__file__).parents[2] / "configs"


def config_of(name: str) -> str:
    """Path of the configuration of released weights, with its variant after a colon.

    Args:
      name: a key of ``CONFIGS``.

    Raises:
      ValueError: another name; names the nearest known one and lists all.
      FileNotFoundError: the project was installed without its configurations.
    """
    if name not in CONFIGS:
        raise ValueError(unknown_name_message("released weights", name, CONFIGS))
    path = FOLDER / CONFIGS[name].partition(":")[0]
    if not path.is_file():
        raise FileNotFoundError(
            f"--name needs a checkout of the project (pip install -e .); or give --config: {path}, "
            f"the configuration of {name!r}, is not there"
        )
    return str(FOLDER / CONFIGS[name])
