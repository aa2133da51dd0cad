"""Words after several texts in one pass are as likely as after each text alone."""

import pytest
import torch

from kvcli.engine.likelihood import logits_after, read_beginning, words_after
from tests import tiny


@pytest.mark.parametrize("family", ["llama", "gemma3", "smollm3", "longrope"])
def test_packed_texts_do_not_see_each_other(family: str) -> None:
    if family not in tiny.FAMILIES:
        pytest.skip(f"there is no tiny {family}")
    model = tiny.load(family)
    beginning, words = tiny.document(5, seed=1), tiny.document(4, seed=2)
    texts = [tiny.document(n, seed=n) if n else [] for n in (9, 1, 0, 23)]
    found = words_after(model, beginning, texts, words)
    assert found.attention is not None
    for text, value, attended in zip(texts, found.likelihoods, found.attention, strict=True):
        alone = words_after(model, beginning, [text], words)
        assert alone.likelihoods == pytest.approx([value], abs=1e-4)
        assert alone.attention == pytest.approx([attended], abs=1e-4)
        ids = torch.tensor([[*beginning, *text, *words]])
        with torch.inference_mode(), model.reference() as module:
            logits = module(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        first = len(beginning) + len(text)
        expected = logits[range(first - 1, ids.shape[1] - 1), words].mean().item()
        assert value == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_beginning_that_was_read_need_not_be_read_again(family: str) -> None:
    model = tiny.load(family)
    beginning, texts = tiny.document(70, seed=1), [tiny.document(n, seed=n) for n in (9, 1, 23)]
    rows = [range(len(text)) for text in texts]
    last, *whole = logits_after(model, beginning, [[], *texts], [range(-1, 0), *rows])[0]
    first, read = read_beginning(model, beginning)
    torch.testing.assert_close(first, last[0], atol=1e-4, rtol=1e-4)
    for got, wanted in zip(logits_after(model, beginning, texts, rows, read=read)[0], whole, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_no_text_has_no_likelihood() -> None:
    assert words_after(tiny.load("llama"), [1], [], [2]).likelihoods == []


def test_attention_to_the_stretches_of_a_text_sums_to_that_to_the_whole() -> None:
    model = tiny.load("llama")
    beginning, text, words = tiny.document(5, seed=1), tiny.document(12, seed=3), tiny.document(4, seed=2)
    parts = words_after(model, beginning, [text] * 4, words, [(0, 5), (5, 12), (0, 12), (3, 3)]).attention
    assert parts is not None
    assert parts[0] + parts[1] == pytest.approx(parts[2])
    assert 0 == parts[3] < min(parts[:3])
    assert parts[2] < 1
    with torch.inference_mode(), model.reference() as module:
        module.set_attn_implementation("eager")
        ids = torch.tensor([[*beginning, *text, *words]])
        layers = module(input_ids=ids, output_attentions=True, use_cache=False).attentions[1:2]  # of three
    expected = torch.stack([layer[0, :, -4:, 5:17].sum(-1).mean() for layer in layers]).mean().item()
    assert parts[2] == pytest.approx(expected, abs=1e-4)
