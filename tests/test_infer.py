"""The command line of inference: every verb on every kind of data, on real files."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from diffsda_jax import DiffSDA, Factors, infer, mix
from diffsda_jax.data import video_io
from diffsda_jax.data.media_reader import read_files
from diffsda_jax.data.sequences import Sequences

sys.path.insert(0, str(Path(__file__).parent))
import infer_models as tiny  # noqa: E402
from fake_bucket import serve  # noqa: E402

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("av")

KINDS = ("video", "audio", "series")
SUFFIX = {"video": ".mp4", "audio": ".wav", "series": ".csv"}


@pytest.fixture(autouse=True)
def _programs_of_the_tests_are_kept_where_they_are(monkeypatch):
    """A command would keep them in the user's cache."""
    monkeypatch.setattr(infer, "prepare_jax", lambda: None)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Workdir and two inputs of each kind."""
    root = tmp_path_factory.mktemp("infer")
    return {
        kind: (
            tiny.save_model(kind, root / kind / "data", root / kind / "run"),
            tiny.write_inputs(root / kind / "in", kind),
        )
        for kind in KINDS
    }


@pytest.fixture(scope="module")
def models(places):
    return {
        kind: DiffSDA.from_checkpoint(run).using("euler", 2) for kind, (run, _) in places.items()
    }


def command(places, kind, verb, output, *more):
    """A command in this process; two steps of Euler."""
    workdir, _ = places[kind]
    fast = () if verb == "encode" else ("--solver=euler", "--num_steps=2")
    own = [verb, f"--checkpoint={workdir}", f"--output={output}", *fast, *map(str, more)]
    assert infer.main(own) == 0
    return Path(output)


def opened(path, kind):
    """What a player, a library of sound or a spreadsheet finds in a file: values and rate."""
    if kind == "audio":
        samples, rate = soundfile.read(path, dtype="float32")
        assert samples.ndim == 1
        return samples, rate
    if kind == "video":
        count = video_io.count_frames(path)
        side = tiny.SIZE
        return video_io.read_frames(path, range(count), side), video_io.frame_rate(path)
    lines = [line.split(",") for line in path.read_text().splitlines()]
    return lines, None


def check_like(path, kind, place=0):
    """Length and rate are the input's."""
    values, rate = opened(path, kind)
    wanted = tiny.LENGTHS[kind][place]
    if kind == "series":
        assert values[0] == ["time", *tiny.FEATURES] and len(values) - 1 == wanted
        assert [row[0] for row in values[1:]] == [f"2024-01-{i + 1:02d}" for i in range(wanted)]
        return np.array([row[1:] for row in values[1:]], float)
    assert len(values) == wanted
    assert rate == (tiny.RATE_HZ if kind == "audio" else pytest.approx(tiny.FPS))
    return values


@pytest.mark.parametrize("kind", KINDS)
def test_encode_writes_the_factors(places, models, kind, tmp_path):
    _, inputs = places[kind]
    path = command(places, kind, "encode", tmp_path / "f.npz", "--input", *inputs)
    factors, expected = Factors.load(path), models[kind].encode(list(map(str, inputs)))
    np.testing.assert_array_equal(factors.static, expected.static)
    np.testing.assert_array_equal(factors.dynamic, expected.dynamic)
    assert len(factors) == 2 and factors.lengths[0] > factors.lengths[1]
    if kind != "audio":
        assert factors.lengths.tolist() == list(tiny.LENGTHS[kind])
    assert not np.allclose(factors.static[0], factors.static[1])
    assert not factors.dynamic[1, factors.lengths[1] :].any()


