"""Initials of several lines: a large first letter joins its word, and the lines beside it begin where it does."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kvcli.documents.pdf.words import Word

TALL = 1.7
"""From how many heights of a usual word on a letter is an initial."""

MOST = 50
"""Initials of one page."""

_WORDS = frozenset("AIOÀÈÉÓYÝŒUW")
"""Letters that are words of some language."""


@dataclass(frozen=True)
class _Initial:
    word: Word
    x: float
    """Where the lines beside it begin."""


def join_initials(words: Sequence[Word], known: Counter[str]) -> list[Word]:
    """The words of an upright page with each initial in front of the rest of its word.

    ``known`` counts the words of the document, in small letters: they tell ``The`` from ``A man``.
    """
    found = list(words)
    heights = sorted(w.y1 - w.y0 for w in words)
    usual = heights[len(heights) // 2] if heights else 0.0
    initials: list[_Initial] = []
    for i in range(len(found) - 1):
        cap, word = found[i], found[i + 1]
        if len(initials) < MOST and _leads(cap, word, usual):
            letters, rest = cap.text.strip("“”‘’«»\"'"), _letters(word.text)
            whole = known[(letters + rest).lower()]
            apart = letters in _WORDS and not whole and (known[rest.lower()] > 1 or not rest)
            text = cap.text + (" " if apart else "") + word.text
            found[i] = word._replace(text="")
            found[i + 1] = word._replace(text=text, x0=cap.x0)
            initials.append(_Initial(cap, word.x0))
    if not initials:
        return found
    return [_beside(w, initials) for w in found if w.text]


def _leads(cap: Word, word: Word, usual: float) -> bool:
    """Whether ``cap`` is an initial, and ``word`` goes on beside its top."""
    height, less = cap.y1 - cap.y0, word.y1 - word.y0
    letters = cap.text.strip("“”‘’«»\"'")
    return (
        len(letters) == 1
        and letters.isupper()
        and height >= TALL * usual
        and height >= TALL * less
        and word.text[:1].isalpha()
        and -0.1 * height <= word.x0 - cap.x1 <= 0.3 * height
        and cap.y0 - 0.2 * height <= word.y0
        and word.y1 < cap.y1 - 0.3 * less
    )


def _letters(text: str) -> str:
    return "".join(c for c in text if c.isalpha() or c in "-'’")


def _beside(word: Word, initials: Sequence[_Initial]) -> Word:
    """A word that begins a line beside an initial begins where the initial does."""
    for initial in initials:
        cap, middle = initial.word, (word.y0 + word.y1) / 2
        if abs(word.x0 - initial.x) < 0.4 * (word.y1 - word.y0) and cap.y0 < middle < cap.y1:
            return word._replace(x0=cap.x0)
    return word
