import numpy as np
import pytest

from diffsda_jax.data.sources import ElementSpec, Source, make_source
from diffsda_jax.data.sources.pairs import (
    Pair,
    PairWindows,
    clip_names,
    read_pairs,
    sample_pairs,
    write_pairs,
)

RNG = np.random.default_rng(0)
HEADER = "static_clip,dynamic_clip,static_start,dynamic_start"


class Listed(Source):
    name = "listed"
    spec = ElementSpec("series", (1,))

    def __init__(self, names, repeats=1):
        super().__init__("test", max_skipped_share=1.0)
        self.names, self.repeats = names, repeats

    def __len__(self):
        return len(self.names) * self.repeats

    def load(self, index, rng):
        return {"x": np.zeros((2, 1), np.float32)}

    def item_name(self, index):
        return self.names[index % len(self.names)]

    def _identity(self):
        return self.names


class Windowed(Listed):
    def __init__(self, names, skipped):
        super().__init__(names)
        self.skipped = skipped

    def load_window(self, index, start):
        return self.load(index, RNG)


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "pairs.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_what_is_written_is_read(tmp_path):
    pairs = [
        Pair("test/a.mp4", "test/b.mp4", 0, 12),
        Pair("test/a.mp4", "test/b.mp4"),
        Pair("test/a.mp4", "test/a.mp4", 0, 30),  # two windows of one clip
        Pair('#odd, "named"/ä', " b ", np.int64(3), 4),
    ]
    path = tmp_path / "new" / "pairs.csv"
    write_pairs(path, pairs, comment="made with seed 3\nof the test split")
    assert read_pairs(path) == pairs
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[:3] == ["# made with seed 3", "# of the test split", HEADER]
    assert lines[3] == '"test/a.mp4","test/b.mp4",0,12'
    assert [file.name for file in path.parent.iterdir()] == ["pairs.csv"]


def test_files_written_by_hand(written):
    text = "\ufeff# mine\r\n\r\ndynamic_clip,static_clip\r\nb, a\r\n  # more\r\n\r\na,b\r\n"
    assert read_pairs(written(text)) == [Pair("a", "b"), Pair("b", "a")]
    one_start = "static_clip,dynamic_start,dynamic_clip\na, 7 ,b\n"
    assert read_pairs(str(written(one_start))) == [Pair("a", "b", 0, 7)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "",
            r"no column 'static_clip' in its first row ''.*start it with the line static_clip,dyn",
        ),
        ("# only\n\n", "no column 'static_clip'"),
        ("a,b,0,0\n", r"no column 'static_clip' in its first row 'a,b,0,0'"),
        (
            "static_clip;dynamic_clip\na;b\n",
            r"no column 'static_clip' .* 'static_clip;dynamic_clip'",
        ),
        ("static_clip,driving\n", "no column 'dynamic_clip'"),
        (
            "static_clip,dynamic_clip,static_strat\n",
            r"'static_strat'. Did you mean 'static_start'\?",
        ),
        ("static_clip,dynamic_clip,static_clip\n", "column 'static_clip' is there twice"),
        (HEADER + "\n# none\n", "has a header and no pairs"),
        (HEADER + "\na,b,0\n", r"line 2: 3 cells, but the header names 4 columns"),
        (HEADER + "\n# x\na,b,-1,0\n", r"line 3: static_start='-1': write a frame number"),
        (HEADER + "\na,b,0,2.5\n", r"line 2: dynamic_start='2.5'"),
        (HEADER + "\na,b,0,\n", r"line 2: dynamic_start=''"),
        (HEADER + "\n,,0,0\n", r"line 2: static_clip='': write the path of a clip"),
        (HEADER + "\na, ,0,0\n", r"line 2: dynamic_clip='': write the path of a clip"),
        ("static_clip,dynamic_clip\n,\n", r"line 2: static_clip=''"),
        (HEADER + "\na,b,0,0\n\na,b,0,0\n", r"line 4: a with b was there before as .*line 2"),
        (HEADER + "\na,a,3,3\n", r"line 2: pairs a with itself, which swaps nothing"),
        (HEADER + '\n"a,b,0,0\n', "is not a CSV file"),
        (HEADER.encode() + b"\n\xff,b,0,0\n", "is not UTF-8 text"),
    ],
)
def test_bad_files_are_explained_in_one_line(written, text, message):
    path = written(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_pairs(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"none.csv is missing: .* sample_pairs and write_p"
    ):
        read_pairs(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "there are no pairs to write"),
        ([Pair("a", "b"), Pair("a", "b")], "pair 2 for .* was there before as pair 1"),
        ([Pair("a", "")], "pair 1 for .*dynamic_clip=''"),
        ([Pair("a\nb", "c")], r"static_clip='a\\nb': .* in one line"),
        ([Pair("a", "b", -2)], "static_start=-2: use a frame number from 0 on"),
    ],
)
def test_bad_pairs_are_not_written(tmp_path, pairs, message):
    with pytest.raises(ValueError, match=message):
        write_pairs(tmp_path / "pairs.csv", pairs)
    assert list(tmp_path.iterdir()) == []


