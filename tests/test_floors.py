import subprocess
import sys
import time

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

CACHE = ".cache/import-linter"


def run(code):
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout, time.perf_counter() - began


def test_imports_keep_to_the_floors():
    assert lint_imports("setup.cfg", cache_dir=CACHE) == EXIT_STATUS_SUCCESS


def test_import_is_light():
    loaded, seconds = run(
        "import sys, diffsda_jax; print([m for m in ('jax', 'grain', 'numpy') if m in sys.modules])"
    )
    assert loaded.strip() == "[]" and seconds < 1.5


def test_public_names_load_on_use():
    assert run("import diffsda_jax; print(diffsda_jax.Factors.__name__)")[0].strip() == "Factors"


@pytest.mark.parametrize(
    ("module", "words", "option"),
    [("main", "'--help'", "--workdir"), ("infer", "'swap', '--help'", "--static_from")],
)
def test_help_loads_no_jax(module, words, option):
    code = (
        "import sys, contextlib, runpy\n"
        f"sys.argv = ['{module}', {words}]\n"
        "with contextlib.suppress(SystemExit):\n"
        f"    runpy.run_module('diffsda_jax.{module}', run_name='__main__')\n"
        "print([m for m in ('jax', 'grain', 'tensorflow', 'sklearn') if m in sys.modules])"
    )
    printed, seconds = run(code)
    assert printed.strip().endswith("[]") and option in printed and seconds < 3


@pytest.mark.parametrize(("module", "also_unused"), [("plan", ("orbax",)), ("runs", ())])
def test_no_start_waits_for_what_only_writes_or_scores(module, also_unused):
    unused = ("tensorboardX", "matplotlib", "sklearn", "tensorflow", "av", *also_unused)
    loaded, _ = run(
        f"import sys, diffsda_jax.{module}; print([m for m in {unused} if m in sys.modules])"
    )
    assert loaded.strip() == "[]"
