"""DOCX: what Word shows of the text, with numbers of lists, tables, text boxes, equations, notes and form fields.

Elements are known by their local names, so that the transitional, the strict and the renamed namespaces are one.
"""

import re
from collections.abc import Callable
from typing import Any

from kvcli.documents import docx_table, html, html_encoding, ooxml
from kvcli.documents.archive import Archive, attribute, elements
from kvcli.documents.document import Extract, Source
from kvcli.documents.docx_styles import Styles
from kvcli.documents.docx_symbols import symbol
from kvcli.documents.equation import Formula, linear
from kvcli.documents.flow import LEVEL, LOWERED, PAGE, RAISED, Writer, clean, comment, left_out, parts
from kvcli.documents.numbering import Numbering

NESTED = 3
"""Documents in each other (``w:altChunk``)."""

_MAIN = "word/document.xml"
_MATH = "officeDocument/2006/math", "ooxml/officeDocument/math"
_SKIPPED = frozenset(
    re.findall(
        r"\S+",
        "pPr rPr tblPr tblGrid trPr tcPr sdtPr sdtEndPr sectPr instrText delInstrText delText del moveFrom rt "
        "rubyPr commentRangeStart commentRangeEnd bookmarkStart bookmarkEnd proofErr annotationRef smartTagPr "
        "customXmlPr lastRenderedPageBreak softHyphen",
    )
)


def extract(source: Source, depth: int = 0) -> Extract:
    """The text of a document with its tables, lists and notes. Raises ``InputError`` for damage."""
    with Archive(source) as archive:
        reader = _Reader(archive, depth)
        reader.read()
    found = Extract(parts(reader.out.blocks), warnings=reader.warnings, notes=left_out(reader.out.left, source.name))
    found.pages = len({p.page for p in found.parts}) if reader.page else None
    return found


