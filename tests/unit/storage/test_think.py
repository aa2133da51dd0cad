"""ThinK: the channels that matter least are left out, and nothing else changes."""

import pytest
import torch

from kvcli.cache.context import freeze
from kvcli.engine.generate import new_decode_cache
from kvcli.errors import UsageError
from kvcli.planning import memory
from kvcli.recipe import parse
from kvcli.storage import think
from kvcli.storage.dense import DenseLayer
from kvcli.storage.think import Think, ThinkLayer
from kvcli_kernels.attention import ref
from tests import tiny
from tests.laws.helpers import answer, asked, distance, filled

FAMILIES = ["llama", "gemma3", "phi3-longrope"]


def stored(model, recipe: str, tokens: int = 90):
    parsed = parse(recipe)
    return freeze(filled(model, tiny.document(tokens), recipe, 16, horizon=160), parsed.storage)


def test_channels_by_hand() -> None:
    """Mean squares of queries 1 and 4, of keys 9 and 1: scores 9 and 4, so the second channel goes."""
    q, k = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0, 1.0], [3.0, 1.0]]])
    assert Think(ratio=0.5).choose(q, k).tolist() == [[0]]
    assert Think(ratio=0.5).choose(q, torch.tensor([[[0.0, 1.0]]])).tolist() == [[1]]
    assert Think(ratio=0.0).choose(q, k).tolist() == [[0, 1]]
    group = torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]]])  # two query heads of one KV head
    assert Think(ratio=0.5).choose(group, torch.ones(1, 3, 2)).tolist() == [[1]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", ["full", "keydiff(budget=40)"])
def test_with_all_channels_it_is_dense(model, family: str, policy: str) -> None:
    body, question = tiny.document(90), tiny.document(6, seed=1)
    exact = asked(model(family), body, question, policy, 16)
    assert distance(asked(model(family), body, question, f"{policy}+think(ratio=0)", 16), exact) < 1e-5
    assert distance(asked(model(family), body, question, f"{policy}+think(recent=90)", 16), exact) < 1e-5
    some = distance(asked(model(family), body, question, f"{policy}+think(ratio=0.3, recent=4)", 16), exact)
    assert (
        1e-4 < some < distance(asked(model(family), body, question, f"{policy}+think(ratio=0.9, recent=0)", 16), exact)
    )


@pytest.mark.parametrize("block", [7, 2048])
def test_attending_is_attention_over_keys_with_zeros(model, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(think, "_BLOCK", block)
    for layer in stored(model("gemma3"), "full+think(ratio=0.5, recent=9)").layers:
        assert isinstance(layer, ThinkLayer if layer.window is None else DenseLayer)
        k, v = layer.dense()
        q = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(1))
        o, lse = layer.open().attend(q, 0.3, k.shape[1])
        expected, expected_lse = ref.attention(q, k, v, 0.3, k.shape[1], layer.window)
        seen = expected_lse.isfinite()
        assert torch.allclose(o[seen], expected[seen], atol=1e-5)
        assert torch.allclose(lse[seen], expected_lse[seen], atol=1e-5)
        if isinstance(layer, ThinkLayer):
            assert bool(((k[:, :-9] == 0).sum(dim=-1) == 4).all())
            assert bool((k[:, -9:] != 0).all())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens", [5, 64, 200])
@pytest.mark.parametrize("fields", ["", "ratio=0.7, recent=0, window=8"])
def test_bytes_are_those_planned(model, family: str, tokens: int, fields: str) -> None:
    recipe, spec = f"knorm(budget=70)+think({fields})", model(family).spec
    plan = memory.plan(spec, parse(recipe), tokens=tokens, chunk=16, tail=0)
    work = filled(model(family), tiny.document(tokens), recipe, 16)
    assert plan.prefill == work.nbytes - work.workspace.nbytes
    assert plan.context == freeze(work, parse(recipe).storage).nbytes


def test_the_channels_do_not_depend_on_chunks(model) -> None:
    def channels(chunk: int) -> list[list[list[int]]]:
        work = filled(model(), tiny.document(70), "full+think(window=20)", chunk)
        return [layer.channels.tolist() for layer in freeze(work, parse("full+think(window=20)").storage).layers]

    assert channels(70) == channels(16) == channels(7)


def test_rewinding_and_asking_again_is_the_same(model) -> None:
    tail = new_decode_cache(model(), stored(model(), "keydiff(budget=40)+think"))
    first = answer(model(), tail, tiny.document(7, seed=3))
    tail.rewind()
    assert answer(model(), tail, tiny.document(7, seed=3)) == first


def test_a_resumed_prefill_has_the_same_channels(model, tmp_path) -> None:
    from kvcli.prompt_cache.directory import CacheDirectory
    from kvcli.prompt_cache.request import request_key
    from tests.laws.test_prompt_cache import interrupted, job, run

    work, library = job(recipe=parse("keydiff(budget=30)+think(window=24)")), CacheDirectory(tmp_path)
    place = library.path(request_key(model(), work))
    straight, _ = run(model(), work)
    interrupted(model(), work, 48, place=place, library=library)
    resumed, _ = run(model(), work, place=place, library=library)
    assert resumed.cache == "resumed"
    for one, two in zip(straight.context.layers, resumed.context.layers, strict=True):
        for name in ("narrow", "exact", "v", "channels"):
            assert torch.equal(getattr(one, name), getattr(two, name))


@pytest.mark.parametrize("fields", ["ratio=1", "ratio=-0.1", "window=0", "recent=-1", "ratio=nan"])
def test_impossible_fields_are_refused(fields: str) -> None:
    with pytest.raises(UsageError, match="think"):
        parse(f"full+think({fields})")
