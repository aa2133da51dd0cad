"""Models that cap their attention logits (Gemma 2): every storage caps them, and so does what is scored or observed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kvcli.engine.generate import new_decode_cache
from kvcli.engine.prefill import prefill
from kvcli.models.model import Model
from kvcli.planning import memory
from kvcli.recipe import parse
from kvcli.retrieval.attention import question_attention
from kvcli_kernels import attention as kernels
from kvcli_kernels.attention import CappedScale, attention, causal_attention, ref
from kvcli_kernels.landmarks.ref import votes
from kvcli_kernels.varlen import varlen_attention
from tests import tiny
from tests.laws.helpers import answer, distance, drain, reference

CAP, SCALE = 2.0, 0.5
TEXT, QUESTION = tiny.document(302), tiny.document(20, seed=1)
EXACT = [
    "full",
    "keydiff(budget=400)",
    "h2o(budget=400)",
    "full+quest(page=4, pages=75, dense=0)",
    "full+infllm(block=4, blocks=73, sinks=3, local=5)",
    "full+shadowkv(rank=999, chunk=4, chunks=68, outliers=3)",
    "full+infinigen(alpha=inf, cap=1, dense=1, least=0)",
    "full+lorc(rank=1, least=1)",
    "full+think(ratio=0)",
]
"""Recipes that keep and attend to everything."""

NEARLY = ["full+int8", "full+kivi(bits=8)", "full+turbo(bits=8)", "full+turbo(bits=8, fill=true)"]


@pytest.fixture(scope="module")
def capped(model) -> Model:
    return model("capped")  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def expected(capped: Model) -> torch.Tensor:
    return reference(capped, TEXT + QUESTION)[-len(QUESTION) :]


def asked(model: Model, recipe: str) -> torch.Tensor:
    """Logits of the question in parts of seven, the last ones token by token."""
    cache = new_decode_cache(model, drain(prefill(model, TEXT, parse(recipe), chunk=57, horizon=400)))
    got = []
    for part in torch.tensor(QUESTION).split([7, 7, *[1] * 6]):
        rows = model.forward(part, cache, logits="all")
        assert rows is not None
        got.append(rows)
        cache.extend(len(part))
    return torch.cat(got)


@pytest.mark.parametrize("recipe", EXACT)
def test_what_is_kept_whole_gives_the_logits_of_one_full_forward_pass(
    capped: Model, expected: torch.Tensor, recipe: str
) -> None:
    assert capped.spec.capped
    torch.testing.assert_close(asked(capped, recipe), expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("recipe", NEARLY)
def test_with_eight_bits_they_are_near(capped: Model, expected: torch.Tensor, recipe: str) -> None:
    assert distance(asked(capped, recipe), expected) < 0.05


def test_without_the_cap_the_logits_are_others(
    capped: Model, expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cap that is forgotten shows in all of the laws above."""
    for part in capped.module.modules():
        if hasattr(part, "attn_logit_softcapping"):
            monkeypatch.setattr(part, "attn_logit_softcapping", None)
    assert distance(reference(capped, TEXT + QUESTION)[-len(QUESTION) :], expected) > 0.2
    for recipe in ("full", "full+int8", "full+quest(page=4, pages=75, dense=0)"):
        assert distance(asked(capped, recipe), expected) > 0.2


@pytest.mark.parametrize("recipe", ["full+quest(page=4, pages=9, dense=0)", "snapkv(budget=40)+kivi", "h2o(budget=40)"])
def test_a_rewind_gives_the_same_answer(capped: Model, recipe: str) -> None:
    cache = new_decode_cache(capped, drain(prefill(capped, TEXT, parse(recipe), chunk=57, probe=QUESTION)))
    first = answer(capped, cache, QUESTION)
    cache.rewind()
    assert answer(capped, cache, QUESTION) == first


def test_what_is_observed_are_probabilities(capped: Model) -> None:
    """No unit gets more than all attention, which logits without the cap would say."""
    context = drain(prefill(capped, TEXT, parse("full"), chunk=57))
    seen = [label for label in question_attention(capped, context, QUESTION) if label is not None]
    assert seen
    assert all(bool((label <= 0).all()) for label in seen)


@pytest.mark.parametrize("recipe", ["h2o(budget=400)", "keyformer(budget=400)"])
def test_scores_are_those_of_capped_attention(capped: Model, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit gets at most e to the power of two caps times what another gets of the same query."""
    from kvcli.eviction.base import Chunk

    rows, original = [], Chunk.blocks

    def watched(self: Chunk, *where: int):
        for start, logits in original(self, *where):
            rows.append(logits[logits.isfinite()].abs().max())
            yield start, logits

    monkeypatch.setattr(Chunk, "blocks", watched)
    drain(prefill(capped, TEXT, parse(recipe), chunk=57))
    assert rows
    assert CAP / 2 < float(max(rows)) <= CAP


@pytest.mark.parametrize(("m", "n", "window"), [(1, 9, None), (130, 130, None), (70, 200, 24), (1, 200, 24)])
def test_attention_with_a_cap(m: int, n: int, window: int | None) -> None:
    draw = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(h, t, 16, generator=draw) * 3 for h, t in ((4, m), (2, n), (2, n)))
    scale = CappedScale(SCALE, CAP)
    o, lse = attention(q, k, v, scale, n - m, window)
    wide = k.repeat_interleave(2, 0)
    logits = CAP * torch.tanh(SCALE * q @ wide.mT / CAP)
    seen = ref.visible(m, n, n - m, window, q.device)
    logits = logits if seen is None else logits.masked_fill(~seen, float("-inf"))
    torch.testing.assert_close(o, logits.softmax(-1) @ v.repeat_interleave(2, 0))
    torch.testing.assert_close(lse, logits.logsumexp(-1))
    torch.testing.assert_close(causal_attention(q, k, v, scale, window), o)
    loose = attention(q, k, v, CappedScale(SCALE, 1e4), n - m, window)
    torch.testing.assert_close(loose, attention(q, k, v, SCALE, n - m, window), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("m", [1, 5])
def test_heads_of_different_lengths(m: int) -> None:
    draw = torch.Generator().manual_seed(6)
    q, k, v = (torch.randn(h, t, 16, generator=draw) * 3 for h, t in ((4, m), (2, 40), (2, 40)))
    scale, lengths = CappedScale(SCALE, CAP), torch.tensor([17, 40])
    o, lse = varlen_attention(q, k, v, scale, lengths)
    for head, n in enumerate(lengths.tolist()):
        mine = slice(2 * head, 2 * head + 2)
        expected = attention(q[mine], k[head : head + 1, :n], v[head : head + 1, :n], scale, n)
        torch.testing.assert_close((o[mine], lse[mine]), expected)


def test_blocks_are_chosen_by_capped_logits() -> None:
    draw = torch.Generator().manual_seed(7)
    q, marks = torch.randn(4, 3, 16, generator=draw) * 3, torch.randn(2, 30, 16, generator=draw)
    logits = CAP * torch.tanh(SCALE * torch.einsum("hgmd,hnd->hgmn", q.view(2, 2, 3, 16), marks) / CAP)
    torch.testing.assert_close(votes(q, marks, CappedScale(SCALE, CAP)), logits.softmax(-1).sum(2).amax(1))


def test_the_plan_counts_the_logits(capped: Model) -> None:
    assert memory._CAPPED_ROWS == kernels.CAPPED_ROWS
    with_cap, without = (
        memory.plan(replace(capped.spec, capped=c), parse("full"), tokens=10_000, chunk=512, tail=10).activations
        for c in (True, False)
    )
    assert with_cap > without