@pytest.mark.parametrize("kind", KINDS)
def test_reconstruct_gives_the_input_back(places, models, kind, tmp_path):
    """From the noise of the data themselves even a model that learned nothing does."""
    _, inputs = places[kind]
    path = command(
        places,
        kind,
        "reconstruct",
        tmp_path / f"r{SUFFIX[kind]}",
        f"--input={inputs[0]}",
        "--start=inverted",
        "--num_steps=60",
    )
    values = check_like(path, kind)
    if kind == "video":
        original = opened(inputs[0], kind)[0]
        assert values.shape == original.shape
        assert np.abs(values.astype(float) - original).mean() < 12
    elif kind == "audio":  # phases are made up, so loudness over time and pitch are compared
        original = opened(inputs[0], kind)[0]
        ours, theirs = (np.abs(np.fft.rfft(x[5_000:25_000])) for x in (values, original))
        assert np.corrcoef(ours[:1_000], theirs[:1_000])[0, 1] > 0.6
    else:
        original = tiny.table(tiny.LENGTHS[kind][0], 0)
        seen = ~np.isnan(original)
        np.testing.assert_allclose(values[seen], original[seen], rtol=0.1, atol=0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_swap_is_the_mix_of_the_factors(places, models, kind, tmp_path):
    _, (a, b) = places[kind]
    suffix = {"video": "", "audio": ".flac", "series": ".csv"}[kind]
    more = ("--format=frames",) if kind == "video" else ()
    options = (f"--static_from={a}", f"--dynamic_from={b}", "--start=zero", *more)
    path = command(places, kind, "swap", tmp_path / f"swap{suffix}", *options)
    model = models[kind]
    mixed = mix(static_from=model.encode(str(a)), dynamic_from=model.encode(str(b)))
    expected = model.reconstruct(mixed, start="zero").x[0]
    own = model.reconstruct(str(b), start="zero").x[0]
    if kind == "video":
        images = sorted(path.iterdir())
        assert len(images) == tiny.LENGTHS[kind][1]
        values = opened(path, kind)[0]
        np.testing.assert_array_equal(values, expected)
        assert (values != own).any()
        return
    values = check_like(path, kind, 1)
    if kind == "series":
        np.testing.assert_allclose(values, expected, rtol=1e-5)
        assert not np.allclose(values, own)
    else:  # sounds from factors alone have the length of their frames and the rate of the model
        assert np.isfinite(values).all() and values.std() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_sample_draws_from_the_prior(places, models, kind, tmp_path):
    form = {"video": "gif", "audio": "wav", "series": "csv"}[kind]
    more = ("--count=2", "--seed=3", f"--format={form}")
    folder = command(places, kind, "sample", tmp_path / "new", *more)
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [f"sample_0.{form}", f"sample_1.{form}"]
    expected = models[kind].sample(2, seed=3)
    if kind == "series":
        rows = np.array([line.split(",") for line in files[1].read_text().splitlines()[1:]], float)
        np.testing.assert_allclose(rows, expected.x[1], rtol=1e-5)
    elif kind == "audio":
        samples, rate = opened(files[0], kind)
        assert rate == 16_000 and len(samples) == pytest.approx(0.79 * 16_000, abs=20)
        np.testing.assert_allclose(samples, expected.x[0][: len(samples)], atol=1e-4)
    else:
        frames, rate = opened(files[0], kind)
        assert frames.shape == (4, 8, 8, 3) and rate == pytest.approx(8, rel=0.05)
        assert np.abs(frames.astype(float) - expected.x[0]).mean() < 8  # 256 colours


@pytest.mark.parametrize("kind", KINDS)
def test_traverse_side_by_side(places, models, kind, tmp_path):
    _, (a, _) = places[kind]
    more = (f"--input={a}", "--num_components=1", "--num_places=3", "--side_by_side")
    more += ("--along=dimensions", "--factor=dynamic")
    path = command(places, kind, "traverse", tmp_path / f"t{SUFFIX[kind]}", *more)
    result = models[kind].traverse(
        str(a), num_components=1, num_places=3, along="dimensions", factor="dynamic"
    )
    assert result.names == ("a_dynamic1_-2std", "a_dynamic1_+0std", "a_dynamic1_+2std")
    count = tiny.LENGTHS[kind][0]
    if kind == "video":
        with video_io._open_video(path) as (container, stream):
            assert (stream.width, stream.height) == (3 * tiny.SIZE, tiny.SIZE)
            assert sum(1 for _ in container.decode(stream)) == count
        assert video_io.frame_rate(path) == pytest.approx(tiny.FPS)
    elif kind == "audio":
        samples, rate = opened(path, kind)
        assert rate == tiny.RATE_HZ and len(samples) == 3 * count + 2 * round(0.3 * rate)
    else:
        header, *rows = opened(path, kind)[0]
        assert header[1:] == [f"place_{i}.{name}" for i in range(3) for name in tiny.FEATURES]
        values = np.array([row[1:] for row in rows], float)
        np.testing.assert_allclose(values, np.concatenate(result.x, axis=1), rtol=1e-5)
    assert not np.allclose(result.x[0], result.x[2])


@pytest.mark.parametrize("kind", KINDS)
def test_interpolate_goes_from_one_to_the_other(places, models, kind, tmp_path):
    _, (a, b) = places[kind]
    folder = command(
        places, kind, "interpolate", tmp_path / "way", "--input", a, b, "--num_points=3"
    )
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [f"a_to_b_{i}{SUFFIX[kind]}" for i in range(3)]
    for file in files:
        check_like(file, kind, 1)  # the shorter one's
    if kind == "series":
        model = models[kind]
        ends = [model.encode(str(path)) for path in (a, b)]
        middle = Factors(
            static=(ends[0].static + ends[1].static) / 2,
            dynamic=(ends[0].dynamic[:, :8] + ends[1].dynamic) / 2,
        )
        expected = model.reconstruct(middle).x[0]
        values = np.array([row[1:] for row in opened(files[1], kind)[0][1:]], float)
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)


