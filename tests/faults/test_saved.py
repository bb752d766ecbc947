"""Damaged files of checkpoints, latents and factors: the last good one is taken, or named."""

import logging
import random
import shutil

import numpy as np
import pytest
import tiny_jobs
from infer_models import random_weights
from mutations import damage

from diffsda_jax import DiffSDA
from diffsda_jax.data.factor_cache import FactorCache, FactorWriter
from diffsda_jax.data.records import ClipEntry, LatentWriter
from diffsda_jax.model import ModelSpec, variable_shapes
from diffsda_jax.train import checkpoint

pytestmark = [
    pytest.mark.slow,
    # Of reads that were under way when one failed.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SPEC = ModelSpec("series", (3,), 4, 2, 8, width=4, encoder_width=4)
KINDS = ("checkpoint", "checkpoint without checksums", "latents", "factors")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of each kind, as it was written."""
    root = tmp_path_factory.mktemp("saved")
    weights = random_weights(variable_shapes(SPEC))
    checkpoint.save_converted(root / "checkpoint", weights, {"model": SPEC.to_dict()})
    steps = root / "checkpoint" / "checkpoints"
    shutil.copytree(steps / "0", steps / "1")
    shutil.copy(steps / "checksums" / "0.json", steps / "checksums" / "1.json")
    rng = np.random.default_rng(0)
    writer = LatentWriter(root / "latents", {}, 2)
    for split, counts in tiny_jobs.CLIPS.items():
        for number, frames in enumerate(counts):
            latents = rng.normal(size=(frames, 4, 4, 3)).astype(np.float16)
            writer.write(ClipEntry(f"{split}{number}", split, "x", frames, {}), latents)
    writer.finish()
    factors = FactorWriter(root / "factors", {}, 10, 4)
    for shard in factors.missing():
        count = len(factors.span(shard))
        static = rng.normal(size=(count, 3)).astype(np.float32)
        factors.write(shard, static, rng.normal(size=(count, 4, 2)).astype(np.float32))
    factors.finish()
    return root


def read_latents(folder):
    """Every value."""
    return tiny_jobs.latents_result(folder.parent)


def read_factors(folder):
    """Every value."""
    return FactorCache.load(folder).read(np.arange(10))


def test_damaged_saved_file(mutated_saved, saved, tmp_path, caplog):
    generator, kind = random.Random(mutated_saved), KINDS[mutated_saved % len(KINDS)]
    name = kind.split()[0]
    folder = tmp_path / name
    shutil.copytree(saved / name, folder)
    place = folder / "checkpoints" / "1" if name == "checkpoint" else folder
    files = [path for path in sorted(place.rglob("*")) if path.is_file() and path.stat().st_size]
    victim = generator.choice(files)
    what = f"{victim.relative_to(folder)} {damage(victim, generator)}"
    if name == "checkpoint":
        check_checkpoint(folder, kind == name, saved / name, caplog, what)
        return
    read = read_latents if name == "latents" else read_factors
    try:
        found = read(folder)
    except (ValueError, OSError) as error:
        assert str(folder) in str(error) and "\n" not in str(error), (what, str(error))
        return
    for key, value in read(saved / name).items():
        np.testing.assert_array_equal(found[key], value, err_msg=what)


def check_checkpoint(folder, with_checksums, whole, caplog, what):
    """Step 1, if it restores to the same bits, or step 0, with a line that says why."""
    if not with_checksums:
        (folder / "checkpoints" / "checksums" / "1.json").unlink()
    with caplog.at_level(logging.WARNING, "diffsda_jax"):
        variables, _ = checkpoint.load_for_inference(folder)
        DiffSDA.from_checkpoint(folder)
    said = [r.getMessage() for r in caplog.records if r.name.startswith("diffsda_jax")]
    fell_back = any("step 1: " in text and "using step 0" in text for text in said)
    assert all("\n" not in text for text in said), what
    assert fell_back or not with_checksums, what
    expected, _ = checkpoint.load_for_inference(whole)
    if fell_back or with_checksums:
        tiny_jobs.jax.tree.map(np.testing.assert_array_equal, variables, expected)
