"""Sentences of docs and docstrings are short enough to be understood at once."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LONGEST = 25
"""Words of a sentence."""

_NOT_PROSE = (
    (r"```.*?```", "\n\n"),  # blocks of code
    (r"<!--.*?-->", "\n\n"),
    (r"^ *\|.*$", "\n\n"),  # tables
    (r"^#+ .*$", "\n\n"),
    (r"\]\([^)\s]*\)", "]"),  # addresses of links
    (r"``.+?``|`[^`]+`", "`code`"),  # code, formulas and lists of them count as one word
    (r"`code`(?:( \([^)]*\))?,\s+`code`)+", "`code`"),
    (r"^ +kvcli .*$", ""),  # examples of commands
)
_TABLE_LINE = re.compile(r"\S {2,}\S|[│├└┌→]")
_ITEM = re.compile(r"\n\s*\n|\n\s*(?:[-*]|\d+\.) |\n +(?=[\w*]+(?:, [\w*]+)*: )|\n(?=[A-Z]\w+:\s)")
_END = re.compile(
    r"(?:(?<=[.!?:;])|(?<=[.!?][)\"”*]))\s+(?=[A-Z`*\"“(\[0-9])|(?<=[.!?])(?<!al\.)(?<!e\.g\.)(?<!p\.)\s+| · "
)


def sentences(text: str) -> Iterator[str]:
    """The sentences of Markdown or of a docstring, without code, tables and headings."""
    for pattern, instead in _NOT_PROSE:
        text = re.sub(pattern, instead, text, flags=re.DOTALL if "*?" in pattern else re.MULTILINE)
    text = "\n".join("" if _TABLE_LINE.search(line) else line for line in text.split("\n"))
    for item in _ITEM.split(text):
        yield from _END.split(" ".join(item.split()))


def words(sentence: str) -> int:
    return sum(any(c.isalnum() for c in word) for word in sentence.split())


def too_long(text: str) -> list[str]:
    return [f"{words(s)} words: {s}" for s in sentences(text) if words(s) > LONGEST]


def _pages() -> list[Path]:
    generated = {"log.md", "reference.md", "recordings.md"}
    pages = [page for page in (ROOT / "docs").rglob("*.md") if page.name not in generated]
    return [*pages, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def _docstrings(source: str) -> Iterator[str]:
    """All strings that are statements: docstrings of modules, classes, functions and attributes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield "\n".join(line.strip() if i == 0 else line for i, line in enumerate(node.value.value.split("\n")))


def test_pages() -> None:
    found = [f"{page.relative_to(ROOT)}: {one}" for page in _pages() for one in too_long(page.read_text("utf-8"))]
    assert not found, f"sentences of more than {LONGEST} words; make two of each:\n" + "\n".join(found)


@pytest.mark.parametrize("package", ["kvcli", "kernels"])
def test_docstrings(package: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {one}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for docstring in _docstrings(path.read_text("utf-8"))
        for one in too_long(docstring)
    ]
    assert not found, f"sentences of more than {LONGEST} words; make two of each:\n" + "\n".join(found)


def test_a_long_sentence_is_found_in_any_place() -> None:
    long = " ".join(["Word", *["word"] * LONGEST]) + "."
    for text in (long, f"Short. {long} Short.", f"- one\n- {long}\n", f"Args:\n    name: {long}\n"):
        assert len(too_long(text)) == 1, text
    for text in (
        f"```\n{long}\n```",
        f"| {long} |",
        f"# {long}",
        f"`{long}` is code.",
        long.replace(" word word", ". Word", 1),
    ):
        assert not too_long(text), text
