"""The Python of README and docs/exploring.md runs, with tiny models in place of trained ones."""

import numpy as np
import pytest
from infer_models import frames, save_model
from pages import ROOT, code_blocks, code_spans

from diffsda_jax import DiffSDA, FirstStage, Sequences
from diffsda_jax.data import video_io
from diffsda_jax.data.video_writer import write_video

pytest.importorskip("av")


def test_the_example_of_the_readme(tmp_path, monkeypatch):
    (block,) = code_blocks(ROOT / "README.md", "python")
    save_model("video", tmp_path / "data", tmp_path / "runs" / "small")
    (tmp_path / "clips").mkdir()
    for seed, (name, count) in enumerate({"anna": 4, "ben": 6}.items()):
        write_video(frames(count, seed), tmp_path / "clips" / f"{name}.mp4", 12.5)
    quick = DiffSDA.from_checkpoint(tmp_path / "runs" / "small").using(num_steps=2)
    monkeypatch.setattr(DiffSDA, "from_checkpoint", lambda path: quick)
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(compile(block, "README.md", "exec"), found)
    assert video_io.count_frames(tmp_path / "anna_as_ben.mp4") == 6  # as long as ben's
    assert found["swapped"].names == ("anna_as_ben",) and found["swapped"].rates == (12.5,)
    assert found["factors"].lengths.tolist() == [4, 6]


def test_the_network_and_prior_of_exploring(tmp_path, monkeypatch):
    own, _, sampling = code_blocks(ROOT / "docs" / "exploring.md", "python")
    save_model("series", tmp_path / "data", tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(0, 0.5, (2, 4, 2)).astype(np.float32)
    found = {"x": x}
    exec(compile(own, "exploring.md", "exec"), found)
    assert found["y"].shape == x.shape
    exec(compile(sampling, "exploring.md", "exec"), found)
    assert found["x"].shape == x.shape  # d of the two was kept


def test_methods_that_pages_name_exist():
    classes = {"model": DiffSDA, "first_stage": FirstStage, "swapped": Sequences}
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for span in code_spans(page):
            name, dot, method = span.partition("(")[0].partition(".")
            if dot and "(" in span and name in classes:
                assert hasattr(classes[name], method), f"{page.name}: {span}"
