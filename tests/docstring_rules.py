"""Finds public names whose docstring leaves out shapes, units or errors, from source alone.

Public are classes, functions and methods without a leading underscore, in modules without one, and
of a public class also `__init__`, `__post_init__` and `__call__`, which its docstring may document.

- docstring: every public name has one.
- errors: an exception that the body raises is named under `Raises:`. So are those of private
  helpers that it calls, and of functions of the package that always raise.
- shapes: an array has a jaxtyping shape, or in its entry of the docstring a shape such as
  ``[B, V, ...]``, "scalar" or "the shape of". Arrays are those annotated so, in containers too, and
  what is `Any` by a name of `ARRAY_NAMES` or `ANY_RESULTS`. The comment of an alias counts.
- units: what is named after a quantity (`QUANTITIES`) has its unit in its name or its entry.

The entry of an argument is the one under `Args:`, of a result the text under `Returns:`; where
there is none, the text outside of sections counts. An entry "see ..." or "as in `...`" passes.

Left out are: nested functions; flax's `setup`, setters of properties and stubs of `overload`;
overrides, which may leave shapes, units and errors to the docstring of the class of the package
that they override; raising again, what the same function or context manager catches,
AssertionError, and `NotImplementedError` as the whole body, which declares a method; random keys
and `Callable`, which have no shape.
"""

import ast
import builtins
import re
from collections.abc import Iterator

from package_source import Docstring, Function, Module, Package

ARRAYS = {"Array", "ndarray", "ArrayLike"}
ARRAY_NAMES = set(
    "x x_clean x_noisy x_denoised mask length lengths static dynamic latents codes frames images "
    "embedding samples".split()
)
ANY_RESULTS = set("encode denoise decode invert reconstruct normalize denormalize".split())
# Words of names that ask for a unit. `length` is, by the rules of the house, a number of steps.
QUANTITIES = set(
    "rate rates frequency frequencies duration time times interval delay timeout period hop fft "
    "window stamps sigma sigmas speed bandwidth memory traffic canvas height stride horizon gap "
    "position positions offset shift box boxes angle angles temperature".split()
)
NO_QUANTITY = {"learning_rate", "sigma_data"}
# Words of names that give the unit, or say that it is no quantity.
UNIT_WORDS = set(
    "hz seconds ms ns fps minutes hours years steps samples bytes frames pixels percent share "
    "examples epoch column name names index".split()
)
UNITS = re.compile(
    r"\b(k?hz|hertz|seconds?|milliseconds?|ms|minutes?|hours?|days?|frames?|steps?|samples?"
    r"|[kmgt]?i?bytes?|[kmgt]i?b|pixels?|percent|share|fraction|degrees?|bins?"
    r"|noise levels?|levels?|standard deviations?|deviations?|flops?|epochs?|examples?"
    r"|units? of)\b",
    re.IGNORECASE,
)
_SIZE = r"(\*?\w+(\(\w+\))?|\.\.\.)"
SHAPE = re.compile(
    rf"\[(?=[^\]]*[A-Za-z]){_SIZE}(( ?[-+*/] ?|, ?){_SIZE})*\]|\[\]|\bscalars?\b|\bshape(s|d)?\b",
    re.IGNORECASE,
)
REFERENCE = re.compile(r"\bsee\b|\b(as in|as for) `")
OWN = ("self", "cls", "super()")
INTERFACE = ("__init__", "__post_init__", "__call__")


def offenders(package: Package) -> list[str]:
    """Lines of `file:line name: what is missing`."""
    found = []
    for name, module in package.modules.items():
        if any(part.startswith("_") and part != "__main__" for part in name.split(".")):
            continue
        found += [
            f"{module.path}:{node.lineno} {title}: {lack}"
            for node, title, docs, owner in _public(package, module)
            for lack in _lacks(package, module, node, docs, owner)
        ]
    return found


def _public(package: Package, module: Module) -> Iterator[tuple]:
    """Public definitions, each with its name, its docstrings and its class."""
    for node in module.tree.body:
        if not isinstance(node, (*Function.__args__, ast.ClassDef)) or _is_of_another(node):
            continue
        if not node.name.startswith("_"):
            yield node, node.name, [_docstring(node)], None
        if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
            continue
        bases = list(package.bases(module, node))
        for method in node.body:
            if not isinstance(method, Function) or method.name == "setup":
                continue
            if _is_of_another(method):
                continue
            docs = [_docstring(method)]
            docs += [
                _docstring(other)
                for _, base in bases
                for other in base.body
                if isinstance(other, Function) and other.name == method.name
            ]
            if method.name in INTERFACE:
                docs += [_docstring(node)]
            if method.name in INTERFACE or not method.name.startswith("_"):
                yield method, f"{node.name}.{method.name}", docs, node


