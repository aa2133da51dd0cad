"""LoRC: units are coordinates in the subspaces of the weights, and only what is outside of them is lost."""

import pytest
import torch
from torch import nn

from kvcli.cache.context import freeze
from kvcli.engine.generate import new_decode_cache
from kvcli.engine.prefill import new_prefill_cache
from kvcli.engine.recorded_step import RecordedStep
from kvcli.engine.static_step import StaticStep, dynamic_reason
from kvcli.errors import ModelError, UsageError
from kvcli.models.bases import basis
from kvcli.planning import memory
from kvcli.recipe import parse
from kvcli.storage import row_codec
from kvcli.storage.base import Basis, KeptUnits
from kvcli.storage.dense import DenseLayer
from kvcli.storage.lorc import Lorc, LorcLayer
from kvcli_kernels.attention import ref
from tests import tiny
from tests.laws.helpers import answer, asked, distance, filled


def stored(model, recipe: str, tokens: int = 90):
    return freeze(filled(model, tiny.document(tokens), recipe, 16, horizon=160), parse(recipe).storage)


def test_by_hand() -> None:
    """``W_K = diag(3, 1)``: of rank 1, ``k = (3 x_1, x_2)`` is stored as ``3 x_1`` and comes back as ``(3 x_1, 0)``."""
    vectors = torch.eye(2)[None]
    zero, k = torch.zeros(1, 2), torch.tensor([[[6.0, 5.0], [-3.0, 1.0]]])
    own = Basis(vectors, zero, vectors, zero)
    pos = torch.tensor([[0, 1]], dtype=torch.int32)
    kept = KeptUnits(k, k, pos, None, 0, k, range(2), lambda x, _: x, basis=own, layers=1)
    layer = Lorc(rank=0.5, least=0.5).freeze(kept)
    assert layer.k[0].tolist() == [[[6.0], [-3.0]]]
    assert layer.dense()[0].tolist() == [[[6.0, 0.0], [-3.0, 0.0]]]


def test_the_basis_of_known_weights() -> None:
    model = tiny.load("llama")
    projection = model.module.model.layers[0].self_attn.k_proj
    with torch.no_grad():
        projection.weight.zero_()
        for head in range(2):
            projection.weight[8 * head + 2, 0], projection.weight[8 * head + 5, 1] = 1.0, 3.0
    first = basis(model.module, model.spec, 0).k[:, :, :2].abs()
    assert first.argmax(dim=1).tolist() == [[5, 2], [5, 2]]
    assert torch.allclose(first.amax(dim=1), torch.ones(2, 2))


