"""The sentences of a document that answer a question, ranked by words and by the model, each with a probability.

By words: BM25 of the sentence, its neighbours and its heading. By the model: how much likelier the question is after
the sentence than after nothing (Sachan et al. 2022, arXiv:2204.07496), for the best candidates, in one forward pass.
Both are weighed by a logistic regression, so a score is the probability that the sentence answers; docs/results has
what it was fitted on and how well it holds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import exp
from time import perf_counter
from typing import TYPE_CHECKING

from kvcli.documents.document import Document
from kvcli.documents.sentences import split_sentences
from kvcli.events import Quote, Quotes
from kvcli.retrieval.sentences import SentenceIndex
from kvcli.retrieval.words import common_words, find_words, fold_words

if TYPE_CHECKING:
    from kvcli.engine.prompt import Prompt
    from kvcli.models.model import Model

CANDIDATES = 10
"""Sentences that the model ranks; the best ten by words hold the answer to 96 % of the questions (docs/log.md)."""

LONGEST_TEXT, LONGEST_QUESTION = 96, 64
"""Tokens of a candidate and of a question that the model sees when it ranks."""

UNLIKELY = 0.1
"""Probability of the best quote below which nothing in the text seems to answer."""

SUPPORTED = 2 / 3
"""Part of a sentence of the answer, in words that the question does not have, that a supporting quote has."""

# Logistic regressions, each question asked of the right and of the wrong text: constant, share of words, score over the
# best, coverage, and the gain. By words on 595 questions; by the model on 34, where it showed no gain over words.
_BY_WORDS = (-5.80, 2.13, 1.23, 3.57)
_BY_MODEL = (-6.47, 0.72, 2.56, 3.65, 0.23)

_PRONOUNS = frozenset(
    re.findall(
        r"\w+",
        "he she it they him her his hers its their theirs them this that these those there then er sie ihn ihm ihr ihre"
        " sein seine dessen deren dort il elle ils elles lui leur él ella ellos ellas esto eso lui lei loro он она оно"
        " они его её их ему ей",
    )
)


@dataclass(frozen=True)
class Candidate:
    """A sentence that may answer.

    Attributes:
        number: of the sentence in the index.
        words: its score by words, over the sum of the rarities of the question's words.
        lead: its score by words over that of the best sentence.
        covered: part of the question's words that it has, weighted by rarity.
        gain: by how much the mean log-probability of the question's tokens rises after it; ``None`` if not computed.
    """

    number: int
    words: float
    lead: float
    covered: float
    gain: float | None = None

    @property
    def score(self) -> float:
        """The probability that it answers."""
        values = [1.0, self.words, self.lead, self.covered]
        weights = _BY_WORDS if self.gain is None else _BY_MODEL
        values += [] if self.gain is None else [self.gain]
        return 1 / (1 + exp(-sum(w * v for w, v in zip(weights, values, strict=True))))


@lru_cache(maxsize=4)
def sentence_index(document: Document) -> SentenceIndex:
    """The index of a document's sentences, made once."""
    return SentenceIndex(document)


def candidates_by_words(index: SentenceIndex, question: str, count: int = CANDIDATES) -> list[Candidate]:
    """The sentences that share most with a question, the best first; none if no word is shared."""
    query = index.query(question)
    ranked, covered = index.ranked(query), index.covered(query)
    best = index.best(ranked, count)
    top, total = (float(ranked[best[0]]) if best else 1.0), max(query.total, 1e-6)
    found = [Candidate(i, float(ranked[i]) / total, float(ranked[i]) / top, float(covered[i])) for i in best]
    return sorted(found, key=lambda c: -c.score)


def rank_by_model(
    model: Model, prompt: Prompt, index: SentenceIndex, question: str, candidates: Sequence[Candidate]
) -> list[Candidate]:
    """Candidates with their gain, the likeliest first; those that were equally likely stay in their order.

    Args:
        model, prompt: a loaded model and how it is spoken to; nothing need have been read.
        index, question, candidates: from :func:`candidates_by_words`.
    """
    from kvcli.engine.likelihood import mean_log_likelihoods

    text = index.document.text
    end = prompt.reply("\nQuestion:")
    sentences = [" ".join(text[s.start : s.end].split()) for s in (index.sentences[c.number] for c in candidates)]
    texts = [[*prompt.reply(f" {sentence}")[:LONGEST_TEXT], *end] for sentence in sentences]
    asked = prompt.reply(f" {' '.join(question.split())}")[-LONGEST_QUESTION:]
    if not asked or not candidates:
        return list(candidates)
    *likely, without = mean_log_likelihoods(model, prompt.reply("Text:"), [*texts, end], asked)
    found = [replace(c, gain=value - without) for c, value in zip(candidates, likely, strict=True)]
    return sorted(found, key=lambda c: -c.score)


