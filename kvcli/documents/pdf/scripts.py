"""Superscripts and subscripts: small digits above or below the line become ¹²³ and ₁₂₃, so that 10⁶ is not 106."""

import re

from kvcli.documents.pdf.words import ASCENT, DESCENT, Word

SMALLER = 0.85
"""A script is smaller than its base by this factor at least."""

RAISED, LOWERED = 0.1, 0.06
"""How far its line of writing is above or below that of its base, in heights of the base's box."""

_NUMBER = re.compile(r"[+−-]?\d+(?:[,;]\d+)*[.,;]?")
_SIGNS = "0123456789+-−=()"
_ABOVE = str.maketrans(_SIGNS, "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾")
_BELOW = str.maketrans(_SIGNS, "₀₁₂₃₄₅₆₇₈₉₊₋₋₌₍₎")


def join_scripts(before: Word, word: Word) -> tuple[str | None, str]:
    """The texts of two words beside each other: of ``before`` if it changes, and of ``word``.

    Digits of the smaller one become signs of a script if it is off the other's line. Its letters stay.
    """
    if script := _script(before, word):
        return None, word.text.translate(script)
    if script := _script(word, before):
        return before.text.translate(script), word.text
    return None, word.text


def _script(base: Word, small: Word) -> dict[int, int] | None:
    height, less = base.y1 - base.y0, small.y1 - small.y0
    if not 0.25 * height < less < SMALLER * height or not _NUMBER.fullmatch(small.text):
        return None
    below = DESCENT / (ASCENT + DESCENT)
    rise = ((base.y1 - below * height) - (small.y1 - below * less)) / height
    if rise > RAISED:
        return _ABOVE
    return _BELOW if rise < -LOWERED else None
