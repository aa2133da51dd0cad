"""Every relative link in README.md, docs/ and the other Markdown files leads to a file and to a heading of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob(".github/**/*.md")])
_FENCE = re.compile(r"^(```+|~~~+).*?^\1", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^()\s]+)\)|(?:src|href)=\"([^\"]+)\"")
_HEADING = re.compile(r"^#+ (.+?)\s*$", re.MULTILINE)


def prose(text: str) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives a page's headings: lower case, spaces to hyphens, no punctuation."""
    found: set[str] = set()
    for heading in _HEADING.findall(_FENCE.sub("", text)):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        repeated = sum(name == anchor or re.fullmatch(f"{re.escape(anchor)}-\\d+", name) is not None for name in found)
        found.add(f"{anchor}-{repeated}" if repeated else anchor)
    return found


def broken(page: Path, root: Path) -> list[str]:
    """The relative links of a page that lead nowhere."""
    wrong = []
    for match in _LINK.finditer(prose(page.read_text())):
        link = match[1] or match[2]
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or not target.is_relative_to(root):
            wrong.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(target.read_text()):
            wrong.append(f"{link}: no such heading")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page, ROOT) == []


def test_each_page_of_docs_is_linked_from_the_readme_or_another_page() -> None:
    linked = {
        (page.parent / (match[1] or match[2]).partition("#")[0]).resolve()
        for page in PAGES
        for match in _LINK.finditer(prose(page.read_text()))
    }
    orphans = [str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md") if path.resolve() not in linked]
    assert orphans == []


def test_a_missing_file_or_heading_is_found(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# Two words, `code`\n\n## Same\n\n## Same\n")
    page = tmp_path / "a.md"
    page.write_text(
        "[a](b.md) [b](b.md#two-words-code) [c](b.md#same-1) [d](https://x.org/y) `[e](no.md)`\n"
        "```\n[f](no.md)\n```\n[g](c.md) [h](b.md#same-2) [i](#nothing) [j](../out.md)\n"
    )
    (tmp_path.parent / "out.md").write_text("")
    assert [text.partition(":")[0] for text in broken(page, tmp_path)] == [
        "c.md", "b.md#same-2", "#nothing", "../out.md"
    ]  # fmt: skip
