"""Rows and cells of the tables in a DOCX, and the cells that span several."""

from collections.abc import Iterator
from typing import Any

from kvcli.documents import ooxml
from kvcli.documents.archive import attribute


def rows(table: Any) -> Iterator[Any]:
    """Rows of a table, also those in content controls and tracked changes."""
    return _parts(table, "tr")


def cells(row: Any) -> Iterator[Any]:
    """Cells of a row, likewise."""
    return _parts(row, "tc")


def _parts(node: Any, wanted: str) -> Iterator[Any]:
    for child in node:
        if isinstance(child.tag, str):
            name = child.tag.rpartition("}")[2]
            if name == wanted:
                yield child
            elif name in ("sdt", "sdtContent", "customXml", "ins"):
                yield from _parts(child, wanted)


def merged(cell: Any) -> tuple[int, str]:
    """Columns of a cell, and ``restart`` or ``continue`` for one that spans rows."""
    properties = ooxml.child(cell, "tcPr")
    if properties is None:
        return 1, ""
    columns, merge = ooxml.value(properties, "gridSpan"), ooxml.child(properties, "vMerge")
    across = ooxml.child(properties, "hMerge")
    if across is not None and attribute(across, "val") != "restart":
        return 1, "aside"
    kind = "" if merge is None else attribute(merge, "val") or "continue"
    return int(columns) if columns.isdigit() and len(columns) < 6 else 1, kind


def row_spans(table: list[list[Any]]) -> dict[int, int]:
    """How many rows each cell spans that spans more than one."""
    found: dict[int, int] = {}
    above: dict[int, Any] = {}
    for row in table:
        at, here = 0, {}
        for cell in row:
            columns, kind = merged(cell)
            if kind == "restart":
                here[at], found[id(cell)] = cell, 1
            elif kind == "continue" and at in above:
                here[at] = above[at]
                found[id(above[at])] += 1
            at += columns
        above = here
    return found