class _Reader:
    def __init__(self, archive: Archive, depth: int) -> None:
        self.archive = archive
        self.depth = depth
        self.out = Writer()
        self.warnings: list[str] = []
        self.main = self._main()
        self.related = ooxml.relations(archive, self.main)
        self.styles = Styles(self._part("styles"))
        self.numbering = Numbering(self._part("numbering"))
        self.page = 0
        self.boxes: list[list[Any]] = []  # text boxes of the paragraphs around, until each ends
        self.fields: list[bool] = []  # whether each open field is still at its code
        self.whole = True
        self.listed = False
        self.notes: list[tuple[str, str]] = []
        self.numbers: dict[tuple[str, str], int] = {}
        self.bodies: dict[str, dict[str, Any]] = {}
        self.label = ""  # of a note, until its first paragraph

    # --- the package ---

    def _main(self) -> str:
        """The member with the text, which the package's relations or its types name."""
        archive = self.archive
        for kind, name in ooxml.relations(archive, "").values():
            if kind == "officeDocument" and name in archive.names:
                return name
        if _MAIN in archive.names:
            return _MAIN
        for node in elements(self._xml("[Content_Types].xml"), "Override"):
            name = attribute(node, "PartName").lstrip("/")
            if attribute(node, "ContentType").endswith("main+xml") and name in archive.names:
                return name
        raise archive.damaged(f"{_MAIN} is missing")

    def _part(self, kind: str) -> Any:
        """The root of the part of this kind that the text refers to, or ``None``."""
        for found, name in self.related.values():
            if found == kind and name in self.archive.names:
                return self._xml(name)
        name = f"word/{kind}.xml"
        return self._xml(name) if name in self.archive.names else None

    def _xml(self, name: str) -> Any:
        return ooxml.root(self.archive, name)

    # --- the text ---

    def read(self) -> None:
        """Write the text, then the notes it refers to."""
        root = self._xml(self.main)
        marks = [attribute(node, "fldCharType") for node in elements(root, "fldChar")]
        self.whole = marks.count("begin") == marks.count("end")
        if next(elements(root, "lastRenderedPageBreak"), None) is not None:
            self._page()
        for body in root.iterchildren("{*}body"):
            self._children(body)
            self.out.flush(apart=True)
        for number, (kind, name) in enumerate(self.notes, 1):
            self._note(number, kind, name)
        self._said()

    def _page(self) -> None:
        self.page += 1
        self.out.add(f"{PAGE}{self.page}{PAGE}")

    def _note(self, number: int, kind: str, name: str) -> None:
        node = self._bodies(kind).get(name)
        if node is None:
            self.warnings.append(f"{self.archive.source.name}: the text of note [{number}] is missing")
        else:
            self.label = f"[{number}] "
            self._children(node)
            self.out.flush()

    def _bodies(self, kind: str) -> dict[str, Any]:
        """Notes or comments by number."""
        if kind not in self.bodies:
            self.bodies[kind] = {attribute(n, "id"): n for n in elements(self._part(f"{kind}s"), kind)}
        return self.bodies[kind]

    def _said(self) -> None:
        """Count what Word shows beside the text."""
        left = self.out.left
        for kind, name in self.related.values():
            if kind in ("header", "footer") and name in self.archive.names:
                words = "".join(n.text or "" for n in elements(self._xml(name), "t"))
                left["page header or footer"] += bool(words.strip())
        left["comment"] += len(self._bodies("comment"))

    def _children(self, node: Any) -> None:
        for child in node:
            self._node(child)

    def _node(self, node: Any) -> None:
        tag = node.tag
        if not isinstance(tag, str):
            return  # an entity
        space, _, name = tag.rpartition("}")
        if name == "lastRenderedPageBreak":
            self._page()
        elif name in _SKIPPED:
            if name in ("del", "moveFrom"):
                self.out.left["tracked deletion"] += 1
            elif name == "rt":
                self.out.left["phonetic guide"] += 1
        elif space.endswith(_MATH):
            self.out.add(linear(_formula(node)))
        elif (write := _WRITERS.get(name)) is not None:
            write(self, node)
        else:
            self._children(node)

    def _paragraph(self, node: Any) -> None:
        out = self.out
        if not len(node) and not self.label:
            out.flush(apart=True)
            return
        properties = ooxml.child(node, "pPr")
        level, mark = self._look(properties)
        out.flush(apart=bool(mark) != self.listed)
        self.listed = bool(mark)
        out.level = level
        out.mark, self.label = self.label + (f"{mark} " if mark else ""), ""
        self.boxes.append([])
        self._children(node)
        out.mark = ""
        out.flush(apart=not mark)
        out.level = 0
        for box in self.boxes.pop():
            if box.tag.endswith("}comment"):
                words = ("".join(n.text or "" for n in elements(p, "t")) for p in elements(box, "p"))
                out.add(comment(attribute(box, "author"), " ".join(words)))
            else:
                self._children(box)
            out.flush(apart=True)

    def _look(self, properties: Any) -> tuple[int, str]:
        """The level of the heading, and the mark of the list."""
        style, level, (number, depth) = "", 0, ("", 0)
        if properties is not None:
            style = ooxml.value(properties, "pStyle")
            outline = ooxml.value(properties, "outlineLvl")
            level = self.styles.level(style)
            if outline.isdigit():
                level = int(outline) + 1 if int(outline) < 6 else 0
            number, depth = self.styles.list(style)
            if not number and style in self.numbering.styles:
                number, depth = self.numbering.styles[style]
            if (own := ooxml.child(properties, "numPr")) is not None:
                number = ooxml.value(own, "numId") or number
                depth = int(own_depth) if (own_depth := ooxml.value(own, "ilvl")).isdigit() else depth
        mark = self.numbering.next(number, depth) if number and number != "0" else ""
        return level, mark

    def _run(self, node: Any) -> None:
        properties = ooxml.child(node, "rPr")
        if properties is None:
            self._children(node)
            return
        style = ooxml.value(properties, "rStyle")
        if self._on(properties, style, "vanish"):
            self.out.left["hidden passage"] += bool("".join(n.text or "" for n in elements(node, "t")).strip())
            return
        if self._on(properties, style, "strike") or self._on(properties, style, "dstrike"):
            self.out.left["struck-out passage"] += 1
            return
        shift = {"superscript": RAISED, "subscript": LOWERED}.get(ooxml.value(properties, "vertAlign"))
        if shift:
            self.out.add(shift)
        self._children(node)
        if shift:
            self.out.add(LEVEL)

    def _on(self, properties: Any, style: str, name: str) -> bool:
        """Whether a property is switched on, by the run or its style."""
        own = ooxml.child(properties, name)
        if own is not None:
            return attribute(own, "val") not in ooxml.OFF
        return name in self.styles.on.get(style, ())

    def _text(self, node: Any) -> None:
        if not (self.whole and any(self.fields)):
            self.out.add(clean(node.text or ""))

    def _symbol(self, node: Any) -> None:
        self.out.add(symbol(attribute(node, "font"), attribute(node, "char")))

    def _break(self, _: Any) -> None:
        self.out.add(" " if self.out.around else "\n")

    def _field(self, node: Any) -> None:
        kind = attribute(node, "fldCharType")
        if kind == "begin":
            self.fields.append(True)
            if (form := ooxml.child(node, "ffData")) is not None:
                self._form(form)
        elif self.fields and kind == "separate":
            self.fields[-1] = False
        elif self.fields and kind == "end":
            self.fields.pop()

    def _form(self, form: Any) -> None:
        """The value of an old form field; that of a text field follows as its result."""
        if (box := ooxml.child(form, "checkBox")) is not None:
            state = ooxml.child(box, "checked")
            state = ooxml.child(box, "default") if state is None else state
            self.out.add("☒" if state is not None and attribute(state, "val") not in ooxml.OFF else "☐")
        elif (choice := ooxml.child(form, "ddList")) is not None:
            entries = [attribute(n, "val") for n in choice.iterchildren("{*}listEntry")]
            number = ooxml.value(choice, "result") or ooxml.value(choice, "default") or "0"
            if number.isdigit() and int(number) < len(entries):
                self.out.add(clean(entries[int(number)]))

    def _note_reference(self, node: Any) -> None:
        """The number of a note; one that is referred to again keeps its number, and is read once."""
        key = (node.tag.rpartition("}")[2].removesuffix("Reference"), attribute(node, "id"))
        if key not in self.numbers:
            self.notes.append(key)
            self.numbers[key] = len(self.notes)
        self.out.add(f"[{self.numbers[key]}]")

    def _comment(self, node: Any) -> None:
        """A comment follows the paragraph that it is about; each is read once."""
        if self.boxes and (found := self._bodies("comment").get(attribute(node, "id"))) is not None:
            del self.bodies["comment"][attribute(node, "id")]
            self.boxes[-1].append(found)

    def _alternate(self, node: Any) -> None:
        """One of several ways to show the same: the first with words, or else the first."""
        ways = [n for n in node if isinstance(n.tag, str)]
        worded = [n for n in ways if next(elements(n, "t"), None) is not None]
        for way in (worded or ways)[:1]:
            self._children(way)

    def _box(self, node: Any) -> None:
        if self.boxes:
            self.boxes[-1].append(node)
        else:
            self._children(node)

    def _picture(self, node: Any) -> None:
        self.out.left["picture"] += 1
        self._children(node)

    def _object(self, _: Any) -> None:
        self.out.left["embedded object"] += 1

    def _chart(self, _node: Any) -> None:
        self.out.left["chart"] += 1

    def _diagram(self, node: Any) -> None:
        """The words of a drawing that Word lays out itself (SmartArt)."""
        _, name = self.related.get(attribute(node, "dm"), ("", ""))
        if name in self.archive.names:
            for paragraph in elements(self._xml(name), "p"):
                self.out.add(" " + clean("".join(n.text or "" for n in elements(paragraph, "t"))))

    def _drawn_letters(self, node: Any) -> None:
        self.out.add(f" {clean(attribute(node, 'string'))} ")

    def _chunk(self, node: Any) -> None:
        """A file of another format that Word shows as part of the text."""
        source = self.archive.source
        _, name = self.related.get(attribute(node, "id"), ("", ""))
        suffix = name.rpartition(".")[2].lower()
        if name not in self.archive.names or self.depth >= NESTED:
            self.warnings.append(f"{source.name}: a part that it embeds is missing or not read: {name or 'no name'}")
            return
        data = self.archive.read(name)
        self.out.flush(apart=True)
        if suffix in ("html", "htm", "xhtml"):
            text, warnings = html_encoding.decode(data, f"{source.name}/{name}")
            self.warnings += warnings
            html.write(self.out, text, xhtml=suffix == "xhtml")
        elif suffix == "docx":
            inner = _Reader(Archive(Source(data, f"{source.name}/{name}", source.quoted)), self.depth + 1)
            inner.read()
            if inner.out.blocks:
                inner.out.blocks[0].apart = True
            self.out.blocks += inner.out.blocks
            self.out.left += inner.out.left
            self.warnings += inner.warnings
        elif suffix == "txt":
            from kvcli.documents.text import decode

            text, warnings = decode(data, f"{source.name}/{name}", source.quoted)
            self.warnings += warnings
            self.out.add(clean(text))
        else:
            self.warnings.append(f"{source.name}: it embeds {name}, which was not read")
        self.out.flush(apart=True)

    # --- tables ---

    def _table(self, node: Any) -> None:
        """A table; a cell that goes on from the row above is filled with that cell."""
        self.out.start_table()
        rows = [(row, list(docx_table.cells(row))) for row in docx_table.rows(node)]
        spans = docx_table.row_spans([cells for _, cells in rows])
        for row, cells in rows:
            properties = ooxml.child(row, "trPr")
            skip = ooxml.value(properties, "gridBefore") if properties is not None else ""
            self.out.start_row(skip=int(skip) if skip.isdigit() else 0)
            for cell in cells:
                columns, merged = docx_table.merged(cell)
                if merged == "continue":
                    continue
                self.out.start_cell(columns=columns, rows=spans.get(id(cell), 1))
                self._children(cell)
                self.out.end_cell()
            self.out.end_row()
        self.out.end_table()


