"""Damaged media files: what cannot be read is named and counted, and the rest is there."""

import dataclasses
import itertools
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from infer_models import RATE_HZ, frames, table, tone, write_table
from mutations import damage
from PIL import Image

from diffsda_jax.data.media_reader import read_files
from diffsda_jax.data.pipeline import load_arrays
from diffsda_jax.data.sequences import Sequences
from diffsda_jax.data.sources import make_source
from diffsda_jax.data.transforms import Normalizer
from diffsda_jax.data.video_writer import write_video

pytestmark = pytest.mark.slow
LIMIT_SECONDS = 120
GOOD = 5  # other items of a source
SIZE = 8


def write_images(path: Path, seed: int) -> None:
    """A folder of frames; its name has the form of the files."""
    path.mkdir()
    for number, frame in enumerate(frames(8, seed, 16)):
        Image.fromarray(frame).save(path / f"{number}.{path.name[-3:]}")


def write_sound(path: Path, seed: int) -> None:
    """A third of a second."""
    import soundfile

    soundfile.write(path, tone(RATE_HZ // 3, seed), RATE_HZ)


def write_arrays(path: Path, seed: int) -> None:
    """A series as the package saves it."""
    Sequences.join([table(12, seed)], "series", [None], ["one"]).save(path)


@dataclasses.dataclass(frozen=True)
class Form:
    """A kind of media file.

    Attributes:
      kind: of the data.
      write: makes one, for a path and a seed.
      source: name of the data source that takes them; empty = only inference does.
      options: of the source.
    """

    kind: str
    write: Callable[[Path, int], object]
    source: str = ""
    options: dict = dataclasses.field(default_factory=dict)


def _write_clip(path: Path, seed: int) -> None:
    write_video(frames(8, seed), path, 12.5)


CLIPS = {"length": 4, "size": SIZE, "max_skipped_share": 0.5}
FORMS = {
    "mp4": Form("video", _write_clip, "video_folder", CLIPS),
    "gif": Form("video", _write_clip, "video_folder", CLIPS),
    "png": Form("video", write_images, "video_folder", CLIPS),
    "jpg": Form("video", write_images, "video_folder", CLIPS),
    "wav": Form("audio", write_sound, "speech_folder", {"max_skipped_share": 0.5}),
    "flac": Form("audio", write_sound, "speech_folder", {"max_skipped_share": 0.5}),
    "csv": Form("series", lambda path, seed: write_table(path, table(12, seed)), "csv"),
    "npz": Form("series", write_arrays),
}
WAYS = list(itertools.product(FORMS, ("damaged", "misnamed"), ("source", "inference")))


@pytest.fixture(autouse=True)
def _no_hang():
    """Ends what takes too long, also within C code that lets signals through."""

    def late(*_):
        raise TimeoutError(f"took more than {LIMIT_SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def spoil(path: Path, way: str, generator: random.Random) -> str:
    """Damages a file or one of the files of a folder, or gives it the content of another form."""
    if path.is_dir():
        path = generator.choice(sorted(path.iterdir()))
    if way == "damaged":
        return damage(path, generator)
    others = [form for form in FORMS if form != path.suffix[1:]]
    other = path.with_name(f"other.{generator.choice(others)}")
    FORMS[other.suffix[1:]].write(other, 9)
    content = sorted(other.iterdir())[0] if other.is_dir() else other
    content.replace(path)
    if other.is_dir():
        shutil.rmtree(other)
    return f"of {other.suffix}"


def make_folder(root: Path, form: str) -> Path:
    """A source's folder with good files and one to be spoilt, whose path is returned."""
    for split, count in (("train", GOOD), ("test", 1)):
        for number in range(count):
            place = root / split / f"speaker{number}"
            place.mkdir(parents=True)
            FORMS[form].write(place / f"good{number}.{form}", number)
    (root / "train" / "speakerx").mkdir()
    victim = root / "train" / "speakerx" / f"victim.{form}"
    FORMS[form].write(victim, 7)
    return victim


def read_source(form: Form, root: Path) -> tuple[int, dict[str, str]]:
    """How many good items come out of a source, and what it skipped."""
    if form.source == "csv":
        files = [*root.glob("train/*/*.csv")]
        folder = root / "all"
        folder.mkdir()
        for path in files:
            shutil.copy(path, folder / path.name)
        options = {"path": str(folder), "layout": "wide", "length": 4, "features": ("heat", "flow")}
        sources = [make_source("csv", split, **options) for split in ("train", "test")]
    else:
        sources = [make_source(form.source, "train", root=str(root), **form.options)]
    total, skipped = 0, {}
    for source in sources:
        arrays = load_arrays(
            source,
            length=int(source.lengths()[0]),
            length_mode="crop",
            normalizer=Normalizer(),
            limit=999,
            seed=0,
        )
        assert np.isfinite(arrays["x"]).all()
        total, skipped = total + len(arrays["x"]), skipped | source.skipped
    return total, skipped


def test_damaged_file(mutated_file, tmp_path):
    generator = random.Random(mutated_file)
    name, way, reader = WAYS[mutated_file % len(WAYS)]
    form = FORMS[name]
    victim = make_folder(tmp_path, name)
    what = f"{name} {spoil(victim, way, generator)}"
    try:
        if reader == "source" and form.source:
            whole = {"csv": 3, "wav": 1, "flac": 1}.get(name, 1)
            total, skipped = read_source(form, tmp_path)
            lost = whole * (GOOD + 1) - total
            assert lost <= 0 or (len(skipped) == 1 and "victim" in str(skipped)), (what, skipped)
        else:
            found = read_files([victim], form.kind, size=SIZE)
            assert len(found) and (form.kind == "series" or np.isfinite(found.x).all()), what
    except (ValueError, OSError) as error:
        text = str(error)
        assert "victim" in text and "\n" not in text.strip(), (what, text)
