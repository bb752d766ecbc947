import json

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