def _is_of_another(node: ast.AST) -> bool:
    """It is the setter of a property, or the stub of a function, which another one documents."""
    return any(
        getattr(decorator, "attr", getattr(decorator, "id", "")) in ("setter", "overload")
        for decorator in node.decorator_list
    )


def _docstring(node: ast.AST) -> Docstring:
    return Docstring(ast.get_docstring(node) or "")


def _lacks(package, module, node, docs, owner) -> Iterator[str]:
    """What the docstrings of a definition leave out."""
    if not docs[0].text and node.name not in INTERFACE:
        yield "no docstring"
    if isinstance(node, ast.ClassDef):
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and not item.target.id.startswith("_"):
                yield from _of_value(
                    package, module, item.target.id, item.annotation, docs, ("Attributes", "Args")
                )
        return
    for error in sorted(set(raised(package, module, node, owner))):
        known = {name for doc in docs for name in doc.entries("Raises")}
        if error not in known:
            yield f"no `Raises:` of {error}"
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    arguments += [rest for rest in (node.args.vararg, node.args.kwarg) if rest]
    for argument in arguments:
        yield from _of_value(
            package, module, argument.arg, argument.annotation, docs, ("Args", "Attributes")
        )
    text = _result_text(docs)
    is_any = isinstance(node.returns, ast.Name) and node.returns.id == "Any"
    is_array = is_any and node.name in ANY_RESULTS or _bare_array(package, module, node.returns)
    if is_array and not SHAPE.search(text):
        yield "no shape of the result"
    if _asks_unit(node.name, node.returns) and not UNITS.search(text):
        yield "no unit of the result"


def _of_value(package, module, name, annotation, docs, sections) -> Iterator[str]:
    """What is left out about an argument or an attribute."""
    entries = [doc.entries(*sections)[name] for doc in docs if name in doc.entries(*sections)]
    text = "\n".join(entries or [doc.prose for doc in docs])
    if entries and REFERENCE.search(text):
        return
    is_key = name == "key" or name.endswith("_key")
    is_any = isinstance(annotation, ast.Name) and annotation.id == "Any" and name in ARRAY_NAMES
    if (is_any or _bare_array(package, module, annotation)) and not is_key:
        if not SHAPE.search(text):
            yield f"no shape of {name}"
    if _asks_unit(name, annotation) and not UNITS.search(text):
        yield f"no unit of {name}"


def _result_text(docs: list[Docstring]) -> str:
    """What docstrings say of a result."""
    told = [doc.sections.get(name, "") for doc in docs for name in ("Returns", "Yields")]
    return "\n".join([text for text in told if text] or [doc.prose for doc in docs])


def _asks_unit(name: str, annotation: ast.AST | None) -> bool:
    """Whether a name is one of a quantity without a unit."""
    words = set(name.split("_"))
    is_number = annotation is not None and re.search(
        r"\b(int|float|Float\d*|Int\d*|Array|ndarray)\b", ast.unparse(annotation)
    )
    return bool(
        is_number and words & QUANTITIES and not words & UNIT_WORDS and name not in NO_QUANTITY
    )


