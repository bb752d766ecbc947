"""Files from strangers: reading them runs none of their code."""

import ast
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from infer_models import random_weights

from diffsda_jax import DiffSDA, Factors
from diffsda_jax.convert.torch_file import load_state_dict
from diffsda_jax.data.factor_cache import FactorCache, FactorWriter
from diffsda_jax.data.media_reader import read_files
from diffsda_jax.model import ModelSpec, variable_shapes
from diffsda_jax.train import checkpoint

SPEC = ModelSpec("series", (3,), 4, 2, 8, width=4, encoder_width=4)


class Trap:
    """Whoever unpickles it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture
def trap(tmp_path):
    """An object whose unpickling would leave a file; fails the test if there is one."""
    mark = tmp_path / "sprung"
    yield Trap(mark)
    assert not mark.exists()


def test_the_trap_works(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("read", [Factors.load, lambda path: read_files([path], "series")])
def test_arrays_of_objects_are_refused(tmp_path, trap, read):
    path = tmp_path / "evil.npz"
    np.savez(path, static=np.array([trap], object), dynamic=np.zeros((1, 2, 2)))
    with pytest.raises(ValueError, match=r"evil.npz is no .npz file of plain arrays"):
        read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("static.npy", pickle.dumps(trap))
    with pytest.raises(ValueError, match=r"evil.npz is no .npz file of plain arrays"):
        read(path)


def test_shards_of_factors_that_are_pickles_are_refused(tmp_path, trap):
    writer = FactorWriter(tmp_path, {}, 2, 2)
    writer.write(0, np.ones((2, 3), np.float32), np.ones((2, 4, 2), np.float32))
    writer.finish()
    for content in (pickle.dumps(trap), _object_array(trap)):
        (tmp_path / "factors-00000.npy").write_bytes(content)
        with pytest.raises(ValueError, match="factors-00000.npy is damaged"):
            FactorCache.load(tmp_path)


def _object_array(trap):
    buffer = io.BytesIO()
    np.save(buffer, np.array([trap], object), allow_pickle=True)
    return buffer.getvalue()


def test_torch_files_with_other_globals_are_refused(tmp_path, trap):
    path = tmp_path / "evil.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("evil/data.pkl", pickle.dumps(trap, 2))
        archive.writestr("evil/version", "3")
    with pytest.raises(ValueError, match=r"evil.pth"):
        load_state_dict(path)
    path.write_bytes(pickle.dumps(trap, 2))
    with pytest.raises(ValueError, match=r"evil.pth"):
        load_state_dict(path)


def test_the_config_of_a_checkpoint_is_data(tmp_path):
    """A path to code in it, which a command line may give, is not followed when it is loaded."""
    mark, code = tmp_path / "sprung", tmp_path / "evil.py"
    code.write_text(f"open({str(mark)!r}, 'w')\n\ndef get_config():\n    return None\n")
    meta = {
        "model": SPEC.to_dict(),
        "config": {
            "data": {"length": 6},
            "first_stage_training": {"perceptual": f"{code}:get_config"},
            "explore": {"decomposition": f"{code}:get_config"},
            "source": {"name": str(code), "options": {"root": f"__import__('os').mknod('{mark}')"}},
        },
    }
    checkpoint.save_converted(tmp_path, random_weights(variable_shapes(SPEC)), meta)
    model = DiffSDA.from_checkpoint(tmp_path)
    assert json.loads(json.dumps(model.meta["config"])) == meta["config"]
    assert not mark.exists()


# Modules that may: config files, studies and plug-ins are the user's own; torch files have an
# unpickler that knows a few names only.
_MAY_RUN = {"python_file.py"}
_MAY_UNPICKLE = {"torch_file.py", "torch_legacy_file.py"}
_FORBIDDEN = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "cloudpickle", "yaml"}


def test_nothing_else_unpickles_or_runs_text():
    for path in Path("diffsda_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {alias.name.partition(".")[0] for alias in node.names}
                names |= {(getattr(node, "module", None) or "").partition(".")[0]}
                assert path.name in _MAY_UNPICKLE or not names & _FORBIDDEN, where
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile", "__import__"), where
            if isinstance(node, ast.Attribute) and node.attr in ("exec_module", "run_path"):
                assert path.name in _MAY_RUN, where
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, where
