"""Words after several texts in one pass are as likely as after each text alone."""

import pytest
import torch

from kvcli.engine.likelihood import mean_log_likelihoods
from tests import tiny


@pytest.mark.parametrize("family", ["llama", "gemma3", "smollm3", "longrope"])
def test_packed_texts_do_not_see_each_other(family: str) -> None:
    if family not in tiny.FAMILIES:
        pytest.skip(f"there is no tiny {family}")
    model = tiny.load(family)
    beginning, words = tiny.document(5, seed=1), tiny.document(4, seed=2)
    texts = [tiny.document(n, seed=n) if n else [] for n in (9, 1, 0, 23)]
    found = mean_log_likelihoods(model, beginning, texts, words)
    for text, value in zip(texts, found, strict=True):
        alone = mean_log_likelihoods(model, beginning, [text], words)
        assert alone == pytest.approx([value], abs=1e-4)
        ids = torch.tensor([[*beginning, *text, *words]])
        with torch.inference_mode(), model.reference() as module:
            logits = module(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        first = len(beginning) + len(text)
        expected = logits[range(first - 1, ids.shape[1] - 1), words].mean().item()
        assert value == pytest.approx(expected, abs=1e-3)


def test_no_text_has_no_likelihood() -> None:
    assert mean_log_likelihoods(tiny.load("llama"), [1], [], [2]) == []
