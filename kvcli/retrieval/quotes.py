"""The sentences of a document that answer a question, ranked by words and by the model, each with a probability.

By words: BM25 of the sentence and its neighbours; the question's words and pairs that it has; those that its paragraph
has. Also whether it has a number, time or name, if the question asks for one. By the model: how likely the question is
after the sentence (Sachan et al. 2022, arXiv:2204.07496), and how much the question attends to it. The model is asked
only about those candidates that the words leave open, in one forward pass. It sees worked examples first: from them it
learns that a question is about the last sentence of a text. It also sees the sentence before the candidate, which may
name what it calls "it". Without either, the ranking is hardly better than by words (docs/log.md).

If neither decides between two sentences that follow one another, they are one quote: the answer is often beside
the sentence with the question's words. A score is the probability that the text answers the question at all, by words,
times the share of the quote's sentences of that. docs/results/quotes.md has how often the first quotes are right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import exp, log
from time import perf_counter
from typing import TYPE_CHECKING

from kvcli.documents.document import Document
from kvcli.documents.sentences import split_sentences
from kvcli.events import Quote, Quotes
from kvcli.retrieval.answer_type import expected, has_type
from kvcli.retrieval.bm25 import Query
from kvcli.retrieval.sentences import HEADING, SentenceIndex, sentence_index
from kvcli.retrieval.words import common_words, content_stems, find_words, fold_words
from kvcli.retrieval.words import language as language_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kvcli.documents.kept import DocumentCache
    from kvcli.engine.prompt import Prompt
    from kvcli.models.encoder import Encoder
    from kvcli.models.model import Model

CANDIDATES = 20
"""Sentences that are compared by words; the best 20 by BM25 hold the answer to 97 % of the questions (docs/log.md)."""

RANKED, OPEN = 10, 0.01
"""Sentences that the model ranks at most, and the share by words from which it is asked about a sentence."""

LONGEST_TEXT, LONGEST_QUESTION = 128, 64
"""Tokens of a candidate with the sentence before it, and of a question, that the model sees when it ranks."""

EXAMPLES = (
    "Text: The museum in Lund is a red house. It is closed on Mondays.\n"
    "Question: When is the museum in Lund closed?\n\n"
    "Text: -q, --quiet  print nothing -v, --verbose  print the name of each file\n"
    "Question: Which option shows the files' names?\n\n"
    "Text: The portrait shows King Olaf. It was painted by his sister Anna in 1874.\n"
    "Question: Who painted the portrait of King Olaf?\n\nText:"
)
"""What the model sees before a candidate: each question asks about the last sentence or line of its text."""

JOINED, LONGEST_JOINED = 0.1, 400
"""Part of the likelier sentence's share from which the one before or after it is quoted with it, and the characters
that both may have."""

UNLIKELY = 0.2
"""Probability that the text answers, below which kvcli says that nothing in it seems to."""

SUPPORTED = 2 / 3
"""Part of a sentence of the answer, in words that the question does not have, that a supporting quote has."""

# A softmax over candidates. Values of a candidate: the score of its own words and its heading, that of its neighbours
# (both over the sum of the rarities of the question's words); the covered part of the question's words in the sentence,
# with the one before, in the paragraph; the covered part of its pairs of words; what is asked for; and a heading.
_BY_WORDS = (4.0, 0.8, 1.0, 2.8, 5.6, 2.2, 2.9, -6.5)
# Weights of this sum, of the gain and of the logarithm of the attention; and of the sum and the gain alone.
_BY_MODEL, _BY_GAIN = (0.65, 3.7, 2.4), (0.9, 3.2)
# Weights of this sum, and of the score of an embedding model or of a cross-encoder.
_BY_VECTORS, _BY_CROSS = (1.1, 4.2), (0.9, 0.5)
# A logistic regression over right and wrong texts: the best candidate's values, and the rest. A long text has some
# sentence with most words of any question, so the logarithm of the number of sentences counts against it.
_ANSWERS, _ANSWERS_LENGTH, _ANSWERS_CONSTANT = (4.23, 5.82, 3.42, 0.0, 5.18, 5.05, 0.0, 0.0), -0.712, -1.57

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
        values: measures of its words, each about 0 to 1. Own score, neighbours' score; covered words of the sentence,
            with the one before, of the paragraph; covered pairs. Whether it has what is asked for; whether it is a
            heading.
        share: the probability that it is the one that answers, if any does.
        gain: by how much the mean log-probability of the question's tokens rises after it; ``None`` if not computed.
    """

    number: int
    values: tuple[float, ...]
    share: float = 0.0
    gain: float | None = None

    @property
    def strength(self) -> float:
        """The logarithm of its share by words, up to a constant."""
        return sum(w * v for w, v in zip(_BY_WORDS, self.values, strict=True))


