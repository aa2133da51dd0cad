"""The numbers of lists and headings in a DOCX, which are nowhere in its text: ``2.1``, ``(a)``, ``Article 5``."""

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kvcli.documents.archive import attribute
from kvcli.documents.flow import numeral

LEVELS = 9

_KINDS = {"lowerLetter": "a", "upperLetter": "A", "lowerRoman": "i", "upperRoman": "I"}


class ListLevel(NamedTuple):
    """How one level of a list is numbered; ``text`` has ``%1`` for the number of the first level."""

    start: int = 1
    kind: str = "decimal"
    text: str = ""
    restart: int | None = None
    legal: bool = False


@dataclass
class _List:
    """A numbered list of a document: several of them may count on in the same counters."""

    abstract: str
    levels: dict[int, ListLevel]
    starts: dict[int, int] = field(default_factory=dict)  # of a list that begins anew


class Numbering:
    """Counts the paragraphs of lists. Built from ``word/numbering.xml``, or from nothing."""

    def __init__(self, root: Any = None) -> None:
        self.lists: dict[str, _List] = {}
        self.styles: dict[str, tuple[str, int]] = {}  # of paragraphs, that a level belongs to
        self.counts: dict[str, list[int | None]] = {}
        self.begun: set[tuple[str, int]] = set()
        if root is None:
            return
        abstract: dict[str, dict[int, ListLevel]] = {}
        linked: dict[str, str] = {}
        owners: dict[str, str] = {}
        links: dict[str, str] = {}
        for node in root.iterchildren("{*}abstractNum"):
            name = attribute(node, "abstractNumId")
            abstract[name] = {}
            for level in node.iterchildren("{*}lvl"):
                depth = _number(attribute(level, "ilvl"))
                abstract[name][depth] = _level(level)
                if style := _value(level, "pStyle"):
                    linked[f"{name}/{depth}"] = style
            if style := _value(node, "styleLink"):
                owners[style] = name
            if style := _value(node, "numStyleLink"):
                links[name] = style
        for node in root.iterchildren("{*}num"):
            name, base = attribute(node, "numId"), _value(node, "abstractNumId")
            base = owners.get(links.get(base, ""), base)
            found = _List(base, dict(abstract.get(base, {})))
            for change in node.iterchildren("{*}lvlOverride"):
                depth = _number(attribute(change, "ilvl"))
                if start := _value(change, "startOverride"):
                    found.starts[depth] = _number(start)
                for level in change.iterchildren("{*}lvl"):
                    found.levels[depth] = _level(level)
            self.lists[name] = found
            for depth in found.levels:
                if (owner := linked.get(f"{base}/{depth}")) is not None:
                    self.styles.setdefault(owner, (name, depth))

    def next(self, name: str, depth: int) -> str:
        """The mark of the next paragraph of list ``name`` at level ``depth``, counted from 0; ``""`` for none."""
        found = self.lists.get(name)
        if found is None or not 0 <= depth < LEVELS:
            return ""
        level = found.levels.get(depth, ListLevel())
        counts = self.counts.setdefault(found.abstract, [None] * LEVELS)
        if depth in found.starts and (name, depth) not in self.begun:
            self.begun.add((name, depth))
            counts[depth] = None
        before = counts[depth]
        counts[depth] = found.starts.get(depth, level.start) if before is None else before + 1
        for deeper in range(depth + 1, LEVELS):
            restart = found.levels.get(deeper, ListLevel()).restart
            if restart is None or depth < restart:
                counts[deeper] = None
        if level.kind == "bullet":
            return "-"
        if level.kind == "none":
            return re.sub(r"%\d", "", level.text).strip()

        def shown(match: re.Match[str]) -> str:
            at = int(match[1]) - 1
            other = found.levels.get(at, ListLevel())
            count = counts[at]
            if count is None:
                counts[at] = count = other.start
            return _shown(count, "decimal" if level.legal and at != depth else other.kind)

        return re.sub(r"%([1-9])", shown, level.text).strip()


def _shown(n: int, kind: str) -> str:
    if kind in _KINDS:
        return numeral(n, _KINDS[kind])
    if kind == "decimalZero":
        return f"{n:02}"
    if kind == "ordinal":
        return f"{n}{'th' if n % 100 in (11, 12, 13) else {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th')}"
    return "" if kind in ("bullet", "none") else str(n)


def _level(node: Any) -> ListLevel:
    restart = _value(node, "lvlRestart")
    legal = next(node.iterchildren("{*}isLgl"), None)
    return ListLevel(
        _number(_value(node, "start") or "1"),
        _value(node, "numFmt") or "decimal",
        _value(node, "lvlText")[:200],
        _number(restart) if restart else None,
        legal is not None and attribute(legal, "val") not in ("0", "false", "off"),
    )


def _value(node: Any, name: str) -> str:
    """``w:val`` of the child ``name``."""
    child = next(node.iterchildren(f"{{*}}{name}"), None)
    return "" if child is None else attribute(child, "val")


def _number(text: str) -> int:
    return int(text) if re.fullmatch(r"-?\d{1,9}", text) else 0
