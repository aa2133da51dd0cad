"""Page numbers, counted from 1 as a viewer counts them: ranges (``--pages 1-40,55``), and how they are shown."""

import re
from collections.abc import Iterable

from kvcli.errors import UsageError

Ranges = tuple[tuple[int, int | None], ...]

MARK = r"\[page [^\]\n]{1,60}\]"
"""A pattern for what :func:`mark` writes."""

_RANGE = re.compile(r"(\d{1,7})?(-)?(\d{1,7})?")


def parse(text: str, option: str = "--pages") -> Ranges:
    """``"1-40,55,90-"`` as ``((1, 40), (55, 55), (90, None))``; ``-10`` starts at 1. Raises ``UsageError``."""
    found: list[tuple[int, int | None]] = []
    for piece in text.replace(" ", "").split(","):
        match = _RANGE.fullmatch(piece)
        if match is None or not (match[1] or match[3]):
            raise UsageError(f"{option} {text}: {piece or 'nothing'} is not a page number", f"{option} 1-40,55")
        first = int(match[1] or 1)
        last = (int(match[3]) if match[3] else None) if match[2] else first
        if first < 1 or (last is not None and last < first):
            why = "page numbers start at 1" if first < 1 or last == 0 else f"the range {first}-{last} is reversed"
            raise UsageError(f"{option} {text}: {why}", f"{option} 1-40,55")
        found.append((first, last))
    return tuple(found)


def select(ranges: Ranges, total: int, name: str, option: str = "--pages") -> list[int]:
    """The page numbers of a file with ``total`` pages, in order and each once. Raises ``UsageError``."""
    if not ranges:
        return list(range(1, total + 1))
    chosen: set[int] = set()
    for first, last in ranges:
        if first > total or (last or 0) > total:
            beyond = last if last and last > total else first
            raise UsageError(
                f"{option}: {name} has {total:,} pages, and there is no page {beyond:,}", f"{option} 1-{total}"
            )
        chosen.update(range(first, (last or total) + 1))
    return sorted(chosen)


def around(ranges: Ranges, total: int, near: int) -> list[int]:
    """The chosen pages of a file with ``total`` pages, and up to ``near`` pages on either side of each, in order."""
    chosen: set[int] = set()
    for first, last in ranges or ((1, None),):
        chosen.update(range(max(1, first - near), min(total, (last or total) + near) + 1))
    return sorted(chosen)


def mark(page: int, label: str | None = None) -> str:
    """kvcli's own mark in the text of a document: ``[page 22]``, or ``[page 22, printed 14]`` if that differs."""
    return f"[page {page}, printed {label}]" if label and label != str(page) else f"[page {page}]"


def with_label(page: int, label: str | None = None) -> str:
    """``22``, or ``22 (printed 14)`` if the label of the page differs."""
    return f"{page} (printed {label})" if label and label != str(page) else str(page)


def shown(numbers: Iterable[int]) -> str:
    """``[1, 2, 3, 7]`` as ``1–3, 7``."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    texts = [f"{a}" if a == b else f"{a}–{b}" for a, b in runs]
    return ", ".join(texts if len(texts) <= 12 else [*texts[:11], f"… ({len(texts) - 11} more ranges)"])


def named(numbers: Iterable[int]) -> str:
    """``page 7``, ``pages 1–3, 7``."""
    found = sorted(numbers)
    return f"page {found[0]}" if len(found) == 1 else f"pages {shown(found)}"