def candidates_by_words(
    index: SentenceIndex,
    question: str,
    count: int = CANDIDATES,
    names: Sequence[str] = (),
    cosines: NDArray[np.float32] | None = None,
) -> list[Candidate]:
    """The sentences that share most with a question, the best first; without cosines none if no word is shared.

    Args:
        index, question, count: what is looked up, and how many sentences at most.
        names: are looked up too, and count at most half of the question's words.
        cosines: of each sentence's embedding with the question's: float32 ``[s]``; they count as in :func:`fused`.
    """
    query = index.query(question, names)
    own, covered, total = index.scores(query), index.covered(query), max(query.total, 1e-6)
    beside, above = index.around(own), index.above(own)
    asked = set(pairwise(fold_words(find_words(question), index.language)))
    kind = expected(question)
    found = []
    ranked = index.ranked(query) if cosines is None else fused(index, query, cosines)
    for i in index.best(ranked, count):
        start, end, _ = index.sentences[i]
        text = index.document.text[start:end]
        said = set(pairwise(fold_words(find_words(text), index.language)))
        values = (
            float(own[i] + HEADING * above[i]) / total,
            float(beside[i]) / total,
            *map(float, covered[:, i]),
            len(asked & said) / max(1, len(asked)),
            float(has_type(kind, text, question, index.language)),
            float(index.is_heading[i]),
        )
        found.append(Candidate(i, values))
    strengths = [c.strength for c in found]
    if cosines is not None:
        strengths = [by_vectors(c.strength, float(cosines[c.number])) for c in found]
    shares = _softmax(strengths)
    return _sorted([replace(c, share=share) for c, share in zip(found, shares, strict=True)])


def by_vectors(strength: float, cosine: float) -> float:
    """The logarithm of a share by words and by an embedding model, up to a constant."""
    own, other = _BY_VECTORS
    return own * strength + other * cosine


def fused(index: SentenceIndex, query: Query, cosines: NDArray[np.float32]) -> NDArray[np.float32]:
    """BM25 of each sentence, as a part of the rarities of the question's words, and its cosine: float32 ``[s]``.

    The weights are those by which candidates are ranked. A constant makes all of them positive.
    """
    own, other = _BY_VECTORS
    words = index.ranked(query) / max(query.total, 1e-6)
    found: NDArray[np.float32] = own * _BY_WORDS[0] * words + other * (cosines + 2)
    return found


def rank_by_model(
    model: Model, prompt: Prompt, index: SentenceIndex, question: str, candidates: Sequence[Candidate]
) -> list[Candidate]:
    """Candidates with their gain, the likeliest first; those that the words have decided keep their share.

    Args:
        model, prompt: a loaded model and its tokenizer; nothing need have been read.
        index, question, candidates: from :func:`candidates_by_words`.
    """
    from kvcli.engine.likelihood import words_after

    chosen = [c for c in candidates[:RANKED] if c.share >= OPEN]
    asked = prompt.reply(f" {' '.join(question.split())}")[-LONGEST_QUESTION:]
    if len(chosen) < 2 or not asked:
        return list(candidates)
    end = prompt.reply("\nQuestion:")
    texts, stretches = [], []
    for candidate in chosen:
        before, own = with_previous(index, candidate.number)
        ids = prompt.reply(f" {before}{own}")[-LONGEST_TEXT:]
        texts.append([*ids, *end])
        stretches.append((max(0, len(ids) - len(prompt.reply(f" {own}"))), len(ids)))
    found = words_after(model, prompt.reply(EXAMPLES), [*texts, end], asked, [*stretches, (0, 0)])
    *likely, without = found.likelihoods
    gains = [value - without for value in likely]
    values = [gains] if found.attention is None else [gains, [log(part + 1e-6) for part in found.attention[:-1]]]
    weights = _BY_GAIN if found.attention is None else _BY_MODEL
    strengths = [
        sum(w * v for w, v in zip(weights, (c.strength, *more), strict=True))
        for c, *more in zip(chosen, *values, strict=True)
    ]
    together = sum(c.share for c in chosen)
    shares = _softmax(strengths)
    ranked = [replace(c, share=together * s, gain=g) for c, s, g in zip(chosen, shares, gains, strict=True)]
    return _sorted(ranked) + [c for c in candidates if c not in chosen]