def test_unknown_and_skipped_clips(written):
    source = Listed(["t/a", "t/b"])
    source.skip("t/d", "broken", check=False)
    path = written(HEADER + "\nt/a,t/b,0,0\nt/a,b,0,0\nt/b,c,0,0\nb,t/a,0,0\n")
    message = (
        r"line 3: source 'listed', split 'test' has no clip 'b' \(2 clips of the pairs are "
        r"unknown\); its clips are named like 't/a'"
    )
    with pytest.raises(ValueError, match=message):
        read_pairs(path, source)
    with pytest.raises(ValueError, match=r"pair 1: clip 't/d' .* was skipped \(broken\): repair"):
        PairWindows(Windowed(["t/a", "t/b"], source.skipped), [Pair("t/d", "t/a")])


def test_sampled_pairs_are_seeded_distinct_and_of_other_labels():
    clips = [f"c{number}" for number in range(30)]
    labels = np.repeat([4, 7, 9], [18, 8, 4])
    label = dict(zip(clips, labels.tolist(), strict=True))
    pairs = sample_pairs(clips, 75, seed=1, labels=labels)
    assert pairs == sample_pairs(clips, 75, seed=1, labels=labels)
    assert pairs != sample_pairs(clips, 75, seed=2, labels=labels)
    assert len(set(pairs)) == 75
    assert all(label[pair.static_clip] != label[pair.dynamic_clip] for pair in pairs)
    uses = [sum(pair.static_clip == clip for pair in pairs) for clip in clips]
    assert set(uses) == {2, 3}
    assert len({pair.dynamic_clip for pair in pairs}) > 20
    few = sample_pairs(clips, 5, seed=1)
    assert len({pair.static_clip for pair in few}) == 5


def test_every_pair_can_be_drawn_and_no_more():
    everything = sample_pairs(["a", "b", "c"], 6)
    assert len(set(everything)) == 6
    uneven = sample_pairs(["a", "b", "c", "d"], 6, labels=np.array([0, 0, 0, 1]))
    assert len(set(uneven)) == 6
    with pytest.raises(
        ValueError, match="num_pairs=7: use 1 to 6, which is how many pairs 3 clips"
    ):
        sample_pairs(["a", "b", "c"], 7)
    for clips, count, labels in [
        (["a"], 1, None),
        (["a", "b"], 0, None),
        (["a", "a"], 1, None),
        (["a", "b"], 1, np.array([0])),
        (["a", "b"], 1, np.array([3, 3])),
    ]:
        with pytest.raises(ValueError, match="sample_pairs: .*give|sample_pairs: .*use"):
            sample_pairs(clips, count, labels=labels)


