"""Words as they are compared: lower case, without accents, inflected forms as one, scripts without spaces in pairs.

Forms are folded by Snowball's stemmers (Porter 2001) in the language of the text, which is detected by its commonest
words. Words of another script than the text's are folded in that script's language.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

SAMPLE = 200_000
"""Characters from which a language is detected."""

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u31ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]+|[^\W_{_UNSPACED}]+")
_ASCII = re.compile("[a-z0-9]+")
_WIDE = re.compile(rf"[{_UNSPACED}]")
_SCRIPTS = (("а", "ӿ", "russian"), ("α", "ώ", "greek"), ("ء", "ي", "arabic"), ("ա", "ֆ", "armenian"))
_LISTS = {  # language: the name of its list of common words in bm25s
    "english": "EN_PLUS",
    "german": "GERMAN",
    "french": "FRENCH",
    "spanish": "SPANISH",
    "italian": "ITALIAN",
    "portuguese": "PORTUGUESE",
    "dutch": "DUTCH",
    "swedish": "SWEDISH",
    "danish": "DANISH",
    "norwegian": "NORWEGIAN",
    "turkish": "TURKISH",
    "russian": "RUSSIAN",
}
_ASKING = {
    "english": "whom whose which shall would could may might must also much many please tell according text say says",
    "german": "wer wen wem wessen wann wo woher wohin wieviel wieviele welche welcher welches viele viel bitte text",
    "french": "qui quoi quand où comment pourquoi combien quel quelle quels quelles texte",
    "spanish": "qué quién quiénes cuándo dónde cómo cuánto cuánta cuántos cuántas cuál cuáles texto",
    "italian": "chi cosa quando dove come perché quanto quanta quanti quante quale quali testo",
    "russian": "кто кого кому что чего когда где куда откуда почему зачем сколько какой какая какое какие чей",
}


def find_words(text: str) -> list[str]:
    """The words of a text in lower case, in order; runs of a script without spaces become pairs of characters."""
    if text.isascii():
        return _ASCII.findall(text.lower())
    found = _WORD.findall(text.lower())
    if _WIDE.search(text) is None:
        return found
    return [part for word in found for part in (_pairs(word) if _WIDE.match(word) else (word,))]


def _pairs(word: str) -> Sequence[str]:
    return [word[i : i + 2] for i in range(len(word) - 1)] or [word]


def language(text: str) -> str:
    """The likeliest language of a text in Latin script, by its commonest words; English if there are none."""
    step = max(1, len(text) // SAMPLE)
    parts = (text[i : i + 2000] for i in range(0, len(text), 2000 * step))
    # A part begins and ends within a word, and the rest of a word may be a common word of another language.
    sample = text if step == 1 else " ".join(part.partition(" ")[2].rpartition(" ")[0] for part in parts)
    counts = Counter(find_words(sample))
    totals = {
        name: sum(counts[w] / _shared()[w] for w in common_words(name) if w in counts)
        for name in _LISTS
        if name != "russian"
    }
    best = max(totals, key=totals.__getitem__)
    return best if totals[best] > totals["english"] else "english"


@cache
def _shared() -> Counter[str]:
    """In how many languages a word is common."""
    return Counter(word for name in _LISTS for word in common_words(name))


@cache
def common_words(name: str) -> frozenset[str]:
    """The commonest words of a language, and those that questions are asked with."""
    from bm25s import stopwords

    named: Sequence[str] = getattr(stopwords, f"STOPWORDS_{_LISTS.get(name, 'EN_PLUS')}")
    return frozenset(find_words(f"{' '.join(named)} {_ASKING.get(name, '')}"))


def fold_words(words: Sequence[str], name: str) -> list[str]:
    """Each word's stem without accents.

    Args:
        words: from :func:`find_words`.
        name: the language of those in Latin script.
    """
    groups: dict[str, list[int]] = {}
    for i, word in enumerate(words):
        groups.setdefault(_language_of(word, name), []).append(i)
    folded = [""] * len(words)
    for group, members in groups.items():
        stems = _stemmer(group).stemWords([words[i] for i in members]) if group else [words[i] for i in members]
        for i, stem in zip(members, stems, strict=True):
            folded[i] = stem if stem.isascii() else _plain(stem)
    return folded


def content_stems(text: str, name: str) -> list[str]:
    """The stems of a text's words in order, without the common words of the language ``name``."""
    common = common_words(name)
    return fold_words([word for word in find_words(text) if word not in common], name)


def _language_of(word: str, name: str) -> str:
    first = word[0]
    if first <= "\u024f":
        return name if first.isalpha() else ""
    return next((script for low, high, script in _SCRIPTS if low <= first <= high), "")


def _plain(word: str) -> str:
    if _WIDE.match(word):
        return unicodedata.normalize("NFKC", word)
    return "".join(c for c in unicodedata.normalize("NFKD", word) if not unicodedata.combining(c))


@cache
def _stemmer(name: str) -> Any:
    import Stemmer

    return Stemmer.Stemmer(name)
