"""Names of the released weights, and the configuration that is each one's.

References:
  DiffSDA (arXiv 2510.05717), hyper-parameters of the appendix; the names are the release's.
"""

from pathlib import Path

from diffsda_jax.data.sources.base import unknown_name_message

# In the folder configs/ of the repository.
CONFIGS = {
    "vox1": "vox256.py:reference",
    "celebv": "celebv256.py:reference",
    "mug": "mug64.py:reference",
    "mug_small": "mug64.py:small",
    "taichi": "taichi64.py:reference",
    "physionet": "physionet.py:reference",
    "airq": "air_quality.py:reference",
    "etth1": "etth1.py:reference",
}
FOLDER = Path(__file__).parents[2] / "configs"


def config_of(name: str) -> str:
    """Path of the configuration of released weights, with its variant after a colon.

    Args:
      name: a key of ``CONFIGS``.

    Raises:
      ValueError: another name; names the nearest known one and lists all.
    """
    if name not in CONFIGS:
        raise ValueError(unknown_name_message("released weights", name, CONFIGS))
    return str(FOLDER / CONFIGS[name])
