"""The notebooks of colab/ run from top to bottom, on tiny settings."""

import json

import numpy as np
import pytest
from pages import ROOT
from processes import one_device_environment

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

TINY = {
    "model.static_dim": 4,
    "model.dynamic_dim": 2,
    "model.hidden_dim": 8,
    "model.width": 4,
    "model.encoder_width": 4,
    "data.length": 8,
    "data.num_threads": 0,
    "train.batch_size": 8,
    "train.num_steps": 2,
    "train.log_every_steps": 1,
    "eval.num_clips": 16,
    "eval.num_train_clips": 16,
    "eval.num_swaps": 4,
    "eval.num_steps": 2,
    "eval.judge_steps": 2,
    "eval.parts": ["swap"],
    "report.num_codes": 16,
    "report.num_clips": 2,
    "report.num_components": 1,
    "report.num_places": 3,
}


def run_notebook(name, workdir, config, **settings):
    """Runs a notebook in a kernel of its own; the environment is its first cell's."""
    notebook = nbformat.read(ROOT / "colab" / name, as_version=4)
    options = TINY | settings.pop("options", {})
    variables = {"CONFIG": config, "WORKDIR": str(workdir), "OPTIONS": json.dumps(options)}
    environment = one_device_environment()
    environment |= {f"DIFFSDA_{k}": v for k, v in (variables | settings).items()}
    environment |= {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment |= {"PYTHONPATH": str(ROOT), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    )
    client.execute(env=environment)
    return ["".join(map(str, cell.get("outputs", ()))) for cell in notebook.cells]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "table.csv"
    values = np.sin(np.arange(120)[:, None] / [3.0, 5.0])
    rows = [",".join(map(str, row)) for row in values]
    path.write_text("\n".join(["flow,heat", *rows]))
    return path


# Nobody can mend what these packages warn of here.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
class TestNotebooks:
    def test_your_own_data(self, table, tmp_path):
        outputs = run_notebook("your_own_data.ipynb", tmp_path, "configs/csv.py", DATA=str(table))
        assert "report.html" in outputs[-1] and (tmp_path / "report.html").stat().st_size > 10_000
        (swap,) = (tmp_path / "swaps").glob("*.csv")
        assert len(swap.read_text().splitlines()) == 121
        assert any("2 train" in output or "train:" in output for output in outputs)

    @pytest.mark.slow
    def test_swap_and_explore(self, tmp_path):
        outputs = run_notebook("swap_and_explore.ipynb", tmp_path, "configs/japanese_vowels.py")
        assert sum("image/png" in output for output in outputs) == 2  # both plots
        assert (tmp_path / "factors.npz").is_file()

    @pytest.mark.slow
    def test_train(self, tmp_path):
        outputs = run_notebook("train_tpu.ipynb", tmp_path, "configs/japanese_vowels.py")
        assert any("report.html" in output for output in outputs)
        assert (tmp_path / "checkpoints" / "2").is_dir()
