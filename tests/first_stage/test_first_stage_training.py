"""``--mode=first_stage`` on squares that move."""

import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffsda_jax import DiffSDA, FirstStage, first_stage_runs, sharding
from diffsda_jax import config as configuration
from diffsda_jax.data.sources import ElementSpec, Source
from diffsda_jax.first_stage.spec import FirstStageSpec
from diffsda_jax.train.loop import NonFiniteLossError

SIDE, START = 16, 2
ME = "test_first_stage_training"  # from where a user's functions are imported
SPEC = FirstStageSpec("vq", 8, (1, 2), 1, codebook_size=32)
PARTS = {"l1": 1, "perceptual": 0.1, "quantization": 1.25, "adversarial": 1}


class Squares(Source):
    """A square of one colour goes over a dark ground."""

    name, kind = "squares", "video"

    def __init__(self, split, side=SIDE, channels=3):
        super().__init__(split)
        self.spec = ElementSpec("video", (side, side, channels))

    def __len__(self):
        return 64 if self.split == "train" else 16

    def load(self, index, rng):
        own = np.random.default_rng([index, self.split == "test"])
        side, _, channels = self.spec.shape
        x = np.full((2, side, side, channels), -1, np.float32)
        place, colour = own.integers(0, side - 6, 2), own.uniform(0, 1, channels)
        for frame in range(2):
            top, left = place + frame
            x[frame, top : top + 5, left : left + 5] = colour
        return {"x": x}

    def _identity(self):
        return []


def sources(**options):
    return {split: Squares(split, **options) for split in ("train", "test")}


def mean_difference(images, decoded):
    """A distance as a user may give it."""
    return jnp.square(images.mean((1, 2)) - decoded.mean((1, 2))).sum(-1)


def one_number(images, decoded):
    return mean_difference(images, decoded).mean()


def l1_of_four(images, decoded, third, fourth):
    return jnp.abs(images - decoded)


def tiny(kind="vq", **train):
    config = configuration.load_config("configs/video_folder.py")
    config.data.update(length=1, num_threads=0)
    config.first_stage_training.update(
        kind=kind, channels=8, channel_mults=(1, 2), num_res_blocks=1, attention_levels=()
    )
    config.first_stage_training.update(codebook_size=32, perceptual_weight=0.1)
    config.optimizer.update(learning_rate=1e-2, schedule="constant", warmup_steps=0)
    config.optimizer.ema_half_life_examples = 20.0
    config.train.update(batch_size=16, num_steps=30, log_every_steps=1)
    config.train.update(train)
    return config


def adversarial(**train):
    """With all parts of the loss."""
    config = tiny(**train)
    config.first_stage_training.update(
        perceptual=f"{ME}:mean_difference",
        discriminator_weight=0.1,
        discriminator_start_step=START,
        discriminator_channels=4,
        discriminator_layers=1,
    )
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, first_stage_runs.run_first_stage(adversarial(), workdir, sources())


def history(workdir, name):
    """Values of a metric, in the order of the steps."""
    lines = (workdir / "logs" / "metrics.jsonl").read_text().splitlines()
    values = {record["step"]: record.get(name) for record in map(json.loads, lines)}
    return [values[step] for step in sorted(values) if values[step] is not None]


def frames_of(split):
    source = Squares(split)
    return np.stack([source.load(i, None)["x"][0] for i in range(len(source))])


def l1(frames, other):
    return np.abs(frames - other).mean()


def assert_trees_equal(first, second):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_learns_more_than_the_mean_frame(finished):
    workdir, _ = finished
    frames, first_stage = frames_of("test"), FirstStage.from_checkpoint(finished[0], "raw")
    error = l1(frames, first_stage.decode(first_stage.encode(frames)))
    assert error < 0.9 * l1(frames, frames_of("train").mean(0))
    assert error < 0.4 * history(workdir, "train/l1")[0]


def test_the_checkpoint_is_a_first_stage_without_the_discriminator(finished):
    workdir, result = finished
    assert result.state.opt_state["discriminator"]["params"]
    for weights, expected in (("raw", result.state.params), ("ema", result.state.ema)):
        first_stage = FirstStage.from_checkpoint(workdir, weights)
        assert first_stage.spec == SPEC
        assert_trees_equal(first_stage.variables["params"], expected)
    assert first_stage.meta["config"]["train"]["num_steps"] == 30
    with pytest.raises(ValueError, match="does not say which model it holds"):
        DiffSDA.from_checkpoint(workdir)