def rank_by_encoder(
    encoder: Encoder, index: SentenceIndex, question: str, candidates: Sequence[Candidate]
) -> list[Candidate]:
    """Candidates ranked by words and by how well an encoder finds that each, after the sentence before it, fits."""
    texts = ["".join(with_previous(index, c.number)) for c in candidates]
    own, other = _BY_CROSS if encoder.cross else _BY_VECTORS
    scores = encoder.scores(" ".join(question.split()), texts)
    shares = _softmax([own * c.strength + other * s for c, s in zip(candidates, scores, strict=True)])
    return _sorted([replace(c, share=share) for c, share in zip(candidates, shares, strict=True)])


def answered(candidates: Sequence[Candidate], sentences: int) -> float:
    """The probability that a text of so many sentences answers at all, by the best candidate's words; 0 without any."""
    if not candidates:
        return 0.0
    best = max(candidates, key=lambda c: c.strength)
    by_words = sum(w * v for w, v in zip(_ANSWERS, best.values, strict=True))
    return 1 / (1 + exp(-(by_words + _ANSWERS_LENGTH * log(sentences + 1) + _ANSWERS_CONSTANT)))


def with_previous(index: SentenceIndex, number: int) -> tuple[str, str]:
    """The sentence before a sentence, if both are in one paragraph, with a blank at its end; and the sentence."""
    text, sentence = index.document.text, index.sentences[number]
    own, before = " ".join(text[sentence.start : sentence.end].split()), ""
    if number and index.paragraph[number] == index.paragraph[number - 1]:
        earlier = index.sentences[number - 1]
        before = " ".join(text[earlier.start : earlier.end].split()) + " "
    return before, own


def _softmax(values: Sequence[float]) -> list[float]:
    top = max(values, default=0.0)
    powers = [exp(value - top) for value in values]
    total = sum(powers)
    return [power / total for power in powers]


