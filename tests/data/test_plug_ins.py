import json
import sys

import pytest

from diffsda_jax.data.plug_ins import import_callable


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("json", "detector='json': write it as 'module:callable'"),
        (":loads", "write it as"),
        ("no_such_module:detect", "cannot be imported .*no_such_module.py on PYTHONPATH"),
        ("json:find", "cannot be imported .* define find in it"),
        ("json:__name__", "is of type str and cannot be called"),
        ("FILE:number", "is of type int and cannot be called"),
        ("FILE:other", "cannot be imported .*: mend it and define other in it"),
        ("BROKEN:detect", "cannot be imported .invalid syntax.*: mend it"),
    ],
)
def test_names_of_nothing_that_can_be_called(name, message, tmp_path):
    for word, code in (("FILE", "number = 1"), ("BROKEN", "def")):
        (tmp_path / f"{word}.py").write_text(code)
        name = name.replace(word, str(tmp_path / f"{word}.py"))
    with pytest.raises(ValueError, match=message) as caught:
        import_callable(name, "detector")
    assert "\n" not in str(caught.value)


def test_a_callable_by_its_name():
    assert import_callable("json:loads", "detector") is json.loads


def test_a_callable_of_a_file(tmp_path):
    (tmp_path / "mine.py").write_text("def double(x):\n    return 2 * x\n")
    assert import_callable(f"{tmp_path}/mine.py:double", "detector")(4) == 8
    with pytest.raises(FileNotFoundError, match="detector=.*: there is no file .*other.py"):
        import_callable(f"{tmp_path}/other.py:double", "detector")


_DATACLASS = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Detector:
    size: int = 3

    def __call__(self):
        return self.size
"""


def test_a_file_with_a_dataclass_is_executed_once_and_again_when_it_changes(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(_DATACLASS)
    first = import_callable(f"{file}:Detector", "detector")
    assert first()() == 3 and sys.modules[first.__module__].Detector is first
    assert import_callable(f"{tmp_path}/../{tmp_path.name}/mine.py:Detector", "detector") is first
    file.write_text(_DATACLASS.replace("= 3", "= 44"))
    assert import_callable(f"{file}:Detector", "detector")()() == 44 and first()() == 3


def test_a_file_that_fails_leaves_no_module_and_can_be_mended(tmp_path):
    file, before = tmp_path / "mine.py", set(sys.modules)
    file.write_text("raise OSError('no weights here')")
    for _ in range(2):
        with pytest.raises(ValueError, match="no weights here"):
            import_callable(f"{file}:detect", "detector")
    assert not [name for name in set(sys.modules) - before if "_plug_in_mine" in name]
    file.write_text("def detect():\n    return 1\n")
    assert import_callable(f"{file}:detect", "detector")() == 1
