"""Models that cap their attention logits (Gemma 2): exact with dense storage, and refused with others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kvcli.engine.generate import new_decode_cache
from kvcli.engine.prefill import prefill
from kvcli.errors import ModelError
from kvcli.models.load import wrap
from kvcli.models.model import Model
from kvcli.planning import memory
from kvcli.recipe import parse
from kvcli_kernels import attention as kernels
from kvcli_kernels.attention import CappedScale, attention, causal_attention, ref
from tests import tiny
from tests.laws.helpers import drain


@pytest.fixture(scope="module")
def capped() -> Model:
    return wrap(tiny.capped(), None, name="gemma2", fingerprint=None)


@pytest.mark.parametrize("recipe", ["full", "keydiff(budget=400)", "h2o(budget=400)"])
def test_what_is_kept_whole_gives_the_logits_of_one_full_forward_pass(capped: Model, recipe: str) -> None:
    assert capped.spec.capped
    ids = torch.tensor(tiny.document(320))
    with capped.reference() as module, torch.inference_mode():
        expected = module(input_ids=ids[None], use_cache=False).logits[0, 300:]
    context = drain(prefill(capped, ids[:300].tolist(), parse(recipe), chunk=57))
    cache, got = new_decode_cache(capped, context), []
    for part in ids[300:].split(7):
        rows = capped.forward(part, cache, logits="all")
        assert rows is not None
        got.append(rows)
        cache.extend(len(part))
    torch.testing.assert_close(torch.cat(got), expected, rtol=1e-4, atol=1e-4)


def test_without_the_cap_the_logits_are_others(capped: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cap that is forgotten shows."""
    ids = torch.tensor(tiny.document(40))[None]
    with capped.reference() as module, torch.inference_mode():
        expected = module(input_ids=ids).logits
        for part in module.modules():
            if hasattr(part, "attn_logit_softcapping"):
                monkeypatch.setattr(part, "attn_logit_softcapping", None)
        assert float((module(input_ids=ids).logits - expected).norm() / expected.norm()) > 1e-2


def test_other_storages_are_refused(capped: Model) -> None:
    for storage in ("int8", "kivi", "infinigen"):
        with pytest.raises(ModelError, match=f"{storage}.*cannot cap"):
            drain(prefill(capped, tiny.document(50), parse(f"full+{storage}"), chunk=20))


@pytest.mark.parametrize(("m", "n", "window"), [(1, 9, None), (130, 130, None), (70, 200, 24), (1, 200, 24)])
def test_attention_with_a_cap(m: int, n: int, window: int | None) -> None:
    draw = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(h, t, 16, generator=draw) * 3 for h, t in ((4, m), (2, n), (2, n)))
    scale = CappedScale(0.5, 2.0)
    o, lse = attention(q, k, v, scale, n - m, window)
    wide = k.repeat_interleave(2, 0)
    logits = 2.0 * torch.tanh(0.5 * q @ wide.mT / 2.0)
    seen = ref.visible(m, n, n - m, window, q.device)
    logits = logits if seen is None else logits.masked_fill(~seen, float("-inf"))
    torch.testing.assert_close(o, logits.softmax(-1) @ v.repeat_interleave(2, 0))
    torch.testing.assert_close(lse, logits.logsumexp(-1))
    torch.testing.assert_close(causal_attention(q, k, v, scale, window), o)
    loose = attention(q, k, v, CappedScale(0.5, 1e4), n - m, window)
    torch.testing.assert_close(loose, attention(q, k, v, 0.5, n - m, window), rtol=1e-3, atol=1e-3)


def test_the_plan_counts_the_logits(capped: Model) -> None:
    assert memory._CAPPED_ROWS == kernels.CAPPED_ROWS
    with_cap, without = (
        memory.plan(replace(capped.spec, capped=c), parse("full"), tokens=10_000, chunk=512, tail=10).activations
        for c in (True, False)
    )
    assert with_cap > without
