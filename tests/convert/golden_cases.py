"""The golden cases: weights drawn from their names, inputs and expected outputs."""

import json
import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parents[1] / "golden"
CASES = ("video_small", "audio_mel", "series")

SCALES = {
    "weight": lambda z: z / np.sqrt(np.prod(z.shape[1:])),
    "bias": lambda z: 0.1 * z,
    "norm_bias": lambda z: 0.1 * z,
    "norm_weight": lambda z: 1 + 0.1 * z,
    "buffer": lambda z: 16 * z,
    "embedding": lambda z: 0.5 * z,
}


def manifest(case: str) -> dict:
    return json.loads((FOLDER / f"{case}_manifest.json").read_text())


def arrays(case: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{case}_io.npz") as file:
        return dict(file)


def state_dict(case: str) -> dict[str, np.ndarray]:
    """The state dict of a case, by the rule of ``tests/golden/README.md``."""
    described = manifest(case)
    return draw(described["salt"], described["entries"])


def draw(salt: str, entries: dict[str, dict]) -> dict[str, np.ndarray]:
    """Every tensor, drawn from its name."""

    def tensor(name, entry):
        seed = zlib.crc32((salt + entry.get("alias_of", name)).encode()) & 0x7FFFFFFF
        z = np.random.RandomState(seed).standard_normal(entry["shape"])
        return SCALES[entry["kind"]](z).astype(np.float32)

    return {name: tensor(name, entry) for name, entry in entries.items()}