def process(words, **environment):
    """A command in a process of its own."""
    kept = str(jax.config.jax_compilation_cache_dir)
    return subprocess.run(
        [sys.executable, "-m", "diffsda_jax.infer", *map(str, words)],
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": kept} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_swap_in_a_process_of_its_own(places, kind, tmp_path):
    workdir, (a, b) = places[kind]
    output = tmp_path / f"swap{SUFFIX[kind]}"
    words = ["swap", f"--checkpoint={workdir}", f"--static_from={a}", f"--dynamic_from={b}"]
    done = process([*words, f"--output={output}", "--solver=euler", "--num_steps=2"])
    assert done.returncode == 0, done.stderr
    assert f"wrote {output}" in done.stdout and "decoding" in done.stderr
    check_like(output, kind, 1)


def test_a_checkpoint_and_its_prior_in_a_bucket(places, models, tmp_path):
    pytest.importorskip("gcsfs")
    workdir, _ = places["series"]
    output = tmp_path / "s.npz"
    words = ["sample", "--checkpoint=gs://bucket/run", f"--output={output}", "--count=1"]
    with serve(workdir.parent) as url:
        addresses = {"STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url}
        done = process([*words, "--solver=euler", "--num_steps=2"], **addresses)
    assert done.returncode == 0, done.stderr
    found, expected = Sequences.load(output), models["series"].sample(1)
    np.testing.assert_allclose(found.x, expected.x, rtol=1e-4, atol=1e-4)


def test_folders_of_frames_gifs_and_many_inputs(places, models, tmp_path):
    """What is not given a name has the input's; frames come without a rate."""
    _, (a, b) = places["video"]
    clip = models["video"].read(str(a))
    clip.save(tmp_path / "in" / "shots", "frames")
    tiny.write_inputs(tmp_path / "in", "video", ".gif")
    options = ("--input", tmp_path / "in", "--rate=5", "--format=gif", "--start=zero")
    folder = command(places, "video", "reconstruct", tmp_path / "out", *options)
    assert sorted(p.name for p in folder.iterdir()) == ["a.gif", "b.gif", "shots.gif"]
    assert opened(folder / "shots.gif", "video")[1] == pytest.approx(5)
    values, rate = opened(folder / "a.gif", "video")
    assert len(values) == 8 and rate == pytest.approx(tiny.FPS)


def test_factors_and_arrays_go_in_and_out(places, models, tmp_path):
    _, (a, b) = places["series"]
    model = models["series"]
    model.encode([str(a), str(b)]).save(tmp_path / "f.npz")
    more = ("--input", tmp_path / "f.npz", "--start=zero")
    path = command(places, "series", "reconstruct", tmp_path / "r.npz", *more)
    found, expected = Sequences.load(path), model.reconstruct([str(a), str(b)], start="zero")
    np.testing.assert_array_equal(found.x, expected.x)
    assert found.lengths.tolist() == [11, 8] and found.feature_names == tiny.FEATURES
    again = command(places, "series", "reconstruct", tmp_path / "b.csv", "--input", path)
    header, *rows = [line.split(",") for line in again.read_text().splitlines()]
    assert header == ["id", *tiny.FEATURES] and len(rows) == 19
    assert {row[0] for row in rows} == {"sequence_0", "sequence_1"}
    table = model.read(str(again))
    assert table.lengths.tolist() == [11, 8] and table.names == ("sequence_0", "sequence_1")


def test_what_is_written_is_read_again(places, models, tmp_path):
    _, inputs = places["series"]
    sequences = models["series"].read(list(map(str, inputs)))
    sequences[[0]].save(tmp_path / "one.csv")
    back = read_files([tmp_path / "one.csv"], "series", feature_names=tiny.FEATURES)
    np.testing.assert_array_equal(back.x[0], sequences.x[0, :11])
    assert np.isnan(back.x[0, 2, 1])


def test_an_output_that_is_in_the_way_is_named_before_the_work(places, tmp_path, capsys):
    workdir, (clip, _) = places["video"]
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.mp4").mkdir()
    given = ["reconstruct", f"--checkpoint={workdir}", f"--input={clip}"]
    for output, message in (
        ("file/o.mp4", "file is no folder to write to"),
        ("folder.mp4", "is a folder; give the name of a file"),
    ):
        with pytest.raises(SystemExit):
            infer.main([*given, f"--output={tmp_path / output}"])
        assert message in capsys.readouterr().err
    for output in (clip, clip.parent):
        with pytest.raises(SystemExit):
            infer.main([*given, f"--output={output}"])
        assert "the input would be written over" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        infer.main([*given, "--output=gs://bucket/o.mp4"])
    assert "written to local files" in capsys.readouterr().err
    frames = [*given, f"--output={tmp_path / 'frames'}", "--format=frames", "--num_steps=2"]
    assert infer.main(frames) == 0
    assert "decoding" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        infer.main(frames)
    printed = capsys.readouterr().err
    assert "frames holds images already: give a new or empty one" in printed
    assert "decoding" not in printed


MISTAKES = {
    "no checkpoint": (("--checkpoint=nowhere",), "checkpoint .*nowhere does not exist"),
    "no input": (("--input=missing.csv",), "input missing.csv does not exist"),
    "another kind": (("--input={a_video}",), "a.mp4 is no file for this model, which takes CSV"),
    "another format": (("--output=x.mp4",), "series, whose formats are csv, npz"),
    "unknown start": (("--start=warm",), "start: unknown value 'warm'; allowed are random, zero"),
    "unknown solver": (("--solver=rk4",), "solver is 'rk4'; allowed"),
    "unknown device": (("--device=tpu:9",), "device is 'tpu:9'; there are here: 'cpu' \\(8\\)"),
    "unknown precision": (("--precision=half",), "precision is 'half'"),
    "unknown option": (("--sttart=zero",), "unrecognized arguments: --sttart=zero"),
    "damaged": (("--input={broken}",), "broken.npz is no .npz file of plain arrays"),
    "arrays of another": (("--input={arrays}",), "arrays.npz does not hold sequences \\('rates'"),
    "other columns": (("--input={other}",), "column 'flow' is not in file .*other.csv"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(places, mistake, tmp_path, capsys):
    words, message = MISTAKES[mistake]
    workdir, (a, _) = places["series"]
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 no zip")
    (tmp_path / "other.csv").write_text("time,x\n1,2\n2,3")
    known = {"a_video": places["video"][1][0], "broken": tmp_path / "broken.npz"}
    known["other"], known["arrays"] = tmp_path / "other.csv", tmp_path / "arrays.npz"
    np.savez(known["arrays"], x=np.zeros((1, 4, 2)), lengths=[4], kind="series")
    given = [f"--checkpoint={workdir}", f"--output={tmp_path / 'o.csv'}", f"--input={a}"]
    changed = [word.format(**known) for word in words]
    names = {word.partition("=")[0] for word in changed}
    given = [word for word in given if word.partition("=")[0] not in names]
    with pytest.raises(SystemExit) as ended:
        infer.main(["reconstruct", *given, *changed])
    printed = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2 and printed[-1].startswith("diffsda_jax: error: ")
    assert not any("Traceback" in line for line in printed)
    assert re.search(message, printed[-1]), printed[-1]
    assert not (tmp_path / "o.csv").exists()


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
@pytest.mark.parametrize("kind", ["video", "gif", "audio"])
def test_damaged_media_are_named(places, kind, damage, tmp_path, capsys):
    suffix = {"gif": ".gif", "video": ".mp4", "audio": ".wav"}[kind]
    kind = "video" if kind == "gif" else kind
    workdir, _ = places[kind]
    _, whole = tiny.write_inputs(tmp_path / "whole", kind, suffix)
    data = whole.read_bytes()
    file = tmp_path / f"bad{suffix}"
    file.write_bytes({"cut": data[: len(data) // 3], "text": b"no media", "empty": b""}[damage])
    with pytest.raises(SystemExit):
        infer.main(["encode", f"--checkpoint={workdir}", f"--output={file}.npz", f"--input={file}"])
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.fullmatch(rf"diffsda_jax: error: input {file} .*; give a file that plays\.", line)


def test_results_that_do_not_fit_are_refused_before_the_work(places, tmp_path, capsys):
    workdir, inputs = places["video"]
    words = ["reconstruct", f"--checkpoint={workdir}", f"--output={tmp_path / 'o.mp4'}", "--input"]
    with pytest.raises(SystemExit):
        infer.main([*words, *map(str, inputs)])
    assert "there will be 2 results; give a folder" in capsys.readouterr().err
