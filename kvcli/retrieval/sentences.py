"""An index of a document's sentences, and BM25 over them.

A sentence is found by its own words; those of its neighbours and of its heading count less. They count because a
sentence says "he" if the sentence before it has the name. The index is arrays: looking up adds a few of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from io import BytesIO
from itertools import pairwise
from typing import TYPE_CHECKING, Any, get_args
from zipfile import BadZipFile

import numpy as np

from kvcli.documents.document import Source
from kvcli.documents.sentences import Kind, Sentence, split_sentences
from kvcli.retrieval.bm25 import Query, WordIndex
from kvcli.retrieval.words import language

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvcli.documents.document import Document
    from kvcli.documents.kept import DocumentCache

NEIGHBOURS, HEADING = 0.25, 0.3
"""What the scores of the sentences on either side, and of the heading, count."""

STORED_FROM = 200_000
"""Characters of a text from which its index is stored: to load it takes a tenth of the time (docs/log.md)."""

FORMAT = 1
"""Of stored indexes. Raise it if another kvcli of this version would make another one of the same text."""

KINDS: tuple[Kind, ...] = get_args(Kind)
_ARRAYS = ("_begin", "_sentence", "_idf", "_weight")


class SentenceIndex(WordIndex):
    """The sentences of a document and the words in them.

    Attributes:
        sentences: in order; kvcli's own marks (``[page 12]``) are not among them.
        heading: int32 ``[s]``, for each the number of the heading above it, or -1.
        language: of the words in Latin script.
    """

    def __init__(self, document: Document) -> None:
        self.document, text = document, document.text
        self.sentences = _own(split_sentences(text), document)
        super().__init__([text[s.start : s.end] for s in self.sentences], language(text))
        count = self.count
        headings = np.fromiter((s.kind == "heading" for s in self.sentences), dtype=bool, count=count)
        self.is_heading = headings
        at = np.where(headings, np.arange(count), -1)
        self.heading = np.maximum.accumulate(at) if count else at

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The index without the document, for :meth:`restore`."""
        places = [(s.start, s.end, KINDS.index(s.kind)) for s in self.sentences]
        words = "\n".join(self.terms).encode()
        return {
            "places": np.array(places, dtype=np.int64).reshape(-1, 3),
            "terms": np.frombuffer(words, dtype=np.uint8),
            "language": np.frombuffer(self.language.encode(), dtype=np.uint8),
            **{name: getattr(self, name) for name in ("heading", *_ARRAYS)},
        }

    @classmethod
    def restore(cls, document: Document, stored: Mapping[str, NDArray[Any]]) -> SentenceIndex:
        """The index of a document from its :meth:`arrays`. Raises ``KeyError`` or ``ValueError`` for others."""
        found = cls.__new__(cls)
        found.document = document
        found.sentences = [Sentence(int(a), int(b), KINDS[int(kind)]) for a, b, kind in stored["places"]]
        words = stored["terms"].tobytes().decode()
        found.terms = {word: n for n, word in enumerate(words.split("\n"))} if words else {}
        found.language = stored["language"].tobytes().decode()
        for name in ("heading", *_ARRAYS):
            setattr(found, name, stored[name])
        found.count = len(found.sentences)
        found.is_heading = stored["places"][:, 2] == KINDS.index("heading")
        if len(found._begin) != len(found.terms) + 1 or len(found.heading) != found.count:
            raise ValueError("the index does not fit its words")
        return found

    @cached_property
    def paragraph(self) -> NDArray[np.int64]:
        """For each sentence the number of its paragraph, which ends at a blank line and at a heading: int64 ``[s]``."""
        text, count = self.document.text, len(self)
        gaps = (text.count("\n", a.end, b.start) > 1 for a, b in pairwise(self.sentences))
        apart = np.fromiter(gaps, dtype=bool, count=max(0, count - 1)) | (self.heading[1:] != self.heading[:-1])
        found: NDArray[np.int64] = np.concatenate(([0], np.cumsum(apart)))[:count].astype(np.int64)
        return found

    def covered(self, query: Query) -> NDArray[np.float32]:
        """Which part of a question's words, weighted by rarity, are in reach of each sentence: float32 ``[3, s]``.

        The rows are the sentence itself, with the one before it in its paragraph, and the whole paragraph; each in
        [0, 1].
        """
        total = np.zeros((3, len(self)), dtype=np.float32)
        paragraphs = np.zeros(int(self.paragraph[-1]) + 1 if len(self) else 0, dtype=np.float32)
        for term, idf in zip(query.terms, query.weights, strict=True):
            own = self._sentence[self._begin[term] : self._begin[term + 1]]
            after = own[own + 1 < len(self)] + 1
            after = after[self.paragraph[after] == self.paragraph[after - 1]]
            total[0, own] += idf
            total[1, np.union1d(own, after)] += idf
            paragraphs[np.unique(self.paragraph[own])] += idf
        total[2] = paragraphs[self.paragraph]
        total /= max(query.total, 1e-6)
        return total

    def around(self, own: NDArray[np.float32]) -> NDArray[np.float32]:
        """Sum the scores of each sentence's two neighbours under the same heading: float32 ``[s]``."""
        beside = np.zeros_like(own)
        if len(own) > 1:
            same = self.heading[1:] == self.heading[:-1]
            beside[1:] += np.where(same, own[:-1], 0)
            beside[:-1] += np.where(same, own[1:], 0)
        return beside

    def above(self, own: NDArray[np.float32]) -> NDArray[np.float32]:
        """The score of each sentence's heading; 0 without one and for headings: float32 ``[s]``."""
        under = (self.heading >= 0) & ~self.is_heading
        return np.where(under, own[np.maximum(self.heading, 0)], 0).astype(np.float32) if len(own) else own

    def ranked(self, question: str | Query) -> NDArray[np.float32]:
        """The scores that candidates are chosen by: float32 ``[s]``; 0 if nothing is shared."""
        own = self.scores(self.query(question) if isinstance(question, str) else question)
        total: NDArray[np.float32] = own + NEIGHBOURS * self.around(own) + HEADING * self.above(own)
        total[self.is_heading] /= 2
        return total

    def best(self, scores: NDArray[np.float32], count: int) -> list[int]:
        """The numbers of the sentences that score most, the best first; earlier ones first among equals."""
        order = np.argsort(-scores, kind="stable")[:count]
        return [int(i) for i in order if scores[i] > 0]


