"""Attention Matching: values are fitted so that attention stays, by as little as is needed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcli.eviction.base import Chunk
from kvcli.eviction.matching import PLACES, REFERENCE, match, references
from kvcli.recipe import parse
from tests import tiny
from tests.laws.helpers import asked, distance, filled
from tests.unit.eviction.test_scores import chunk

MODEL = tiny.load("llama")


def unrotated(part: Chunk) -> Chunk:
    part.rotate, part.pos = (lambda x, _: x), part.pos + 4  # behind the sinks
    return part


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    group = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
    return torch.softmax(q @ k.transpose(1, 2) * scale, dim=-1) @ v


def keep(part: Chunk, count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    units = part.pos.shape[1]
    return torch.stack([torch.randperm(units, generator=generator)[:count].sort().values for _ in part.pos])


def kept(units: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return units.gather(1, index[..., None].expand(-1, -1, units.shape[2]))


def test_one_query_two_units() -> None:
    """Equal logits, values 0 and 2, and the first is kept: its value becomes 1."""
    part = unrotated(chunk(kept=0, new=2, start=0))
    part.pos, part.q = torch.arange(4, 6).int()[None], torch.zeros(1, 2, 8)
    part.units.k.zero_()
    part.units.v[:, 0], part.units.v[:, 1] = 0.0, 2.0
    part.units = type(part.units)(part.units.k[:1], part.units.v[:1], part.units.rotated[:1])
    value = match(part, torch.tensor([[0]]), torch.zeros(1, 1, 8), ridge=1e-6)
    assert torch.allclose(value, torch.ones(1, 1, 8), atol=1e-4)
    half = match(part, torch.tensor([[0]]), torch.zeros(1, 1, 8), ridge=1.0)
    assert torch.allclose(half, torch.full((1, 1, 8), 0.5), atol=1e-6)


@given(seed=st.integers(0, 99), count=st.integers(1, 29), rows=st.integers(1, 40), ridge=st.sampled_from([1e-2, 1.0]))
def test_the_error_never_grows(seed: int, count: int, rows: int, ridge: float) -> None:
    part = unrotated(chunk(kept=10, new=20))
    index, q = keep(part, count, seed), torch.randn(4, rows, 8, generator=torch.Generator().manual_seed(seed))
    wanted, k_kept, v_kept = attend(q, part.k, part.v, part.scale), kept(part.k, index), kept(part.v, index)
    before = (attend(q, k_kept, v_kept, part.scale) - wanted).norm()
    fitted = match(part, index, q, ridge)
    after = (attend(q, k_kept, fitted, part.scale) - wanted).norm()
    assert after <= before * (1 + 1e-4) + 1e-5


def test_attention_sinks_keep_their_values() -> None:
    part = unrotated(chunk(kept=0, new=20, start=0))
    part.pos = part.pos - 4
    fitted = match(part, torch.arange(10).expand(2, 10), torch.randn(4, 9, 8))
    assert torch.equal(fitted[:, :4], part.v[:, :4])
    assert not torch.allclose(fitted[:, 4:], part.v[:, 4:10], atol=1e-3)


def test_nothing_changes_if_all_survive_or_nobody_asks() -> None:
    part = unrotated(chunk(kept=10, new=20))
    everything = torch.arange(30).expand(2, 30)
    assert torch.equal(match(part, everything, torch.randn(4, 5, 8)), part.v)
    index = keep(part, 12)
    assert torch.equal(match(part, index, torch.randn(4, 0, 8)), kept(part.v, index))


@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("policy", ["locret", "snapkv", "cascade", "corm"])
def test_any_policy_may_match(policy: str, positions: str) -> None:
    """With room for all it is full attention; with less the values differ from those of dropping, the units do not."""
    body, question = tiny.document(70), tiny.document(9, seed=1)
    share = ", share=0" if policy == "corm" else ""
    text = f"{policy}(budget=BUDGET, positions={positions}{share})"
    whole = asked(MODEL, body, question, text.replace("BUDGET", "70").replace(")", ", victims=match)"), 16)
    assert distance(whole, asked(MODEL, body, question, "full", 16)) < 1e-5
    one = filled(MODEL, body, text.replace("BUDGET", "24"), 70)
    two = filled(MODEL, body, text.replace("BUDGET", "24").replace(")", ", victims=match)"), 70)
    a, b = one.layers[0], two.layers[0]
    assert torch.equal(a.pos, b.pos)
    assert torch.equal(a.k, b.k)
    assert not torch.allclose(a.v[:, : a.count], b.v[:, : b.count], atol=1e-3)
    assert bool(b.v[:, : b.count].isfinite().all())


def test_an_evicted_text_is_nearer_to_full_attention() -> None:
    """The output of the first layer, to queries that were references, at the places where they were fitted."""
    ids = tiny.document(60)
    full = filled(MODEL, ids, "full", 60).layers[0]
    drop, fit = (filled(MODEL, ids, f"knorm(budget=20{v})", 60).layers[0] for v in ("", ", victims=match"))
    rotary, q = MODEL.rotary, fit.state[REFERENCE]

    def out(layer) -> torch.Tensor:
        c = layer.count
        turned = rotary.rotate(0, q.reshape(-1, 1, 8), range(c - 1, c)).view_as(q)
        return attend(turned, rotary.rotate(0, layer.k[:, :c], range(c)), layer.v[:, :c], 8**-0.5)

    assert distance(out(fit), out(full)) < 0.7 * distance(out(drop), out(full))


def test_references_are_the_same_whatever_the_chunks() -> None:
    """The places with the smallest hashes of all that was read, 128 of them for two query heads per KV head."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(4, 500, 8, generator=generator)
    found = []
    for size in (500, 90, 33):
        state: dict[str, torch.Tensor] = {}
        for start in range(0, 500, size):
            part = chunk(kept=0, new=min(size, 500 - start), start=start, state=state)
            part.q, part.pos = q[:, start : start + size], torch.arange(start, start + part.new).int().expand(2, -1)
            asked_with = references(part)
            assert asked_with.shape[1] <= 256
        found.append(state)
    for state in found:
        assert state[REFERENCE].shape == (4, 128, 8)
        assert torch.equal(state[PLACES], found[0][PLACES])
        assert torch.equal(state[REFERENCE], q[:, state[PLACES].long()])


def test_a_storage_that_encodes_during_prefill_is_refused() -> None:
    from kvcli.errors import UsageError

    with pytest.raises(UsageError, match="victims=match"):
        parse("knorm(budget=20, victims=match)+turbo(fill=true)")
