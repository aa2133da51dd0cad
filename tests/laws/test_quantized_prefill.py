"""A fill in codes: each unit coded once and never again, whatever the chunks, and the memory that it promises."""

from pathlib import Path

import pytest
import torch

from kvcli.cache.context import freeze
from kvcli.cache.prefill_cache import ChunkStep, PrefillCache
from kvcli.engine.generate import new_decode_cache
from kvcli.engine.prefill import evict_turns, freeze_and_keep, new_prefill_cache, prefill_steps
from kvcli.errors import ModelError, UsageError
from kvcli.planning import memory
from kvcli.recipe import parse
from kvcli.storage.dense import DenseLayer
from kvcli.storage.row_codec import RowCodec
from kvcli.storage.row_layer import RowLayer
from kvcli_kernels.attention import ref
from kvcli_kernels.quantize import hadamard, turn
from tests import tiny
from tests.laws.helpers import WIDELY_TESTED, answer, distance, drain, filled

HOLDS = ["turbo(bits=2, fill=true)", "turbo(fill=true)", "turbo(bits=8, fill=true)"]
FAMILIES = ["llama", "llama-mha", "phi3-longrope", "gemma3", "smollm3"]
EVICTING = WIDELY_TESTED
QUESTION = tiny.document(9, seed=3)


def rows(work: PrefillCache) -> list[torch.Tensor]:
    return [t[:, : layer.count] for layer in work.layers for t in (layer.k, layer.v)]


def behind(model, context) -> torch.Tensor:
    logits = model.forward(torch.tensor(QUESTION), new_decode_cache(model, context), logits="all")
    assert logits is not None
    return logits