def _sorted(candidates: Sequence[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda c: -c.share)


class QuoteSearch:
    """The search for the sentences that answer one question.

    Args:
        document: the text; nothing need have been read.
        question: what is asked.
        earlier: of a conversation, the last question and quote (:func:`names_before`).
        count: quotes at most; fewer if fewer sentences share a word with the question, or if two are one quote.
        kept: where the index of a long text is stored.
    """

    def __init__(
        self,
        document: Document,
        question: str,
        earlier: Sequence[str] = (),
        *,
        count: int = 3,
        kept: DocumentCache | None = None,
    ) -> None:
        self._began = perf_counter()
        self.index, self.question, self.count = sentence_index(document, kept), question, count
        names = names_before(question, earlier)
        self.candidates = candidates_by_words(self.index, question, max(count, CANDIDATES), names)
        self.answered = answered(self.candidates, len(self.index))
        self.found = self.answered >= UNLIKELY
        self.by_model = False

    def rank_by_model(self, model: Model, prompt: Prompt) -> None:
        """Let a model rank the candidates."""
        self.candidates = rank_by_model(model, prompt, self.index, self.question, self.candidates)
        self.by_model = True

    def rank_by_encoder(self, encoder: Encoder) -> None:
        """Let an embedding model or a cross-encoder rank the candidates."""
        self.candidates = rank_by_encoder(encoder, self.index, self.question, self.candidates)
        self.by_model = True

    def quotes(self, answer: str | None = None) -> Quotes:
        """The best candidates; those that support ``answer`` first, and the likeliest too if there are several."""
        seconds = perf_counter() - self._began if answer is None else 0.0
        return Quotes(tuple(self._quotes(answer)), self.by_model, seconds, self.answered, self.found)

    def best(self, count: int) -> tuple[tuple[tuple[int, int], ...], list[str]]:
        """Character ranges and words of the best candidates, the best one last."""
        chosen = [self.index.sentences[c.number] for c in self.candidates[:count]][::-1]
        text = self.index.document.text
        return tuple((s.start, s.end) for s in chosen), [text[s.start : s.end] for s in chosen]

    def _quotes(self, answer: str | None) -> list[Quote]:
        places = joined(self.index, self.candidates)
        if answer is None or not answer.strip():
            return [self._quote(place, None) for place in places[: self.count]]
        quotes = [self._quote(place, answer) for place in places]
        supporting = [q for q in quotes if q.supports]
        if self.count == 1:
            return (supporting or quotes)[:1]
        chosen = quotes[:1] + [q for q in supporting if q is not quotes[0]]
        chosen = (chosen + [q for q in quotes if q not in chosen])[: self.count]
        return sorted(chosen, key=lambda q: not q.supports)

    def _quote(self, place: Sequence[Candidate], answer: str | None) -> Quote:
        score = min(1.0, self.answered * sum(c.share for c in place))
        quote = quote_of(self.index, [c.number for c in place], score)
        if answer is None:
            return quote
        return replace(quote, supports=supports(quote.text, self.question, answer, self.index.language))


def joined(index: SentenceIndex, candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Candidates, the likeliest first, as quotes of one or two sentences; the likeliest quote first."""
    places: list[list[Candidate]] = []
    for candidate in candidates:
        beside = (p for p in places if len(p) == 1 and candidate.share >= JOINED * p[0].share)
        place = next((p for p in beside if _adjoin(index, p[0].number, candidate.number)), None)
        if place is None:
            places.append([candidate])
        else:
            place.append(candidate)
    return sorted(places, key=lambda place: -sum(c.share for c in place))


def _adjoin(index: SentenceIndex, one: int, other: int) -> bool:
    """Whether two sentences of flowing text follow one another in a paragraph, and are short enough for one quote."""
    if abs(one - other) != 1 or index.paragraph[one] != index.paragraph[other]:
        return False
    first, last = (index.sentences[i] for i in sorted((one, other)))
    between = index.document.text[first.end : last.start]
    flowing = first.kind == last.kind == "sentence" and not between.strip()
    return flowing and last.end - first.start <= LONGEST_JOINED


def quote_of(index: SentenceIndex, numbers: Sequence[int], score: float) -> Quote:
    """Successive sentences of an index as a quote."""
    document = index.document
    start, end = index.sentences[min(numbers)].start, index.sentences[max(numbers)].end
    span = document.at(start)
    line = document.line(start)
    return Quote(document.text[start:end], span.file, span.page, span.label, line, start, end, score)


def supports(text: str, question: str, answer: str, language: str) -> bool:
    """Whether a text has most of the words of some sentence of an answer that the question does not have."""
    has, asked = set(content_stems(text, language)), set(content_stems(question, language))
    for sentence in split_sentences(answer):
        told = set(content_stems(answer[sentence.start : sentence.end], language))
        new = told - asked or told
        if new and len(new & has) >= SUPPORTED * len(new):
            return True
    return False


def shared_words(text: str, question: str, language: str) -> list[tuple[int, int]]:
    """Where a text has words of a question, in any form: character ranges, in order."""
    asked = set(content_stems(question, language))
    found = []
    for match in re.finditer(r"[^\W_]+", text):
        words = find_words(match[0])
        if words and set(fold_words(words, language)) & asked:
            found.append(match.span())
    return found


def names_before(question: str, earlier: Sequence[str]) -> list[str]:
    """The names that a follow-up question means: those before it, if it has a pronoun and no name of its own.

    Args:
        question: what is asked now.
        earlier: the last question and the last quote.
    """
    named = any(word[:1].isupper() for word in question.split()[1:])
    if named or not _PRONOUNS & set(find_words(question)):
        return []
    common = common_words("english") | common_words(language_of(" ".join(earlier)))
    words = [word for text in earlier for word in re.findall(r"[^\W_]+", text)]
    return list(dict.fromkeys(w for w in words if w.lower() not in common and (w[0].isupper() or w[0].isdigit())))
