"""OpenDocument: text, sheets and slides, which share their elements."""

from typing import Any

from kvcli.documents import pages
from kvcli.documents.archive import Archive, attribute, elements, xml
from kvcli.documents.document import Extract, Source
from kvcli.documents.flow import PAGE, Writer, clean, comment, left_out, parts, slide_parts
from kvcli.errors import InputError

REPEATED = 1_000
"""Times that one row or cell with text is repeated at most."""

_SKIPPED = frozenset(("tracked-changes", "sequence-decls", "forms", "variable-decls", "user-field-decls", "ruby-text"))


def extract(source: Source) -> Extract:
    """The text of an .odt, .ods or .odp file. Raises ``InputError`` for damage and encryption."""
    with Archive(source) as archive:
        if "META-INF/manifest.xml" in archive.names:
            manifest = xml(archive, "META-INF/manifest.xml", repair=True)
            if next(elements(manifest, "encryption-data"), None) is not None:
                raise InputError(f"{source.name} is encrypted: it needs a password", "save it without a password")
        body = next(elements(xml(archive, "content.xml"), "body"), None)
        if body is None:
            raise archive.damaged("content.xml has no text")
        slides = list(elements(body, "page"))
        chosen = pages.select(source.options.pages, len(slides), source.name) if slides else []
        reader = _Reader()
        for number in chosen:
            reader.slide(number, slides[number - 1])
        if not slides:
            reader.children(body)
        reader.out.flush()
    blocks = reader.out.blocks
    found = slide_parts(blocks, chosen) if slides else parts(blocks)
    return Extract(found, len(chosen) or None, notes=left_out(reader.out.left, source.name))


class _Reader:
    def __init__(self) -> None:
        self.out = Writer()

    def slide(self, number: int, node: Any) -> None:
        """Write one slide."""
        self.out.flush(apart=True)
        self.out.add(f"{PAGE}{number}{PAGE}")
        self.children(node)
        self.out.flush(apart=True)

    def children(self, node: Any) -> None:
        """Write what an element contains."""
        for child in node:
            if isinstance(child.tag, str):
                self._node(child)

    def _node(self, node: Any) -> None:
        out, name = self.out, str(node.tag).rpartition("}")[2]
        if name in _SKIPPED:
            return
        if name in ("h", "p"):
            self._paragraph(node, name)
        elif name == "list-item":
            out.flush()
            out.mark = "- "
            self.children(node)
            out.mark = ""
        elif name == "table":
            self._table(node)
        elif name == "notes":
            out.flush(apart=True)
            out.mark = "Notes: "
            self.children(node)
            out.mark = ""
        elif name == "annotation":
            who = "".join("".join(n.itertext()) for n in node.iterchildren("{*}creator"))
            out.add(f" {comment(who, ' '.join(''.join(p.itertext()) for p in elements(node, 'p')))} ")
        elif name in ("image", "object", "chart"):
            out.left["picture" if name == "image" else "embedded object"] += 1
        else:
            self.children(node)

    def _paragraph(self, node: Any, name: str) -> None:
        out = self.out
        out.flush(apart=not out.mark and not out.around)
        level = attribute(node, "outline-level")
        out.level = min(6, int(level)) if name == "h" and level.isdigit() and level != "0" else 0
        self._inline(node)
        out.flush()
        out.level = 0

    def _inline(self, node: Any) -> None:
        out = self.out
        out.add(clean(" ".join((node.text or "").split("\n"))))
        for child in node:
            name = str(child.tag).rpartition("}")[2] if isinstance(child.tag, str) else ""
            if name == "s":
                count = attribute(child, "c")
                out.add(" " * min(int(count) if count.isdigit() else 1, 80))
            elif name == "tab":
                out.add("\t")
            elif name == "line-break":
                out.add(" " if out.around else "\n")
            elif name == "note":
                words = " ".join("".join(p.itertext()) for p in elements(child, "p"))
                out.add(f" ({clean(' '.join(words.split()))}) " if words.strip() else "")
            elif name in ("frame", "annotation", "image", "object"):
                self._node(child)
            elif name not in _SKIPPED and name:
                self._inline(child)
            out.add(clean(" ".join((child.tail or "").split("\n"))))

    def _table(self, node: Any) -> None:
        out = self.out
        name = attribute(node, "name")
        if node.getparent() is not None and str(node.getparent().tag).endswith("}spreadsheet") and name:
            out.flush(apart=True)
            out.level = 1
            out.add(clean(name))
            out.flush()
            out.level = 0
        out.start_table()
        for row in node.iter("{*}table-row"):
            if next((a for a in row.iterancestors("{*}table")), None) is node:
                for _ in range(_times(row, "number-rows-repeated")):
                    self._row(row)
        out.end_table()

    def _row(self, row: Any) -> None:
        out = self.out
        out.start_row()
        cells = list(row.iterchildren("{*}table-cell"))
        while cells and not _worded(cells[-1]):
            cells.pop()
        for cell in cells:
            for _ in range(_times(cell, "number-columns-repeated")):
                out.start_cell(columns=_span(cell, "columns"), rows=_span(cell, "rows"))
                self.children(cell)
                out.end_cell()
        out.end_row()


def _times(node: Any, name: str) -> int:
    """How often a row or a cell is repeated; one that is empty counts once, however many fill the sheet."""
    value = attribute(node, name)
    return min(int(value), REPEATED) if value.isdigit() and _worded(node) else 1


def _worded(node: Any) -> bool:
    return any(text.strip() for text in node.itertext())


def _span(cell: Any, what: str) -> int:
    value = attribute(cell, f"number-{what}-spanned")
    return min(int(value), REPEATED) if value.isdigit() and value != "0" else 1