class Quantised(nn.Module):
    """A projection of another class, whose weight is none that kvcli reads."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._inner = [linear]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._inner[0](x)


@pytest.mark.parametrize("family", ["qwen2", "phi3-longrope"])
def test_weights_of_another_class_are_measured(family: str) -> None:
    model = tiny.load(family)
    for name, parameter in model.module.named_parameters():
        if name.endswith("proj.bias"):
            parameter.data.normal_()
    before = basis(model.module, model.spec, 1)
    part = model.module.model.layers[1].self_attn
    for name in ("k_proj", "v_proj", "qkv_proj"):
        if hasattr(part, name):
            setattr(part, name, Quantised(getattr(part, name)))
    after = basis(model.module, model.spec, 1)
    for one, two in zip(before, after, strict=True):
        assert torch.allclose(one.abs(), two.abs(), atol=1e-4)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_with_full_rank_it_is_dense(model, family: str) -> None:
    body, question = tiny.document(60), tiny.document(5, seed=1)
    for policy in ("full", "keydiff(budget=30, positions=original)"):
        exact = asked(model(family), body, question, policy, 16)
        assert distance(asked(model(family), body, question, f"{policy}+lorc(rank=1, least=1)", 16), exact) < 1e-4
    if None not in model(family).spec.sliding:
        return  # windows stay exact
    less = [asked(model(family), body, question, f"full+lorc(rank={r}, least={r})", 16) for r in (0.75, 0.25)]
    exact = asked(model(family), body, question, "full", 16)
    assert 1e-4 < distance(less[0], exact) < distance(less[1], exact)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_only_the_part_outside_the_subspace_is_lost(model, family: str) -> None:
    work = filled(model(family), tiny.document(50), "full+lorc(rank=0.5, least=0.5)", 16)
    raw = [(layer.k[:, :50].clone(), layer.v[:, :50].clone()) for layer in work.layers]
    for i, (layer, (k, v)) in enumerate(zip(freeze(work, work.storage).layers, raw, strict=True)):
        own = basis(model(family).module, model(family).spec, i)
        rank = layer.k[1].shape[2]
        found = layer.dense()
        for x, there, vectors, bias in ((k, found[0], own.k, own.k_bias), (v, found[1], own.v, own.v_bias)):
            outside = (x - bias[:, None]) @ vectors[:, :, rank:]
            error = layer.rotate(x, range(50)) - there if x is k else x - there
            assert torch.allclose(error.norm(dim=-1), outside.norm(dim=-1), atol=1e-4)


def test_of_white_inputs_the_dropped_singular_values_are_lost(model) -> None:
    """Of keys ``W x`` with independent ``x`` of variance 1, the mean squared error is the sum of the dropped s²."""
    weight = model().module.model.layers[0].self_attn.k_proj.weight.detach().view(2, 8, -1)
    own = basis(model().module, model().spec, 0)
    values = torch.linalg.svdvals(weight)
    inside = own.k[:, :, :3]
    lost = torch.eye(8) - inside @ inside.transpose(1, 2)
    expected = (lost @ weight).square().sum(dim=(1, 2))
    assert torch.allclose(expected, values[:, 3:].square().sum(dim=1), rtol=1e-4)


@pytest.mark.parametrize("block", [7, 2048])
def test_attending_is_attention_over_the_expanded_units(model, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_codec, "BLOCK", block)
    for layer in stored(model("gemma3"), "full+lorc(rank=0.5, least=0.25)").layers:
        assert isinstance(layer, LorcLayer if layer.window is None else DenseLayer)
        k, v = layer.dense()
        q = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(1))
        o, lse = layer.open().attend(q, 0.3, k.shape[1])
        expected, expected_lse = ref.attention(q, k, v, 0.3, k.shape[1], layer.window)
        seen = expected_lse.isfinite()
        assert torch.allclose(o[seen], expected[seen], atol=1e-4)
        assert torch.allclose(lse[seen], expected_lse[seen], atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen2"])
@pytest.mark.parametrize("tokens", [5, 200])
@pytest.mark.parametrize("fields", ["", "rank=0.6, least=0.1"])
def test_bytes_are_those_planned(model, family: str, tokens: int, fields: str) -> None:
    recipe, spec = f"knorm(budget=70)+lorc({fields})", model(family).spec
    plan = memory.plan(spec, parse(recipe), tokens=tokens, chunk=16, tail=0)
    work = filled(model(family), tiny.document(tokens), recipe, 16)
    assert plan.prefill == work.nbytes - work.workspace.nbytes
    assert plan.context == freeze(work, parse(recipe).storage).nbytes


def test_ranks_fall_with_the_layers() -> None:
    lorc = Lorc(rank=0.75, least=0.25)
    assert [lorc.width(64, i, 5) for i in range(5)] == [48, 40, 32, 24, 16]
    assert Lorc(rank=1, least=0.01).width(8, 2, 3) == 1
    assert lorc.width(64, 0, 1) == 48


def test_rewinding_and_asking_again_is_the_same(model) -> None:
    tail = new_decode_cache(model(), stored(model(), "keydiff(budget=40)+lorc"))
    first = answer(model(), tail, tiny.document(7, seed=3))
    tail.rewind()
    assert answer(model(), tail, tiny.document(7, seed=3)) == first


def test_a_recorded_step_takes_it_and_remembers_no_expanded_keys(model) -> None:
    context = stored(model(), "full+lorc", tokens=300)
    assert dynamic_reason(new_decode_cache(model(), context)) is None
    ways = []
    for cls in (StaticStep, RecordedStep):
        cache = new_decode_cache(model(), context)
        cache.reserve(32)
        step = cls(model(), cache)
        rows = []
        for token in range(3, 19):
            rows.append(step(torch.tensor([token])).clone())
            cache.extend(1)
        ways.append(torch.stack(rows))
        if cls is RecordedStep:
            assert step.calls, "it was recorded"
    assert torch.equal(*ways)


def test_the_prefill_is_that_of_dense_storage() -> None:
    assert parse("keydiff(budget=30)+lorc").reading == "keydiff(budget=30)"


def test_a_model_with_other_weights_is_refused_before_it_reads() -> None:
    model = tiny.load("llama")
    del model.module.model.layers[1].self_attn.v_proj
    with pytest.raises(ModelError, match="LlamaAttention"):
        new_prefill_cache(model, parse("full+lorc"), 10)


@pytest.mark.parametrize("fields", ["rank=1.1", "rank=0", "least=0", "least=0.9", "rank=nan", "least=nan", "rank=8"])
def test_impossible_fields_are_refused(fields: str) -> None:
    with pytest.raises(UsageError, match="lorc"):
        parse(f"full+lorc({fields})")
