"""PPTX: a page for each slide, with its tables, diagrams and speaker notes."""

from collections.abc import Iterator
from typing import Any

from kvcli.documents import ooxml, pages
from kvcli.documents.archive import Archive, attribute, elements
from kvcli.documents.document import Extract, Source
from kvcli.documents.flow import PAGE, Writer, clean, left_out, slide_parts

_FURNITURE = ("sldNum", "dt", "ftr", "hdr")
"""Place holders that say on each slide the same: number, date, footer, header."""

_TITLES = ("title", "ctrTitle")


def extract(source: Source) -> Extract:
    """The text of a presentation, slide by slide. Raises ``InputError`` for damage."""
    with Archive(source) as archive:
        reader = _Reader(archive)
        names = reader.slides()
        chosen = pages.select(source.options.pages, len(names), source.name)
        for number in chosen:
            reader.slide(number, names[number - 1])
    found = slide_parts(reader.out.blocks, chosen)
    return Extract(found, len(chosen), notes=left_out(reader.out.left, source.name), without_text=reader.empty)


class _Reader:
    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.out = Writer()
        self.empty: list[int] = []

    def slides(self) -> list[str]:
        """The members with the slides, in the order of the presentation."""
        archive = self.archive
        found = [name for kind, name in ooxml.relations(archive, "").values() if kind == "officeDocument"]
        main = next((name for name in found if name in archive.names), "ppt/presentation.xml")
        related = ooxml.relations(archive, main)
        ids = [
            _relation(node) for node in elements(next(elements(ooxml.root(archive, main), "sldIdLst"), None), "sldId")
        ]
        names = [related.get(number, ("", ""))[1] for number in ids]
        return list(dict.fromkeys(name for name in names if name in archive.names))

    def slide(self, number: int, name: str) -> None:
        """Write one slide. A hidden one is read too: it is part of the file that was handed over."""
        out, root = self.out, ooxml.root(self.archive, name)
        related = ooxml.relations(self.archive, name)
        before = len(out.blocks)
        out.flush(apart=True)
        out.add(f"{PAGE}{number}{PAGE}")
        shapes = [node for tree in elements(root, "spTree") for node in _shapes(tree)]
        for node in sorted(shapes, key=lambda node: _place(node) not in _TITLES):  # the title first
            self._shape(node, related)
        for kind, member in related.values():
            if kind == "notesSlide" and member in self.archive.names:
                self._notes(member)
            out.left["chart"] += kind == "chart"
            out.left["comment"] += kind in ("comments", "threadedComment")
        out.flush(apart=True)
        if len(out.blocks) == before + 1 and not clean(out.blocks[-1].text).strip(str(number) + " "):
            self.empty.append(number)

    def _shape(self, node: Any, related: dict[str, tuple[str, str]]) -> None:
        out, kind = self.out, _name(node)
        place = _place(node)
        if place in _FURNITURE:
            return
        if kind == "pic":
            out.left["picture"] += 1
        elif kind == "sp":
            self._paragraphs(node, level=2 if place in _TITLES else 0)
            out.flush(apart=True)
        elif (table := next(elements(node, "tbl"), None)) is not None:
            self._table(table)
        elif (diagram := next(elements(node, "relIds"), None)) is not None:
            member = related.get(attribute(diagram, "dm"), ("", ""))[1]
            if member in self.archive.names:
                self._paragraphs(ooxml.root(self.archive, member))
                out.flush(apart=True)

    def _paragraphs(self, node: Any, level: int = 0) -> None:
        for paragraph in elements(node, "p"):
            self.out.flush()
            self.out.level = level
            properties = next(paragraph.iterchildren("{*}pPr"), None)
            if properties is not None and next(elements(properties, "buChar"), None) is not None:
                self.out.mark = "- "
            self._runs(paragraph)
            self.out.mark = ""
        self.out.flush()
        self.out.level = 0

    def _runs(self, paragraph: Any) -> None:
        for node in paragraph.iter("{*}t", "{*}br"):
            self.out.add(clean(node.text or "") if _name(node) == "t" else " ")

    def _table(self, table: Any) -> None:
        out = self.out
        out.start_table()
        for row in table.iterchildren("{*}tr"):
            out.start_row()
            for cell in row.iterchildren("{*}tc"):
                if attribute(cell, "hMerge") in ("1", "true") or attribute(cell, "vMerge") in ("1", "true"):
                    continue  # part of the cell to its left or above it
                out.start_cell(columns=_number(cell, "gridSpan"), rows=_number(cell, "rowSpan"))
                for paragraph in elements(cell, "p"):
                    self._runs(paragraph)
                    out.flush()
                out.end_cell()
            out.end_row()
        out.end_table()

    def _notes(self, member: str) -> None:
        """Write the speaker notes below the slide."""
        for tree in elements(ooxml.root(self.archive, member), "spTree"):
            for node in _shapes(tree):
                if _name(node) == "sp" and _place(node) == "body":
                    self.out.mark = "Notes: "
                    self._paragraphs(node)
                    self.out.mark = ""
                    self.out.flush(apart=True)


def _relation(node: Any) -> str:
    """The id of a relation, which has a namespace; an id without one is the slide's number."""
    return next((str(value) for name, value in node.items() if name.endswith("}id")), "")


def _shapes(tree: Any) -> Iterator[Any]:
    """The shapes of a slide in order, those in groups one by one."""
    for node in tree:
        if not isinstance(node.tag, str):
            continue
        if _name(node) in ("sp", "graphicFrame", "pic"):
            yield node
        elif _name(node) in ("grpSp", "AlternateContent", "Choice"):
            yield from _shapes(node)


def _place(node: Any) -> str:
    """The kind of place holder that a shape fills: ``title``, ``body`` …; ``""`` for a shape of its own."""
    holder = next(elements(node, "ph"), None)
    return "" if holder is None else attribute(holder, "type") or "body"


def _number(node: Any, name: str) -> int:
    value = attribute(node, name)
    return int(value) if value.isdigit() else 1


def _name(node: Any) -> str:
    return str(node.tag).rpartition("}")[2]
