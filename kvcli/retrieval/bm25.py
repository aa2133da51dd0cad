"""BM25 scores of passages for a question (Robertson and Zaragoza 2009)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any


def bm25_scores(texts: Sequence[str], question: str) -> list[float]:
    """BM25 of each text for the question's words, stop words left out."""
    import bm25s

    index = _indexed(tuple(texts))
    asked = bm25s.tokenize([question], stopwords="en", show_progress=False, return_ids=False)[0]
    known = [w for w in asked if w in index.vocab_dict]
    return [float(s) for s in index.get_scores(known)] if known else [0.0] * len(texts)


@lru_cache(maxsize=2)  # passages of a second look, and pages that are likely sources
def _indexed(texts: tuple[str, ...]) -> Any:
    import bm25s

    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(texts), stopwords="en", show_progress=False), show_progress=False)
    return index
