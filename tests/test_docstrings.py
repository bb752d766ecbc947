"""Public names of the package state shapes, units and errors; `docstring_rules` says how."""

from pathlib import Path

import pytest
from docstring_rules import offenders
from package_source import Package

PACKAGE = Path(__file__).parents[1] / "diffsda_jax"


def found(**sources):
    """What is missing in modules of a made-up package."""
    modules = {f"made_up.{name}": (Path(f"{name}.py"), text) for name, text in sources.items()}
    return offenders(Package(modules))


def function(signature, docstring="Does it.", body="pass"):
    """Source of a function; the lines of docstring and body are indented."""
    lines = [f'"""{docstring}\n"""', body]
    inner = "\n".join(lines).replace("\n", "\n    ")
    return f"def {signature}:\n    {inner}\n"


def lacks(*arguments, before=""):
    """What a single function lacks."""
    return [line.split(": ", 1)[1] for line in found(one=before + function(*arguments))]


def documented(entry, section="Args"):
    """A docstring with one section."""
    return f"Does it.\n\n{section}:\n  {entry}"


def test_public_docstrings_are_complete():
    missing = offenders(Package.of_folder(PACKAGE))
    assert not missing, "\n" + "\n".join(missing)


def test_an_offender_is_named_with_its_place():
    assert found(one="import os\n\n\ndef bare():\n    pass\n") == ["one.py:4 bare: no docstring"]
    assert found(one='class Bare:\n    """Is."""\n    def go(self): pass\n') == [
        "one.py:3 Bare.go: no docstring"
    ]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("one", "def _private():\n    pass\n"),
        ("_private", "def bare():\n    pass\n"),
        ("one", function("outer()", "Does it.", "def inner(): raise ValueError")),
        ("one", 'class Net:\n    """Is."""\n    def setup(self): pass\n'),
        ("one", "class _Private:\n    def bare(self): pass\n"),
    ],
)
def test_what_is_not_public_is_left_out(name, source):
    assert found(**{name: source}) == []


@pytest.mark.parametrize(
    "body",
    [
        "raise ValueError('bad')",
        "if True:\n    raise ValueError",
        "try:\n    go()\nexcept OSError as error:\n    raise ValueError from error",
        "_helper()",
        "always()",
        "two.always()",
        "raise make_error()",
        "try:\n    raise ValueError\nexcept KeyError:\n    pass",
        "try:\n    raise ValueError\nexcept ValueError:\n    raise",
    ],
)
def test_raised_errors_are_documented(body):
    other = function("always()", documented("ValueError: always.", "Raises"), "raise ValueError()")
    own = "from made_up import two\nfrom made_up.two import always\n"
    own += function("_helper()", "Checks.", "if True:\n    raise ValueError")
    own += function("make_error() -> ValueError", "Makes one.", "return ValueError()")
    given = own + function("run()", "Does it.", body)
    (line,) = found(one=given, two=other)
    assert line.endswith("run: no `Raises:` of ValueError")
    for entry in ("ValueError: sometimes.", "KeyError, ValueError: sometimes."):
        told = own + function("run()", documented(entry, "Raises"), body)
        assert found(one=told, two=other) == []
    other_type = own + function("run()", documented("OSError: sometimes.", "Raises"), body)
    assert len(found(one=other_type, two=other)) == 1


@pytest.mark.parametrize(
    "body",
    [
        "try:\n    go()\nexcept OSError:\n    raise",
        "try:\n    raise ValueError\nexcept Exception:\n    pass",
        "try:\n    raise Own\nexcept LookupError:\n    pass",
        "with _naming():\n    raise ValueError",
        "raise NotImplementedError",
        "raise AssertionError",
        "go(lambda: fail())",
    ],
)
def test_errors_that_do_not_get_out_need_no_word(body):
    before = (
        "class Own(KeyError):\n    'Is.'\n"
        "def _naming():\n    try:\n        yield\n    except ValueError:\n        pass\n"
    )
    assert found(one=before + function("run()", "Does it.", body)) == []


