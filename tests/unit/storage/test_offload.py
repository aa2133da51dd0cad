"""Holds that keep everything in host memory and attend to a little of it: nothing is lost, no step leaves a trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kvcli.cache.decode_cache import DecodeCache
from kvcli.engine.generate import new_decode_cache
from kvcli.engine.prefill import evict_turns, freeze_and_keep, prefill
from kvcli.errors import UsageError
from kvcli.prompt_cache.prefill import cached_prefill
from kvcli.prompt_cache.request import PrefillRequest
from kvcli.recipe import parse
from kvcli.retrieval import attribution
from kvcli.retrieval.attention import attention_by_position, question_attention
from kvcli.storage.offload.layer import BlockReader, Offloaded, PrefetchingReader
from tests import tiny
from tests.laws.helpers import answer, asked, distance, drain, filled, reference

LENGTH = 70
ALL = {
    "quest": "quest(page=4, pages=17, dense=0)",
    "infllm": "infllm(block=4, blocks=15, sinks=3, local=5)",
    "shadowkv": "shadowkv(rank=999, chunk=4, chunks=10, outliers=3)",
    "infinigen": "infinigen(alpha=inf, cap=1, dense=1, least=0)",
}
"""With every block of a text of 70 tokens chosen at every step."""

FEW = {
    "quest": "quest(page=4, pages=3, dense=1)",
    "infllm": "infllm(block=4, blocks=2, sinks=3, local=5)",
    "shadowkv": "shadowkv(rank=6, chunk=2, chunks=3, outliers=2)",
    "infinigen": "infinigen(alpha=1, cap=0.3, dense=1, least=12)",
}
FAMILIES = ["llama", "llama-mha", "gemma3", "mistral-window", "qwen3", "phi3-longrope", "smollm3"]
PROBE = tiny.document(6, seed=3)


def context(model, hold: str, length: int = LENGTH, keep: str = "full"):
    return drain(prefill(model, tiny.document(length), parse(f"{keep}+{hold}"), chunk=16, horizon=160))


def offloaded(held) -> list[Offloaded]:
    return [layer for layer in held.layers if isinstance(layer, Offloaded)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ALL)
def test_with_every_block_the_logits_are_those_of_full_attention(model, family: str, name: str) -> None:
    body, question = tiny.document(LENGTH), tiny.document(9, seed=1)
    assert offloaded(context(model(family), ALL[name])) or all(model(family).spec.sliding)
    got = asked(model(family), body, question, f"full+{ALL[name]}", chunk=16)
    assert distance(got, reference(model(family), body + question)[-9:]) < 1e-5


@pytest.mark.parametrize("name", ALL)
def test_token_by_token_as_well(model, name: str) -> None:
    body, question = tiny.document(LENGTH), tiny.document(9, seed=1)
    tail = new_decode_cache(model(), context(model(), ALL[name]))
    expected = reference(model(), body + question)[-9:]
    for token, row in zip(question, expected, strict=True):
        logits = model().forward(torch.tensor([token]), tail, logits=True)
        tail.extend(1)
        assert distance(logits, row) < 1e-5


@pytest.mark.parametrize("name", FEW)
def test_few_blocks_are_not_all_of_them(model, name: str) -> None:
    """What is left out shows, or the test above proves nothing."""
    body, question = tiny.document(LENGTH), tiny.document(9, seed=1)
    got = asked(model(), body, question, f"full+{FEW[name]}", chunk=16)
    assert bool(got.isfinite().all())
    assert distance(got, reference(model(), body + question)[-9:]) > 1e-3


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("length", [1, 3, 7, 12])
def test_a_document_within_the_budget_is_dense(model, name: str, length: int) -> None:
    held = context(model(), FEW[name], length)
    assert not offloaded(held)
    assert held.host_nbytes == 0
    question = tiny.document(5, seed=1)
    got = asked(model(), tiny.document(length), question, f"full+{FEW[name]}", chunk=4)
    assert torch.equal(got, asked(model(), tiny.document(length), question, "full", chunk=4))


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("length", range(13, 34))
def test_any_length_just_above_the_budget(model, name: str, length: int) -> None:
    got = asked(model(), tiny.document(length), tiny.document(5, seed=1), f"full+{FEW[name]}", chunk=8)
    assert bool(got.isfinite().all())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", FEW)
def test_rewind_and_ask_again_is_bit_identical(model, family: str, name: str) -> None:
    tail = new_decode_cache(model(family), context(model(family), FEW[name]))
    question = torch.tensor(tiny.document(9, seed=3))
    first = model(family).forward(question, tail, logits="all")
    answer(model(family), tail, tiny.document(5, seed=4), count=20)
    tail.rewind()
    assert torch.equal(first, model(family).forward(question, tail, logits="all"))


@pytest.mark.parametrize("name", FEW)
def test_rewinding_half_way_and_many_questions_in_one_run(model, name: str) -> None:
    shared = context(model(), FEW[name])
    tail = new_decode_cache(model(), shared)
    questions = [tiny.document(7, seed=s) for s in (5, 6, 7)]
    together = []
    for question in questions:
        tail.rewind()
        together.append(answer(model(), tail, question))
    assert together == [answer(model(), new_decode_cache(model(), shared), q) for q in questions]
    tail.rewind(7)
    first = answer(model(), tail, questions[0])
    tail.rewind(7)
    assert answer(model(), tail, questions[0]) == first


@pytest.mark.parametrize("name", FEW)
def test_what_is_staged_is_what_is_fetched(model, name: str) -> None:
    """A reader that hits and one that misses everything have the same buffers, bit for bit."""
    for held in offloaded(context(model(), FEW[name])):
        reader, dim = held.open(), held.k.shape[2]
        generator = torch.Generator().manual_seed(0)
        for step in range(12):
            q = torch.randn(4, 1, dim, generator=generator) * (0.2 if step % 3 else 2.0)
            warm, cold = reader.attend(q, 0.3, 99), held.open().attend(q, 0.3, 99)
            assert torch.equal(warm[0], cold[0])
            assert torch.equal(warm[1], cold[1])
        assert (reader.hits > 0) != held.predicted
        assert reader.misses > 0


@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3-longrope"])
@pytest.mark.parametrize("name", FEW)
def test_a_saved_reading_goes_on_identically(model, tmp_path: Path, family: str, name: str) -> None:
    ids, recipe = tiny.document(100), parse(f"full+{FEW[name]}")
    short, long = (
        PrefillRequest(ids=ids[:n], recipe=recipe, chunk=16, horizon=160, text="t", document={}) for n in (LENGTH, 100)
    )
    place = tmp_path / "a.kv"
    plain, written, loaded, resumed = (
        drain(cached_prefill(model(family), job, **how))  # type: ignore[arg-type]
        for job, how in (
            (short, {}),
            (short, {"place": place}),
            (short, {"place": place}),
            (long, {"base": place}),
        )
    )
    assert (written.cache, loaded.cache, resumed.cache) == ("miss", "hit", "resumed")
    whole = drain(cached_prefill(model(family), long))

    def said(reading) -> list[int]:
        return answer(model(family), new_decode_cache(model(family), reading.context), PROBE)

    assert said(plain) == said(written) == said(loaded)
    assert said(resumed) == said(whole)


@pytest.mark.parametrize("name", FEW)
def test_absorbing_equals_reading_one_document(model, name: str) -> None:
    ids, recipe = tiny.document(112), f"full+{FEW[name]}"
    whole = filled(model(), ids, recipe, 16, horizon=160)
    work = filled(model(), ids[:48], recipe, 16, horizon=160)
    freeze_and_keep(work, parse(recipe))
    for part in (ids[48:80], ids[80:]):
        held = drain(evict_turns(model(), work, part, parse(recipe), chunk=16))
    tails = [new_decode_cache(model(), c) for c in (held, freeze_and_keep(whole, parse(recipe)))]
    one, two = (model().forward(torch.tensor(PROBE), tail, logits="all") for tail in tails)
    assert torch.equal(one, two)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("name", FEW)
def test_what_looks_at_everything_still_does(model, family: str, name: str) -> None:
    """Likely sources and the second look see every unit, whatever an answer's steps leave out."""
    few = FEW[name].replace("rank=6", "rank=99")
    held, dense = context(model(family), few), context(model(family), "dense")
    gazes = [attribution.answer_attention(model(family), c, PROBE, 2) for c in (held, dense)]
    for a, b in zip(*gazes, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    masses = [attention_by_position(c, question_attention(model(family), c, PROBE)) for c in (held, dense)]
    assert torch.allclose(*masses, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("keep", ["keydiff(budget=40)", "knorm(budget=40, positions=original, tail=5)"])
def test_survivors_of_an_eviction_are_held_too(model, name: str, keep: str) -> None:
    held = context(model(), FEW[name], 90, keep)
    assert offloaded(held)
    logits = model().forward(torch.tensor(PROBE), new_decode_cache(model(), held), logits="all")
    assert bool(logits.isfinite().all())


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("length", [5, 16, 33, LENGTH, 100])
def test_bytes_are_as_said_beforehand(model, family: str, name: str, length: int) -> None:
    spec, hold = model(family).spec, parse(f"full+{FEW[name]}").storage
    held = context(model(family), FEW[name], length)
    for i, layer in enumerate(held.layers):
        if spec.sliding[i] is None:
            assert hold.size(spec, i, length) == (layer.nbytes, layer.host_nbytes, layer.shared_nbytes)
    if offloaded(held):
        assert held.host_nbytes >= length * spec.kv_heads * spec.unit_bytes // 2


@pytest.mark.parametrize("family", ["llama", "llama-mha"])
@pytest.mark.parametrize("name", FEW)
def test_staging_neither_moves_nor_grows_and_takes_what_was_said(model, family: str, name: str) -> None:
    held = context(model(family), FEW[name])
    tail: DecodeCache = new_decode_cache(model(family), held)
    places = set()
    for seed in range(4):
        answer(model(family), tail, tiny.document(5, seed=seed), count=3)
        own = [
            t
            for r in tail.context_layers
            if isinstance(r, BlockReader) and not isinstance(r, PrefetchingReader)
            for t in r._staged[1:]
        ]
        places.add(tuple(t.data_ptr() for t in (*own, *tail.staging._buffers.values())))
    assert len(places) == 1
    exact = sum(x.index.nbytes + x.store.nbytes + x.k.nbytes + x.v.nbytes for x in offloaded(held))
    dense = sum(x.nbytes for x in held.layers if not isinstance(x, Offloaded))
    assert held.nbytes == exact + dense + sum(t.nbytes for t in own) + tail.staging.nbytes


@pytest.mark.parametrize("text", ["quest(page=0)", "quest(pages=0)", "infllm(block=0)", "infllm(local=-1)"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="or more"):
        parse(f"full+{text}")


def test_a_page_is_bounded_from_above(model) -> None:
    """Quest's score of a page is at least the largest logit in it."""
    from kvcli.storage.quest import Bounds

    (held, *_) = offloaded(context(model(), FEW["quest"]))
    assert isinstance(held.index, Bounds)
    both = held.index.pages.vectors
    q = torch.randn(2, 1, held.k.shape[2], generator=torch.Generator().manual_seed(1))
    bound = (torch.cat([q.clamp(min=0), q.clamp(max=0)], dim=-1) @ both.transpose(1, 2))[:, 0]
    keys = held.store.dense()[0][:, : both.shape[1] * 4]
    assert bool(((q @ keys.transpose(1, 2)).view(2, -1, 4).amax(-1) <= bound + 1e-5).all())
