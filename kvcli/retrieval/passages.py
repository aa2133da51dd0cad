"""Rereading: after the prefill, the passages that matter most to the question are read again, word for word.

Eviction keeps the gist of a text; a passage that is appended again has its exact words. Passages are those that the
likeliest sentences stand in, by words (:mod:`kvcli.retrieval.quotes`); then those that the question attends to most
among the kept units. Adding the attention to a passage's words found fewer answers (docs/log.md).

If a text is much longer than what is kept of it, only the kept units that the question attends to most stay visible.
The others distract a small model from the reread passages (docs/log.md).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from kvcli.documents.sentences import split_sentences
from kvcli.retrieval.attention import attention_by_position, narrow_context, question_attention

if TYPE_CHECKING:
    from kvcli.cache.context import Context
    from kvcli.engine.prompt import Prompt
    from kvcli.models.model import Model
    from kvcli.retrieval.quotes import QuoteSearch

PASSAGE_CHARACTERS = 400  # characters


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
    search: QuoteSearch,
    *,
    count: int = 3,
    tokens: int | None = None,
) -> Retrieved:
    """Select the passages to read again, and the kept units that stay visible.

    Args:
        model, prompt, context: what the text was read with.
        search: the sentences of the text that may answer the question.
        count: passages.
        tokens: how many were read of the document, if something else was read after it; by default all.
    """
    spans, places = _spread(prompt, search.index.document.text)
    if len(spans) <= count:
        return Retrieved(spans, context)
    labels = question_attention(model, context, prompt.question(search.question))
    end = context.seen if tokens is None else tokens
    read = range(end - len(places), end)
    attended = torch.zeros(len(spans)).scatter_reduce(
        0, places, attention_by_position(context, labels)[read.start : end].cpu(), "amax"
    )
    shares, starts = [0.0] * len(spans), [span.start for span in spans[1:]]
    for candidate in search.candidates:
        shares[bisect_right(starts, search.index.sentences[candidate.number].start)] += candidate.share
    best = sorted(range(len(spans)), key=lambda i: (-shares[i], -attended[i]))[:count]
    chosen = tuple(replace(spans[i], score=shares[i]) for i in reversed(best))
    return Retrieved(chosen, narrow_context(context, labels, read))


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
