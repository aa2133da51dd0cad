"""Two spellings of the same words made one: how a quote and the text it comes from are compared.

These are folded: Unicode's compatible forms (NFKC, so ligatures and full-width letters), runs of white space, invisible
characters, and the shapes of quotation marks and apostrophes. A hyphen between letters is folded with the line end
after it. Case, digits, dashes and all other punctuation are not.
"""

import re
import unicodedata
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

_SOFT = r"\xad\u2010\u2011\ufffe"
_ODD = re.compile(
    rf"(?P<hyphen>(?<=[^\W\d_]|[\u0300-\u036f])[-\x02{_SOFT}][-\x02{_SOFT}\s]*(?=[^\W\d_]))"
    r"|(?P<space>\s+)"
    rf"|(?P<other>[\x21-\x7e]?(?:[^\x00-\x7f\s{_SOFT}]|[{_SOFT}]{{1,8}}(?=[\u0300-\u036f]))+|[\x00-\x1f\x7f{_SOFT}])"
)
_MARKS = str.maketrans(
    {**dict.fromkeys("\u2010\u2011", "-"), **dict.fromkeys("‘’‚‛`´′ʼ", "'"), **dict.fromkeys("“”„‟«»″", '"')}
)
_UNWRITTEN = ("Cc", "Cf", "Cn")
UNSPACED = (  # scripts that put nothing between words, so that where a word ends is unknown
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u2e80-\u31ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_LETTER = re.compile(rf"[^\W_{UNSPACED}]")


@dataclass(frozen=True)
class NormalizedText:
    """A text to compare by. ``text[i]`` stands for the original from ``starts[i]`` to ``ends[i]``."""

    text: str
    starts: "array[int]"
    ends: "array[int]"

    def origin(self, start: int, end: int) -> tuple[int, int]:
        """The characters of the original that ``text[start:end]`` stands for; it is not empty."""
        return self.starts[start], self.ends[end - 1]

    def splits_word(self, at: int) -> bool:
        """Whether a cut before ``text[at]`` goes through a word; it may go where a hyphen was."""
        if not 0 < at < len(self.text) or self.ends[at - 1] < self.starts[at]:
            return False
        return bool(_LETTER.match(self.text[at - 1]) and _LETTER.match(self.text[at]))


def normalize(text: str, foreign: Iterable[tuple[int, int]] = ()) -> NormalizedText:
    """``text`` folded.

    Args:
        text: any text.
        foreign: stretches that are not the author's words; they count as white space.
    """
    text = _blanked(text, foreign)
    parts: list[str] = []
    starts, ends = array("I"), array("I")
    at = 0

    def plain(end: int) -> None:
        if at < end:
            parts.append(text[at:end].translate(_MARKS))
            starts.extend(range(at, end))
            ends.extend(range(at + 1, end + 1))

    for match in _ODD.finditer(text):
        plain(match.start())
        at = match.end()
        if match.lastgroup == "space":
            if parts and parts[-1] == " ":  # on both sides of something invisible
                ends[-1] = at
                continue
            parts.append(" ")
            starts.append(match.start())
            ends.append(at)
        elif match.lastgroup == "other":
            for start, end in _clusters(text, match.start(), at):
                seen = "".join(c for c in text[start:end] if unicodedata.category(c) not in _UNWRITTEN)
                piece = unicodedata.normalize("NFKC", seen.translate(_MARKS)).translate(_MARKS)
                if piece:
                    parts.append(piece)
                    starts.extend([start] * len(piece))
                    ends.extend([end] * len(piece))
    plain(len(text))
    return NormalizedText("".join(parts), starts, ends)


def _blanked(text: str, foreign: Iterable[tuple[int, int]]) -> str:
    """``text`` with some stretches, given in order, as line ends; of the same length."""
    parts, at = [], 0
    for start, end in foreign:
        parts += [text[at:start], "\n" * (end - start)]
        at = end
    return "".join(parts) + text[at:]


def _clusters(text: str, start: int, end: int) -> Iterable[tuple[int, int]]:
    """Characters with the accents, and with whatever is invisible, that follow them."""
    for i in range(start + 1, end):
        if not unicodedata.combining(text[i]) and unicodedata.category(text[i]) not in _UNWRITTEN:
            yield start, i
            start = i
    yield start, end
