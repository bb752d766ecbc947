"""Markdown pages of the project, taken apart for the tests of this folder."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")


def code_blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of one language."""
    return [text for found, text in _FENCE.findall(page.read_text()) if found == language]


def prose(page: Path) -> str:
    """A page without fenced blocks."""
    return _FENCE.sub("", page.read_text())


def code_spans(page: Path) -> list[str]:
    """Inline code; line breaks within it count as spaces."""
    return [" ".join(span.split()) for span in _SPAN.findall(prose(page))]


def without_code(page: Path) -> str:
    """A page without any code."""
    return _SPAN.sub("", prose(page))


def commands(page: Path) -> list[list[str]]:
    """Command lines of a page, as words: those of shell blocks, and inline ones of programs."""
    lines = []
    for block in code_blocks(page, "bash"):
        joined = re.sub(r"\s*(#[^\n]*)?\\\n\s*", " ", block)
        lines += [line for line in joined.splitlines() if line.strip()]
    begin = re.compile(r"([A-Z_]+=\S+ )*(python|bash) ")
    lines += [span for span in code_spans(page) if begin.match(span)]
    split = (shlex.split(line, comments=True) for line in lines)
    return [words for words in split if words]


def anchors(page: Path) -> set[str]:
    """Names that links can point to, as GitHub makes them of headings."""
    found: set[str] = set()
    for title in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        number, new = 0, name
        while new in found:
            number, new = number + 1, f"{name}-{number + 1}"
        found.add(new)
    return found