def units(model, total: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    spec, generator = model.spec, torch.Generator().manual_seed(seed)
    shapes = [(spec.heads, total, spec.head_dim), *[(spec.kv_heads, total, spec.head_dim)] * 2]
    return tuple(torch.randn(*shape, generator=generator) for shape in shapes)


def fed(model, recipe: str, chunk: int, total: int) -> PrefillCache:
    """A fill whose first layer was given the same queries, keys and values in chunks of some length."""
    parsed = parse(recipe)
    work = new_prefill_cache(model, parsed, total, chunk=chunk)
    q, k, v = units(model, total)
    for start in range(0, total, chunk):
        stop = min(start + chunk, total)
        work.step = ChunkStep(start, stop - start, last=stop == total)
        work.layers[0].attend(q[:, start:stop], k[:, start:stop], v[:, start:stop], 0.3, None)
        work.seen = stop
    return work


@pytest.mark.parametrize("dim", [1, 2, 8, 12, 64, 80, 96, 128])
def test_turning_is_the_rotation_and_knows_no_neighbours(dim: int) -> None:
    x = torch.randn(3, 37, dim, generator=torch.Generator().manual_seed(dim))
    assert torch.allclose(turn(x), x @ hadamard(dim, x.device).T, atol=1e-5)
    for n in (1, 2, 7, 16):
        assert torch.equal(turn(x[:, :n]), turn(x)[:, :n])


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dim", [8, 64, 96])
def test_a_row_is_the_same_whatever_is_beside_it(bits: int, dim: int) -> None:
    x = torch.randn(2, 300, dim, generator=torch.Generator().manual_seed(dim))
    whole = RowCodec(bits).encode(x)
    assert whole.shape[2] == RowCodec(bits).width(dim)
    for n in (1, 3, 64, 299):
        assert torch.equal(torch.cat([RowCodec(bits).encode(part) for part in x.split(n, dim=1)], dim=1), whole)


@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("chunk", [1, 5, 16, 33])
def test_chunked_and_one_shot_codes_are_identical(model, hold: str, chunk: int) -> None:
    one, whole = fed(model(), f"full+{hold}", chunk, 70), fed(model(), f"full+{hold}", 70, 70)
    for a, b in zip((one.layers[0].k, one.layers[0].v), (whole.layers[0].k, whole.layers[0].v), strict=True):
        assert torch.equal(a, b)
    through = [filled(model(), tiny.document(70), f"full+{hold}", c).layers[0].k for c in (chunk, 70)]
    if chunk > 1:  # the layer's own products of one row round otherwise
        assert float((through[0] != through[1]).float().mean()) < 1e-3


@pytest.mark.parametrize("policy", EVICTING)
@pytest.mark.parametrize("positions", ["compact", "original"])
def test_a_units_code_never_changes(model, policy: str, positions: str) -> None:
    """After every chunk a kept unit's bytes are those that its first coding gave."""
    recipe = f"{policy}(budget=24, stabilizers=8, sinks=2, positions={positions})+turbo(fill=true)"
    first: dict[tuple[int, int, int], bytes] = {}
    encoded: list[int] = []
    original = RowCodec.encode

    def counting(self: RowCodec, x: torch.Tensor) -> torch.Tensor:
        encoded.append(x.shape[1])
        return original(self, x)

    work = new_prefill_cache(model(), parse(recipe), 100, chunk=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RowCodec, "encode", counting)
        for _ in prefill_steps(model(), tiny.document(100), parse(recipe), chunk=16, resume=work):
            for layer in work.layers:
                assert layer.count <= 24
                for head in range(layer.k.shape[0]):
                    for slot, place in enumerate(layer.pos[head, : layer.count].tolist()):
                        now = layer.k[head, slot].numpy().tobytes() + layer.v[head, slot].numpy().tobytes()
                        assert first.setdefault((layer.index, head, place), now) == now
    assert sum(encoded) == 2 * 100 * len(work.layers)
    context = freeze(work, parse(recipe).storage, release=False)
    for layer, held in zip(work.layers, context.layers, strict=True):
        assert isinstance(held, RowLayer)
        assert torch.equal(held.k, layer.k[:, : layer.count])
        assert torch.equal(held.v, layer.v[:, : layer.count])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("tokens", [10, 64, 200])
def test_bytes_are_those_planned(model, family: str, hold: str, tokens: int) -> None:
    recipe, spec = parse(f"knorm(budget=70)+{hold}"), model(family).spec
    work = filled(model(family), tiny.document(tokens), str(recipe), 16)
    plan = memory.plan(spec, recipe, tokens=tokens, chunk=16, tail=0)
    assert plan.prefill == work.nbytes - work.workspace.nbytes
    assert plan.workspace >= work.workspace.nbytes
    context = freeze(work, recipe.storage)
    assert plan.context == context.nbytes
    if not any(spec.sliding):
        assert context.bits == recipe.storage.bits + 16 / spec.head_dim  # type: ignore[attr-defined]


def test_the_peak_falls_with_a_large_budget(model) -> None:
    def total(recipe: str) -> int:
        return memory.plan(model().spec, parse(recipe), tokens=100_000, chunk=512, tail=64).total

    exact, coded = total("knorm(budget=50000)"), total("knorm(budget=50000)+turbo(bits=2, fill=true)")
    assert coded < exact / 2
    assert total("knorm(budget=50000)+turbo(bits=2)") >= exact
    assert total("keydiff(budget=50000)+turbo(bits=2, fill=true)") < exact  # it looks at all keys of a layer


def test_nothing_of_a_layers_size_is_unpacked(model, monkeypatch) -> None:
    """With policies that score what is new, no more than a block of kept units exists at a time."""
    seen: list[int] = []
    monkeypatch.setattr("kvcli.storage.row_codec.BLOCK", 8)
    original = RowCodec.decode_rotated

    def watching(self: RowCodec, x: torch.Tensor) -> torch.Tensor:
        seen.append(x.shape[1])
        return original(self, x)

    monkeypatch.setattr(RowCodec, "decode_rotated", watching)
    for policy in ("full", "locret(budget=40)", "random(budget=40)", "streaming(budget=40)", "knorm(budget=40)"):
        context = freeze(
            filled(model(), tiny.document(90), f"{policy}+turbo(fill=true)", 16), parse("full+turbo(fill=true)").storage
        )
        behind(model(), context)
    assert max(seen) == 8


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("positions", ["compact", "original"])
def test_more_bits_are_nearer(model, family: str, positions: str) -> None:
    def logits(hold: str) -> torch.Tensor:
        recipe = parse(f"knorm(budget=100, positions={positions})+{hold}")
        return behind(model(family), freeze(filled(model(family), tiny.document(90), str(recipe), 16), recipe.storage))

    exact = logits("dense")
    off = [distance(logits(hold), exact) for hold in HOLDS]
    assert off[0] > off[1] > off[2]
    assert off[2] < 0.2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("block", [7, 2048])
def test_attending_is_attention_over_the_whole(model, family: str, positions: str, block: int, monkeypatch) -> None:
    monkeypatch.setattr("kvcli.storage.row_codec.BLOCK", block)
    spec, recipe = model(family).spec, parse(f"keydiff(budget=40, positions={positions})+turbo(fill=true)")
    for layer in freeze(filled(model(family), tiny.document(90), str(recipe), 16), recipe.storage).layers:
        k, v = layer.dense()
        assert isinstance(layer, RowLayer if layer.window is None else DenseLayer)
        for m in (1, 13):
            q = torch.randn(spec.heads, m, spec.head_dim, generator=torch.Generator().manual_seed(m))
            o, lse = layer.open().attend(q, 0.3, k.shape[1])
            expected, expected_lse = ref.attention(q, k, v, 0.3, k.shape[1], layer.window)
            assert distance(o, expected) < 1e-4
            assert torch.allclose(lse[lse.isfinite()], expected_lse[expected_lse.isfinite()], atol=1e-3)


@pytest.mark.parametrize("hold", HOLDS)
def test_rewinding_and_asking_again_is_the_same(model, hold: str) -> None:
    recipe = parse(f"keydiff(budget=40)+{hold}")
    context = freeze(filled(model(), tiny.document(90), str(recipe), 16), recipe.storage)
    tail = new_decode_cache(model(), context)
    first, said = behind(model(), context), answer(model(), tail, QUESTION)
    tail.rewind()
    assert answer(model(), tail, QUESTION) == said
    assert torch.equal(behind(model(), context), first)


def test_absorbing_is_reading_on(model) -> None:
    ids, recipe = tiny.document(112), parse("keydiff(budget=24, stabilizers=0)+turbo(fill=true)")
    work = filled(model(), ids[:48], str(recipe), 16)
    first = freeze_and_keep(work, recipe)
    kept = [layer.k.clone() for layer in first.layers]
    later = drain(evict_turns(model(), work, ids[48:], recipe, chunk=16))
    whole = freeze(filled(model(), ids, str(recipe), 16), recipe.storage)
    assert all(torch.equal(a.k, b.k) for a, b in zip(later.layers, whole.layers, strict=True))
    assert all(torch.equal(a, b.k) for a, b in zip(kept, first.layers, strict=True))


@pytest.mark.parametrize("policy", EVICTING)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("after", [16, 48])
def test_saved_loaded_and_continued_are_identical(model, tmp_path: Path, family: str, policy: str, after: int) -> None:
    from kvcli.prompt_cache.directory import CacheDirectory
    from kvcli.prompt_cache.request import request_key
    from tests.laws.test_prompt_cache import interrupted, job, run

    recipe = parse(f"{policy}(budget=30, stabilizers=8, sinks=2, tail=9)+turbo(fill=true)")
    work, library = job(recipe=recipe), CacheDirectory(tmp_path)
    place = library.path(request_key(model(family), work))
    straight, _ = run(model(family), work)
    interrupted(model(family), work, after, place=place, library=library)
    resumed, _ = run(model(family), work, place=place, library=library)
    again, _ = run(model(family), work, place=place, library=library)
    assert (resumed.cache, again.cache) == ("resumed", "hit")
    longer = job(130, recipe=recipe)
    on, _ = run(model(family), longer, place=library.path(request_key(model(family), longer)), library=library)
    assert on.cache == "resumed"
    fresh, _ = run(model(family), longer)
    for one, two in ((straight, resumed), (straight, again), (fresh, on)):
        assert torch.equal(behind(model(family), one.context), behind(model(family), two.context))
        for a, b in zip(one.context.layers, two.context.layers, strict=True):
            assert torch.equal(a.k, b.k)  # type: ignore[attr-defined]


def test_a_reading_in_codes_is_another_reading() -> None:
    assert parse("full+turbo(fill=true)").reading == "full+turbo(fill=true)"
    assert parse("full+turbo").reading == "full"


def test_what_it_cannot_do_is_refused(model) -> None:
    with pytest.raises(UsageError, match="merge"):
        parse("knorm(budget=20, victims=merge)+turbo(fill=true)")
    with pytest.raises(ValueError, match="cannot be held"):
        freeze(filled(model(), tiny.document(20), "full+turbo(fill=true)", 16), parse("full+kivi").storage)
    work = new_prefill_cache(model(), parse("full+turbo(fill=true)"), 5, chunk=5)
    work.step = ChunkStep(0, 5)
    q, k, v = units(model(), 5)
    with pytest.raises(ModelError, match="layer 0"):
        work.layers[0].attend(q, k * 1e7, v, 0.3, None)
