"""What the processes of commands and notebooks that tests start have in their environment."""

import os

import jax


def one_device_environment():
    """One CPU device, as a user has it, and the tests' compilation cache."""
    return os.environ | {
        # Not in parts for more cores than there are, which costs more work; see conftest.py.
        "XLA_FLAGS": "--xla_cpu_parallel_codegen_split_count=1",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }
