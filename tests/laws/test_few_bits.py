"""Holds of few bits, on tiny models: they are what their codes mean and weigh what was planned."""

from itertools import product
from pathlib import Path

import pytest
import torch

from kvcli.cache.context import Context, freeze
from kvcli.engine.generate import new_decode_cache
from kvcli.engine.prefill import evict_turns, freeze_and_keep
from kvcli.errors import ModelError
from kvcli.recipe import parse
from kvcli.storage.base import KeptUnits
from kvcli.storage.dense import DenseLayer
from kvcli.storage.packed import PackedLayer
from kvcli_kernels.attention import CappedScale, ref
from tests import tiny
from tests.laws.helpers import answer, distance, drain, filled

HOLDS = [
    "int8",
    "kivi(bits=2)",
    "kivi",
    "kivi(bits=8)",
    "kivi(bits=2, group=8)",
    "turbo(bits=2)",
    "turbo",
    "turbo(bits=8)",
]
FAMILIES = ["llama", "llama-mha", "gemma3", "mistral-window", "qwen3", "smollm3"]
SCALES = [0.3, CappedScale(0.3, 2.0)]
QUESTION = tiny.document(9, seed=3)


def held(model, hold: str, tokens: int = 100, keep: str = "keydiff(budget=70)") -> Context:
    return freeze(filled(model, tiny.document(tokens), keep, 16), parse(f"full+{hold}").storage)


def packs(context: Context) -> list[torch.Tensor]:
    """Every packed byte and scale of a context."""
    found = []
    for layer in context.layers:
        if isinstance(layer, PackedLayer):
            for packed in (layer.k, layer.v):
                found += [packed.codes, packed.scale, *([] if packed.low is None else [packed.low])]
    return found


def same(one: Context, two: Context) -> bool:
    pairs = list(zip(packs(one), packs(two), strict=True))
    return bool(pairs) and all(torch.equal(a, b) for a, b in pairs)


def behind(model, context: Context) -> torch.Tensor:
    logits = model.forward(torch.tensor(QUESTION), new_decode_cache(model, context), logits="all")
    assert logits is not None
    return logits


@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("units", [1, 31, 70])
def test_bytes_are_those_planned(model, family: str, hold: str, units: int) -> None:
    spec, policy = model(family).spec, parse(f"full+{hold}").storage
    context = held(model(family), hold, keep=f"keydiff(budget={units}, stabilizers=0)")
    for i, layer in enumerate(context.layers):
        assert (layer.nbytes, layer.host_nbytes, 0) == tuple(policy.size(spec, i, layer.pos.shape[1]))
    numbers = sum(2 * layer.pos.numel() * spec.head_dim for layer in context.layers)
    assert context.bits == 8 * context.nbytes / numbers


@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("n", [256, 257, 1000])
def test_packing_in_blocks_is_packing_at_once(hold: str, n: int, monkeypatch) -> None:
    k, v = (torch.randn(2, n, 64, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    policy, pos = parse(f"full+{hold}").storage, torch.arange(n).expand(2, -1)
    made = []
    for block in (4096, 256):
        monkeypatch.setattr("kvcli.storage.packed._BLOCK", block)
        layer = policy.freeze(KeptUnits(k, v, pos, None))
        made.append(Context([layer], [n], n, 16))
    assert same(*made)


def test_effective_bits_are_those_with_scales() -> None:
    k = torch.randn(3, 1024, 64)
    pos = torch.arange(1024).expand(3, -1)
    for hold, bits in {
        "kivi(bits=4)": 5,
        "kivi(bits=2)": 3,
        "kivi(bits=2, group=64)": 2.5,
        "int8": 8.5,
        "turbo(bits=4)": 4.25,
        "turbo(bits=2)": 2.25,
    }.items():
        layer = parse(f"full+{hold}").storage.freeze(KeptUnits(k, k.clone(), pos, None))
        assert 8 * layer.nbytes / (2 * k.numel()) == bits


@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_attending_is_attention_over_the_whole(model, family: str, hold: str) -> None:
    spec, context = model(family).spec, held(model(family), hold)
    for layer in context.layers:
        k, v = layer.dense()
        for m, scale in product((1, 13), SCALES):
            q = torch.randn(spec.heads, m, spec.head_dim, generator=torch.Generator().manual_seed(m)) * 3
            start = k.shape[1]
            o, lse = layer.open().attend(q, scale, start)
            expected, expected_lse = ref.attention(q, k, v, scale, start, layer.window)
            assert distance(o, expected) < 1e-4
            assert torch.allclose(lse[lse.isfinite()], expected_lse[expected_lse.isfinite()], atol=1e-3)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "mistral-window"])  # that one packs nothing
def test_more_bits_are_nearer(model, family: str) -> None:
    exact = behind(model(family), held(model(family), "dense"))
    for name in ("kivi", "turbo"):
        off = [distance(behind(model(family), held(model(family), f"{name}(bits={b})")), exact) for b in (2, 4, 8)]
        assert off[0] > off[1] > off[2]
        assert off[2] < 0.1


@pytest.mark.parametrize("family", ["gemma3", "mistral-window"])
def test_sliding_layers_stay_as_they_are(model, family: str) -> None:
    for layer in held(model(family), "kivi").layers:
        assert isinstance(layer, PackedLayer if layer.window is None else DenseLayer)


@pytest.mark.parametrize("hold", HOLDS)
def test_rewinding_and_asking_again_is_the_same(model, hold: str) -> None:
    context = held(model(), hold)
    before = [p.clone() for p in packs(context)]
    tail = new_decode_cache(model(), context)
    first = behind(model(), context)
    said = answer(model(), tail, QUESTION)
    tail.rewind()
    assert answer(model(), tail, QUESTION) == said
    assert torch.equal(behind(model(), context), first)
    assert all(torch.equal(a, b) for a, b in zip(before, packs(context), strict=True))


@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("tokens", [1, 2, 33, 64, 65])
def test_odd_lengths(model, hold: str, tokens: int) -> None:
    context = held(model(), hold, tokens, "full")
    assert context.kept == tokens
    assert bool(behind(model(), context).isfinite().all())


@pytest.mark.parametrize("hold", HOLDS)
def test_absorbing_packs_once(model, hold: str) -> None:
    """A conversation's turns go into the exact fill; what was packed is never packed again."""
    ids, recipe = tiny.document(112), parse(f"keydiff(budget=24, stabilizers=0)+{hold}")
    work = filled(model(), ids[:48], str(recipe), 16)
    first = freeze_and_keep(work, recipe)
    kept = [p.clone() for p in packs(first)]
    later = drain(evict_turns(model(), work, ids[48:], recipe, chunk=16))
    assert same(later, freeze(filled(model(), ids, str(recipe), 16), recipe.storage))
    assert all(torch.equal(a, b) for a, b in zip(kept, packs(first), strict=True))


def test_numbers_beyond_float16_are_refused() -> None:
    k = torch.zeros(2, 5, 16)
    k[1, 3, 3] = -1e6
    pos = torch.arange(5).expand(2, -1)
    for hold in ("int8", "kivi"):
        with pytest.raises(ModelError, match="layer 7") as error:
            parse(f"full+{hold}").storage.freeze(KeptUnits(k, k, pos, None, layer=7))
        assert error.value.hint == "--kv-bits 16"
    with pytest.raises(ModelError, match="whole bytes"):
        parse("full+kivi(bits=2)").storage.freeze(KeptUnits(k[:, :, 4:10], k[:, :, 4:10], pos, None))


@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_saved_and_loaded_packs_the_same_bytes(model, tmp_path: Path, family: str, hold: str) -> None:
    from kvcli.prompt_cache.directory import CacheDirectory
    from kvcli.prompt_cache.request import request_key
    from tests.laws.test_prompt_cache import job, run

    work, library = job(recipe=parse(f"keydiff(budget=70, stabilizers=8)+{hold}")), CacheDirectory(tmp_path)
    place = library.path(request_key(model(family), work))
    first, _ = run(model(family), work, place=place, library=library)
    again, _ = run(model(family), work, place=place, library=library)
    assert (first.cache, again.cache) == ("miss", "hit")
    assert same(first.context, again.context)
    assert torch.equal(behind(model(family), first.context), behind(model(family), again.context))
