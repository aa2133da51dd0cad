"""The second look: passages cover the text, and attention over places is attention."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcli import engine, look
from kvcli.cache.context import freeze
from kvcli.recipe import parse
from tests import tiny
from tests.laws.helpers import drain, filled


@given(st.text(alphabet='ab .!?\n"', max_size=3000), st.integers(5, 300))
def test_passages_are_the_text_in_order(text: str, size: int) -> None:
    """Nothing but white space is left out, and no passage is longer than a few sizes."""
    found = look.passages(text, size)
    covered = "".join(text[p.start : p.end] for p in found)
    assert covered.split() == text.split() or "".join(covered.split()) == "".join(text.split())
    assert all(a.end <= b.start for a, b in pairwise(found))
    assert all(p.end - p.start <= 3 * size for p in found)


def test_passages_end_where_sentences_do() -> None:
    text = " ".join(f"This is sentence number {i}." for i in range(100))
    for p in look.passages(text, 200):
        assert text[p.start : p.end].strip().startswith("This is")
        assert text[p.start : p.end].strip().endswith(".")


def test_words_in_common_find_the_passage() -> None:
    texts = ["The cat sat on the mat.", "The harbour master of Cork owns a parrot.", "It rained.", "The mat was red."]
    scores = look.lexical(texts, "What does the harbour master own?")
    assert max(range(4), key=scores.__getitem__) == 1
    assert look.lexical(texts, "Zyzzyva?") == [0.0] * 4


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_regard_is_the_largest_attention_summed_over_heads_and_layers(family: str) -> None:
    model = tiny.load(family)
    body, question = tiny.document(14), tiny.document(5, seed=1)
    context = freeze(filled(model, body, "full", 16), parse("full").hold)
    mass = look.regard(model, context, question)
    with torch.inference_mode(), model.reference() as module:
        module.set_attn_implementation("eager")
        weights = module(input_ids=torch.tensor([body + question]), output_attentions=True, use_cache=False).attentions
    kv, group = model.spec.kv_heads, model.spec.heads // model.spec.kv_heads
    expected = sum(
        w[0, :, 14:, :14].view(kv, group, 5, 14).amax(dim=(1, 2)).sum(0)
        for w, window in zip(weights, model.spec.sliding, strict=True)
        if window is None
    )
    assert torch.allclose(mass, expected, rtol=1e-3, atol=1e-5)


def test_regard_puts_evicted_places_to_zero() -> None:
    model = tiny.load("llama")
    context = drain(engine.read(model, tiny.document(90), parse("streaming(budget=20)"), chunk=16))
    mass = look.regard(model, context, tiny.document(5))
    assert mass.shape == (90,)
    assert bool((mass[4:74] == 0).all())
    assert bool((torch.cat([mass[:4], mass[74:]]) > 0).all())