def _bare_array(package: Package, module: Module, node: ast.AST | None) -> bool:
    """Whether an annotation has an array without a shape."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        node = ast.parse(node.value, mode="eval").body
    if isinstance(node, ast.Subscript):
        name = node.value.attr if isinstance(node.value, ast.Attribute) else ast.unparse(node.value)
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        shaped = len(parts) == 2 and isinstance(parts[1], ast.Constant | ast.JoinedStr)
        if name in ("Callable", "Literal", "Annotated", "type") or (
            shaped and parts[1] is not None
        ):
            return False
        return any(_bare_array(package, module, part) for part in parts)
    if isinstance(node, ast.BinOp):
        return any(_bare_array(package, module, side) for side in (node.left, node.right))
    if isinstance(node, ast.Attribute) and node.attr in ARRAYS:
        return True
    found = package.find(module, node) if node is not None else None
    if found and isinstance(found[1], ast.Assign):
        home, alias = found
        comment = home.lines[alias.end_lineno - 1].partition("#")[2]
        return _bare_array(package, home, alias.value) and not SHAPE.search(comment)
    return isinstance(node, ast.Name) and node.id in ARRAYS


def raised(package, module, node: Function, owner: ast.ClassDef | None) -> list[str]:
    """Names of the exceptions that a function lets out by its own `raise` or those of helpers."""
    if node not in package.errors:
        package.errors[node] = []  # of a helper that calls itself
        if not _declares(node):
            package.errors[node] = list(_raised_in(package, module, node.body, owner, []))
    return package.errors[node]


def _declares(node: Function) -> bool:
    """Whether the body only raises NotImplementedError."""
    body = [
        item for item in node.body if not isinstance(getattr(item, "value", None), ast.Constant)
    ]
    return (
        len(body) == 1
        and isinstance(body[0], ast.Raise)
        and "NotImplemented" in ast.unparse(body[0])
    )


def _raised_in(package, module, body, owner, caught) -> Iterator[str]:
    for node in body:
        if isinstance(node, (*Function.__args__, ast.ClassDef, ast.Lambda)):
            continue
        if isinstance(node, ast.Raise):
            name = _exception(package, module, node.exc)
            if name and not any(_is_a(package, module, name, kind) for kind in caught):
                yield name
            continue
        if isinstance(node, (ast.Try, ast.TryStar)):
            inner = caught + [
                kind
                for handler in node.handlers
                if not any(isinstance(n, ast.Raise) and n.exc is None for n in ast.walk(handler))
                for kind in _kinds(handler)
            ]
            yield from _raised_in(package, module, node.body, owner, inner)
            rest = [*node.handlers, *node.orelse, *node.finalbody]
            yield from _raised_in(package, module, rest, owner, caught)
            continue
        if isinstance(node, (ast.With, ast.AsyncWith)):
            managers = [item.context_expr for item in node.items]
            yield from _raised_in(package, module, managers, owner, caught)
            inner = caught + [kind for item in managers for kind in _changed(package, module, item)]
            yield from _raised_in(package, module, node.body, owner, inner)
            continue
        if isinstance(node, ast.Call):
            for name in _helper_raises(package, module, node.func, owner):
                if not any(_is_a(package, module, name, kind) for kind in caught):
                    yield name
        yield from _raised_in(package, module, ast.iter_child_nodes(node), owner, caught)


def _changed(package: Package, module: Module, manager: ast.expr) -> list[str]:
    """Exceptions that a context manager of the package catches, to raise others in their place."""
    found = package.find(module, manager.func) if isinstance(manager, ast.Call) else None
    if not found or not isinstance(found[1], Function):
        return []
    tries = [node for node in ast.walk(found[1]) if isinstance(node, ast.Try)]
    return [
        kind
        for node in tries
        if any(isinstance(inner, ast.Yield) for item in node.body for inner in ast.walk(item))
        for handler in node.handlers
        for kind in _kinds(handler)
    ]


def _kinds(handler: ast.ExceptHandler) -> list[str]:
    if handler.type is None:
        return ["BaseException"]
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return [ast.unparse(kind).split(".")[-1] for kind in kinds]


def _exception(package: Package, module: Module, node: ast.expr | None) -> str | None:
    """Name of a raised class; of a function that makes one, its annotation. None: a re-raise."""
    call = node.func if isinstance(node, ast.Call) else node
    found = package.find(module, call) if call is not None else None
    if found and isinstance(found[1], Function):
        return ast.unparse(found[1].returns).split(".")[-1] if found[1].returns else None
    name = ast.unparse(call).split(".")[-1] if call is not None else ""
    is_class = name.lstrip("_")[:1].isupper() and name != "AssertionError"
    return name if is_class else None


def _is_a(package: Package, module: Module, name: str, kind: str) -> bool:
    """Whether an exception is of a kind, by its builtin and its own bases."""
    if name == kind:
        return True
    found = package.find(module, ast.Name(name))
    if found and isinstance(found[1], ast.ClassDef):
        return any(
            _is_a(package, found[0], ast.unparse(base).split(".")[-1], kind)
            for base in found[1].bases
        )
    own, other = getattr(builtins, name, None), getattr(builtins, kind, None)
    return isinstance(own, type) and isinstance(other, type) and issubclass(own, other)


def _helper_raises(package, module, function, owner) -> list[str]:
    """Exceptions of a called function of the package that is private or always raises."""
    found, is_own = package.find(module, function), False
    if owner and isinstance(function, ast.Attribute) and ast.unparse(function.value) in OWN:
        found, is_own = package.method(module, owner, function.attr), True
    if not found or not isinstance(found[1], Function):
        return []
    if not found[1].name.startswith("_") and not _always_raises(found[1].body):
        return []
    return raised(package, found[0], found[1], owner if is_own else None)


def _always_raises(body: list[ast.stmt]) -> bool:
    """Whether a body has no return and ends by raising."""
    last = body[-1]
    if any(isinstance(node, ast.Return) for item in body for node in ast.walk(item)):
        return False
    if isinstance(last, ast.If):
        return bool(last.orelse) and _always_raises(last.body) and _always_raises(last.orelse)
    return isinstance(last, ast.Raise) and last.exc is not None