@lru_cache(maxsize=4)
def sentence_index(document: Document, kept: DocumentCache | None = None) -> SentenceIndex:
    """The index of a document's sentences, made once; that of a long text is looked for in ``kept`` and stored there.

    One that is damaged is made again.
    """
    if kept is None or len(document.text) < STORED_FROM:
        return SentenceIndex(document)
    name, marks = next(iter(document.files), "text"), [(span.start, span.body) for span in document.spans]
    text = document.text.encode("utf-8", "surrogatepass")
    path = kept.path(Source(text, name, name), f"sentences {FORMAT} {marks}")
    _, stored = kept.load(path)
    with suppress(OSError, EOFError, ValueError, KeyError, IndexError, BadZipFile):
        return SentenceIndex.restore(document, np.load(BytesIO(stored), allow_pickle=False))
    index, file = SentenceIndex(document), BytesIO()
    np.savez(file, **index.arrays())  # type: ignore[arg-type]
    kept.save(path, {"name": name}, file.getvalue())
    return index


def _own(sentences: Sequence[Sentence], document: Document) -> list[Sentence]:
    """The sentences without kvcli's marks, cut at the spans of the document."""
    marks = [(s.start, s.body) for s in document.spans if s.body > s.start]
    if not marks:
        return list(sentences)
    found, at = [], 0
    for sentence in sentences:
        while at < len(marks) and marks[at][1] <= sentence.start:
            at += 1
        start, k = sentence.start, at
        while k < len(marks) and marks[k][0] < sentence.end:
            found += _trimmed(document.text, start, marks[k][0], sentence)
            start, k = max(start, marks[k][1]), k + 1
        found += _trimmed(document.text, start, sentence.end, sentence)
    return found


def _trimmed(text: str, start: int, end: int, sentence: Sentence) -> list[Sentence]:
    body = text[start:end] if start < end else ""
    start, end = start + len(body) - len(body.lstrip()), end - len(body) + len(body.rstrip())
    return [Sentence(start, end, sentence.kind)] if body.strip() else []
