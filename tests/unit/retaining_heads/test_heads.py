"""Heads as a module and as a file, and that the policy uses them as specified."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from kvcli.engine.prefill import prefill_steps
from kvcli.errors import DamagedError, ModelError
from kvcli.models import heads_on_disk
from kvcli.recipe import parse
from kvcli.retaining_heads import checkpoint, discovery
from kvcli.retaining_heads.checkpoint import HeadsCard
from kvcli.retaining_heads.module import RetainingHeads, joined, shapes
from tests import tiny
from tests.laws.helpers import filled


@pytest.fixture(scope="module")
def model():
    return tiny.load("llama")


def same(a: RetainingHeads, b: RetainingHeads) -> bool:
    return all(torch.equal(x.float(), y.float()) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_the_score_is_the_published_formula(model) -> None:
    q, k, v = torch.randn(4, 7, 8), torch.randn(2, 7, 8), torch.randn(2, 7, 8)
    heads = RetainingHeads.like(model.spec, width=16)
    score = heads.score(1, q, k, v)
    assert score.shape == (2, 7)
    for t in range(7):
        x = torch.cat([q[:, t].flatten(), k[:, t].flatten(), v[:, t].flatten()])
        expected = heads.fc2[1] @ F.silu(heads.fc1[1] @ x)
        assert torch.allclose(score[:, t], expected, atol=1e-5)


def test_features_are_the_raw_projections(model) -> None:
    """Before RoPE, heads one after the other, as the layer's own linear maps give them."""
    seen = {}

    class Watching:
        def score(self, layer, q, k, v):
            seen[layer] = joined(q, k, v)
            return torch.zeros(k.shape[0], k.shape[1])

    ids = tiny.document(20)
    before, model.heads = model.heads, Watching()
    try:
        filled(model, ids, "locret(budget=20)", 20)
    finally:
        model.heads = before
    with torch.inference_mode(), model.reference() as module:
        first = module.model.layers[0]
        x = first.input_layernorm(module.model.embed_tokens(torch.tensor(ids)))
        attention = first.self_attn
        expected = torch.cat([attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)], dim=1)
    assert torch.allclose(seen[0], expected, atol=1e-5)
    assert expected.shape[1] == shapes(model.spec)[0][0]


def test_stored_scores_are_the_heads_own_even_for_stabilizers(model) -> None:
    """Protection never writes into a score (Locret's code, not its pseudo-code)."""
    work = filled(model, tiny.document(90), "locret(budget=20, stabilizers=8)", 16)
    for layer in work.layers:
        assert bool(layer.scores[:, : layer.count].isfinite().all())
        again = model.heads.score(layer.index, torch.zeros(4, 0, 8), layer.k[:, :0], layer.v[:, :0])
        assert again.shape == (2, 0)


def test_a_file_gives_back_heads_and_card(model, tmp_path) -> None:
    card = HeadsCard(
        model="m", identity=checkpoint.identity(model), steps=7, seed=3, metrics={"overlap": 0.5}, licence="PD"
    )
    heads = RetainingHeads.like(model.spec, width=8)
    checkpoint.save(tmp_path / "h.safetensors", heads, card, dtype=torch.float32)
    loaded, found = checkpoint.load(tmp_path / "h.safetensors")
    assert found == card
    assert same(heads, loaded)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert [p.name for p in tmp_path.iterdir()] == ["h.safetensors"]


@pytest.mark.parametrize("kind", ["bin", "safetensors", "shards"])
def test_published_locret_checkpoints_load(model, tmp_path, kind: str) -> None:
    """Their keys, their width of 1,024, no biases, among the backbone's own weights or without them."""
    size = shapes(model.spec)[0][0]
    weights = {"model.embed_tokens.weight": torch.zeros(3)}
    for i in range(model.spec.layers):
        weights[f"model.layers.{i}.self_attn.fc1.weight"] = torch.randn(1024, size)
        weights[f"model.layers.{i}.self_attn.fc2.weight"] = torch.randn(2, 1024)
        weights[f"model.layers.{i}.self_attn.q_proj.weight"] = torch.zeros(2, 2)
    path = tmp_path
    if kind == "bin":
        path = tmp_path / "pytorch_model.bin"
        torch.save(weights, path)
    elif kind == "safetensors":
        path = tmp_path / "model.safetensors"
        save_file(weights, path)
    else:
        for n in (0, 1):
            save_file({k: v for j, (k, v) in enumerate(weights.items()) if j % 2 == n}, tmp_path / f"m{n}.safetensors")
    fresh = replace(model, heads=None)
    card = discovery.attach(fresh, str(path))
    assert card == HeadsCard(activation="silu")
    assert fresh.heads.width == 1024
    for i in range(model.spec.layers):
        assert torch.equal(fresh.heads.fc1[i], weights[f"model.layers.{i}.self_attn.fc1.weight"])
    drained = list(prefill_steps(fresh, tiny.document(40), parse("locret(budget=16)"), chunk=8))
    assert drained[-1].kept == 16


