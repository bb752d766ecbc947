import dataclasses
import importlib.util
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from diffsda_jax import chips, collectives, plan, runs, sharding, topology_plan
from diffsda_jax import config as configuration
from diffsda_jax.chips import GIB

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install libtpu"
)


def small_config(batch_size=16):
    """Real speech and tiny widths."""
    config = runs.shrink(configuration.default_config())
    config.source = configuration.source_config("japanese_vowels")
    config.data.length_mode = "resample"
    config.train.batch_size = batch_size
    return config


def compile_for(topology, config):
    """The step, the chip and the bytes of the gradient."""
    devices, chip = chips.devices_of(topology)
    experiment = plan.prepare(config)[0]
    shapes = topology_plan.plan.variable_shapes(experiment.spec)["params"]
    gradient = sum(4 * leaf.size for leaf in jax.tree.leaves(shapes))
    return topology_plan.compile_step(
        experiment, configuration.make_mesh(config.mesh, devices), chip
    ), gradient


@pytest.fixture(scope="module")
def step():
    """Compiled for eight CPU devices, and the bytes of its gradient."""
    return compile_for("cpu:8", small_config())


def test_data_parallel_sums_the_gradient_and_the_loss(step):
    step, gradient = step
    assert list(step.traffic) == ["all-reduce"] and step.loops_known
    loss = 4
    assert step.traffic["all-reduce"].payload == gradient + loss
    assert step.sent == pytest.approx(2 * 7 / 8 * (gradient + loss))
    assert step.fits and step.needed == sum(step.parts.values()) > step.state > 3 * gradient
    assert step.parts["arguments"] >= step.state


def test_the_text_of_a_plan(step):
    step, gradient = step
    text = topology_plan.make_plan(small_config(), "cpu:8")
    assert "one training step on cpu:8: an estimate from a compiler" in text
    assert "nothing was run, so nothing is measured" in text
    assert f"all-reduce {'':<31}payload {(gradient + 4) / 1e6:.3f} MB in 1 run(s)" in text
    assert f"a chip sends, all kinds                   {step.sent / 1e6:.3f} MB" in text
    assert "8, mesh data=8 x fsdp=1" in text and "16, 2 on a chip" in text
    assert "a step takes" not in text  # of a CPU nothing is known


def test_estimates_by_hand(step):
    chip = chips.Chip("x", 16 * GIB, flops=100e12, memory_speed=1e12, network_speed=1e11)
    made = dataclasses.replace(step[0], chips=4, flops=2e12, moved=1e9, accessed=4e10)
    facts = topology_plan.estimate_facts(made, chip, num_steps=360_000)
    assert facts["a step takes"] == "20 to 40 ms"
    assert facts["steps a second"] == "25 to 50"
    assert facts["360,000 steps of 16 clips"].startswith("2 to 4 h, 8 to 16 chip-hours")
    slow = dataclasses.replace(chip, network_speed=made.sent)
    assert topology_plan.estimate_facts(made, slow, 1)["a step takes"] == "1,000 to 1,000 ms"


def misfit(**changes):
    """A step of 16 clips a chip on four chips that needs 40 of 16 GiB, 8 of them for its state."""
    values = {
        "chips": 4,
        "mesh": {"data": 4, "fsdp": 1},
        "batch_size": 64,
        "state": 8 * 2**30,
        "flops": 1.0,
        "seconds": 1.0,
        "fits": False,
        "needed": 40 * GIB,
        "parts": {},
    }
    return topology_plan.Step(**values | changes)


def try_remedies(needed_of):
    """The lines of the remedies, and the settings that were compiled."""
    tried = []

    def compile_with(config):
        step = misfit(needed=needed_of(config), batch_size=config.train.batch_size)
        tried.append((config.train.batch_size, config.model.precision))
        return dataclasses.replace(step, fits=step.needed <= 16 * GIB)

    text = topology_plan.remedies(small_config(64), misfit(), chips.CHIPS["v5e"], compile_with)
    return text.splitlines(), tried


