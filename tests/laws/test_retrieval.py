"""The second look: passages cover the text, and attention over places is attention."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcli.cache.context import freeze
from kvcli.documents.document import Document
from kvcli.engine.generate import append_tokens, new_decode_cache
from kvcli.engine.prefill import prefill
from kvcli.planning import memory
from kvcli.planning.memory import visible_units
from kvcli.recipe import parse
from kvcli.retrieval import passages
from kvcli.retrieval.attention import attention_by_position, narrow_context, question_attention
from kvcli.retrieval.bm25 import bm25_scores
from kvcli.retrieval.quotes import QuoteSearch
from tests import tiny
from tests.laws.helpers import drain, filled


@given(st.text(alphabet='ab .!?\n"', max_size=3000), st.integers(5, 300))
def test_passages_are_the_text_in_order(text: str, size: int) -> None:
    """Nothing but white space is left out, and no passage is longer than a few sizes."""
    found = passages.passages(text, size)
    covered = "".join(text[p.start : p.end] for p in found)
    assert covered.split() == text.split() or "".join(covered.split()) == "".join(text.split())
    assert all(a.end <= b.start for a, b in pairwise(found))
    assert all(p.end - p.start <= 3 * size for p in found)


def test_passages_end_where_sentences_do() -> None:
    text = " ".join(f"This is sentence number {i}." for i in range(100))
    for p in passages.passages(text, 200):
        assert text[p.start : p.end].strip().startswith("This is")
        assert text[p.start : p.end].strip().endswith(".")


def test_words_in_common_find_the_passage() -> None:
    texts = ["The cat sat on the mat.", "The harbour master of Cork owns a parrot.", "It rained.", "The mat was red."]
    scores = bm25_scores(texts, "What does the harbour master own?")
    assert max(range(4), key=scores.__getitem__) == 1
    assert bm25_scores(texts, "Zyzzyva?") == [0.0] * 4
    assert bm25_scores(texts, "Whose parrots are harboured?") == bm25_scores(texts, "parrot harbour"), "in any form"
    assert bm25_scores([], "parrot") == []


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_regard_is_the_largest_attention_summed_over_heads_and_layers(family: str) -> None:
    model = tiny.load(family)
    body, question = tiny.document(14), tiny.document(5, seed=1)
    context = freeze(filled(model, body, "full", 16), parse("full").storage)
    mass = attention_by_position(context, question_attention(model, context, question))
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
    context = drain(prefill(model, tiny.document(90), parse("streaming(budget=20)"), chunk=16))
    mass = attention_by_position(context, question_attention(model, context, tiny.document(5)))
    assert mass.shape == (90,)
    assert bool((mass[4:74] == 0).all())
    assert bool((torch.cat([mass[:4], mass[74:]]) > 0).all())


FACTS = [
    f"Captain {name} keeps a {thing} in house {n}."
    for n, (name, thing) in enumerate(
        (name, thing) for name in ("Wren", "Hale", "Moss") for thing in ("parrot", "lantern", "violin", "kettle")
    )
]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_passages_of_the_likeliest_sentences_are_read_again_the_likeliest_last(monkeypatch, count: int) -> None:
    """Words decide; if they say nothing of two passages, the attention to what was kept does."""
    model, text = tiny.load("llama"), "\n\n".join(FACTS)
    context = freeze(filled(model, tiny.document(len(FACTS)), "full", 16), parse("full").storage)
    spans = tuple(passages.passages(text, 30))
    monkeypatch.setattr(passages, "_spread", lambda _prompt, _text: (spans, torch.arange(len(FACTS))))
    prompt: Any = SimpleNamespace(question=lambda _question: tiny.document(5, seed=1))

    def chosen(question: str) -> list[str]:
        search = QuoteSearch(Document.of_text(text), question)
        return passages.retrieve_passages(model, prompt, context, search, count=count).texts(text)

    for fact in FACTS:
        words = fact.split()
        found = chosen(f"What does {words[1]} keep beside the {words[4]}?")
        assert len(set(found)) == count
        assert found[-1] == fact
        assert all(words[1] in other or words[4] in other for other in found)
    labels = question_attention(model, context, tiny.document(5, seed=1))
    order = attention_by_position(context, labels).argsort(descending=True).tolist()
    assert chosen("Zyzzyva?") == [FACTS[i] for i in order[:count]][::-1]
    assert chosen("???") == chosen("Zyzzyva?")


HELD = ["", "+kivi(bits=4, group=8)", "+int8", "+turbo(bits=4, fill=true)", "+quest", "+shadowkv(rank=4)"]


@pytest.mark.parametrize("hold", HELD)
def test_what_stays_in_sight_is_the_units_that_are_looked_at_most(hold: str) -> None:
    """Of the text ``in_sight`` units per KV head, of what is not the text everything, as the hold gives them back."""
    model = tiny.load("llama")
    ids, question = tiny.document(900), tiny.document(5, seed=1)
    context = drain(prefill(model, ids, parse(f"snapkv(budget=100, stabilizers=0, sinks=6){hold}"), chunk=64))
    labels, text = question_attention(model, context, question), range(6, 890)
    sight = narrow_context(context, labels, text)
    assert (sight.seen, sight.starts) == (context.seen, context.starts)
    count = visible_units(100, len(text))
    assert count == 32
    for seen, held, label in zip(sight.layers, context.layers, labels, strict=True):
        k, v = held.dense()
        for head in range(model.spec.kv_heads):
            places = held.pos[head].tolist()
            inside = [i for i, place in enumerate(places) if place in text]
            best = sorted(inside, key=lambda i: -float(label[head, i]))[:count]
            must = {i for i in range(len(places)) if i not in inside} | set(best)
            rows = [places.index(place) for place in seen.pos[head].tolist()]
            assert rows == sorted(rows)
            assert must <= set(rows)
            assert torch.equal(seen.k[head], k[head, rows])
            assert torch.equal(seen.v[head], v[head, rows])


@pytest.mark.parametrize(("family", "budget"), [("llama", 200), ("gemma3", 60)])
def test_a_good_part_of_a_text_stays_whole(family: str, budget: int) -> None:
    """And so do layers with a window of their own, however long the text."""
    model = tiny.load(family)
    context = drain(prefill(model, tiny.document(900), parse(f"streaming(budget={budget})"), chunk=64))
    sight = narrow_context(context, question_attention(model, context, tiny.document(5)), range(4, 900))
    for seen, held, window in zip(sight.layers, context.layers, model.spec.sliding, strict=True):
        assert (seen is held) == (budget == 200 or window is not None)


def test_a_tail_turns_to_what_is_in_sight_and_back(model_and_context) -> None:
    model, context = model_and_context
    sight = narrow_context(context, question_attention(model, context, tiny.document(5)), range(4, 900))
    tail, other = new_decode_cache(model, context), new_decode_cache(model, context)
    history, question = tiny.document(7, seed=2), tiny.document(6, seed=3)
    for one in (tail, other):
        append_tokens(model, one, history)
    plain = said(model, other, question)
    tail.set_context(sight)
    narrow = said(model, tail, question)
    assert not torch.allclose(narrow, plain, atol=1e-3)
    tail.rewind(len(history))
    assert torch.equal(said(model, tail, question), narrow)
    tail.rewind(len(history))
    tail.set_context(context)
    assert torch.equal(said(model, tail, question), plain)


@pytest.fixture
def model_and_context():
    model = tiny.load("llama")
    return model, drain(prefill(model, tiny.document(900), parse("streaming(budget=60)"), chunk=64))


def said(model, tail, ids: list[int]) -> torch.Tensor:
    logits = model.forward(torch.tensor(ids), tail, logits=True)
    tail.extend(len(ids))
    return logits


@given(st.integers(1, 40000), st.integers(1, 2_000_000))
def test_never_more_in_sight_than_is_kept(kept: int, read: int) -> None:
    seen = visible_units(kept, read)
    assert 0 < seen <= kept
    assert seen <= visible_units(kept + 1, read)
    assert seen >= visible_units(kept, read + 1)
    assert seen == kept or 8 * kept < read


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_plan_knows_of_what_is_copied(family: str) -> None:
    model, recipe = tiny.load(family), parse("snapkv(budget=200, sinks=16, stabilizers=8)")
    context = drain(prefill(model, tiny.document(3000), recipe, chunk=64))
    sight = narrow_context(context, question_attention(model, context, tiny.document(5)), range(20, 3000))
    new = sum(seen.nbytes for seen, held in zip(sight.layers, context.layers, strict=True) if seen is not held)
    work = {"tokens": 3000, "chunk": 64, "question": 5, "answer": 8}
    spec = replace(model.spec, max_positions=8192)
    plans = [memory.plan_run(spec, recipe, **work, passages=n)[0].answer for n in (1, 0)]
    passage = model.spec.layers * model.spec.kv_heads * memory.PASSAGE * model.spec.unit_bytes
    assert new <= plans[0] - plans[1] - passage <= 2.5 * new