def test_a_pickle_with_code_in_it_is_not_run(tmp_path, model) -> None:
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (marker.write_text, ("ran",))

    torch.save({"layers.0.fc1.weight": Evil()}, tmp_path / "x.bin")
    with pytest.raises(DamagedError, match="not a checkpoint of tensors"):
        discovery.attach(replace(model), str(tmp_path / "x.bin"))
    assert not marker.exists()


def test_heads_of_another_model_are_refused_naming_what_differs(model, tmp_path) -> None:
    other = tiny.load("llama-mha")
    path = tmp_path / "h.safetensors"
    checkpoint.save(
        path, RetainingHeads.like(other.spec, width=8), HeadsCard(model="other", identity=checkpoint.identity(other))
    )
    with pytest.raises(ModelError, match=r"96 features per token where the model has 64; 4 KV heads where .* has 2"):
        discovery.attach(replace(model), str(path))
    twin = tiny.load("llama", seed=1)
    twin.module.model.norm.weight.data += 1
    checkpoint.save(
        path, RetainingHeads.like(twin.spec, width=8), HeadsCard(model="twin", identity=checkpoint.identity(twin))
    )
    with pytest.raises(ModelError, match="trained for twin"):
        discovery.attach(replace(model), str(path))


def test_identity_outlives_quantisation_and_not_fine_tuning(model) -> None:
    before = checkpoint.identity(model)
    weight = model.module.model.layers[0].mlp.up_proj.weight
    old = weight.data.clone()
    try:
        weight.data = weight.data.bfloat16().float()
        assert checkpoint.identity(model) == before
    finally:
        weight.data = old
    norm = model.module.model.norm.weight
    old = norm.data.clone()
    try:
        norm.data = old * 1.1
        assert checkpoint.identity(model) != before
    finally:
        norm.data = old


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a safetensors file"),
        (b"\xff" * 100, "not a safetensors file"),
    ],
)
def test_damaged_files(model, tmp_path, content: bytes, message: str) -> None:
    path = tmp_path / "h.safetensors"
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=message):
        discovery.attach(replace(model), str(path))


def test_files_that_are_no_heads(model, tmp_path) -> None:
    path = tmp_path / "h.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(DamagedError, match="no weights called"):
        discovery.attach(replace(model), str(path))
    save_file({"layers.0.fc1.weight": torch.zeros(2, 64), "layers.1.fc2.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(DamagedError, match=r"without layers\.0\.fc2, layers\.1\.fc1"):
        discovery.attach(replace(model), str(path))
    save_file({"layers.0.fc1.weight": torch.zeros(2, 64)}, path, {"kvcli_heads": "99", "card": json.dumps({})})
    with pytest.raises(DamagedError, match="format 99"):
        discovery.attach(replace(model), str(path))
    with pytest.raises(ModelError, match="no heads file"):
        discovery.attach(replace(model), str(tmp_path / "none.safetensors"))


def test_heads_are_found_by_themselves_and_a_persons_own_come_first(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("KVCLI_DATA_DIR", str(tmp_path))
    fresh = replace(model, heads=None)
    assert discovery.attach(fresh) is None
    assert fresh.heads is None
    (heads_on_disk.folder() / "a-damaged.safetensors").write_bytes(b"x")
    mine = HeadsCard(model="mine", identity=checkpoint.identity(model), steps=1)
    checkpoint.save(heads_on_disk.folder() / "mine.safetensors", RetainingHeads.like(model.spec, width=8), mine)
    assert discovery.attach(fresh) == mine
    assert fresh.heads is not None


def test_without_heads_locret_says_so_and_what_helps(model) -> None:
    with pytest.raises(ModelError, match="needs retaining heads") as caught:
        list(prefill_steps(replace(model, heads=None), tiny.document(9), parse("locret(budget=4)")))
    assert caught.value.hint is not None
    assert "kvcli train" in caught.value.hint
    assert "keydiff" in caught.value.hint