def test_each_setting_is_tried_by_itself_from_the_mildest_that_may_do():
    """32 of 64 clips cannot do: half of 40 GiB is still too much. 16 do not, 8 do."""
    lines, tried = try_remedies(lambda config: config.train.batch_size / 8 * 8 * GIB + GIB)
    smaller = [batch_size for batch_size, _ in tried if batch_size != 64]
    assert smaller == [16, 8]
    assert [line.split() for line in lines[-2:]] == [
        ["does", "not", "17.00", "GiB", "--config.train.batch_size=16"],
        ["fits", "9.00", "GiB", "--config.train.batch_size=8"],
    ]


def test_settings_are_joined_where_none_does_alone():
    def needed(config):
        half = config.model.precision == "bfloat16"
        return (20 if half or config.train.batch_size == 4 else 30) * GIB - half * 5 * GIB * (
            config.train.batch_size == 4
        )

    lines, tried = try_remedies(needed)
    assert lines[-1].startswith("fits") and tried[-1] == (4, "bfloat16")
    assert "--config.model.precision=bfloat16" in lines[-1] and "batch_size=4" in lines[-1]
    lines, _ = try_remedies(lambda config: 100 * GIB)
    assert lines[-1].startswith("none of these")


def test_what_the_compiler_says_when_it_finds_no_room():
    for said, gib in (
        ("memory required for HLO temporaries (93.22G) exceeds available HBM (15.75G)", 93.22),
        ("Ran out of memory in memory space hbm. Used 43.90G of 15.75G hbm.", 43.9),
        ("no numbers", 0),
    ):
        assert topology_plan.needed_bytes(RuntimeError(said)) == pytest.approx(gib * GIB)


def test_which_settings_are_proposed():
    """64 clips on 4 chips; of the state, half of 40 GiB, a quarter stays with fsdp=4."""
    config = small_config(64)
    with config.unlocked():
        config.mesh = {"data": -1, "fsdp": 1, "rules": ()}
        config.train.accumulation_steps = 1
        config.model.remat = False
    step = misfit(state=20 * 2**30)
    assert topology_plan.candidates(config, step) == [
        ("mesh.fsdp", [2, 4]),
        ("train.accumulation_steps", [2, 4, 8, 16]),
        ("model.remat", [True]),
        ("model.precision", ["bfloat16"]),
        ("train.batch_size", [32, 16, 8, 4]),
    ]

    def hopeful(path):
        values = dict(topology_plan.candidates(config, step))[path]
        chip = chips.CHIPS["v5e"]
        return [v for v in values if topology_plan.promising(path, v, config, step, chip)]

    assert hopeful("mesh.fsdp") == [] and hopeful("train.accumulation_steps") == [4, 8, 16]
    step = misfit(state=24 * 2**30)
    assert hopeful("mesh.fsdp") == [4]
    config.mesh.data, config.train.accumulation_steps = 4, 4
    config.model.remat, config.model.precision = True, "bfloat16"
    assert topology_plan.candidates(config, step) == [
        ("train.accumulation_steps", [8, 16]),
        ("train.batch_size", [32, 16]),
    ]


@pytest.mark.parametrize("topology", ["h100:8", "v5e", "v5e:16", "v5e:4xx4", "cpu:0", "cpu:2x2"])
def test_unknown_topologies(topology):
    with pytest.raises(ValueError, match=f"--topology is '{topology}'; allowed: cpu:N, or CHIP:"):
        chips.devices_of(topology)


def test_more_cpu_devices_than_jax_has_started_with():
    with pytest.raises(ValueError, match="has started with 8 CPU devices; set XLA_FLAGS=.*=9 "):
        chips.devices_of("cpu:9")


def test_without_libtpu_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install -c constraints.txt -e '.\[plan\]'"):
        chips.devices_of("v5e:4x4")


