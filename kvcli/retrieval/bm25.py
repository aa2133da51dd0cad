"""BM25 of some texts, be they sentences, passages or pages (Robertson and Zaragoza 2009). The index is arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from kvcli.retrieval.words import common_words, find_words, fold_words, language

if TYPE_CHECKING:
    from numpy.typing import NDArray

K1, B = 1.2, 0.6
"""How fast a repeated word stops counting, and how much a long text is held against it."""


@dataclass(frozen=True)
class Query:
    """A question's words as the index knows them.

    Attributes:
        terms: numbers of its words, those that are too common left out; each once.
        weights: float32, how rare each is (idf).
        unknown: the idf, summed, that its words outside the texts would have.
    """

    terms: tuple[int, ...]
    weights: tuple[float, ...]
    unknown: float

    @property
    def total(self) -> float:
        return sum(self.weights) + self.unknown


class WordIndex:
    """Which words some texts have.

    Args:
        texts: in order.
        name: the language of words in Latin script.
    """

    def __init__(self, texts: Sequence[str], name: str) -> None:
        count, self.language = len(texts), name
        words = list(map(find_words, texts))
        sizes = np.fromiter(map(len, words), dtype=np.int64, count=count)
        numbers = {word: number for number, word in enumerate(dict.fromkeys(chain.from_iterable(words)))}
        flat = np.fromiter(map(numbers.__getitem__, chain.from_iterable(words)), np.int64, int(sizes.sum()))
        folded = fold_words(list(numbers), name)
        self.terms = {stem: number for number, stem in enumerate(dict.fromkeys(folded))}
        to_term = np.fromiter(map(self.terms.__getitem__, folded), np.int64, len(folded))
        pairs = to_term[flat] * count + np.repeat(np.arange(count), sizes) if count else flat
        pairs, often = np.unique(pairs, return_counts=True)
        term, self._sentence = np.divmod(pairs, max(1, count))
        self._begin = np.searchsorted(term, np.arange(len(self.terms) + 1))
        found = np.diff(self._begin)
        self._idf = np.log1p((count - found + 0.5) / (found + 0.5)).astype(np.float32)
        length = sizes / max(1.0, float(sizes.mean()) if count else 1.0)
        held = often / (often + K1 * (1 - B + B * length[self._sentence])) if count else often.astype(np.float64)
        self._weight = (held * (K1 + 1)).astype(np.float32)
        self._sentence = self._sentence.astype(np.int32)
        self.count = count

    def __len__(self) -> int:
        return self.count

    def query(self, question: str, names: Sequence[str] = ()) -> Query:
        """The words of a question; all of them if every one is common.

        Args:
            question: what is asked.
            names: words that are meant too; their weights sum to at most half of those of the question's words.
        """
        words = list(dict.fromkeys(find_words(question)))
        told = language(question)
        common = common_words(self.language) | common_words("russian") | common_words(told)
        asked = [w for w in words if w not in common] or words
        stems = dict.fromkeys(fold_words(asked, self.language))
        rarest = float(np.log1p((len(self) + 0.5) / 0.5))
        weights = {self.terms[s]: float(self._idf[self.terms[s]]) for s in stems if s in self.terms}
        unknown = rarest * (len(stems) - len(weights))
        meant = fold_words(find_words(" ".join(names)), self.language)
        more = {self.terms[s]: float(self._idf[self.terms[s]]) for s in meant if s in self.terms and s not in stems}
        part = min(1.0, (sum(weights.values()) + unknown) / 2 / sum(more.values())) if more else 0.0
        weights |= {term: part * weight for term, weight in more.items()}
        return Query(tuple(weights), tuple(weights.values()), unknown)

    def scores(self, query: Query) -> NDArray[np.float32]:
        """BM25 of each text: float32 ``[n]``."""
        total = np.zeros(len(self), dtype=np.float32)
        for term, idf in zip(query.terms, query.weights, strict=True):
            part = slice(self._begin[term], self._begin[term + 1])
            total[self._sentence[part]] += idf * self._weight[part]
        return total


def bm25_scores(texts: Sequence[str], question: str) -> list[float]:
    """BM25 of each text for the question's words, common words left out."""
    index = _indexed(tuple(texts))
    return [float(score) for score in index.scores(index.query(question))]


@lru_cache(maxsize=2)  # passages that are read again, and pages that are likely sources
def _indexed(texts: tuple[str, ...]) -> WordIndex:
    return WordIndex(texts, language("\n".join(texts)))
