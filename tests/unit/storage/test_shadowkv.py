"""ShadowKV: the factorisation is the SVD's, outliers are outliers, positions are the original ones."""

import pytest
import torch

from kvcli.engine.generate import new_decode_cache
from kvcli.engine.prefill import freeze_and_keep, prefill
from kvcli.recipe import parse
from kvcli.storage.offload.layer import Offloaded
from kvcli.storage.offload.lowrank import LowRankStore, factorise
from kvcli.utils.copy_stream import CopyStream
from tests import tiny
from tests.laws.helpers import drain, filled


def held(model, recipe: str, length: int = 90) -> tuple[list[Offloaded], list]:
    """Offloaded layers of a reading, and the fill's layers that they come from."""
    work = filled(model, tiny.document(length), recipe, 16, horizon=160)
    context = freeze_and_keep(work, parse(recipe))
    pairs = [(a, b) for a, b in zip(context.layers, work.layers, strict=True) if isinstance(a, Offloaded)]
    assert pairs
    return [a for a, _ in pairs], [b for _, b in pairs]


@pytest.mark.parametrize("rank", [1, 3, 7, 12, 16])
@pytest.mark.parametrize("n", [5, 40, 9000])
def test_the_error_is_that_of_the_tail_singular_values(rank: int, n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    keys = torch.randn(n, 16, generator=generator) * torch.linspace(3, 0.1, 16)
    coefficients, basis = factorise(keys, rank)
    error = (keys - coefficients @ basis).square().sum()
    tail = torch.linalg.svdvals(keys.double())[rank:].square().sum()
    assert float(error) == pytest.approx(float(tail), rel=1e-3, abs=1e-6 * float(keys.square().sum()))


@pytest.mark.parametrize("chunk", [2, 4])
def test_outliers_never_appear_among_the_landmarks(model, chunk: int) -> None:
    layers, _ = held(model(), f"full+shadowkv(rank=8, chunk={chunk}, chunks=2, outliers=5)")
    for layer in layers:
        store, names = layer.store, layer.index.block_ids
        assert isinstance(store, LowRankStore)
        for head, marks in enumerate(names.tolist()):
            odd = set((store.exact[0][head, : 5 * chunk] // chunk).tolist())
            assert len(odd) == 5
            assert not odd & set(marks)
            assert odd | set(marks) == set(range(store.count))


def test_outliers_are_the_chunks_least_like_their_mean(model) -> None:
    layers, fills = held(model(), "full+shadowkv(rank=999, chunk=4, chunks=2, outliers=3)")
    for layer, fill in zip(layers, fills, strict=True):
        keys = model().rotary.rotate(fill.index, fill.k[:, : fill.count], range(fill.count))
        parts = keys[:, : layer.store.count * 4].view(keys.shape[0], -1, 4, keys.shape[2])
        cos = torch.cosine_similarity(parts, parts.mean(2, keepdim=True), dim=-1).amin(-1)
        for head, values in enumerate(cos):
            names = layer.index.block_ids[head].long()
            odd = layer.store.exact[0][head, :12:4] // 4
            assert float(values[odd].max()) <= float(values[names].min())


@pytest.mark.parametrize("family", ["llama", "llama-mha", "gemma3", "phi3-longrope", "smollm3", "qwen3"])
@pytest.mark.parametrize("keep", ["full", "knorm(budget=70)", "knorm(budget=70, positions=original)"])
def test_positions_after_reconstruction_are_the_original_ones(model, family: str, keep: str) -> None:
    """At full rank every fetched block has the keys that the document was read with."""
    recipe = f"{keep}+shadowkv(rank=999, chunk=4, chunks=2, outliers=1)"
    layers, fills = held(model(family), recipe)
    for layer, fill in zip(layers, fills, strict=True):
        c = fill.count
        places = range(c) if "original" not in keep else fill.pos[:, :c].long()
        expected = model(family).rotary.rotate(fill.index, fill.k[:, :c], places)
        store = layer.store
        assert (store.angles is not None) == model(family).rotary.rotated[fill.index]
        heads = torch.arange(expected.shape[0]).repeat_interleave(store.count)
        ids = torch.arange(store.count).repeat(expected.shape[0])
        k, end = store.keys(heads, ids), store.count * 4
        assert torch.allclose(k.view(-1, end, k.shape[2]), expected[:, :end], atol=2e-4)
        none = torch.zeros(len(expected), store.count, 4, k.shape[2])
        out = (torch.empty_like(none), torch.empty_like(none))
        ids = torch.arange(store.count).expand(len(expected), -1)
        store.fetch(ids, torch.full_like(ids, -1), (none, none), out, CopyStream(ids.device))
        assert torch.allclose(out[0].flatten(0, 1), k, atol=2e-5)
        assert torch.equal(out[1].flatten(1, 2), fill.v[:, :end])
        assert torch.allclose(store.dense()[0], expected, atol=2e-4)
        exact = expected.gather(1, store.exact[0].unsqueeze(-1).expand(-1, -1, expected.shape[2]))
        assert torch.equal(layer.k, exact)


@pytest.mark.parametrize("together", [1, 2, 5])
def test_a_key_never_depends_on_what_is_fetched_with_it(model, together: int) -> None:
    """Bit for bit, or hits and misses would differ."""
    layers, _ = held(model(), "full+shadowkv(rank=7, chunk=4, chunks=2, outliers=1)")
    store = layers[0].store
    ids = torch.arange(store.count)
    whole = store.keys(torch.zeros_like(ids), ids)
    parts = [store.keys(torch.zeros_like(p), p) for p in ids.split(together)]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(brought(store, ids), torch.cat([brought(store, p) for p in ids.split(together)], dim=1))


def brought(store: LowRankStore, ids: torch.Tensor) -> torch.Tensor:
    """Keys ``[H_kv, K, block, D]`` of blocks, all of them missed."""
    wanted = ids.expand(len(store.basis), -1)
    k, v, none = (torch.zeros(*wanted.shape, store.block, store.basis.shape[2]) for _ in range(3))
    store.fetch(wanted, torch.full_like(wanted, -1), (none, none), (k, v), CopyStream(ids.device))
    return k


def test_a_model_that_turns_in_its_own_way_turns_so(model, monkeypatch) -> None:
    """Neighbours as pairs, and not halves: that is found out, and keys are the model's own."""

    def apply(x, cos, sin):
        half = cos.shape[-1] // 2
        cos, sin = (t[..., :half].repeat_interleave(2, dim=-1).unsqueeze(1) for t in (cos, sin))
        return x * cos + torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2) * sin

    monkeypatch.setattr(model().rotary, "apply", apply)
    layers, fills = held(model(), "full+shadowkv(rank=999, chunk=4, chunks=2, outliers=1)")
    for layer, fill in zip(layers, fills, strict=True):
        expected = model().rotary.rotate(fill.index, fill.k[:, :90], range(90))
        assert layer.store.angles is None
        keys = brought(layer.store, torch.arange(layer.store.count)).flatten(1, 2)
        assert torch.allclose(keys, expected[:, : keys.shape[1]], atol=2e-4)


@pytest.mark.parametrize("length", [1, 7, 8, 31, 32, 33, 63, 64, 65, 66, 71, 72])
def test_odd_lengths(model, length: int) -> None:
    """Not a multiple of the chunk, shorter than the local chunks, at the budget of 64 and just above it."""
    recipe = parse("full+shadowkv(rank=8, chunk=8, chunks=3, outliers=1)")
    context = drain(prefill(model(), tiny.document(length), recipe, chunk=16))
    assert any(isinstance(layer, Offloaded) for layer in context.layers) == (length > 64)
    logits = model().forward(torch.tensor(tiny.document(5, seed=1)), new_decode_cache(model(), context), logits="all")
    assert bool(logits.isfinite().all())
    for layer in context.layers:
        assert layer.dense()[0].shape[1] == length
