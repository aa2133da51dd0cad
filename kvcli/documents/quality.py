"""How good an extraction is, page by page: characters, empty pages, letters that cannot be right."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from kvcli.documents.document import Document, Span

SUSPECT = 0.02
"""Share of odd glyphs from which a text is doubtful."""

_KNOWN = frozenset("\n\t\x0c\xa0\u200b\u200c\u200d\u200e\u200f\u2028\u2029\u202a\u202c\ufeff")


def odd(text: str) -> Counter[str]:
    """Characters that no writer meant, counted: U+FFFD, private use, unassigned, control characters."""
    found: Counter[str] = Counter()
    for c, n in Counter(text).items():
        if c == "\ufffd" or (unicodedata.category(c) in ("Co", "Cn", "Cc", "Cs") and c not in _KNOWN):
            found[c] = n
    return found


@dataclass(frozen=True)
class PageQuality:
    """One page, or one file without pages. ``characters`` are those of the source, kvcli's marks not counted."""

    file: str
    page: int | None
    label: str | None
    section: str | None
    characters: int
    words: int
    odd: int


@dataclass(frozen=True)
class Quality:
    """The report of an extraction; ``odd`` counts glyphs by character."""

    rows: tuple[PageQuality, ...]
    odd: Counter[str] = field(default_factory=Counter)

    @property
    def characters(self) -> int:
        """Characters of all pages."""
        return sum(r.characters for r in self.rows)

    @property
    def typical(self) -> int:
        """The median page's characters."""
        return int(median(r.characters for r in self.rows)) if self.rows else 0

    @property
    def empty(self) -> list[PageQuality]:
        """Pages without a character."""
        return [r for r in self.rows if not r.characters]

    @property
    def doubtful(self) -> bool:
        """Whether so many glyphs are odd that the letters themselves may be wrong."""
        return sum(self.odd.values()) > SUSPECT * max(1, self.characters)


def measure(document: Document) -> Quality:
    """The report of a document that was read."""
    groups: dict[tuple[str, int | None], list[Span]] = {}
    for span in document.spans:
        groups.setdefault((span.file, span.page), []).append(span)
    total: Counter[str] = Counter()
    rows = []
    for (file, page), spans in groups.items():
        text = own(document, spans)
        strange = odd(text)
        total += strange
        first = spans[0]
        rows.append(
            PageQuality(
                file, page, first.label, first.section, len(text.strip()), len(text.split()), sum(strange.values())
            )
        )
    return Quality(tuple(rows), total)


def own(document: Document, spans: Sequence[Span]) -> str:
    """The source's own words in ``spans``."""
    return "".join(document.text[s.body : s.end] for s in spans)
