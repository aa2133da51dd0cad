"""The second look: passages cover the text, and attention over places is attention."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcli.cache.context import freeze
from kvcli.engine.generate import append_tokens, new_decode_cache
from kvcli.engine.prefill import prefill
from kvcli.planning import memory
from kvcli.planning.memory import visible_units
from kvcli.recipe import parse
from kvcli.retrieval import passages
from kvcli.retrieval.attention import attention_by_position, narrow_context, question_attention
from kvcli.retrieval.bm25 import bm25_scores
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


POSITIVE = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 20)), min_size=1, max_size=30)


@given(POSITIVE, st.integers(1, 5), st.booleans())
def test_joined_passages_are_different_ones_and_what_leads_by_both_leads(pairs, count: int, thin: bool) -> None:
    found = passages.fuse_rankings([a for a, _ in pairs], [w for _, w in pairs], count, narrowed=thin)
    places = [i for i, _ in found]
    assert len(set(places)) == len(places) == min(count, len(pairs))
    assert all(a >= b for (_, a), (_, b) in pairwise(found[:-1]))
    above = [i for i, (a, w) in enumerate(pairs) if all(a > b and w > v for j, (b, v) in enumerate(pairs) if j != i)]
    assert not above or places[0] == above[0]


def test_words_that_lead_by_far_are_outvoted_only_where_much_is_kept() -> None:
    attended, shared = [0.8, 0.9, 0.7, 0.6, 0.1, 0.0, 0.0], [2.0, 10.0, 2.5, 1.0, 30.0, 20.5, 29.0]
    assert [i for i, _ in passages.fuse_rankings(attended, shared, 2)] == [
        1,
        4,
    ]  # 1 is first by attention and fourth by words
    assert [i for i, _ in passages.fuse_rankings(attended, shared, 2, narrowed=True)] == [4, 1]
    for thin in (False, True):
        assert passages.fuse_rankings(attended, [0.0] * 7, 3, narrowed=thin)[0][0] == 1
        assert passages.fuse_rankings([0.0] * 7, shared, 1, narrowed=thin)[0][0] == 4


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