def command(*arguments):
    """The command line in a process of its own, which has one CPU device."""
    return subprocess.run(
        [sys.executable, "-m", "diffsda_jax.main", *arguments],
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "XDG_CACHE_HOME": ".cache"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_line_makes_its_own_devices():
    done = command("--config=configs/japanese_vowels.py", "--mode=plan", "--topology=cpu:8")
    assert "8, mesh data=8 x fsdp=1" in done.stdout, done.stderr
    done = command("--config=configs/japanese_vowels.py", "--workdir=w", "--topology=cpu:8")
    assert done.returncode == 2 and "--topology is for --mode=plan" in done.stderr


@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "name"),
    [("v5e:16x16", "v5e"), ("v5p:2x2x4", "v5p"), ("v6e:4x4", "v6e"), ("v4:2x2x4", "v4")],
)
def test_topologies_have_a_device_for_each_chip(topology, name):
    devices, chip = chips.devices_of(topology)
    shape = topology.partition(":")[2].split("x")
    assert len(devices) == math.prod(map(int, shape)) and chip.name == name


@needs_libtpu
def test_a_shape_that_does_not_exist():
    with pytest.raises(ValueError, match="'v5e:3x3', which the compiler refuses: .*3x3"):
        chips.devices_of("v5e:3x3")


@needs_libtpu
def test_a_step_for_tpus_sums_the_gradient_and_the_loss():
    step, gradient = compile_for("v5e:4x4", small_config())
    assert list(step.traffic) == ["all-reduce"] and step.loops_known
    assert step.traffic["all-reduce"].payload == gradient + 4
    assert step.sent == pytest.approx(2 * 15 / 16 * (gradient + 4))
    assert step.fits and step.accessed > 0


@needs_libtpu
def test_the_payload_does_not_grow_with_the_slice():
    """The same clips a chip on sixteen times the chips: only the ring's (n-1)/n differs."""
    small, gradient = compile_for("v5e:4x4", small_config())
    large, _ = compile_for("v5e:16x16", small_config(256))
    assert small.traffic["all-reduce"].payload == large.traffic["all-reduce"].payload
    assert large.sent == pytest.approx(2 * 255 / 256 * (gradient + 4))
    assert large.needed == pytest.approx(small.needed, rel=0.02)
    assert large.flops == pytest.approx(small.flops, rel=0.01)


@needs_libtpu
def test_split_weights_are_gathered_and_their_gradients_scattered():
    """Two weights over four groups of four chips; what TPUs multiply is sent in bfloat16."""
    side, values = 2048, 2048 * 2048
    mesh = sharding.make_mesh(chips.devices_of("v5e:4x4")[0], data=-1, fsdp=4)
    params = {name: jax.ShapeDtypeStruct((side, side), jnp.float32) for name in "ab"}
    lies = sharding.state_sharding(params, mesh)

    def loss(params, x):
        return jnp.mean((jax.nn.relu(x @ params["a"]) @ params["b"]) ** 2)

    def step(params, x):
        return jax.tree.map(lambda old, new: old - new, params, jax.grad(loss)(params, x))

    jitted = jax.jit(step, in_shardings=(lies, sharding.batch_sharding(mesh)), out_shardings=lies)
    lowered = jitted.lower(params, jax.ShapeDtypeStruct((16 * 1024, side), jnp.float32))
    with topology_plan.nothing_cached():
        total = collectives.totals(collectives.parse(lowered.compile().as_text()))
    assert list(total) == ["all-reduce", "all-gather", "reduce-scatter"]
    assert total["all-gather"].payload == 2 * values * 2
    assert total["reduce-scatter"].payload == 2 * values * 4
    assert total["all-reduce"].payload == 2 * values * 4 / 4  # of the parts, between groups
    assert {kind: one.sent / one.payload for kind, one in total.items()} == {
        "all-reduce": 1.5,
        "all-gather": 0.75,
        "reduce-scatter": 0.75,
    }
