"""Rereading: after the prefill, the passages that matter most to the question are read again, word for word.

Eviction keeps the gist of a text; a passage that is appended again has its exact words. Passages are chosen by two
measures: what the question attends to among the kept units, and which words the passage shares with it (BM25, Robertson
and Zaragoza 2009). The first finds other words for the same, the second what eviction has lost.

If a text is much longer than what is kept of it, only the kept units that the question attends to most stay visible.
The others distract a small model from the reread passages (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from kvcli.documents.sentences import split_sentences
from kvcli.retrieval.attention import attention_by_position, narrow_context, question_attention
from kvcli.retrieval.bm25 import bm25_scores

if TYPE_CHECKING:
    from kvcli.cache.context import Context
    from kvcli.engine.prompt import Prompt
    from kvcli.models.model import Model

PASSAGE_CHARACTERS = 400  # characters
_RANK_OFFSET = 10  # small, because only the first few ranks matter


@dataclass(frozen=True)
class Passage:
    """A stretch of the document's text, in characters."""

    start: int
    end: int
    score: float = 0.0


@dataclass(frozen=True)
class Retrieved:
    """What to read again, and what to see of the rest.

    Attributes:
        passages: the best one last, which is where it stands next to the question.
        context: what the question and its answer attend to in place of the whole context.
    """

    passages: tuple[Passage, ...]
    context: Context

    def texts(self, text: str) -> list[str]:
        """The passages' words."""
        return [text[p.start : p.end].strip() for p in self.passages]


def retrieve_passages(
    model: Model,
    prompt: Prompt,
    context: Context,
    text: str,
    question: str,
    *,
    count: int = 3,
    tokens: int | None = None,
) -> Retrieved:
    """Select the passages to read again, and the kept units that stay visible.

    Args:
        model, prompt, context: what the text was read with.
        text: the document.
        question: about it.
        count: passages.
        tokens: how many were read of the document, if something else was read after it; by default all.
    """
    spans, places = _spread(prompt, text)
    if len(spans) <= count:
        return Retrieved(spans, context)
    labels = question_attention(model, context, prompt.question(question))
    end = context.seen if tokens is None else tokens
    read = range(end - len(places), end)
    attended = torch.zeros(len(spans)).scatter_reduce(
        0, places, attention_by_position(context, labels)[read.start : end].cpu(), "amax"
    )
    shared = bm25_scores(tuple(text[s.start : s.end] for s in spans), question)
    visible = narrow_context(context, labels, read)
    best = fuse_rankings(attended.tolist(), shared, count, narrowed=visible is not context)
    return Retrieved(tuple(replace(spans[i], score=score) for i, score in reversed(best)), visible)


def fuse_rankings(
    attended: Sequence[float], shared: Sequence[float], count: int, *, narrowed: bool = False
) -> list[tuple[int, float]]:
    """The ``count`` best passages with their scores, best first.

    By reciprocal ranks (Cormack et al. 2009). Attention finds only what was kept. So if little was kept, scores are
    added instead, each divided by its largest value, and words count twice. Then a passage whose words lead by far
    stays first. The last place is then still that of the best by ranks: in one's own words one asks for what attention
    puts high and no word puts first.

    Args:
        attended, shared: per passage, both 0 if nothing is known.
        count: passages.
        narrowed: whether little was kept of the text.
    """
    ranked = [0.0] * len(shared)
    for measure in (attended, shared):
        for rank, i in enumerate(sorted(range(len(measure)), key=lambda i: -measure[i])):
            ranked[i] += (measure[i] > 0) / (_RANK_OFFSET + rank)
    by_rank = sorted(range(len(ranked)), key=lambda i: -ranked[i])
    if not narrowed:
        return [(i, ranked[i]) for i in by_rank[:count]]
    most, words = max(attended) or 1.0, max(shared) or 1.0
    scores = [2 * w / words + a / most for a, w in zip(attended, shared, strict=True)]
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    if count > 1 and by_rank[0] not in order[:count]:
        order[count - 1] = by_rank[0]
    return [(i, scores[i]) for i in order[:count]]


@lru_cache(maxsize=1)  # many questions about one text
def _spread(prompt: Prompt, text: str) -> tuple[tuple[Passage, ...], torch.Tensor]:
    """The passages of a text, and for each of its tokens the passage that contains it: int64 ``[n]``."""
    spans = passages(text)
    ends = torch.tensor([span.end for span in spans[:-1]])
    middles = torch.tensor([(start + end) / 2 for start, end in prompt.offsets(text)])
    return tuple(spans), torch.bucketize(middles, ends, right=True)


def passages(text: str, size: int = PASSAGE_CHARACTERS) -> list[Passage]:
    """A text in pieces of about ``size`` characters that end where sentences do, wherever they do."""
    found: list[Passage] = []
    start = last = 0
    for end in [*(sentence.start for sentence in split_sentences(text)[1:]), len(text)]:
        if end - start > size and last > start:
            found.append(Passage(start, last))
            start = last
        while end - start > 2 * size:
            found.append(Passage(start, start + size))
            start += size
        last = end
    if start < len(text):
        found.append(Passage(start, len(text)))
    return [p for p in found if not text[p.start : p.end].isspace()]
