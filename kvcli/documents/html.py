"""HTML to text: what a reader of the page sees, as blocks; scripts, navigation and hidden headers are dropped."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kvcli.documents.document import Extract, Part, Source
from kvcli.errors import InputError

DROPPED = frozenset(
    re.findall(
        r"\S+",
        "script style template noscript head title nav svg canvas iframe object audio video map select button "
        "datalist dialog ix:header ix:hidden rp rt -comment -doctype",
    )
)
ROLES = frozenset({"navigation", "search", "contentinfo", "menu", "menubar", "toolbar", "doc-toc", "doc-pagelist"})
BLOCKS = frozenset(
    re.findall(
        r"\S+",
        "p div section article main aside header footer figure figcaption blockquote ul ol li dl dt dd table caption "
        "thead tbody tfoot form fieldset details summary address hgroup center body html hr pre h1 h2 h3 h4 h5 h6 "
        "legend optgroup option math",
    )
)
APART = frozenset(re.findall(r"\S+", "p h1 h2 h3 h4 h5 h6 table ul ol dl pre blockquote figure hr"))

NODES = 5_000_000
"""Nodes of one file that are walked."""

PAGE = "\x02"
"""Around a page label in running text, out of which it is taken before. No white space, or it would be stripped."""

_SPACE = re.compile(r"[ \t\n\r\f]+")
_HIDDEN = re.compile(r"(?:display\s*:\s*none|visibility\s*:\s*hidden)", re.IGNORECASE)
_SELF_CLOSED = re.compile(r"<([A-Za-z][\w:.-]*)((?:\s[^<>]*)?)/>")
_OPENED, _CLOSED = re.compile(r"<html[\s>]", re.IGNORECASE), re.compile(r"</html\s*>", re.IGNORECASE)
_VOID = frozenset(re.findall(r"\S+", "area base br col embed hr img input link meta param source track wbr"))


@dataclass
class HtmlBlock:
    """A line or lines of text; a heading has its ``level``, 1 to 6."""

    text: str
    level: int = 0
    apart: bool = False


@dataclass
class _Walk:
    """Where the walk is: the text of the block being made, and the lists, tables and ``pre`` around it."""

    blocks: list[HtmlBlock] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    lists: list[list[Any]] = field(default_factory=list)  # tag and number of the last item
    pre: int = 0
    rows: list[int] = field(default_factory=list)  # cells so far of the rows around
    cells: int = 0
    level: int = 0
    apart: bool = False

    def flush(self, *, apart: bool = False) -> None:
        """End the block."""
        text = "".join(self.parts)
        self.parts.clear()
        if self.pre:
            text = text.strip("\n")
        else:
            text = "\n".join(line.strip() for line in re.sub(r"[ \t]+", " ", text).split("\n")).strip()
        if text.strip("| \n"):
            self.blocks.append(HtmlBlock(text, self.level, self.apart))
            self.apart = False
        self.apart |= apart


def extract(source: Source) -> Extract:
    """An HTML file, in parts by heading."""
    text, warnings = decode(source.data, source.name)
    if _OPENED.search(text) and not _CLOSED.search(text):
        warnings.append(f"{source.name} has no </html>: it may break off before its end")
    return Extract(parts(blocks(text)), warnings=warnings)


def decode(data: bytes, name: str) -> tuple[str, list[str]]:
    """HTML as characters: by its mark, its own declaration, UTF-8, or else as any text."""
    from kvcli.documents.text import decode as guess

    declared = re.search(rb"""(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]+)""", data[:4096], re.IGNORECASE)
    if declared and not data.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")):
        encoding = declared[1].decode("ascii")
        encoding = "cp1252" if encoding.lower() in ("iso-8859-1", "latin-1", "latin1", "us-ascii") else encoding
        try:
            return data.decode(encoding), []
        except (LookupError, UnicodeDecodeError, ValueError):
            pass
    return guess(data, name, name)


def xhtml(text: str) -> str:
    """XHTML as HTML: ``<title/>`` becomes ``<title></title>``, which for HTML swallows the rest of the book."""

    def closed(match: re.Match[str]) -> str:
        return match[0] if match[1].lower() in _VOID else f"<{match[1]}{match[2]}></{match[1]}>"

    return _SELF_CLOSED.sub(closed, text)


def blocks(html: str) -> list[HtmlBlock]:
    """The blocks of a page in order."""
    from selectolax.lexbor import LexborHTMLParser

    root = LexborHTMLParser(html.replace(PAGE, " ").replace("\0", "")).root
    walk = _Walk()
    if root is None:
        return []
    # A stack and no recursion: ten thousand nested divs are a valid page.
    stack: list[Any] = [root]
    seen = 0
    while stack:
        node = stack.pop()
        if (seen := seen + 1) > NODES:
            raise InputError(f"the HTML has more than {NODES:,} elements; no book has", "name a smaller file")
        if callable(node):
            node()
            continue
        sibling = node.next
        if sibling is not None and node is not root:
            stack.append(sibling)
        leave = _enter(walk, node)
        if leave is None:
            continue
        stack.append(leave)
        if node.child is not None:
            stack.append(node.child)
    walk.flush()
    return walk.blocks


def _enter(walk: _Walk, node: Any) -> Callable[[], None] | None:
    """Begin ``node``; gives what ends it, or ``None`` where it is not to be entered."""
    tag = node.tag
    if tag == "-text":
        text = node.text_content or ""
        walk.parts.append(text if walk.pre else _SPACE.sub(" ", text))
        return None
    if tag in DROPPED or _dropped(node, tag):
        return None
    if label := _page(node):
        walk.parts.append(f"{PAGE}{label}{PAGE}")
        return None
    if tag == "br":
        walk.parts.append("\n")
        return None
    if tag == "img":
        return None
    if tag in ("td", "th"):
        return _cell(walk)
    if tag == "tr":
        return _row(walk)
    if tag in BLOCKS and not walk.cells:
        return _block(walk, tag)
    if tag in BLOCKS:
        walk.parts.append(" ")  # paragraphs in a cell stay on its row
    return lambda: None


def _block(walk: _Walk, tag: str) -> Callable[[], None]:
    walk.flush(apart=tag in APART)
    if tag in ("ul", "ol"):
        walk.lists.append([tag, 0])
    elif tag == "li":
        _item(walk)
    elif tag == "pre":
        walk.pre += 1
    elif len(tag) == 2 and tag[0] == "h" and tag[1].isdigit():
        walk.level = int(tag[1])

    def leave() -> None:
        walk.flush(apart=tag in APART)
        if tag in ("ul", "ol"):
            walk.lists.pop()
        elif tag == "pre":
            walk.pre -= 1
        elif len(tag) == 2 and tag[0] == "h" and tag[1].isdigit():
            walk.level = 0

    return leave


def _item(walk: _Walk) -> None:
    inner: list[Any] = walk.lists[-1] if walk.lists else ["ul", 0]
    inner[1] += 1
    mark = f"{inner[1]}. " if inner[0] == "ol" else "- "
    walk.parts.append(mark)


def _row(walk: _Walk) -> Callable[[], None]:
    """A row of a table is a line; a row of a table in a cell stays on the line of that cell."""
    if walk.cells:
        walk.parts.append(" ")
    else:
        walk.flush()
    walk.rows.append(0)

    def leave() -> None:
        walk.rows.pop()
        if not walk.cells:
            walk.flush()

    return leave


def _cell(walk: _Walk) -> Callable[[], None]:
    if walk.rows:
        if walk.rows[-1]:
            walk.parts.append(" | ")
        walk.rows[-1] += 1
    walk.cells += 1

    def leave() -> None:
        walk.cells -= 1

    return leave


def _dropped(node: Any, tag: str) -> bool:
    """Whether a browser would not show it, or it only leads elsewhere."""
    attributes = node.attributes
    if not attributes:
        return False
    if "hidden" in attributes or attributes.get("role") in ROLES:
        return True
    if (style := attributes.get("style")) and _HIDDEN.search(style):
        return True
    if tag == "a" and {"headerlink", "anchor", "anchor-link"} & set((attributes.get("class") or "").split()):
        return len(node.text_content or "") < 3
    return tag == "input"


def _page(node: Any) -> str | None:
    """The label of a page break of a printed book, as EPUB marks them."""
    attributes = node.attributes
    kinds = f"{attributes.get('epub:type') or ''} {attributes.get('role') or ''}".split()
    if "pagebreak" not in kinds and "doc-pagebreak" not in kinds:
        return None
    label = attributes.get("title") or attributes.get("aria-label") or (node.text_content or "").strip()
    if not label:
        label = re.sub(r"^\D+", "", attributes.get("id") or "")
    return re.sub(r"\s+", " ", label)[:20] or None


def parts(found: list[HtmlBlock], *, first_page: int | None = None) -> list[Part]:
    """Blocks as text, cut at headings and at page marks; each part knows its section, page and line."""
    made: list[Part] = []
    path: list[tuple[int, str]] = []
    page, label, line = first_page, None, 1
    current = Part("", page=page)

    def add(text: str) -> None:
        nonlocal line
        current.text += text
        line += text.count("\n")

    def cut(mark: str = "") -> None:
        nonlocal current
        if current.text:
            made.append(current)
        section = " › ".join(t for _, t in path) or None
        current = Part("", len(mark), page, label, section, line)
        add(mark)

    for i, block in enumerate(found):
        if block.level:
            title = re.sub(rf"{PAGE}[^{PAGE}]*{PAGE}|\s+", " ", block.text).strip()[:200]
            path = [*(p for p in path if p[0] < block.level), (block.level, title)]
            if i:
                add("\n" if current.text.endswith("\n") else "\n\n")
            cut()
        elif i:
            add("\n\n" if block.apart else "\n")
        pieces = block.text.split(PAGE)
        for j, piece in enumerate(pieces):
            if j % 2:
                page, label = (page or 0) + 1, piece
                cut(f"[page {piece}]" + (" " if pieces[j + 1].strip() else ""))
            elif piece:
                heading = "#" * block.level + " " if block.level and not j else ""
                add(heading + (piece.lstrip() if j else piece))
    add("\n")
    cut()
    return made
