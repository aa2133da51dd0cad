"""Right-to-left scripts: from the order in which letters and words are seen to the order in which they are read.

A PDF has places, not an order of reading. Within a line, runs of one direction are turned round, as in the Unicode
bidirectional algorithm (UAX #9), which does the opposite.
"""

import re
from collections.abc import Iterator, Sequence

RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]")
_OPENING, _CLOSING = "([{«‹", ")]}»›"


def strong(text: str) -> str:
    """``R`` for a word with a right-to-left letter, ``L`` for one with another letter, ``N`` for numbers and signs."""
    if RIGHT_TO_LEFT.search(text):
        return "R"
    return "L" if any(c.isalpha() for c in text) else "N"


def mostly_right_to_left(texts: Sequence[str]) -> bool:
    """Whether most words with letters have right-to-left letters."""
    kinds = [strong(t) for t in texts]
    return kinds.count("R") > kinds.count("L")


def logical(letters: Sequence[str]) -> str:
    """One word, given by its letters from left to right, in the order of reading.

    Letters of other scripts and digits in it keep their order; brackets face the text they enclose.
    """
    turned = list(letters[::-1])
    kinds = ["N" if c[0].isdigit() else strong(c) for c in turned]
    start = 0
    while start < len(turned):
        if kinds[start] == "R" or not turned[start][0].isalnum():
            start += 1
            continue
        end, last = start + 1, start + 1  # a run of digits and foreign letters, with the signs between them
        while end < len(turned) and kinds[end] != "R":
            if turned[end][0].isalnum():
                last = end + 1
            end += 1
        turned[start:last] = turned[start:last][::-1]
        start = end
    inside = [i for i, c in enumerate(turned) if c[0].isalnum()]
    first, final = (inside[0], inside[-1]) if inside else (len(turned), -1)
    for i, c in enumerate(turned):
        if i < first and c in _CLOSING:
            turned[i] = _OPENING[_CLOSING.index(c)]
        elif i > final and c in _OPENING:
            turned[i] = _CLOSING[_OPENING.index(c)]
    return "".join(turned)


def reading_order(words: Sequence[str], *, right_to_left: bool) -> list[int]:
    """The order in which the words of a line are read, as indices of ``words``.

    ``words`` go from the side where the line begins. Each run of words of the other direction is turned round. A
    number between them belongs to the run. So does one before a foreign name in a right-to-left line (as in
    ``Windows 10``).
    """
    kinds = [strong(w) for w in words]
    other = "L" if right_to_left else "R"
    found: list[int] = []
    at = 0
    for start, end in _runs(kinds, other):
        while right_to_left and start > at and kinds[start - 1] == "N" and words[start - 1][:1].isdigit():
            start -= 1
        found += range(at, start)
        found += range(end - 1, start - 1, -1)
        at = end
    return [*found, *range(at, len(words))]


def _runs(kinds: Sequence[str], kind: str) -> Iterator[tuple[int, int]]:
    """Longest stretches that begin and end with ``kind`` and have only numbers and signs besides."""
    start = last = -1
    for i, k in enumerate(kinds):
        if k == kind:
            start = i if start < 0 else start
            last = i
        elif k != "N" and start >= 0:
            yield start, last + 1
            start = -1
    if start >= 0:
        yield start, last + 1
