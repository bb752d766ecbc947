import jax
import jax.numpy as jnp
import pytest

from diffsda_jax import config as configuration
from diffsda_jax import plan, runs


def test_plan_says_what_a_run_would_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = runs.shrink(configuration.default_config())
    config.source = configuration.source_config("japanese_vowels")
    config.data.length_mode = "resample"
    text = plan.make_plan(config)
    assert '"static_dim": 4' in text and "encoder/recurrence/lstm/kernel_hidden" in text
    assert "japanese_vowels/train: 270" in text and "33.8 steps an epoch" in text
    assert "8 x cpu" in text
    facts = facts_of(text)
    parts = [float(facts[f"FLOPs of {name}"]) for name in ("encoding", "denoising", "a step")]
    assert 0 < 8 * (parts[0] + parts[1]) < parts[2]
    assert float(facts["peak memory"]) > 0
    assert not list(tmp_path.iterdir())


def facts_of(text):
    """First number of the facts, by the first words of their names."""
    lines = [line for line in text.split("== one training step\n")[1].splitlines()]
    keys = ("FLOPs of encoding", "FLOPs of denoising", "FLOPs of a step", "peak memory")
    return {key: line[42:].split()[0] for line in lines for key in keys if line.startswith(key)}


def test_full_width_without_data(tmp_path, monkeypatch):
    """Shapes alone. 217 M used parameters; 261 and 341 G were measured of the original."""
    config = configuration.load_config("configs/vox256.py:reference")
    config.prior.form = "reference"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "step_facts", lambda experiment, mesh: {})  # compiles
    text = plan.make_plan(config)
    assert "source.options.root is not set: no data were read" in text
    assert "made-up ones of steps (32, 32, 4) stand in" in text and '"name": "latents"' in text
    assert "parameters of a 'reference' prior" in text and "82,414,696" in text
    assert "Total: 217,192,977" in text and not list(tmp_path.iterdir())
    facts = facts_of(text)
    work = [float(facts[f"FLOPs of {name}"]) for name in ("encoding", "denoising")]
    assert work == pytest.approx([261, 341], rel=0.005)


@pytest.mark.parametrize(
    ("path", "kind", "shape"),
    [
        ("vox256.py", "video", (32, 32, 4)),
        ("celebv256.py:frames", "video", (256, 256, 3)),
        ("mug64.py", "video", (64, 64, 3)),
        ("air_quality.py", "series", (10,)),
        ("etth1.py", "series", (6,)),
        ("physionet.py", "series", (10,)),
        ("librispeech.py", "audio", ()),
    ],
)
def test_what_stands_in_is_shaped_as_the_data(path, kind, shape):
    config = configuration.load_config(f"configs/{path}")
    assert plan.missing_option(config) in ("root", "path")
    sources = plan.stand_ins(config)
    assert (sources["train"].spec.kind, sources["train"].spec.shape) == (kind, shape)


def test_audio_stands_in_as_waveforms(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = runs.shrink(configuration.load_config("configs/timit.py"))
    config.data.length = 68
    experiment = plan.build(config, plan.stand_ins(config))
    assert experiment.spec.shape == (80,) and not list(tmp_path.iterdir())


def test_data_that_are_asked_for_must_be_there():
    config = configuration.load_config("configs/vox256.py")
    config.source.options.root = "/nowhere/at/all"
    with pytest.raises(FileNotFoundError, match="/nowhere/at/all"):
        plan.make_plan(config)
    with pytest.raises(ValueError, match="'csv' needs the option 'path'"):
        plan.make_plan(configuration.load_config("configs/csv.py"))


def test_flops_by_hand():
    x, w = jnp.zeros((3, 4)), jnp.zeros((4, 4))

    def loop(x):
        return jax.lax.scan(lambda h, _: (h @ w, None), x, length=5)[0]

    def branch(x):
        return jax.lax.cond(x.sum() > 0, lambda x: x @ w, lambda x: x, x)

    product = 2 * 3 * 4 * 4
    assert plan.flops(jax.make_jaxpr(jax.jit(loop))(x)) == 5 * product
    assert plan.flops(jax.make_jaxpr(branch)(x)) == product
    assert plan.flops(jax.make_jaxpr(jax.grad(lambda x: loop(x).sum()))(x)) == 2 * 5 * product

    image, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))

    def convolve(image, kernel):
        out = jax.lax.conv_general_dilated(
            image, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return out.sum()

    once = 2 * (2 * 4 * 4 * 5) * (3 * 3 * 3)
    assert plan.flops(jax.make_jaxpr(convolve)(image, kernel)) == once
    gradient = jax.make_jaxpr(jax.grad(convolve, argnums=(0, 1)))(image, kernel)
    assert plan.flops(gradient) == 3 * once
