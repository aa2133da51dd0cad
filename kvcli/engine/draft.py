"""Drafts of the next tokens: what followed the last tokens where they occurred before (prompt lookup).

Answers about a document repeat its words. The longest end of what was said is looked up in the document and in the
prompt, and the tokens after it are the draft (Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding). The
texts are scanned without an index: 4 bytes per token, 0.1 ms for 100,000 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]

_LEAST, _CAREFUL, _MOST = 4, 6, 16  # tokens that must agree: at first, after bad drafts; more are not compared
_PAYS = 1.0  # accepted tokens per draft that its additional rows cost about (docs/log.md)
_MEMORY = 0.7  # weight of earlier drafts in the mean of accepted tokens


def as_ids(ids: Sequence[int] | Ids) -> Ids:
    """Return token ids as drafts are looked up in: 4 bytes each."""
    return np.asarray(ids, np.int32)


class PromptLookup:
    """Looks up drafts for one answer.

    Args:
        document: ids of a text, shared by any number of answers.
        prompt: ids that the answer follows.
        longest: maximum tokens of prompt and answer together.
    """

    def __init__(self, document: Ids, prompt: Sequence[int], longest: int) -> None:
        self._document = document
        self._said = np.empty(max(longest, len(prompt)), np.int32)
        self._length = len(prompt)
        self._said[: len(prompt)] = prompt
        self._accepted = 2 * _PAYS

    def push(self, token: int) -> None:
        """Add a token of the answer."""
        if self._length < len(self._said):
            self._said[self._length] = token
            self._length += 1

    def report(self, accepted: int) -> None:
        """Learn how many tokens of the last draft were right: after bad drafts a longer end must agree."""
        self._accepted = _MEMORY * self._accepted + (1 - _MEMORY) * accepted

    def draft(self, most: int) -> list[int]:
        """Return at most ``most`` tokens that may come next; none if nothing similar was said before."""
        said = self._said[: self._length]
        least = _LEAST if self._accepted >= _PAYS else _CAREFUL
        (long, end), (length, start) = _find(said, said), _find(self._document, said)
        text, start = (said, end) if long >= length else (self._document, start)
        if max(long, length) < least:
            return []
        found: list[int] = text[start : start + most].tolist()
        return found


def _find(text: Ids, said: Ids) -> tuple[int, int]:
    """Find the longest end of ``said`` that ``text`` contains before its last token: its length, and where it ends.

    The last one, if there are several.
    """
    if not len(text) or not len(said):
        return 0, 0
    ends = np.flatnonzero(text[:-1] == said[-1])
    length = 0
    while ends.size:
        last, length = int(ends[-1]) + 1, length + 1
        if length == min(len(said), _MOST):
            break
        ends = ends[ends >= length]
        ends = ends[text[ends - length] == said[-1 - length]]
    return (length, last) if length else (0, 0)
