"""Most frequent words of a long list: common and frequent words (RULER, arXiv:2404.06654).

The words are invented, so that neither their number nor the text's length has a limit.
"""

from __future__ import annotations

import random
from collections import Counter

from kvcli.evaluate import vocabulary as word_lists
from kvcli.evaluate.case import Case, CaseQuestion, CaseRequest
from kvcli.evaluate.token_counter import fit

_SHORT = 4096


def common(request: CaseRequest, asked: int = 10) -> Case:
    """Build a numbered list in which ``asked`` words occur ten times as often as every other one."""
    rng = request.rng
    often, seldom = (30, 3) if request.length >= _SHORT else (10, 1)
    vocabulary: list[str] = word_lists.fresh(lambda: word_lists.coined(rng), asked)
    seen = set(vocabulary)

    def build(others: int) -> str:
        while len(vocabulary) < asked + others:
            if (word := word_lists.coined(rng, rng.randint(2, 4))) not in seen:
                seen.add(word)
                vocabulary.append(word)
        found = vocabulary[:asked] * often + vocabulary[asked : asked + others] * seldom
        random.Random(f"{request.seed} {request.number}").shuffle(found)
        return "Words:\n" + "\n".join(f"{n}. {word}" for n, word in enumerate(found, 1))

    others = fit(build, request.counter, request.length, least=1, what="other words in the list")
    question = f"What are the {asked} most common words in the list?"
    return Case(build(others), (CaseQuestion(question, tuple(vocabulary[:asked]), "all"),), max_tokens=120)


def frequent(request: CaseRequest, asked: int = 3, exponent: float = 2.0, kinds: int = 2000) -> Case:
    """Build a random word sequence with frequencies like ``rank ** -exponent``; asks for the ``asked`` most frequent
    words."""
    rng = request.rng
    vocabulary = word_lists.fresh(lambda: word_lists.coined(rng), kinds)
    weights = [1 / rank**exponent for rank in range(1, kinds + 1)]
    drawn: list[str] = []

    def build(count: int) -> str:
        if len(drawn) < count:
            drawn.extend(rng.choices(vocabulary, weights, k=count - len(drawn)))
        return "Coded text: " + " ".join(drawn[:count])

    count = fit(build, request.counter, request.length, least=50, what="words")
    top = Counter(drawn[:count]).most_common(asked)
    question = f"What are the {asked} most frequent words in the coded text?"
    return Case(build(count), (CaseQuestion(question, tuple(word for word, _ in top), "all"),), max_tokens=48)
