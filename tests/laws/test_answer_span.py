"""An answer in words of the text is successive words of one sentence: those that the model rates best of all."""

from __future__ import annotations

import re
from math import log
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kvcli
from kvcli.retrieval.answer_span import BONUS, ECHO, LONGEST, MOST, SHARE, STARTS, answer_span
from tests.e2e.conftest import save_tiny

QUESTION = "Who has a bbb?"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = save_tiny(tmp_path_factory.mktemp("spans") / "tiny", wide=True)
    return kvcli.Pipeline(kvcli.load_model(str(path), dtype="float32", find_heads=False), "full")


def value(pipeline: Any, words: str, texts: list[str]) -> float:
    """The log-probability that the model writes a blank, these words and then ends, and what words and tokens count."""
    model, prompt = pipeline.model, pipeline.prompt
    asked, own = prompt.worked_examples(texts, QUESTION), prompt.reply(f" {words}")
    with torch.inference_mode(), model.reference() as module:
        logits = module(input_ids=torch.tensor([[*asked, *own]]), use_cache=False).logits[0].float().log_softmax(-1)
    steps = logits[range(len(asked) - 1, len(asked) + len(own) - 1), own].sum()
    content = [word for word in re.findall(r"\w+", words) if word != "a"]
    echo = content.count("bbb") / max(1, len(content))
    over = sorted({*model.eos, *prompt.reply("\n")})
    return float(steps + logits[-1, over].logsumexp(0)) + BONUS * len(own) + ECHO * echo


@settings(max_examples=12, deadline=None)
@given(texts=st.lists(st.text("ab \n(.é", max_size=9), max_size=3), most=st.integers(1, 20))
def test_it_is_the_best_of_all_spans(pipeline: Any, texts: list[str], most: int) -> None:
    shares = [1 / (n + 2) for n in range(len(texts))]
    found = answer_span(pipeline.model, pipeline.prompt, QUESTION, texts, shares, most)
    expected: dict[str, float] = {}
    for text, share in zip(texts, shares, strict=True):
        words = text.split()
        assert len(words) < min(STARTS, LONGEST)
        for i in range(len(words)):
            for j in range(i + 1, len(words) + 1):
                span = " ".join(words[i:j]).lstrip("(").rstrip(". ")
                if words[i].strip("(") and span and len(pipeline.prompt.reply(f" {span}")) <= most:
                    sum_ = value(pipeline, span, texts) + SHARE * log(share + 1e-4)
                    expected[span] = max(expected.get(span, sum_), sum_)
    if not expected:
        assert found is None
        return
    assert found is not None
    assert found.value == pytest.approx(max(expected.values()), abs=1e-3)
    assert expected[found.text] == pytest.approx(found.value, abs=1e-3)
    assert any(found.text in " ".join(text.split()) for text in texts)
    assert found.tokens == len(pipeline.prompt.reply(f" {found.text}")) <= most


def test_words_of_a_script_without_spaces_and_a_word_without_end(pipeline: Any) -> None:
    asked = QUESTION, ["\u5e93\u5361\u5f00\u95e8\u3002", "x" * 5000]
    found = answer_span(pipeline.model, pipeline.prompt, *asked, [0.9, 0.1], 99)
    assert found is not None
    assert re.fullmatch("[\u5e93\u5361\u5f00\u95e8]+", found.text)
    assert found.tokens <= MOST