def test_the_discriminator_joins_at_its_step(finished):
    workdir, _ = finished
    for name in ("discriminator", "adaptive_weight", "adversarial"):
        values = np.asarray(history(workdir, f"train/{name}"))
        assert (values[:START] == 0).all() and (values[START:] != 0).all()
    parts = [np.asarray(history(workdir, f"train/{name}")) for name in PARTS]
    total = sum(weight * part for weight, part in zip(PARTS.values(), parts, strict=True))
    np.testing.assert_allclose(history(workdir, "train/loss"), total, rtol=1e-4, atol=1e-4)


def test_the_evaluation_says_what_it_measured(finished):
    workdir, _ = finished
    folder, frames = workdir / "eval" / "00000030", frames_of("test")
    content = json.loads((folder / "metrics.json").read_text())
    first_stage = FirstStage.from_checkpoint(workdir)
    latents = first_stage.encode(frames)
    decoded, metrics = np.clip(first_stage.decode(latents), -1, 1), content["metrics"]
    assert metrics["reconstruction/l1"] == pytest.approx(l1(frames, decoded), rel=1e-3)
    psnr = 10 * np.log10(4 / np.square(frames - decoded).mean())
    assert metrics["reconstruction/psnr_db"] == pytest.approx(psnr, rel=1e-3)
    codes = np.asarray(first_stage.variables["params"]["codebook"])
    distances = np.linalg.norm(latents[..., None, :] - codes, axis=-1)
    counts = np.bincount(distances.argmin(-1).ravel(), minlength=32)
    assert metrics["codebook/used_percent"] == pytest.approx(100 * (counts > 0).mean(), abs=7)
    shares = counts[counts > 0] / counts.sum()
    expected = np.exp(-np.sum(shares * np.log(shares)))
    assert metrics["codebook/perplexity"] == pytest.approx(expected, rel=0.1)
    assert " of 32 codes are used by none of 16 frames" in content["notes"][0]
    picture = np.asarray(Image.open(folder / "reconstruction.png"))
    assert picture.shape[0] > 2 * 48 and picture.shape[1] > 8 * 48 and picture.std() > 10


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_bits_of_an_unbroken_one(finished, tmp_path):
    first_stage_runs.run_first_stage(adversarial(num_steps=15), tmp_path, sources())
    resumed = first_stage_runs.run_first_stage(adversarial(), tmp_path, sources())
    assert int(resumed.state.step) == 30
    assert_trees_equal(finished[1].state, resumed.state)


def test_fine_tuning_starts_from_the_checkpoint(finished, tmp_path, caplog):
    """Its sizes, not the config's, and its averaged weights; afterwards it is not needed."""
    config = adversarial(num_steps=2)
    config.first_stage.checkpoint = str(tmp_path / "start")
    config.first_stage_training.update(codebook_size=7, channels=16)
    shutil.copytree(finished[0] / "checkpoints", tmp_path / "start")
    experiment = first_stage_runs.experiments.build(config, sources())
    start = first_stage_runs.starting_point(experiment, tmp_path / "start")
    mesh = sharding.make_mesh()
    losses = first_stage_runs.make_loss(experiment)
    _, state = first_stage_runs.make_training(experiment, start, *losses, mesh)
    assert start.spec == SPEC and int(state.step) == 0
    for weights in (state.params, state.ema):
        assert_trees_equal(weights, finished[1].state.ema)
    with caplog.at_level(logging.INFO, logger="diffsda_jax"):
        first_stage_runs.run_first_stage(config, tmp_path / "run", sources())
    assert f"weights and sizes from {tmp_path / 'start'}" in caplog.text
    first, before = (history(path, "train/l1") for path in (tmp_path / "run", finished[0]))
    assert first[0] < 0.5 * before[0]
    shutil.rmtree(tmp_path / "start")
    (tmp_path / "run" / "eval" / "00000002" / "metrics.json").unlink()
    resumed = first_stage_runs.run_first_stage(config, tmp_path / "run", sources())
    assert int(resumed.state.step) == 2
    assert (tmp_path / "run" / "eval" / "00000002" / "metrics.json").exists()


