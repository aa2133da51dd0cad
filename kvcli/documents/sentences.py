"""A text in sentences: what is quoted, searched and counted as one unit, each with its exact characters.

A unit is a sentence of flowing text, a list item or a heading. An option line with its explanation is also one, and so
is a row of a table or a line of code. A line end is white space if the line was wrapped, and ends a unit if the line is
shorter than its paragraph allows. Work is linear in the text: each character is seen by a fixed number of patterns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

from kvcli.documents.pages import MARK

Kind = Literal["sentence", "item", "row", "code", "heading"]

LONGEST = 1000
"""Characters of a unit; longer ones are cut at white space, or anywhere if there is none."""

ITEM = 400
"""Characters up to which an item with several sentences is one unit."""

_COLUMN = 12
"""Columns by which a line that looks like an item must be indented to be part of the item above it."""

_NARROW = 45
"""Characters of a paragraph's longest line below which its lines were not wrapped at a page's width."""


class Sentence(NamedTuple):
    """The characters ``start`` to ``end`` (exclusive) of a text, without white space at either end."""

    start: int
    end: int
    kind: Kind


_LINE = re.compile(r"[^\n\f\v\x1c-\x1e\x85\u2028\u2029]+")
_FENCE = re.compile(r"\s*(?:```|~~~)")
_RULE = re.compile(r"\s*(?:[=\-_*~+|:─━═]\s*){3,}$")
_MARKED = re.compile(
    rf"(?P<heading>#{{1,6}}[ \t]+\S|{MARK}\s*$|=== .{{1,300}} ===\s*$)"
    r"|[ \t]*(?P<option>-{1,2}[A-Za-z?][\w-]*(?=[\s,=\[<]|$)|/[A-Za-z?]+(?=[ \t]{2,}\S))"
    r"|[ \t>]*(?P<item>[-*+•·–—▪◦‣]|\(?\d{1,3}(?:\.\d{1,3})*[.)]|\(?[a-z][.)]|\([ivx]+\))[ \t]+\S"
    r"|(?P<row>[ \t]*\|.*\||[^\t\n]*\S\t+\S|[^\n]{0,60}?\S(?<![.!?]) {3,}\S)"
    r"|(?P<code>(?: {4}|\t)(?:[ \t]*(?:\$|>>>|#|//)|.*(?:[{}=;<>$\\]|\w\())|[^\n]{0,200}[{};]\s*$)"
)
_INDENT = re.compile(r"[ \t>]*")
_UNENDED = re.compile(r"[^.!?:;,…。！？：；，]$")
_END = re.compile(r"([.!?…。！？｡]+)[\"'”’»)\]」』）]*(?:\[\d{1,3}\])*")
_JOINED = re.compile(r"[A-ZÀ-ÞА-Я][a-zß-ÿа-я]*[ ,]")
_WIDE = "。！？｡"
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u9fff]")
_TOKEN = re.compile(r"[^\s(\[\"'“”‘«]*$")
_NEXT = re.compile(r"\s*[\"'“”‘’„«»(\[¿¡*_]*")
_ABBREVIATIONS = frozenset(
    re.findall(
        r"\w+",
        "mr mrs ms dr st mt prof rev gen col capt lt sgt gov sen rep hon vs cf ca fig figs eq eqs sec ch vol vols"
        " ed eds pp p al approx dept est jr sr nr bzw vgl ggf evtl abs art bd hrsg str mme mlle sra srta dott sig ing"
        " av avda núm г гг ул им т д тов стр см рис св",
    )
)
_BEFORE_NUMBER = frozenset(
    re.findall(r"\w+", "no nos nr art fig p pp vol ch sec abs bd jan feb mar apr jun jul aug sept sep oct nov dec")
)
_MONTHS = frozenset(
    re.findall(
        r"\w+", "januar februar märz april mai juni juli august september oktober november dezember jänner jahrhundert"
    )
)


def split_sentences(text: str, *, items: bool = True) -> list[Sentence]:
    """The units of a text, in order; together they hold all of it but white space and rules of punctuation.

    Args:
        text: any text.
        items: keep an item of several sentences whole if it is short.
    """
    found: list[Sentence] = []
    for lines, kind in _blocks(text):
        if not lines:
            continue
        start, end = lines[0][0], lines[-1][1]
        whole = kind in ("row", "code", "heading") or (items and kind == "item" and end - start <= ITEM)
        cuts = [start, end] if whole else [start, *_cuts(text, lines), end]
        for a, b in pairwise(cuts):
            found += (Sentence(*span, kind) for span in _within(text, a, b))
    return found


Line = tuple[int, int]


def _blocks(text: str) -> Iterator[tuple[list[Line], Kind]]:
    """Runs of lines that flow, or that are one item; each with its kind."""
    lines: list[Line] = []
    kind: Kind = "sentence"
    indent, previous, fenced = 0, -1, False
    for match in _LINE.finditer(text):
        line = match[0]
        blank_before = match.start() - previous > 1
        body = line.strip()
        if not body:
            continue  # the gap to the next line is then longer than one character
        first = match.start() + len(line) - len(line.lstrip())
        span = (first, first + len(body))
        if _FENCE.match(line):
            yield lines, _single(text, lines, kind, before="code")
            lines, fenced, previous = [], not fenced, match.end()
            yield [span], "code"
            continue
        if _RULE.match(line) and not fenced:
            yield lines, "heading" if len(lines) == 1 and not blank_before and body[0] in "=-~" else kind
            lines, previous = [], match.end()
            continue
        marked = "code" if fenced else _mark(line, body)
        own = _INDENT.match(line).end()  # type: ignore[union-attr]
        deeper = (own > indent and marked != "item") or own >= indent + _COLUMN
        inside = kind in ("item", "row") and marked != "heading" and deeper and not fenced
        if lines and not blank_before and (inside or (marked == "sentence" and kind in ("sentence", "item"))):
            lines.append(span)
        else:
            yield lines, _single(text, lines, kind, before=None if blank_before else marked)
            lines, kind, indent = [span], marked, own
        previous = match.end()
    yield lines, kind


def _mark(line: str, body: str) -> Kind:
    wide = "\t" in line or "   " in line
    if body[0].isalpha() and body[1:2] not in (".", ")") and body[-1] not in "{};" and not wide:
        return "sentence"  # most lines, a tenth of the time of the pattern
    match = _MARKED.match(line)
    if match is None:
        return "sentence"
    kind = match.lastgroup
    return "item" if kind == "option" else kind  # type: ignore[return-value]


def _single(text: str, lines: list[Line], kind: Kind, *, before: Kind | None) -> Kind:
    """The kind of a block: one short line that does not end as a sentence does is a heading.

    Args:
        text, lines, kind: the block.
        before: the kind of the line below it; ``None`` if a blank line is between.
    """
    if kind == "sentence" and len(lines) == 1:
        start, end = lines[0]
        introduces = before in ("item", "row", "code") and text[end - 1] == ":"
        alone = before is None and _UNENDED.search(text[end - 1 : end])
        if end - start <= 90 and (introduces or alone):
            return "heading"
    return kind


def _cuts(text: str, lines: list[Line]) -> Iterator[int]:
    """Where sentences of some flowing lines begin, but for the first."""
    width = max(end - start for start, end in lines)
    small = all(text[start].islower() for start, _ in lines)  # commands, not the rest of a sentence
    breaks = []
    for (start, end), (next_start, next_end) in pairwise(lines):
        word = text.find(" ", next_start, next_end)
        room = width - (end - start) - ((word if word >= 0 else next_end) - next_start) - 1
        free = (width < _NARROW or room > width // 4) and (small or not text[next_start].islower())
        if free and text[end - 1] not in ",-–—":
            breaks.append(next_start)
    at, last = 0, lines[0][0]
    for match in _END.finditer(text, last, lines[-1][1]):
        while at < len(breaks) and breaks[at] <= match.start():
            last = breaks[at]
            yield last
            at += 1
        cut = match.end()
        if cut >= lines[-1][1] or not _ends(text, last, match.start(), match.end(1), cut):
            continue
        if not (at < len(breaks) and not text[cut : breaks[at]].strip()):
            last = cut
            yield last
    yield from breaks[at:]


def _ends(text: str, start: int, at: int, stop: int, cut: int) -> bool:
    """Whether punctuation ends a sentence.

    Args:
        text: the whole text.
        start: where the sentence begins.
        at, stop: the punctuation.
        cut: where it ends with its closing quotation marks and brackets.
    """
    mark = text[at]
    if mark in _WIDE or (mark in "!?" and at and _UNSPACED.match(text[at - 1])):
        return True
    token = _TOKEN.search(text[max(start, at - 40) : at])
    word = token[0].rstrip(")") if token else ""
    if not text[cut].isspace():
        alone = stop - at == 1 and cut == stop and len(word) > 1 and word[-1].islower() and word.isalpha()
        return alone and at - len(word) > start and _JOINED.match(text, cut) is not None
    after = _NEXT.match(text, cut).end()  # type: ignore[union-attr]
    following = text[after : after + 1]
    if following.islower() or (stop - at > 1 and "]" in text[stop:cut]):
        return False
    if mark != "." or stop - at > 1:
        return True
    small = word.lower()
    if len(word) == 1 and word.isupper():
        return False  # an initial
    if word[:1].isdigit() and not text[start:at].strip(" \t\n(.0123456789"):
        return False  # the number of an item
    if small in _ABBREVIATIONS or ("." in word and word.replace(".", "").isalpha() and len(word) <= 8):
        return False
    if small in _BEFORE_NUMBER and following.isdigit():
        return False
    if word.isdigit() and len(word) <= 2 and following:  # "3. Oktober"
        return text[after : after + 20].split(None, 1)[0].strip(",.;").lower() not in _MONTHS
    return True


def _within(text: str, start: int, end: int) -> Iterator[Line]:
    """A unit without white space at its ends, in parts if it is too long."""
    while start < end:
        stop = end
        if end - start > LONGEST:
            window = text[start : start + LONGEST]
            space = max(window.rfind(c) for c in " \n\t")
            stop = start + (space if space > LONGEST // 2 else LONGEST)
        body = text[start:stop]
        a, b = start + len(body) - len(body.lstrip()), stop - len(body) + len(body.rstrip())
        if a < b:
            yield a, b
        start = stop
