"""Strict settings for every test: eight CPU devices, no silent broadcasting, checked shapes."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
jax.config.update(
    "jax_compilation_cache_dir",
    os.environ.get("JAX_COMPILATION_CACHE_DIR", os.path.abspath(".cache/xla-tests")),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

jaxtyping.install_import_hook("diffsda_jax", "beartype.beartype")


@pytest.fixture(autouse=True, scope="session")
def _plots_without_a_screen():
    """Matplotlib must not look for a display."""
    import matplotlib

    matplotlib.use("Agg")
