"""What is written can be read back."""

import contextlib
import io
import json
import wave

import numpy as np
import pytest
from PIL import Image
from small_files import small_files
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from diffsda_jax.train.writers import MetricWriter


def read_events(folder):
    """Values of all event files by tag; a record is length (8), crc (4), data, crc (4)."""
    values = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            for value in event.summary.value:
                values.setdefault(value.tag, []).append((event.step, value))
    return values


@pytest.fixture
def written(tmp_path):
    """A folder with one of everything, and its events."""
    writer = MetricWriter(tmp_path)
    writer.write_scalars(3, {"train/loss": np.float32(0.5), "lr": 1e-3})
    writer.write_scalars(4, {"train/loss": float("nan")})
    ramp = np.linspace(0, 1, 2 * 4 * 5).reshape(2, 4, 5, 1)
    writer.write_images(3, {"grid": np.repeat(ramp, 3, axis=-1), "grey": ramp})
    writer.write_images(3, {"single": ramp[1]})
    writer.write_videos(
        3, {"clip": (np.arange(2 * 6 * 4 * 5 * 3) % 255).astype(np.uint8).reshape(2, 6, 4, 5, 3)}
    )
    writer.write_audios(3, {"voice": np.array([0.0, 0.5, -2.0], np.float32)}, 16000)
    writer.write_texts(3, {"config": "**a** = 1"})
    writer.write_histograms(3, {"codes": np.arange(100.0), "few": np.ones(4)}, {"few": 5})
    writer.write_hparams({"model": {"width": 4, "kind": "series"}, "mults": (1, 2), "none": None})
    writer.flush()
    writer.close()
    return tmp_path, read_events(tmp_path)


def test_scalars(written):
    folder, events = written
    assert [(step, value.simple_value) for step, value in events["lr"]] == [
        (3, pytest.approx(1e-3))
    ]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 4]
    assert lines[0]["train/loss"] == 0.5 and lines[0]["lr"] == 1e-3
    assert lines[1]["train/loss"] == "nan"


def test_images(written):
    _, events = written
    for tag in ("grid", "grey"):
        ((step, value),) = events[tag]
        image = Image.open(io.BytesIO(value.image.encoded_image_string))
        assert step == 3 and image.size == (10, 4)
        pixels = np.asarray(image)
        assert (
            pixels[0, 0, 0] == 0
            and pixels[-1, -1, 0] == 255
            and pixels[0, 5, 0] == round(20 / 39 * 255)
        )


def test_single_image_needs_no_count(written):
    _, events = written
    ((_, value),) = events["single"]
    image = Image.open(io.BytesIO(value.image.encoded_image_string))
    assert image.size == (5, 4) and np.asarray(image)[0, 0, 0] == round(20 / 39 * 255)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 2), (1, 2, 4, 5, 3)])
def test_image_of_another_shape_is_named(tmp_path, shape):
    with contextlib.closing(MetricWriter(tmp_path)) as writer:
        with pytest.raises(ValueError, match=rf"image 'a' has shape \[{shape[0]}, .*allowed: "):
            writer.write_images(1, {"a": np.zeros(shape)})


def test_videos_are_animated(written):
    _, events = written
    ((_, value),) = events["clip"]
    gif = Image.open(io.BytesIO(value.image.encoded_image_string))
    assert gif.format == "GIF" and gif.n_frames == 6 and gif.size == (10, 4)


def test_audio_is_a_wav_file(written):
    _, events = written
    ((_, value),) = events["voice"]
    with wave.open(io.BytesIO(value.audio.encoded_audio_string)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
        samples = np.frombuffer(file.readframes(10), "<i2")
    assert samples.tolist() == [0, 16384, -32767]  # clipped, not wrapped around


def test_texts_histograms_and_hyper_parameters(written):
    _, events = written
    (text,) = [values for tag, values in events.items() if tag.startswith("config")]
    assert text[0][1].tensor.string_val == [b"**a** = 1"]
    ((_, codes),) = events["codes"]
    assert codes.histo.num == 100 and codes.histo.sum == 4950
    ((_, start),) = events["_hparams_/session_start_info"]
    data = HParamsPluginData.FromString(start.metadata.plugin_data.content)
    found = data.session_start_info.hparams
    assert found["model.width"].number_value == 4 and found["model.kind"].string_value == "series"
    assert found["mults"].string_value == "(1, 2)" and found["none"].string_value == "None"


def test_resumed_run_appends_after_a_line_cut_short(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 1.0}\n{"step": 2, "a')
    writer = MetricWriter(tmp_path)
    writer.write_scalars(2, {"a": 2.0})
    writer.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 3 and json.loads(lines[2])["a"] == 2.0


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    writer = MetricWriter(tmp_path / "none")
    writer.write_scalars(1, {"a": 1.0})
    writer.write_images(1, {"a": np.zeros((1, 2, 2, 3))})
    writer.write_videos(1, {"a": np.zeros((1, 2, 2, 2, 3))})
    writer.write_texts(1, {"a": "b"})
    writer.write_histograms(1, {"a": np.zeros(3)})
    writer.write_hparams({"a": 1})
    writer.flush()
    writer.close()
    assert not (tmp_path / "none").exists()


def test_a_full_disk_is_an_error_and_not_a_hang(tmp_path):
    """Of a thread of its own that had died, more than ten events would wait for ever."""
    writer = MetricWriter(tmp_path)
    with small_files(2_000), pytest.raises(OSError, match="File too large"):
        for step in range(40):
            writer.write_texts(step, {"text": "x" * 100})
            writer.flush()
    writer.close()


def test_two_starts_within_a_second_keep_their_events(tmp_path, monkeypatch):
    for pid in (1, 2):
        monkeypatch.setattr("os.getpid", lambda pid=pid: pid)
        writer = MetricWriter(tmp_path)
        writer.write_scalars(pid, {"a": 0.0})
        writer.close()
    assert [step for step, _ in read_events(tmp_path)["a"]] == [1, 2]
