"""What a command does before JAX has devices."""

import os
import subprocess
import sys
from types import SimpleNamespace

import jaxlib.version
import pytest

from diffsda_jax import command_line, infer, main

OURS = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"


@pytest.fixture
def known(monkeypatch):
    """A machine and a version that the flag was measured with, whatever this is."""
    monkeypatch.setattr(jaxlib.version, "__version_info__", (0, 10, 2))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", "")
    return monkeypatch


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("", OURS),
        ("--xla_cpu_enable_fast_math=false", f"--xla_cpu_enable_fast_math=false {OURS}"),
        ("--xla_cpu_experimental_ynn_fusion_type=dot", None),  # the user's stays
        ("/etc/xla_flags", None),  # XLA reads flags from a file of this name
    ],
)
def test_the_flag_joins_those_of_the_user(known, given, wanted):
    known.setenv("XLA_FLAGS", given)
    command_line.choose_cpu_kernels()
    assert os.environ["XLA_FLAGS"] == (wanted or given)


def test_who_might_not_know_the_flag_does_not_get_it(known):
    with known.context() as patch:
        patch.setattr(jaxlib.version, "__version_info__", (0, 99, 0))
        command_line.choose_cpu_kernels()
    with known.context() as patch:
        patch.setattr("platform.machine", lambda: "arm64")
        command_line.choose_cpu_kernels()
    assert not os.environ["XLA_FLAGS"]


@pytest.mark.parametrize(("package", "plugins"), [("libtpu", []), (None, ["xla_cuda13"])])
def test_the_flag_is_not_for_accelerators(known, package, plugins):
    known.setattr(command_line, "find_spec", lambda name: package)
    known.setattr(command_line, "entry_points", lambda group: plugins)
    with known.context() as patch:
        patch.delenv("JAX_PLATFORMS")
        command_line.choose_cpu_kernels()
        assert not os.environ["XLA_FLAGS"]
    command_line.choose_cpu_kernels()  # where only the CPU is asked for, none is loaded
    assert os.environ["XLA_FLAGS"] == OURS


COUNT = """
from diffsda_jax.command_line import choose_cpu_kernels
{choose}
import jax, jax.numpy as jnp
x, kernel = jnp.ones((8, 32, 32, 64)), jnp.ones((3, 3, 64, 64))
axes = ("NHWC", "HWIO", "NHWC")
conv = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=axes)
print("fusions", jax.jit(conv).lower(x, kernel).compile().as_text().count("__ynn_fusion"))
"""


def test_xla_knows_the_flag_and_keeps_convolutions():
    environment = os.environ | {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "false"}
    printed = {}
    for choose in ("", "choose_cpu_kernels()"):
        command = [sys.executable, "-c", COUNT.format(choose=choose)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        printed[choose] = done.stdout.split("\n")[0]
    if printed[""] == "fusions 0":
        pytest.skip("this XLA keeps convolutions by itself")
    assert printed["choose_cpu_kernels()"] == "fusions 0"


@pytest.mark.parametrize("module", [main, infer])
def test_commands_prepare_jax(monkeypatch, module):
    def stop():
        raise SystemExit(77)

    monkeypatch.setattr(module, "prepare_jax", stop)
    for flag in ("CONFIG", "WORKDIR", "TOPOLOGY", "CHECKPOINT"):
        value = None if flag in ("TOPOLOGY", "CHECKPOINT") else "given"
        monkeypatch.setattr(main, flag, SimpleNamespace(value=value))
    monkeypatch.setattr(main, "MODE", SimpleNamespace(value="train"))
    given = ["main"] if module is main else ["sample", "--checkpoint=run", "--output=out"]
    with pytest.raises(SystemExit) as ended:
        module.main(given)
    assert ended.value.code == 77
