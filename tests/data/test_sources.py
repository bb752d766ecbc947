import subprocess
import sys

import numpy as np
import pytest

from diffsda_jax.data.sources import SOURCES, ElementSpec, Source, make_source
from diffsda_jax.data.sources.base import hash_split, label_ids, unknown_name_message


class Listed(Source):
    name = "listed"
    spec = ElementSpec("series", (1,))

    def __init__(self, split="train", count=10, **options):
        super().__init__(split, **options)
        self.count = count

    def __len__(self):
        return self.count

    def load(self, index, rng):
        return {"x": np.zeros((2, 1), np.float32)}

    def _identity(self):
        return self.count


def test_every_registered_class_knows_its_name():
    assert {name: SOURCES[name].name for name in SOURCES} == {name: name for name in SOURCES}
    assert "nothing" not in SOURCES and len(SOURCES) == len(list(SOURCES))


@pytest.mark.parametrize(
    ("name", "split", "options", "message"),
    [
        ("digit", "train", {}, "unknown data source 'digit'. Did you mean 'digits'\\?"),
        ("digits", "tset", {}, r"unknown split of source 'digits': 'tset'. Did you mean 'test'\?"),
        ("digits", "train", {"canvs": 16}, r"'canvs'. Did you mean 'canvas'\? Known: canvas, "),
        ("digits", "train", {"canvas": 17}, r"canvas=17 .* use one of \(16, 32\)"),
        (
            "csv",
            "train",
            {},
            r"source 'csv' needs the option 'path': set --config.source.options.path=\.\.\.",
        ),
    ],
)
def test_bad_requests_are_explained_in_one_line(name, split, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        make_source(name, split, **options)
    assert "\n" not in str(caught.value)


def test_importing_sources_is_cheap():
    code = (
        "import sys, diffsda_jax.data.sources, diffsda_jax.data.pipeline as p\n"
        "print([m for m in ('jax', 'grain', 'sklearn', 'av', 'PIL') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_skips_are_counted_named_and_capped(caplog):
    source = Listed(count=40)
    source.skip("a.mp4", "broken")
    source.skip("a.mp4", "broken")
    source.skip("b.mp4", "short")
    assert source.skipped == {"a.mp4": "broken", "b.mp4": "short"}
    assert caplog.text.count("a.mp4") == 1
    assert "2 skipped" in source.describe()
    with pytest.raises(ValueError, match=r"3 of 40 .* max_skipped_share=0.05 .*a.mp4 \(broken\)"):
        source.skip("c.mp4", "broken")


def test_many_skips_are_three_names_and_one_count(caplog):
    source = Listed(count=100, max_skipped_share=0.2)
    for number in range(12):
        source.skip(f"clip{number}", "short", check=False)
    source.check_skipped()
    source.check_skipped()
    lines = [record.getMessage() for record in caplog.records]
    assert [line.count("clip") for line in lines] == [1, 1, 1, 0]
    assert lines[3] == "listed/train: skipped 12 of 100 items so far, the first 3 are named above"
    with pytest.raises(ValueError, match=r"lower the length \(--config.data.length\)") as caught:
        for number in range(12, 30):
            source.skip(f"clip{number}", "short")
    assert "and 18 more" in str(caught.value) and len(caplog.records) == 4


def test_unknown_names_without_a_near_one():
    message = unknown_name_message("colour", "xyz", ["red", "blue"])
    assert message == "unknown colour 'xyz'. Known: blue, red."


def test_fingerprint_tells_data_apart():
    prints = [Listed("train", 3), Listed("test", 3), Listed("train", 4)]
    assert len({source.fingerprint() for source in prints}) == 3
    assert Listed("train", 3).fingerprint() == Listed("train", 3).fingerprint()


@pytest.mark.parametrize("options", [{"split": "val"}, {"max_skipped_share": 1.5}])
def test_base_refuses_bad_arguments(options):
    with pytest.raises(ValueError, match="use"):
        Listed(**options)


def test_spec_checks_kind_and_shape():
    with pytest.raises(ValueError, match="use 'video'"):
        ElementSpec("video", (3,))


def test_hash_split_is_stable_disjoint_and_covering():
    keys = [f"clip{number}" for number in range(300)]
    train, test = hash_split(keys, "train", 0.2), hash_split(keys, "test", 0.2)
    assert sorted(train + test) == sorted(keys)
    assert 40 <= len(test) <= 80
    # Half of the keys gone: none of the others changes sides.
    assert set(hash_split(keys[:150], "test", 0.2)) == set(test) & set(keys[:150])


@pytest.mark.parametrize("keys", [["a", "b"], ["c", "d", "e"], ["x", "y"]])
def test_hash_split_leaves_no_side_empty(keys):
    for share in (0.01, 0.99):
        assert hash_split(keys, "train", share) and hash_split(keys, "test", share)


def test_hash_split_refuses_a_bad_share():
    with pytest.raises(ValueError, match="test_share=1"):
        hash_split(["a"], "train", 1.0)


def test_labels_are_numbered_in_natural_order():
    assert label_ids(["p10", "p2", "p2"]) == {"p2": 0, "p10": 1}
