"""Tiny models of every kind of data with the files they take, for tests of inference."""

from pathlib import Path

import jax
import numpy as np

from diffsda_jax import config as configuration
from diffsda_jax import experiment as experiments
from diffsda_jax import prior, prior_api, runs
from diffsda_jax.data.transforms import Normalizer
from diffsda_jax.data.video_writer import write_video
from diffsda_jax.diffusion.samplers import SamplerSpec
from diffsda_jax.model import variable_shapes
from diffsda_jax.prior import PriorSpec
from diffsda_jax.train import checkpoint

SIZE, FPS, RATE_HZ = 8, 12.5, 44_100
# Chosen so that both of a kind go through the same few programs.
LENGTHS = {"video": (8, 6), "audio": (30_000, 29_000), "series": (11, 8)}
FEATURES = ("flow", "heat")


def frames(count, seed, size=24):
    """A bright spot that goes around on a tinted ground."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size] / size
    phase = 2 * np.pi * (np.arange(count) / count + rng.random())
    centre = 0.5 + 0.25 * np.stack([np.sin(phase), np.cos(phase)], 1)
    distance = (rows - centre[:, :1, None]) ** 2 + (columns - centre[:, 1:, None]) ** 2
    spot = np.exp(-distance / 0.05)[..., None]
    tint = rng.uniform(0.2, 0.5, 3)
    return np.round(255 * (tint + (0.9 - tint) * spot)).astype(np.uint8)


def tone(count, seed, rate_hz=RATE_HZ):
    """Harmonics of a pitch that rises."""
    time = np.arange(count) / rate_hz
    hz = 150 + 60 * seed
    wave = sum(np.sin(2 * np.pi * hz * k * (time + 0.2 * time**2)) / k for k in range(1, 6))
    return (0.2 * wave).astype(np.float32)


def table(count, seed):
    """Two waves, one of which has a gap."""
    steps = np.arange(count)
    values = np.stack([10 + 3 * np.sin(steps / 2 + seed), 0.1 * np.cos(steps / 3 - seed)], 1)
    values[2, 1] = np.nan
    return values.astype(np.float32)


def write_table(path, values):
    lines = ["time,note,heat,flow"]
    for step, (flow, heat) in enumerate(values):
        lines.append(f"2024-01-{step + 1:02d},ok,{'' if np.isnan(heat) else heat},{flow}")
    path.write_text("\n".join(lines))
    return path


def write_inputs(folder, kind, suffix=None):
    """Two files that a model takes, ``a`` and ``b``."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for seed, (name, count) in enumerate(zip("ab", LENGTHS[kind], strict=True)):
        if kind == "video":
            path = folder / f"{name}{suffix or '.mp4'}"
            write_video(frames(count, seed), path, FPS)
        elif kind == "audio":
            import soundfile

            path = folder / f"{name}{suffix or '.wav'}"
            soundfile.write(path, tone(count, seed), RATE_HZ)
        else:
            path = write_table(folder / f"{name}.csv", table(count, seed))
        paths.append(path)
    return paths


def config_of(kind, folder):
    """A config whose source is the files that are written to a folder for it."""
    names = {"video": "video_folder", "audio": "speech_folder", "series": "csv"}
    config = runs.shrink(configuration.load_config(f"configs/{names[kind]}.py"))
    config.model.channel_mults, config.model.attention_levels = (1,), ()  # of video, quicker
    config.model.update(channels=8, encoder_channels=8, attention_levels=())
    config.eval.batch_size = 2
    if kind == "video":
        for split, name in (("train", "a"), ("test", "b")):
            write_video(frames(6, 5), folder / split / f"{name}.gif", FPS)
        config.source.options.update(root=str(folder), size=SIZE, length=config.data.length)
    elif kind == "audio":
        import soundfile

        for split, name in (("train", "ann"), ("test", "bob")):
            (folder / split / name).mkdir(parents=True)
            soundfile.write(folder / split / name / "1.wav", tone(16_000, 2, 16_000), 16_000)
        config.source.options.root = str(folder)
        config.data.length, config.data.cache_dir = 68, str(folder / "cache")
    else:
        path = str(write_table(folder / "all.csv", table(28, 3)))
        options = {"path": path, "features": FEATURES, "length": config.data.length}
        config.source.options.update(options)
    return config


def random_weights(shapes, seed=0, scale=0.2):
    """Weights that all do something: a new model's last layers are zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(0, scale, x.shape).astype(np.float32), shapes)


def save_model(kind, folder, workdir):
    """A checkpoint as a training run leaves it, with a prior."""
    folder.mkdir(parents=True)
    experiment = experiments.build(config_of(kind, folder))
    spec = experiment.spec
    checkpoint.save_converted(workdir, random_weights(variable_shapes(spec)), experiment.meta())
    length = experiment.config.data.length
    of_prior = PriorSpec(
        "joint", spec.static_dim, spec.dynamic_dim, length, width=8, num_layers=1, num_heads=2
    )
    sizes = (spec.static_dim, spec.dynamic_dim)
    normalizers = tuple(
        Normalizer(np.zeros(n, np.float32), np.ones(n, np.float32), 1.0) for n in sizes
    )
    meta = prior_api.make_meta(of_prior, normalizers, SamplerSpec("euler", 2), model_step=0)
    weights = random_weights(prior.variable_shapes(of_prior))
    checkpoint.save_converted(Path(workdir) / "prior", weights, meta)
    return Path(workdir)
