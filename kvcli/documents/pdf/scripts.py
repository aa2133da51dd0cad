"""Superscripts and subscripts: small numbers above or below the line are set apart, so that 10^6 is not 106."""

import re

from kvcli.documents.pdf.words import ASCENT, DESCENT, Word

SMALLER = 0.85
"""A script is smaller than its base by this factor at least."""

RAISED, LOWERED = 0.1, 0.06
"""How far its line of writing is above or below that of its base, in heights of the base's box."""

_NUMBER = re.compile(r"[+−-]?\d+(?:[,;]\d+)*[.,;]?")


def join_scripts(before: Word, word: Word) -> tuple[str | None, str]:
    """The texts of two words beside each other: of ``before`` if it changes, and of ``word``.

    A small number off the other's line is set apart: above it as ``10^6``, below a number as ``10_2``. The mark of a
    note is ``^1`` in front of its text too. Letters stay, and so does H2O.
    """
    if rise := _rise(before, word):
        last = before.text[-1:]
        if rise > 0:
            return None, ("^" if last.isalnum() or last in ")]}’'" else "") + word.text
        return None, ("_" if last.isdigit() else "") + word.text
    return (f"^{before.text} " if _rise(word, before) > 0 and word.text[:1].isalnum() else None), word.text


def _rise(base: Word, small: Word) -> float:
    """How far a smaller number is above the line of writing of ``base``, in its heights; 0 if it is no script."""
    height, less = base.y1 - base.y0, small.y1 - small.y0
    if not 0.25 * height < less < SMALLER * height or not _NUMBER.fullmatch(small.text):
        return 0.0
    below = DESCENT / (ASCENT + DESCENT)
    rise = ((base.y1 - below * height) - (small.y1 - below * less)) / height
    return rise if rise > RAISED or rise < -LOWERED else 0.0
