"""HTML to text: what a reader of the page sees, as blocks; scripts, navigation and hidden headers are dropped."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from kvcli.documents import stylesheet
from kvcli.documents.document import Extract, Source
from kvcli.documents.equation import linear, mathml
from kvcli.documents.flow import LEVEL, LOWERED, PAGE, RAISED, TextBlock, Writer, clean, left_out, numeral, parts
from kvcli.documents.html_encoding import decode
from kvcli.documents.markup import tidied
from kvcli.errors import InputError

DROPPED = frozenset(
    re.findall(
        r"\S+",
        "script style template noscript head title nav map datalist ix:header ix:hidden rp -comment -doctype defs "
        "symbol desc metadata param source track",
    )
)
LEFT = {
    "img": "picture",
    "image": "picture",
    "canvas": "picture",
    "object": "embedded object",
    "embed": "embedded object",
    "video": "video",
    "audio": "recording",
    "rt": "phonetic guide",
    "del": "struck-out passage",
}
"""Elements that a browser shows and that are not read, and what they are called."""

ROLES = frozenset(["navigation", "search", "contentinfo", "menu", "menubar", "toolbar", "doc-toc", "doc-pagelist"])
BLOCKS = frozenset(
    re.findall(
        r"\S+",
        "p div section article main aside header footer figure figcaption blockquote ul ol menu li dl dt dd table "
        "caption thead tbody tfoot form fieldset details summary address hgroup center body html hr pre h1 h2 h3 "
        "h4 h5 h6 legend x-optgroup x-option dialog button x-shadow svg text iframe",
    )
)
APART = frozenset(re.findall(r"\S+", "p h1 h2 h3 h4 h5 h6 ul ol menu dl pre blockquote figure hr"))
SHOWN_INPUTS = frozenset(
    re.findall(
        r"\S+",
        "submit button reset text search tel url email number date month week time range",
    )
)

NODES = 5_000_000
"""Nodes of one file that are walked."""

FRAMES = 3
"""Pages in each other (``srcdoc``)."""

_SPACE = re.compile(r"[ \t\n\r\f]+")
_OPENED, _CLOSED = re.compile(r"<html[\s>]", re.IGNORECASE), re.compile(r"</html\s*>", re.IGNORECASE)


def extract(source: Source) -> Extract:
    """An HTML file, in parts by heading."""
    text, warnings = decode(source.data, source.name)
    if _OPENED.search(text) and not _CLOSED.search(text):
        warnings.append(f"{source.name} has no </html>: it may break off before its end")
    xhtml = source.name.lower().endswith((".xhtml", ".xht")) or text.lstrip("\ufeff \t\r\n").startswith("<?xml")
    writer = Writer()
    write(writer, text, xhtml=xhtml)
    return Extract(parts(writer.blocks), warnings=warnings, notes=left_out(writer.left, source.name))


def blocks(html: str) -> list[TextBlock]:
    """The blocks of a page in order."""
    writer = Writer()
    write(writer, html)
    return writer.blocks


def write(writer: Writer, html: str, *, xhtml: bool = False, frames: int = 0) -> None:
    """Write what a page shows."""
    from selectolax.lexbor import LexborHTMLParser

    sheets: list[str] = []
    root = LexborHTMLParser(tidied(clean(html), xhtml=xhtml, sheets=sheets)).root
    if root is None:
        return
    hidden = stylesheet.hidden(sheets)
    blocks, left = len(writer.blocks), writer.left.copy()
    covered = _write(writer, root, frames, hidden)
    shown = sum(len(block.text) for block in writer.blocks[blocks:])
    if covered > shown and "<script" in html.lower():  # which shows the page
        del writer.blocks[blocks:]
        writer.left.clear()
        writer.left.update(left)
        _write(writer, root, frames, frozenset())


def _write(writer: Writer, root: Any, frames: int, hidden: frozenset[str]) -> int:
    """Write what ``root`` shows but for what is ``hidden``; returns the characters of that."""
    walk = _Walk(writer, frames, hidden)
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
        leave = walk.enter(node)
        if leave is None:
            continue
        stack.append(leave)
        if node.child is not None:
            stack.append(node.child)
    writer.flush()
    return walk.covered


def _nothing() -> None:
    pass


class _Walk:
    """Writes nodes in order. Each method that begins an element gives what ends it."""

    def __init__(self, writer: Writer, frames: int, hidden: frozenset[str]) -> None:
        self.writer = writer
        self.frames = frames
        self.hidden = hidden
        self.covered = 0
        self.lists: list[tuple[str, int, int]] = []  # kind of number, the next number, the step
        self.drawing = 0

    def enter(self, node: Any) -> Callable[[], None] | None:
        """Begin ``node``; gives what ends it, or ``None`` if it is not to be entered."""
        tag, out = node.tag, self.writer
        if tag == "-text":
            if not self.drawing:
                text = node.text_content or ""
                out.add(text if out.pre else _SPACE.sub(" ", text))
            return None
        if tag in DROPPED:
            return None
        attributes = node.attributes
        if attributes and _unseen(node, tag, attributes):
            return None
        if self.hidden and attributes and self._covers(tag, attributes):
            characters = len(" ".join(node.text().split()))
            self.covered += characters
            out.left["hidden passage"] += bool(characters)
            return None
        if tag in LEFT:
            out.left[LEFT[tag]] += 1
            return None
        if attributes and (label := _page(node, attributes)):
            out.add(f"{PAGE}{label}{PAGE}")
            return None
        if tag in ("br", "hr") and out.around:
            out.add(" ")
            return None
        if tag == "br":
            out.add("\n")
            return None
        if tag in _SPECIAL:
            leave: Callable[[], None] | None = _SPECIAL[tag](self, node, attributes)
            return leave
        if tag in BLOCKS:
            return self._block(tag)
        return _nothing

    def _covers(self, tag: str, attributes: dict[str, str | None]) -> bool:
        names = [f".{name}" for name in (attributes.get("class") or "").split()] + [f"#{attributes.get('id')}"]
        return any(name in self.hidden or f"{tag.removeprefix('x-')}{name}" in self.hidden for name in names)

    def _block(self, tag: str) -> Callable[[], None]:
        out, apart = self.writer, tag in APART
        out.flush(apart=apart)
        return lambda: out.flush(apart=apart)

    def _heading(self, node: Any, _: Any) -> Callable[[], None]:
        out, before = self.writer, self.writer.level
        out.flush(apart=True)
        out.level = int(node.tag[1])

        def leave() -> None:
            out.flush(apart=True)
            out.level = before

        return leave

    def _preformatted(self, _node: Any, _: Any) -> Callable[[], None]:
        out = self.writer
        out.flush(apart=True)
        out.pre += 1

        def leave() -> None:
            out.flush(apart=True)
            out.pre -= 1

        return leave

    def _list(self, node: Any, attributes: dict[str, str | None]) -> Callable[[], None]:
        ordered = node.tag == "ol"
        kind = (attributes.get("type") or "1") if ordered else ""
        step = -1 if ordered and "reversed" in attributes else 1
        first = _whole(attributes.get("start"), 1)
        if step < 0 and "start" not in attributes:
            first = _items(node)
        leave = self._block(node.tag)
        self.lists.append((kind, first, step))

        def end() -> None:
            self.lists.pop()
            leave()

        return end

    def _item(self, _node: Any, attributes: dict[str, str | None]) -> Callable[[], None]:
        leave = self._block("li")
        kind, number, step = self.lists[-1] if self.lists else ("", 0, 1)
        number = _whole(attributes.get("value"), number) if kind else number
        if self.lists:
            self.lists[-1] = (kind, number + step, step)
        self.writer.mark = f"{numeral(number, kind)}. " if kind else "- "

        def end() -> None:
            self.writer.mark = ""
            leave()

        return end

    def _table(self, _node: Any, _: Any) -> Callable[[], None]:
        self.writer.start_table()
        return self.writer.end_table

    def _row(self, _node: Any, _: Any) -> Callable[[], None]:
        self.writer.start_row()
        return self.writer.end_row

    def _cell(self, _node: Any, attributes: dict[str, str | None]) -> Callable[[], None]:
        columns, rows = _whole(attributes.get("colspan"), 1), _whole(attributes.get("rowspan"), 1)
        self.writer.start_cell(columns=columns, rows=rows)
        return self.writer.end_cell

    def _shift(self, node: Any, _: Any) -> Callable[[], None]:
        out = self.writer
        out.add(RAISED if node.tag == "sup" else LOWERED)
        return lambda: out.add(LEVEL)

    def _quote(self, _node: Any, _: Any) -> Callable[[], None]:
        self.writer.add("“")
        return lambda: self.writer.add("”")

    def _dialog(self, _node: Any, attributes: dict[str, str | None]) -> Callable[[], None] | None:
        return self._block("dialog") if "open" in attributes else None

    def _frame(self, _node: Any, attributes: dict[str, str | None]) -> None:
        page = attributes.get("srcdoc")
        if not page or self.frames >= FRAMES:
            self.writer.left["embedded page"] += 1
            return
        self.writer.flush(apart=True)
        write(self.writer, page, frames=self.frames + 1)
        self.writer.flush(apart=True)

    def _svg(self, _node: Any, _: Any) -> Callable[[], None]:
        """A drawing shows the words of its ``text`` elements only."""
        out = self.writer
        out.flush()
        outer, self.drawing = self.drawing, 1

        def leave() -> None:
            out.flush()
            self.drawing = outer

        return leave

    def _words(self, _node: Any, _: Any) -> Callable[[], None]:
        outer, self.drawing = self.drawing, 0
        self.writer.flush()

        def leave() -> None:
            self.writer.flush()
            self.drawing = outer

        return leave

    def _math(self, node: Any, _: Any) -> None:
        display = node.attributes.get("display") == "block"
        if display:
            self.writer.flush()
        self.writer.add(linear(mathml(node)))
        if display:
            self.writer.flush()

    def _input(self, _node: Any, attributes: dict[str, str | None]) -> None:
        kind = (attributes.get("type") or "text").lower()
        if kind in ("checkbox", "radio"):
            self.writer.add("☒" if "checked" in attributes else "☐")
        elif kind in SHOWN_INPUTS and (value := attributes.get("value")):
            self.writer.add(f" {_SPACE.sub(' ', value)} ")

    def _area(self, node: Any, _: Any) -> None:
        self.writer.add(f" {_SPACE.sub(' ', node.text())} ")

    def _select(self, node: Any, attributes: dict[str, str | None]) -> None:
        options = list(_below(node, "x-option"))
        chosen = [o for o in options if "selected" in o.attributes]
        if not chosen and "multiple" not in attributes:
            chosen = options[:1]
        self.writer.add(" " + ", ".join(_SPACE.sub(" ", o.text()).strip() for o in chosen) + " ")


_SPECIAL: dict[str, Callable[[_Walk, Any, Any], Callable[[], None] | None]] = {
    **dict.fromkeys(("h1", "h2", "h3", "h4", "h5", "h6"), _Walk._heading),
    **dict.fromkeys(("ul", "ol", "menu"), _Walk._list),
    **dict.fromkeys(("td", "th"), _Walk._cell),
    **dict.fromkeys(("sup", "sub"), _Walk._shift),
    **dict.fromkeys(("text", "foreignObject", "foreignobject"), _Walk._words),
    "pre": _Walk._preformatted,
    "li": _Walk._item,
    "table": _Walk._table,
    "tr": _Walk._row,
    "q": _Walk._quote,
    "dialog": _Walk._dialog,
    "iframe": _Walk._frame,
    "svg": _Walk._svg,
    "math": _Walk._math,
    "input": _Walk._input,
    "textarea": _Walk._area,
    "x-select": _Walk._select,
}


def _whole(text: str | None, default: int) -> int:
    match = re.match(r"\s*([-+]?\d{1,9})", text or "")
    return int(match[1]) if match else default


def _below(node: Any, tag: str) -> Iterator[Any]:
    """The elements of this name in ``node``, in order."""
    stack = [node.child]
    while stack:
        child = stack.pop()
        if child is not None:
            stack.append(child.next)
            if child.tag == tag:
                yield child
            else:
                stack.append(child.child)


def _items(node: Any) -> int:
    """The items of a list, for one that counts down."""
    child, found = node.child, 0
    while child is not None:
        found += child.tag == "li"
        child = child.next
    return found


def _unseen(node: Any, tag: str, attributes: dict[str, str | None]) -> bool:
    """Whether a browser would not show it, or it only leads elsewhere."""
    if "hidden" in attributes or attributes.get("role") in ROLES:
        return True
    if (style := attributes.get("style")) and stylesheet.HIDDEN.search(style):
        return True
    if tag == "x-a" and {"headerlink", "anchor", "anchor-link"} & set((attributes.get("class") or "").split()):
        child = node.child
        return child is None or (child.tag == "-text" and child.next is None and len(child.text_content or "") < 3)
    return False


def _page(node: Any, attributes: dict[str, str | None]) -> str | None:
    """The label of a page break of a printed book, as EPUB marks them."""
    kinds = f"{attributes.get('epub:type') or ''} {attributes.get('role') or ''}".split()
    if "pagebreak" not in kinds and "doc-pagebreak" not in kinds:
        return None
    label = attributes.get("title") or attributes.get("aria-label") or node.text().strip()
    if not label:
        label = re.sub(r"^\D+", "", attributes.get("id") or "")
    return re.sub(r"\s+", " ", label)[:20] or None
