"""What a command does before JAX has devices."""

import os
import subprocess
import sys

import jaxlib.version
import pytest

from diffsda_jax import command_line

OURS = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, OURS),
        ("--xla_cpu_enable_fast_math=false", f"--xla_cpu_enable_fast_math=false {OURS}"),
        ("--xla_cpu_experimental_ynn_fusion_type=dot", None),  # the user's stays
    ],
)
def test_the_flag_joins_those_of_the_user(monkeypatch, given, wanted):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if given is not None:
        monkeypatch.setenv("XLA_FLAGS", given)
    command_line.choose_cpu_kernels()
    assert os.environ["XLA_FLAGS"] == (wanted or given)


def test_a_version_that_was_not_tried_gets_no_flag(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(jaxlib.version, "__version_info__", (0, 99, 0))
    command_line.choose_cpu_kernels()
    assert "XLA_FLAGS" not in os.environ


COUNT = """
from diffsda_jax.command_line import choose_cpu_kernels
{choose}
import jax, jax.numpy as jnp
x, kernel = jnp.ones((8, 32, 32, 64)), jnp.ones((3, 3, 64, 64))
axes = ("NHWC", "HWIO", "NHWC")
conv = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=axes)
dot = lambda x, k: x[0, 0] @ x[0, 0].T
print([jax.jit(f).lower(x, kernel).compile().as_text().count("__ynn_fusion") for f in (conv, dot)])
"""


@pytest.mark.parametrize(("choose", "counts"), [("choose_cpu_kernels()", "[0, 1]"), ("", "[1, 1]")])
def test_xla_knows_the_flag_and_keeps_convolutions(choose, counts):
    environment = os.environ | {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "false"}
    command = [sys.executable, "-c", COUNT.format(choose=choose)]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert printed.stdout.split("\n")[0] == counts
