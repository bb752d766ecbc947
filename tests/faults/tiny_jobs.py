"""Tiny runs of the modes that write much, and all that is left of them in a form to be compared."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import commands
import jax
import numpy as np
import orbax.checkpoint as ocp
from infer_models import frames, random_weights
from PIL import Image

from diffsda_jax.data.records import LatentIndex, LatentReader
from diffsda_jax.first_stage.nets import variable_shapes
from diffsda_jax.first_stage.spec import FirstStageSpec
from diffsda_jax.train import checkpoint

STEPS = 12
SERIES = {
    "model.width": 4,
    "model.encoder_width": 4,
    "model.hidden_dim": 8,
    "data.length": 6,
    "train.batch_size": 8,
    "train.num_steps": STEPS,
    "train.checkpoint_every_steps": 3,
    "train.log_every_steps": 1,
    "eval.num_steps": 2,
    "eval.num_swaps": 8,
    "eval.num_samples": 8,
    "eval.num_clips": 16,
    "eval.num_train_clips": 16,
    "eval.judge_steps": 5,
    "eval.parts": "('reconstruction',)",
    "prior.width": 8,
    "prior.num_layers": 1,
    "prior.num_heads": 2,
    "prior.num_steps": STEPS,
    "prior.batch_size": 8,
    "prior.encode_batch_size": 16,
    "prior.sequences_per_shard": 64,
    "prior.sample_steps": 2,
}
SPEC = FirstStageSpec("vq", 8, (1, 1), 1, codebook_size=6, embed_dim=3)
CLIPS = {"train": (3, 20, 33, 3, 7), "test": (5, 16, 18)}  # their frames
SIZE = 8


def words(config: str, workdir: Path, options: dict[str, Any], mode: str = "train") -> list[str]:
    """A command line."""
    overrides = [f"--config.{name}={value}" for name, value in options.items()]
    return [f"--config=configs/{config}.py", f"--workdir={workdir}", f"--mode={mode}", *overrides]


def series_words(workdir: Path, mode: str = "train", **options: Any) -> list[str]:
    """The command of a tiny run on the Japanese vowels; options have ``__`` for a dot."""
    changed = {name.replace("__", "."): value for name, value in options.items()}
    return words("japanese_vowels", workdir, SERIES | changed, mode)


def make_clips(root: Path) -> None:
    """Clips as folders of frames, and a first stage for them."""
    seed = 0
    for split, counts in CLIPS.items():
        for number, count in enumerate(counts):
            folder, seed = root / "clips" / split / f"clip{number}", seed + 1
            folder.mkdir(parents=True)
            for place, frame in enumerate(frames(count, seed, SIZE)):
                Image.fromarray(frame).save(folder / f"{place}.png")
    weights = random_weights(variable_shapes(SPEC), scale=0.3)
    checkpoint.save_converted(root / "first_stage", weights, {"first_stage": SPEC.to_dict()})


def latents_words(workdir: Path, root: Path) -> list[str]:
    """The command that encodes the clips."""
    options = {
        "source.options.root": root / "clips",
        "source.options.size": SIZE,
        "source.options.length": 2,
        "first_stage.checkpoint": root / "first_stage",
        "first_stage.chunk_frames": 2,
        "latents.batch_frames": 16,
        "latents.clips_per_shard": 1,
    }
    return words("video_folder", workdir, options, "latents")


def saved_state(workdir: Path) -> dict[str, np.ndarray]:
    """Every array of the last step, by its path, and the position in the data."""
    folder = workdir / checkpoint.FOLDER / str(STEPS)
    found = {}
    for item in ("params", "ema", "constants", "opt_state"):
        if (folder / item).exists():
            tree = ocp.StandardCheckpointHandler().restore(folder / item)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                found[f"{item}{jax.tree_util.keystr(path)}"] = np.asarray(leaf)
    meta = json.loads((folder / "meta" / "metadata").read_text())
    return found | {"data_state": np.array(json.dumps(meta["data_state"], sort_keys=True))}


def metrics(workdir: Path) -> dict[str, np.ndarray]:
    """What was reported for each step, where the later line counts, and the evaluation."""
    found = {}
    for line in (workdir / "logs" / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        step = record.pop("step")
        del record["time"]
        record.pop("train/steps_per_second", None)
        found |= {f"{step} {name}": np.array(value) for name, value in record.items()}
    assert all(f"{step} train/loss" in found for step in range(1, STEPS + 1)), sorted(found)
    return found


def shards(workdir: Path) -> list[Path]:
    """Finished shards of factors or latents, which a second start leaves as they are."""
    parts = [*workdir.glob("factors/*.npy"), *workdir.glob("latents/*-*.json")]
    return sorted(parts)


def training_result(workdir: Path) -> dict[str, np.ndarray]:
    """Of the modes train and prior."""
    factors = {path.name: np.load(path) for path in shards(workdir)}
    return saved_state(workdir) | metrics(workdir) | factors


def latents_result(workdir: Path) -> dict[str, np.ndarray]:
    """Every clip once, with its latents."""
    index, found = LatentIndex.load(workdir / "latents"), {}
    for split, placed in index.clips.items():
        reader = LatentReader(index, split)
        for number, place in enumerate(placed):
            assert place.entry.name not in found
            found[place.entry.name] = reader.read(number, range(place.entry.frames))
    assert len(found) == sum(map(len, CLIPS.values()))
    return found | {"mean": index.mean, "variance": index.variance}


@dataclasses.dataclass
class Job:
    """A command, where it starts from, and what it leaves.

    Attributes:
      words: of the command, for a workdir.
      place: folder of the workdir that it writes to.
      result: what is left of it there.
      base: workdir to start from; None = a new one.
      expected: result of a run that nothing disturbed.
      seconds: that this took.
      changes: events of its files.
    """

    words: Callable[[Path], list[str]]
    place: str
    result: Callable[[Path], dict[str, np.ndarray]]
    base: Path | None = None
    expected: dict[str, np.ndarray] | None = None
    seconds: float = 0.0
    changes: int = 0

    def prepare(self, workdir: Path) -> None:
        """Makes the workdir."""
        if self.base is not None:
            shutil.copytree(self.base, workdir)

    def check(self, workdir: Path) -> None:
        """The same bits as of the run that nothing disturbed."""
        found = self.result(workdir / self.place)
        assert found.keys() == self.expected.keys()
        for name, value in self.expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)

    def run(self, workdir: Path, **options: Any) -> commands.Outcome:
        """Runs the command to its end."""
        return commands.run(self.words(workdir), workdir.with_suffix(".log"), **options)
