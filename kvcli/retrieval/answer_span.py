"""The words of a document's sentences that answer a question: successive words, rated by the language model.

The model sees worked examples, the sentences and the question. A span's value is the log-probability that the model
writes it and then ends, and a constant for each token. Without the constant, one word is nearly always likeliest. The
logarithm of its sentence's share counts for it, and words of the question count against it. Spans begin with one of the
words that the model finds likeliest as the first. The weights were fitted on everyday questions and the first half of
SQuAD's (docs/log.md).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import torch

from kvcli.documents.normalize import UNSPACED
from kvcli.engine.likelihood import logits_after, read_beginning
from kvcli.engine.prompt import Prompt
from kvcli.models.model import Model
from kvcli.retrieval.words import content_stems

STARTS, LONGEST, MOST = 32, 14, 48
"""First words that are tried, and words and tokens of a span at most."""

BONUS, SHARE, ECHO = 0.55, 2.0, -2.0
"""What each token of a span counts, the logarithm of its sentence's share, and the part of its words that the question
has."""

_WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
_OPENING, _CLOSING = "\"'([“‘«„", ".,;:!?)]\"'”’»…"


@dataclass(frozen=True)
class AnswerSpan:
    """Successive words of a text.

    Attributes:
        text: the words, with one blank for each white space.
        tokens: how many tokens of the model they are.
        value: the sum by which it is the best.
    """

    text: str
    tokens: int
    value: float


def answer_span(
    model: Model,
    prompt: Prompt,
    question: str,
    texts: Sequence[str],
    shares: Sequence[float],
    most: int = MOST,
    language: str = "english",
) -> AnswerSpan | None:
    """The span that the model rates best as the answer; ``None`` if no text has a word.

    Args:
        model, prompt: a loaded model and its tokenizer.
        question: what is asked.
        texts: the sentences, the likeliest last.
        shares: of each, the probability that it is the one that answers.
        most: tokens of a span.
        language: of the texts.
    """
    asked = prompt.worked_examples(texts, question)
    tails = [
        (*tail, SHARE * log(share + 1e-4))
        for text, share in zip(texts, shares, strict=True)
        for tail in _tails(" ".join(text.split()))
    ]
    coded = [prompt.reply_tokens(f" {tail}") for tail, *_ in tails]
    if not tails:
        return None
    first, read = read_beginning(model, asked)
    firsts = first.log_softmax(-1)
    likely = sorted(range(len(tails)), key=lambda n: -float(firsts[coded[n][0][0]]))[:STARTS]
    ids = [coded[n][0][: min(most, MOST)] for n in likely]
    logits, _ = logits_after(model, asked, ids, [range(len(i)) for i in ids], read=read)
    over = sorted({*model.eos, *(prompt.reply(text)[0] for text in ("\n", "\n\n"))})
    words, found = set(content_stems(question, language)), None
    for n, own, after in zip(likely, ids, logits, strict=True):
        chances = after.log_softmax(-1)
        steps = chances[:-1].gather(1, torch.tensor(own[1:], device=after.device)[:, None])[:, 0]
        so_far = (firsts[own[0]] + torch.cat((steps.new_zeros(1), steps.cumsum(0)))).tolist()
        ends = chances[:, over].logsumexp(1).tolist()
        tail, stops, prior = tails[n]
        last = {end - 1: i for i, (_, end) in enumerate(coded[n][1])}  # of several bytes of one character, the last
        for i, stop in sorted({last[stop]: stop for stop in stops if last.get(stop, len(own)) < len(own)}.items()):
            value = so_far[i] + ends[i] + BONUS * (i + 1) + prior + ECHO * _echo(tail[:stop], words, language)
            if found is None or value > found.value:
                found = AnswerSpan(tail[:stop], i + 1, value)
    return found


def _echo(text: str, asked: set[str], language: str) -> float:
    """The part of a text's words, common ones left out, that the question has in any form."""
    stems = content_stems(text, language)
    return sum(stem in asked for stem in stems) / max(1, len(stems))


def _tails(text: str) -> list[tuple[str, list[int]]]:
    """The words of a text from each word on, and where an answer may end; without marks before and after it."""
    words, found = [m.span() for m in _WORD.finditer(text)], []
    for first, (start, stop) in enumerate(words):
        start = stop - len(text[start:stop].lstrip(_OPENING))
        run = words[first : first + LONGEST]
        tail = text[start : run[-1][1]]
        ends = {len(tail[: end - start].rstrip(_CLOSING + " ")) for _, end in run}
        if start < stop and ends - {0}:
            found.append((tail, sorted(ends - {0})))
    return found