_WRITERS: dict[str, Callable[[_Reader, Any], None]] = {
    "p": _Reader._paragraph,
    "r": _Reader._run,
    "t": _Reader._text,
    "tbl": _Reader._table,
    "tab": lambda reader, _: reader.out.add(" "),
    "ptab": lambda reader, _: reader.out.add(" "),
    "noBreakHyphen": lambda reader, _: reader.out.add("-"),
    "br": _Reader._break,
    "cr": _Reader._break,
    "sym": _Reader._symbol,
    "fldChar": _Reader._field,
    "footnoteReference": _Reader._note_reference,
    "endnoteReference": _Reader._note_reference,
    "commentReference": _Reader._comment,
    "AlternateContent": _Reader._alternate,
    "txbxContent": _Reader._box,
    "pic": _Reader._picture,
    "imagedata": _Reader._picture,
    "object": _Reader._object,
    "chart": _Reader._chart,
    "relIds": _Reader._diagram,
    "textpath": _Reader._drawn_letters,
    "altChunk": _Reader._chunk,
    "subDoc": _Reader._chunk,
}


def _formula(node: Any) -> Formula:
    """OMML as :mod:`equation` takes it."""
    name = node.tag.rpartition("}")[2]
    found = Formula(name, {k.rpartition("}")[2]: v for k, v in node.items()}, [])
    for child in node:
        if isinstance(child.tag, str):
            found.parts.append(_formula(child))
    if name == "t" and node.text:
        found.parts.append(clean(node.text))
    return found
