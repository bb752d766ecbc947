"""Strict settings for every test: eight CPU devices, no silent broadcasting, checked shapes."""

import logging
import os

os.environ["JAX_PLATFORMS"] = "cpu"
# One thread for each device: from jax 0.11 on, a Fourier transform on all of them at once waits for
# ever for threads of the pool in which all of them run. Programs are compiled in one part each: the
# parts are for more cores than a worker has, and cost a fifth more work.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_cpu_multi_thread_eigen=false"
    + " --xla_cpu_parallel_codegen_split_count=1"
)

# Most of the time of these tests would go into optimising small programs; commands started by a
# test have this from the environment. See `optimised` below.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")

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


@pytest.fixture(scope="module")
def optimised():
    """For modules whose programs must be compiled as those of users are."""
    before = jax.config.read("jax_disable_most_optimizations")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "false")  # of commands
        jax.config.update("jax_disable_most_optimizations", False)
        yield
    jax.config.update("jax_disable_most_optimizations", before)


LOGGERS = [logging.getLogger(name) for name in ("diffsda_jax", "absl", "jax")]
UNTOUCHED = [(log.level, log.propagate, log.handlers[:], log.filters[:]) for log in LOGGERS]


@pytest.fixture(autouse=True)
def _untouched_logging():
    """A command run by an earlier test or fixture took over the log; this test gets it back."""
    for log, (level, propagate, handlers, filters) in zip(LOGGERS, UNTOUCHED, strict=True):
        log.setLevel(level)
        log.propagate, log.handlers[:], log.filters[:] = propagate, handlers, filters
    for name, log in logging.root.manager.loggerDict.items():
        if name.startswith("diffsda_jax") and isinstance(log, logging.Logger):
            log.disabled = False  # import-linter's logging set-up switches off those it finds


# Those that take minutes, the longest first, so that no worker is left with one at the end.
LONG_FILES = ("test_configs", "test_high_resolution", "test_runs", "test_speech_run", "_runs")
LONG_FILES += ("test_downstream", "test_first_stage_training", "test_topology_plan", "test_golden")
LONG_FILES += ("test_evaluate", "test_judges", "test_prior", "test_mesh", "test_extending")


def pytest_collection_modifyitems(items):
    """Long files first; the others keep their order."""

    def rank(item: pytest.Item) -> int:
        file = item.nodeid.partition("::")[0].removesuffix(".py")
        found = (place for place, name in enumerate(LONG_FILES) if file.endswith(name))
        return next(found, len(LONG_FILES))

    items.sort(key=rank)
