"""Reads a package from its source alone: what its names stand for, and its docstrings."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SECTIONS = "Args|Arguments|Attributes|Returns|Yields|Raises|References|Example|Examples|Note|Notes"
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Docstring:
    """A docstring taken apart: text outside of sections, and entries or text of sections."""

    text: str
    prose: str = ""
    sections: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name, margin = None, 0
        for line in self.text.splitlines():
            head = re.fullmatch(rf"( *)({SECTIONS}):", line)
            indent = len(line) - len(line.lstrip())
            if head:
                name, margin = head[2], indent
                self.sections[name] = ""
            elif name and (not line.strip() or indent > margin):
                self.sections[name] += line + "\n"
            else:
                name = None
                self.prose += line + "\n"

    def entries(self, *sections: str) -> dict[str, str]:
        """Texts of `name: text` entries, whose further lines are indented more."""
        found: dict[str, str] = {}
        for section in sections:
            names: list[str] = []
            margin = None
            for line in self.sections.get(section, "").splitlines():
                indent = len(line) - len(line.lstrip())
                margin = indent if margin is None else margin
                head = re.match(r" *([\w*`., ]+?)(?: \([^)]*\))?: ", line + " ")
                if line.strip() and indent <= margin:
                    names = re.findall(r"[\w.]+", head[1]) if head else []
                for name in names:
                    found[name.split(".")[-1]] = found.get(name.split(".")[-1], "") + line + "\n"
        return found


@dataclass
class Module:
    """A parsed file, with the names that it defines and imports."""

    path: Path
    tree: ast.Module
    lines: list[str]
    imports: dict[str, tuple[str, str]]
    names: dict[str, ast.AST]


class Package:
    """All modules of a package by dotted name, and what names in them stand for."""

    def __init__(self, sources: dict[str, tuple[Path, str]]) -> None:
        self.modules: dict[str, Module] = {}
        self.errors: dict[Function, list[str]] = {}
        for name, (path, source) in sources.items():
            tree = ast.parse(source)
            imports = {
                alias.asname or alias.name: (node.module or "", alias.name)
                for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom)
                for alias in node.names
            }
            names: dict[str, ast.AST] = {}
            for node in tree.body:
                if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                    names[node.name] = node
                elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    names[node.targets[0].id] = node
            self.modules[name] = Module(path, tree, source.splitlines(), imports, names)

    @classmethod
    def of_folder(cls, folder: Path) -> "Package":
        """Reads the files of a package."""
        sources = {}
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            sources[name] = (path.relative_to(folder.parent), path.read_text())
        return cls(sources)

    def find(self, module: Module, node: ast.AST) -> tuple[Module, ast.AST] | None:
        """What `name` or `module.name` stands for, followed through imports."""
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            source, name = module.imports.get(node.value.id, ("", ""))
            other = self.modules.get(f"{source}.{name}")
            return (other, other.names[node.attr]) if other and node.attr in other.names else None
        if not isinstance(node, ast.Name):
            return None
        if node.id in module.names:
            return module, module.names[node.id]
        source, name = module.imports.get(node.id, ("", ""))
        other = self.modules.get(source)
        return (other, other.names[name]) if other and name in other.names else None

    def bases(self, module: Module, node: ast.ClassDef) -> Iterator[tuple[Module, ast.ClassDef]]:
        """Classes of the package from which one inherits."""
        for base in node.bases:
            found = self.find(module, base)
            if found and isinstance(found[1], ast.ClassDef):
                yield found[0], found[1]
                yield from self.bases(found[0], found[1])

    def method(
        self, module: Module, node: ast.ClassDef, name: str
    ) -> tuple[Module, Function] | None:
        """A method of a class or of its bases in the package."""
        for home, owner in [(module, node), *self.bases(module, node)]:
            for item in owner.body:
                if isinstance(item, Function) and item.name == name:
                    return home, item
        return None
