"""Likely sources: the pages that an answer's tokens attend to more than their share, and share words with.

If no part of an answer is verbatim in the text, attention still gives a hint. Each token of the answer attends to kept
units of the text. Its weights are summed per page and divided by the page's share. That share is the attention that an
answer without content to a question without content gives the page (Chen et al. 2024, in-context re-ranking). The share
grows with the units that were kept of a page, so that long pages do not win by their size. It also removes what any
answer attends to: line ends, headings, the newest page. An even share of the kept units only corrects for size, and was
measured to find the page half as often.

This is multiplied by how much more than an average page the page shares of the words of question and answer (BM25).
Neither helps if it is the same for all pages. After eviction, attention has few units to see; and an answer in other
words than the text's has no words to find. Together they were measured to be right if one of them is, and more often
than attention alone. This is a hint where to look, and never a citation: docs/results has how often it is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kvcli.documents.blocks import Block, blocks
from kvcli.documents.document import Span
from kvcli.engine.observer import Observer, ObserverLayer
from kvcli.retrieval.bm25 import bm25_scores

if TYPE_CHECKING:
    from kvcli.cache.context import Context
    from kvcli.documents.document import Document
    from kvcli.engine.prompt import Prompt
    from kvcli.models.model import Model

LAYERS = (1 / 3, 2 / 3)
"""Which layers are summed, as shares of the depth; others are worse in texts that are not short (docs/results)."""

NEUTRAL = "N/A"
"""Question and answer without content."""

PRIOR = 0.1
"""The part of an average page's value that is added to every page's attention and share. A page of which only a few
units were kept says little, so its ratio moves towards 1."""


@dataclass(frozen=True)
class LikelySource:
    """A page, section or run of lines that an answer may come from.

    ``score`` is ``lift`` times ``words``. ``lift`` is its attention over its share: 1 is what any answer gives it.
    ``words`` is what it shares of the words of question and answer: 1 is an average page. ``attention`` is its part of
    the answer's attention to the text, ``kept`` its part of the kept units; ``start`` and ``end`` are characters of the
    document's text, ``line`` and ``last`` lines as :attr:`Span.line` counts them.
    """

    span: Span
    start: int
    end: int
    line: int
    last: int
    score: float
    lift: float
    words: float
    attention: float
    kept: float

    def to_json(self) -> dict[str, Any]:
        """As JSON, rounded."""
        numbers = {name: round(getattr(self, name), 4) for name in ("score", "lift", "words", "attention", "kept")}
        return {**self.span.place, "line": self.line, "char_start": self.start, "char_end": self.end, **numbers}


def attribute(
    model: Model,
    prompt: Prompt,
    context: Context,
    document: Document,
    question: str,
    answer: str,
    *,
    ids: Sequence[int] | None = None,
    count: int = 3,
    tokens: int | None = None,
) -> list[LikelySource]:
    """The likeliest sources of an answer, the best first; only those that score more than 1.

    Args:
        model, prompt, context: what the document was read with.
        document: the document.
        question: what was asked.
        answer: the answer's text; without any there are no sources.
        ids: of the question, if they are not those of :meth:`Prompt.question`.
        count: how many at most.
        tokens: how many were read of the document, if something else was read after it; by default all.
    """
    pieces = blocks(document)
    reply = prompt.answer(answer) if answer.strip() else []
    if len(pieces) < 2 or not reply:
        return []
    offsets, asked = prompt.offsets(document.text), prompt.question(NEUTRAL)
    put = prompt.question(question) if ids is None else ids
    mass, units = answer_attention(model, context, [*put, *reply], len(put))
    none, _ = answer_attention(model, context, [*asked, *prompt.answer(NEUTRAL)], len(asked))
    attention, kept = map(parts, per_block(pieces, offsets, chosen(mass[:, :tokens]), chosen(units[:, :tokens])))
    lifts = lift(attention, per_block(pieces, offsets, chosen(none[:, :tokens]), chosen(units[:, :tokens]))[0])
    words = over_average(bm25_scores([document.text[p.start : p.end] for p in pieces], f"{question} {answer}"))
    scores = [a * b for a, b in zip(lifts, words, strict=True)]
    best = sorted(range(len(pieces)), key=lambda i: -scores[i])[:count]
    return [
        LikelySource(p.span, p.start, p.end, p.line, p.last, scores[i], lifts[i], words[i], attention[i], kept[i])
        for i in best
        if scores[i] > 1
        for p in [pieces[i]]
    ]


def chosen(values: Tensor, layers: tuple[float, float] = LAYERS) -> Tensor:
    """``[layers, seen]`` summed over some layers, named by shares of the depth: ``[seen]``."""
    depth = values.shape[0]
    first = min(depth - 1, round(layers[0] * depth))
    return values[first : max(first + 1, round(layers[1] * depth))].sum(0)


def per_block(
    pieces: Sequence[Block], offsets: Sequence[tuple[int, int]], mass: Tensor, units: Tensor
) -> tuple[list[float], list[float]]:
    """Attention and kept units per block; those of places outside all blocks are left out.

    Args:
        pieces: in order.
        offsets: the characters of each of the last tokens that were read.
        mass, units: ``[seen]``.
    """
    index, k = [], 0
    for start, end in offsets:
        middle = (start + end) / 2
        while k < len(pieces) and middle >= pieces[k].end:
            k += 1
        index.append(k if k < len(pieces) and middle >= pieces[k].start else len(pieces))
    where = torch.tensor(index, device=mass.device)
    totals = torch.zeros(2, len(pieces) + 1, device=mass.device)
    first = mass.shape[0] - len(index)
    totals.index_add_(1, where, torch.stack([mass[first:], units[first:]]))
    attention, kept = totals[:, :-1].tolist()
    return attention, kept


def parts(values: Sequence[float]) -> list[float]:
    """``values`` as parts of their sum."""
    total = sum(values) or 1.0
    return [v / total for v in values]


def over_average(scores: Sequence[float]) -> list[float]:
    """Each block's score over that of an average block: 1 for all if all are 0."""
    return lift(scores, [1.0] * len(scores)) if any(scores) else [1.0] * len(scores)