def test_errors_of_a_class_may_stand_at_the_class():
    source = (
        'class Spec:\n    """Is.{}"""\n    def __post_init__(self):\n        raise ValueError\n'
    )
    assert found(one=source.format("")) == [
        "one.py:3 Spec.__post_init__: no `Raises:` of ValueError"
    ]
    assert found(one=source.format("\n\n    Raises:\n      ValueError: ever.\n    ")) == []


def test_an_override_may_leave_things_to_its_base():
    base = 'class Base:\n    """Is."""\n    def go(self, x: Array):\n        """Of ``{}``."""\n'
    child = (
        "from made_up.two import Base\n"
        'class Child(Base):\n    """Is."""\n    def go(self, x: Array):\n        """Goes."""\n'
    )
    assert found(one=child, two=base.format("[B, V]")) == []
    assert len(found(one=child, two=base.format("x"))) == 2


@pytest.mark.parametrize(
    "kind",
    [
        *("Array", "jax.Array", "np.ndarray", "np.ndarray | None", "'Array'", "list[np.ndarray]"),
        *("dict[str, Array]", "tuple[Array, int]", "Any", "Bare", "Float[Array, 'B'] | Array"),
    ],
)
def test_arrays_have_shapes(kind):
    alias = "Bare = list[Array]\n"
    assert lacks(f"run(x: {kind})", before=alias) == ["no shape of x"]
    assert lacks(f"encode() -> {kind}", before=alias) == ["no shape of the result"]
    for shape in ("[B, V, ...]", "[N]", "[]", "[K + 1, h, *rest]", "[len(self)]"):
        assert lacks(f"run(x: {kind})", documented(f"x: clips ``{shape}``."), before=alias) == []
        told = documented(f"Clips ``{shape}``.", "Returns")
        assert lacks(f"encode() -> {kind}", told, before=alias) == []
    assert lacks(f"run(x: {kind})", "Adds ``[B]`` to x.", before=alias) == []
    other = documented("x: clips in [-1, 1].\n  y: numbers ``[B]``.")
    assert lacks(f"run(x: {kind}, y)", other, before=alias) == ["no shape of x"]


@pytest.mark.parametrize(
    "argument",
    [
        *("x: Float[Array, 'B V']", "x: Callable[[Array], Array]", "x: Literal['Array']"),
        *("key: Array", "root_key: Array", "x: Shaped", "other: Any", "x: Told"),
    ],
)
def test_what_has_a_shape_or_none_passes(argument):
    aliases = 'Shaped = Float[Array, "B"] | None\nTold = list[Array]  # of [V, ...]\n'
    assert lacks(f"run({argument})", before=aliases) == []


def test_fields_are_arguments():
    source = 'class Spec:\n    """Is.\n\n    Attributes:\n      x: {}\n    """\n    x: Array\n'
    assert found(one=source.format("clips.")) == ["one.py:1 Spec: no shape of x"]
    assert found(one=source.format("clips ``[B, V]``.")) == []


@pytest.mark.parametrize("name", ["rate", "duration", "time", "sigma", "hop", "poll_interval"])
def test_quantities_have_units(name):
    assert lacks(f"run({name}: float)") == [f"no unit of {name}"]
    assert lacks(f"{name}() -> float") == ["no unit of the result"]
    for unit in ("seconds", "Hz", "noise level", "samples"):
        assert lacks(f"run({name}: float)", documented(f"{name}: in {unit}.")) == []
        assert lacks(f"{name}() -> float", f"In {unit}.") == []
    other = documented(f"{name}: how much.\n  y: in seconds.")
    assert lacks(f"run({name}: float, y)", other) == [f"no unit of {name}"]


@pytest.mark.parametrize(
    "argument", ["rate_hz: int", "time_column: str", "rate: str", "learning_rate: float"]
)
def test_a_unit_may_be_in_the_name(argument):
    assert lacks(f"run({argument})") == []


@pytest.mark.parametrize("entry", ["see ``other``.", "as in ``other``.", "as for `other`."])
def test_an_entry_may_refer_to_another_docstring(entry):
    assert lacks("run(sigma: Array)", documented(f"sigma: {entry}")) == []