@pytest.mark.slow
def test_a_kl_learns_too_and_the_log_says_what_is_left_out(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="diffsda_jax"):
        first_stage_runs.run_first_stage(tiny("kl", num_steps=10), tmp_path, sources())
    assert "perceptual distance: none (config.first_stage_training.perceptual is e" in caplog.text
    assert "discriminator: none (config.first_stage_training.discriminator_weight" in caplog.text
    errors = history(tmp_path, "train/l1")
    assert errors[-1] < 0.6 * errors[0] and history(tmp_path, "train/kl")[-1] > 0
    assert FirstStage.from_checkpoint(tmp_path).spec.kind == "kl"
    metrics = json.loads((tmp_path / "eval" / "00000010" / "metrics.json").read_text())["metrics"]
    assert metrics.keys() == {"reconstruction/l1", "reconstruction/psnr_db"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "vae"}, "config.first_stage_training.kind is 'vae'; allowed: 'vq', 'kl'"),
        ({"channels": 12}, "config.first_stage_training.channels is 12; GroupNorm needs"),
        ({"codebook_size": 0}, "first_stage_training.codebook_size is 0 for kind 'vq'"),
        ({"channel_mults": (1,) * 6}, "frames are 16x16, but .* 32 times smaller; choose a size"),
        ({"l2_weight": -1.0}, "first_stage_training.l2_weight is -1.0; allowed: 0 or more"),
        (
            {"discriminator_weight": -1.0, "discriminator_layers": 1},
            "discriminator_weight is -1.0; allowed: above 0, or 0",
        ),
        (
            {"discriminator_weight": 1.0},
            "discriminator_layers is 3 for frames of 16x16; allowed: 1 to 2",
        ),
        ({"perceptual": "lpips"}, "perceptual='lpips': write it as 'module:callable'"),
        ({"perceptual": "no_such_module:f"}, "'no_such_module:f' cannot be imported"),
        ({"perceptual": f"{ME}:one_number"}, r"one_number' returns .*return floats \(2,\)"),
        ({"perceptual": f"{ME}:l1_of_four"}, "l1_of_four' fails: .*; it must take two JAX arr"),
    ],
)
def test_bad_options_are_one_line(tmp_path, options, message):
    config = tiny()
    config.first_stage_training.update(options)
    with pytest.raises(ValueError, match=message) as error:
        first_stage_runs.run_first_stage(config, tmp_path, sources())
    assert "\n" not in str(error.value) and not (tmp_path / "config.json").exists()


def test_sources_without_frames_are_refused(tmp_path):
    run = first_stage_runs.run_first_stage
    with pytest.raises(ValueError, match="'japanese_vowels', which has series sequences; a first"):
        run(configuration.load_config("configs/japanese_vowels.py"), tmp_path)
    config = tiny()
    config.data.length_mode = "pad"
    with pytest.raises(ValueError, match="length_mode is 'pad', but padding is no frame"):
        run(config, tmp_path, sources())


def test_a_checkpoint_for_other_frames_is_refused(finished, tmp_path):
    config = tiny()
    config.first_stage.checkpoint = str(finished[0])
    with pytest.raises(ValueError, match="takes frames of 3 channels; those of .* have 1: choose"):
        first_stage_runs.run_first_stage(config, tmp_path, sources(channels=1))


def test_a_loss_that_is_not_finite_names_the_option_of_this_mode(monkeypatch, tmp_path):
    def fail(*, remedy, **_):
        raise NonFiniteLossError(remedy.init_option)

    monkeypatch.setattr(first_stage_runs.loop, "train", fail)
    with pytest.raises(NonFiniteLossError, match=r"^first_stage.checkpoint$"):
        first_stage_runs.run_first_stage(adversarial(), tmp_path, sources())
    config = adversarial()
    config.optimizer.learning_rate *= 2
    with pytest.raises(ValueError, match="first_stage.checkpoint starts a new run from this one"):
        first_stage_runs.run_first_stage(config, tmp_path, sources())
