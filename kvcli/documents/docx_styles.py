"""What the styles of a DOCX say of headings, lists and letters that are hidden or struck out."""

import re
from collections.abc import Iterator
from typing import Any

from kvcli.documents import ooxml
from kvcli.documents.archive import attribute, elements


class Styles:
    """The styles of a document, those that each is based on included."""

    def __init__(self, root: Any) -> None:
        self.nodes = {attribute(n, "styleId"): n for n in elements(root, "style")}
        self.levels: dict[str, int] = {}
        self.lists: dict[str, tuple[str, int]] = {}
        self.on: dict[str, set[str]] = {}
        for name in self.nodes:
            chain = list(self._chain(name))
            self.levels[name] = next((level for n in chain if (level := _heading(n)) is not None), 0)
            self.lists[name] = next((found for n in chain if (found := _listed(n)) is not None), ("", 0))
            self.on[name] = {p for p in ("vanish", "strike", "dstrike") if any(_switched(n, p) for n in chain)}

    def _chain(self, name: str) -> Iterator[Any]:
        """The style and those it is based on; a style far from its base is as good as without."""
        for _ in range(12):
            node = self.nodes.get(name)
            if node is None:
                return
            yield node
            name = ooxml.value(node, "basedOn")

    def level(self, name: str) -> int:
        return self.levels.get(name, _named_heading(name))

    def list(self, name: str) -> tuple[str, int]:
        return self.lists.get(name, ("", 0))


def _heading(style: Any) -> int | None:
    properties = ooxml.child(style, "pPr")
    if properties is not None and (outline := ooxml.value(properties, "outlineLvl")).isdigit():
        return int(outline) + 1 if int(outline) < 6 else 0
    return _named_heading(ooxml.value(style, "name")) or None


def _named_heading(name: str) -> int:
    match = re.fullmatch(r"heading ?([1-6])", name.lower())
    return int(match[1]) if match else 0


def _listed(style: Any) -> tuple[str, int] | None:
    properties = ooxml.child(style, "pPr")
    number = ooxml.child(properties, "numPr") if properties is not None else None
    if number is None or not (name := ooxml.value(number, "numId")):
        return None
    depth = ooxml.value(number, "ilvl")
    return name, int(depth) if depth.isdigit() else 0


def _switched(style: Any, name: str) -> bool:
    properties = ooxml.child(style, "rPr")
    own = ooxml.child(properties, name) if properties is not None else None
    return own is not None and attribute(own, "val") not in ooxml.OFF