@pytest.fixture
def videos(tmp_path, write_frames):
    """Test clips of 30, 31 and 32 frames whose grey levels tell their numbers."""
    for number, name in enumerate(("anna", "bert", "carl")):
        write_frames(tmp_path / "test" / name, 30 + number, size=(8, 8))
    return lambda split="test", name="video_folder", **options: make_source(
        name, split, root=str(tmp_path), length=4, stride=2, size=8, **options
    )


def test_the_windows_of_pairs_are_read(videos, numbers_of, written):
    path = written(HEADER + "\ntest/carl,test/anna,25,3\ntest/anna,test/carl,0,0\n")
    source = videos()
    pairs = read_pairs(path, source)
    static, dynamic = windows_of(source, pairs)
    assert [numbers_of(element["x"]) for element in static] == [[25, 27, 29, 31], [0, 2, 4, 6]]
    assert [numbers_of(element["x"]) for element in dynamic] == [[3, 5, 7, 9], [0, 2, 4, 6]]
    windows = PairWindows(source, pairs)
    assert windows.spec == source.spec and windows.fingerprint() != source.fingerprint()
    # A window that is in several pairs is there once.
    again = PairWindows(source, [*pairs, Pair("test/carl", "test/bert", 25, 0)])
    assert len(again) == 5 and again.pairs.tolist() == [[0, 1, 0], [2, 3, 4]]
    assert [windows.item_name(place) for place in range(4)] == [
        "test/carl",
        "test/anna",
        "test/anna",
        "test/carl",
    ]


def test_pairs_of_a_source_that_repeats_its_clips(videos, tmp_path, numbers_of):
    (tmp_path / "test").rename(tmp_path / "train")
    source = videos("train", "taichi", repeats=5)
    assert len(source) == 15 and clip_names(source) == ["train/anna", "train/bert", "train/carl"]
    pair = Pair("train/bert", "train/carl", 24, 2)
    (static,), (dynamic,) = windows_of(source, [pair])
    assert numbers_of(static["x"]) == [24, 26, 28, 30] and numbers_of(dynamic["x"]) == [2, 4, 6, 8]


def windows_of(source, pairs):
    """All static and all dynamic elements."""
    windows = PairWindows(source, pairs)
    elements = [windows.load(place, RNG) for place in range(len(windows))]
    return tuple([elements[place] for place in side] for side in windows.pairs)


def test_windows_of_pairs_that_do_not_fit(videos, written):
    source = videos()
    path = written(HEADER + "\ntest/anna,test/bert,0,24\ntest/anna,test/bert,0,25\n")
    message = r"line 3: dynamic_start=25: the windows of clip 'test/bert' start at frame 0 to 24: u"
    with pytest.raises(ValueError, match=message) as caught:
        read_pairs(path, source)
    assert "\n" not in str(caught.value)
    for pair, message in [
        (Pair("test/anna", "test/bert", 24, 0), "pair 1: static_start=24: .*'test/anna' .* to 23"),
        (Pair("test/anna", "test/bert", 0, -1), "pair 1: dynamic_start=-1"),
        (Pair("test/anna", "test/dora"), "pair 1: source .* has no clip 'test/dora'"),
    ]:
        with pytest.raises(ValueError, match=message):
            PairWindows(source, [pair])  # before anything is read
    with pytest.raises(ValueError, match="source 'listed' cannot read a window from a given frame"):
        PairWindows(Listed(["a", "b"]), [Pair("a", "b")])


def test_pairs_of_broken_clips_are_named(videos, tmp_path):
    torn = tmp_path / "test" / "carl" / "frame_4.png"
    torn.write_bytes(torn.read_bytes()[:50])
    windows = PairWindows(
        videos(), [Pair("test/anna", "test/bert"), Pair("test/anna", "test/carl")]
    )
    assert len(windows) == 3 and windows.load(0, RNG)["x"].shape == (4, 8, 8, 3)
    message = r"pair 2: clip test/carl: cannot be decoded: frame_4.png: .*: repair the clip, or rem"
    with pytest.raises(ValueError, match=message):
        windows.load(2, RNG)
