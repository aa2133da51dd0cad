"""Likely sources: what is summed is the model's attention, and no page wins by its size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcli.cache.context import freeze
from kvcli.documents import Document, Span
from kvcli.documents.blocks import blocks
from kvcli.engine.prefill import prefill
from kvcli.recipe import parse
from kvcli.retrieval import attribution
from tests import tiny
from tests.laws.helpers import drain, filled

LINES = st.lists(st.text(alphabet="abc. \t", max_size=40), max_size=40).map("\n".join)


def document(*parts: tuple[str, int | None, str | None]) -> Document:
    """Parts of one file, each with its text, page and section, and kvcli's mark before each page."""
    text, spans, line = "", [], 1
    for body, page, section in parts:
        mark = "" if page is None else f"[page {page}]\n"
        if mark + body:
            spans.append(
                Span(len(text), len(text + mark + body), len(text + mark), "f", page, section=section, line=line)
            )
        line = line + body.count("\n") if page is None else 1
        text += mark + body
    return Document(text, ("f",), "", len(text), spans=tuple(spans))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_answers_attention_summed_over_heads_and_queries(family: str) -> None:
    model = tiny.load(family)
    body, tail, first = tiny.document(14), tiny.document(6, seed=1), 2
    context = freeze(filled(model, body, "full", 16), parse("full").storage)
    mass, units = attribution.answer_attention(model, context, tail, first)
    with torch.inference_mode(), model.reference() as module:
        module.set_attn_implementation("eager")
        weights = module(input_ids=torch.tensor([body + tail]), output_attentions=True, use_cache=False).attentions
    for i, (weight, window) in enumerate(zip(weights, model.spec.sliding, strict=True)):
        expected = weight[0, :, 14 + first :, :14].sum((0, 1))
        assert torch.allclose(mass[i], expected if window is None else torch.zeros(14), rtol=1e-3, atol=1e-5)
        assert bool((units[i] == (model.spec.kv_heads if window is None else 0)).all())


def test_products_in_pieces_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.load("llama")
    context = drain(prefill(model, tiny.document(60), parse("keydiff(budget=24)"), chunk=16))
    whole, _ = attribution.answer_attention(model, context, tiny.document(9), 3)
    monkeypatch.setattr("kvcli.engine.observer._WORK", 1)
    pieces, _ = attribution.answer_attention(model, context, tiny.document(9), 3)
    assert torch.allclose(whole, pieces, rtol=1e-5, atol=1e-6)


def test_evicted_places_have_neither_units_nor_attention() -> None:
    model = tiny.load("llama")
    context = drain(prefill(model, tiny.document(90), parse("streaming(budget=20)"), chunk=16))
    mass, units = attribution.answer_attention(model, context, tiny.document(5), 1)
    assert mass.shape == units.shape == (len(context.layers), 90)
    for values in (mass, units):
        assert bool((values[:, 4:74] == 0).all())
        assert bool((torch.cat([values[:, :4], values[:, 74:]], dim=1) > 0).all())
    assert float(units.sum()) == 20 * model.spec.kv_heads * len(context.layers)


@given(st.lists(st.integers(0, 500), min_size=2, max_size=20), st.floats(0.1, 10))
def test_attention_as_everyone_has_it_makes_every_page_one(kept: list[int], each: float) -> None:
    """However long the pages are; and then more attention to a page is a higher score of it alone."""
    scores = attribution.lift([each * n for n in kept], [float(n) for n in kept])
    assert sum(attribution.parts(kept)) == pytest.approx(1.0 if any(kept) else 0.0)
    assert scores == pytest.approx([1.0] * len(kept), rel=1e-6)
    if all(kept):
        more = attribution.lift([each * n * (1 + (i == 1)) for i, n in enumerate(kept)], [float(n) for n in kept])
        assert max(range(len(kept)), key=more.__getitem__) == 1
        assert more[1] > 1 > more[0]


@given(st.lists(st.floats(0, 50), min_size=1, max_size=20))
def test_words_that_all_pages_share_alike_change_no_rank(scores: list[float]) -> None:
    """Nor do words that none has; else more words of a page are a higher factor, and the average page's is 1."""
    factors = attribution.over_average(scores)
    assert attribution.over_average([0.0] * len(scores)) == [1.0] * len(scores)
    assert attribution.over_average([3.0] * len(scores)) == pytest.approx([1.0] * len(scores))
    assert sum(factors) == pytest.approx(len(scores))
    assert min(factors) > 0
    order = sorted(range(len(scores)), key=scores.__getitem__)
    assert [factors[i] for i in order] == sorted(factors)


def test_layers_are_shares_of_the_depth() -> None:
    values = torch.arange(6.0).view(6, 1)
    assert float(attribution.chosen(values, (0.0, 1.0))) == 15
    assert float(attribution.chosen(values, (1 / 3, 2 / 3))) == 2 + 3
    assert float(attribution.chosen(values[:1], (2 / 3, 1.0))) == 0


def test_attention_goes_to_the_block_of_its_characters() -> None:
    """What stands outside all blocks, marks and the prompt in front, counts for none."""
    found = document(("one two\n", 1, None), ("three\n", 2, None))
    pieces = blocks(found)
    offsets = [(i, i + 1) for i in range(len(found.text))]
    places = torch.ones(len(offsets) + 5)
    mass = torch.cat([torch.full((5,), 99.0), torch.tensor([float(c == "e") for c in found.text])])
    attention, kept = attribution.per_block(pieces, offsets, mass, places)
    assert attention == [1, 2]  # not those of [page 1]
    assert kept == [len("one two"), len("three")]


@given(st.lists(st.tuples(LINES, st.sampled_from([None, 1, 2]), st.sampled_from([None, "A", "B"])), max_size=6))
def test_blocks_hold_all_words_once_and_in_order(parts: list[tuple[str, int | None, str | None]]) -> None:
    found = document(*parts)
    pieces = blocks(found, size=50)
    end = 0
    for piece in pieces:
        assert end <= piece.start < piece.end
        end = piece.end
        assert piece.line == found.line(piece.start) <= piece.last or piece.span.page is not None
        if piece.span.page is None:
            assert piece.end - piece.start <= 100
            assert (found.at(piece.end - 1).page, found.at(piece.end - 1).section) == (None, piece.span.section)
    held = "".join(found.text[p.start : p.end] for p in pieces)
    own = "".join(found.text[s.body : s.end] for s in found.spans)
    for letter in "abc.":
        assert held.count(letter) >= own.count(letter)