def lift(attention: Sequence[float], share: Sequence[float]) -> list[float]:
    """Each block's attention over its share, both in any unit: 1 for all blocks if they are proportional."""
    few = PRIOR / len(share)
    return [(a + few) / (b + few) for a, b in zip(parts(attention), parts(share), strict=True)]


@torch.inference_mode()
def answer_attention(model: Model, context: Context, ids: Sequence[int], first: int) -> tuple[Tensor, Tensor]:
    """How much the ids from ``first`` on attend to each position of a document, layer by layer.

    Args:
        model: the model.
        context: the document.
        ids: of a question and, after it, of an answer.
        first: which of them is the first that counts.

    Returns:
        attention and kept units, both float32 ``[layers, seen]``: probabilities summed over queries and heads, and
        how many KV heads kept the place. 0 in layers with a window of their own.
    """
    observer = AnswerObserver(model, context, len(ids), first)
    model.forward(torch.tensor(ids, device=model.device), observer, logits=False)
    mass = torch.zeros(len(context.layers), context.seen, device=model.device)
    units = torch.zeros_like(mass)
    for i, (held, label) in enumerate(zip(context.layers, observer.labels, strict=True)):
        if label is not None:
            places, label = held.pos.long().view(-1).to(mass.device), label.to(mass.device)
            mass[i].index_add_(0, places, label.view(-1))
            units[i].index_add_(0, places, torch.ones_like(label.view(-1)))
    return mass, units


class AnswerObserver(Observer):
    """An observer whose label is the sum of probabilities over the queries from ``first`` on: ``[H_kv, n]``."""

    def __init__(self, model: Model, context: Context, length: int, first: int) -> None:
        super().__init__(model.rotary, context, [(length, 0)], "prob")
        self.first = first
        self.layers = [_Layer(self, i) for i in range(len(context.layers))]


class _Layer(ObserverLayer):
    observer: AnswerObserver

    def _record(self, q: Tensor, k: Tensor, scale: float, lse: Tensor) -> None:
        first = self.observer.first
        total = torch.zeros(k.shape[:2], device=q.device)
        for block in self._attention_scores(q[:, first:], k, scale, lse[:, first:]):
            total += block.exp_().sum(dim=1)
        self.label = total
