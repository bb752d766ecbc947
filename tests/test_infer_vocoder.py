"""Speech through the command line of inference with a HiFi-GAN generator."""

import numpy as np
import pytest

from diffsda_jax import infer, media_codec

soundfile = pytest.importorskip("soundfile")

import infer_models as tiny  # noqa: E402
from small_hifigan import vocoder_file  # noqa: E402


@pytest.fixture(scope="module")
def reconstruct(tmp_path_factory):
    """Runs the command with a vocoder; gives its status and the file."""
    root = tmp_path_factory.mktemp("vocoder")
    workdir = tiny.save_model("audio", root / "data", root / "run")
    recording = tiny.write_inputs(root / "in", "audio")[0]

    def run(vocoder, output):
        options = [f"--checkpoint={workdir}", f"--input={recording}", f"--output={output}"]
        options += ["--solver=euler", "--num_steps=2", f"--vocoder={vocoder}"]
        return infer.main(["reconstruct", *options]), output

    patch = pytest.MonkeyPatch()
    patch.setattr(infer, "prepare_jax", lambda: None)
    yield run
    patch.undo()


def test_a_generator_plays_at_the_rate_and_length_of_the_input(reconstruct, tmp_path):
    vocoder = vocoder_file(tmp_path / "generator.npz", num_mels=80)
    status, path = reconstruct(vocoder, tmp_path / "by_generator.wav")
    samples, rate = soundfile.read(path, dtype="float32")
    assert status == 0 and rate == tiny.RATE_HZ and len(samples) == tiny.LENGTHS["audio"][0]
    by_griffin_lim = soundfile.read(reconstruct("", tmp_path / "without.wav")[1])[0]
    assert samples.std() > 0 and np.abs(samples - by_griffin_lim).max() > 1e-3


def test_a_generator_of_another_front_end_is_refused_first(
    reconstruct, tmp_path, capsys, monkeypatch
):
    vocoder = vocoder_file(tmp_path / "generator.npz", num_mels=40)
    monkeypatch.setattr(media_codec, "decode_windows", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(SystemExit):
        reconstruct(vocoder, tmp_path / "none.wav")
    assert not (tmp_path / "none.wav").exists()
    assert "takes 40 mel bins" in capsys.readouterr().err