class QuoteSearch:
    """The search for the sentences that answer one question.

    Args:
        document: the text; nothing need have been read.
        question: what is asked.
        earlier: of a conversation, the last question and quote (:func:`with_conversation`).
        count: quotes at most; fewer if fewer sentences share a word with the question.
    """

    def __init__(self, document: Document, question: str, earlier: Sequence[str] = (), *, count: int = 3) -> None:
        self._began = perf_counter()
        self.index, self.question, self.count = sentence_index(document), with_conversation(question, earlier), count
        self.candidates = candidates_by_words(self.index, self.question, max(count, CANDIDATES))
        self.by_model = False

    def rank_by_model(self, model: Model, prompt: Prompt) -> None:
        """Let a model rank the candidates."""
        self.candidates = rank_by_model(model, prompt, self.index, self.question, self.candidates)
        self.by_model = True

    def quotes(self, answer: str | None = None) -> Quotes:
        """The best candidates; those that support ``answer`` first, and the likeliest too if there are several."""
        likely = max((c.score for c in self.candidates), default=0.0)
        seconds = perf_counter() - self._began if answer is None else 0.0
        return Quotes(tuple(self._quotes(answer)), self.by_model, seconds, likely, likely >= UNLIKELY)

    def _quotes(self, answer: str | None) -> list[Quote]:
        if answer is None or not answer.strip():
            return [self._quote(c, None) for c in self.candidates[: self.count]]
        quotes = [self._quote(c, answer) for c in self.candidates]
        supporting = [q for q in quotes if q.supports]
        if self.count == 1:
            return (supporting or quotes)[:1]
        chosen = quotes[:1] + [q for q in supporting if q is not quotes[0]]
        chosen = (chosen + [q for q in quotes if q not in chosen])[: self.count]
        return sorted(chosen, key=lambda q: not q.supports)

    def _quote(self, candidate: Candidate, answer: str | None) -> Quote:
        document, (start, end, _) = self.index.document, self.index.sentences[candidate.number]
        span, text = document.at(start), document.text[start:end]
        holds = None if answer is None else supports(text, self.question, answer, self.index.language)
        line = document.line(start)
        return Quote(text, span.file, span.page, line, start, end, candidate.score, holds)


def supports(text: str, question: str, answer: str, language: str) -> bool:
    """Whether a text has most of the words of some sentence of an answer that the question does not have."""
    common = common_words(language)

    def stems(words: str) -> set[str]:
        return set(fold_words([w for w in find_words(words) if w not in common], language))

    has, asked = stems(text), stems(question)
    for sentence in split_sentences(answer):
        told = stems(answer[sentence.start : sentence.end])
        new = told - asked or told
        if new and len(new & has) >= SUPPORTED * len(new):
            return True
    return False


def shared_words(text: str, question: str, language: str) -> list[tuple[int, int]]:
    """Where a text has words of a question, in any form: character ranges, in order."""
    common = common_words(language)
    asked = set(fold_words([w for w in find_words(question) if w not in common], language))
    found = []
    for match in re.finditer(r"[^\W_]+", text):
        words = find_words(match[0])
        if words and set(fold_words(words, language)) & asked:
            found.append(match.span())
    return found


def with_conversation(question: str, earlier: Sequence[str]) -> str:
    """What to look up for a follow-up question: its words and, if it has a pronoun and no name, those before it.

    Args:
        question: what is asked now.
        earlier: the last question and the last quote.
    """
    words = question.split()
    names = any(word[:1].isupper() for word in words[1:])
    refers = bool(_PRONOUNS & set(find_words(question)))
    return " ".join([question, *earlier]) if refers and not names else question
