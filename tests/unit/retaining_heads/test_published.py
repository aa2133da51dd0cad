"""Heads that Locret's authors published: found by the model's name, fetched or not, and used as their paper does."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kvcli import recipe as recipes
from kvcli.events import Download, Notice
from kvcli.pipeline import Pipeline
from kvcli.retaining_heads import discovery, published
from kvcli.retaining_heads.module import shapes
from kvcli.types import CHUNK
from tests import tiny
from tests.unit.models.conftest import Hub, caches, hub, run  # noqa: F401  # fixtures

NAMES = ["llama-3.1-8b", "phi-3-mini-128k", "meta-llama/Meta-Llama-3.1-8B-Instruct@main"]


def model_called(name: str):
    model = tiny.load("llama")
    return replace(model, spec=replace(model.spec, name=name), heads=None, heads_card=None)


def heads_in(folder: Path, spec, kind: str) -> dict[str, torch.Tensor]:
    """Heads as their authors save them: 1,024 wide, no biases, two matrices per layer."""
    folder.mkdir(parents=True)
    weights = {}
    for i in range(spec.layers):
        weights[f"model.layers.{i}.self_attn.fc1.weight"] = torch.randn(1024, shapes(spec)[0][0]).bfloat16()
        weights[f"model.layers.{i}.self_attn.fc2.weight"] = torch.randn(spec.kv_heads, 1024).bfloat16()
    if kind == "bin":
        torch.save(weights, folder / "retaining_heads.bin")
    elif kind == "safetensors":
        save_file(weights, folder / "model.safetensors")
    else:
        for n in (1, 2):
            part = {k: v for k, v in weights.items() if k.endswith(f"fc{n}.weight")}
            save_file(part, folder / f"model-0000{n}-of-00002.safetensors")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return weights


@pytest.mark.parametrize(("name", "kind"), list(zip(NAMES, ("bin", "safetensors", "parts"), strict=True)))
def test_they_are_found_by_the_models_name_and_fetched_once(hub: Hub, tmp_path: Path, name: str, kind: str) -> None:  # noqa: F811
    model, known = model_called(name), published.of_model(name)
    assert known is not None
    weights = heads_in(tmp_path / "served", model.spec, kind)
    hub.repos[known.repo] = tmp_path / "served"
    card, events = run(discovery.attach_events(model))
    (notice,) = (event for event in events if isinstance(event, Notice))
    assert known.repo in notice.text
    assert "MB" in notice.text
    assert "licence" in notice.text
    assert any(isinstance(event, Download) for event in events)
    assert (card.made, card.recipe, card.chunk) == (known.repo, known.recipe, known.chunk)
    assert torch.equal(model.heads.fc1[0], weights["model.layers.0.self_attn.fc1.weight"].float())
    hub.requests.clear()
    for offline in (False, True):
        again = model_called(name)
        assert run(discovery.attach_events(again, offline=offline)) == (card, [])
    assert hub.requests == []


@pytest.mark.parametrize("offline", [False, True])
def test_without_them_the_model_is_used_and_it_is_said(hub: Hub, offline: bool) -> None:  # noqa: F811
    model = model_called("llama-3.1-8b")
    card, events = run(discovery.attach_events(model, offline=offline))
    assert card is None
    assert model.heads is None
    assert [type(event) for event in events] == [Notice]
    assert bool(hub.requests) is not offline


def test_a_repository_with_a_whole_model_in_it_is_not_fetched_unasked(hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    model, known = model_called("llama-3.1-8b"), published.of_model("llama-3.1-8b")
    heads_in(tmp_path / "served", model.spec, "bin")
    (tmp_path / "served" / "retaining_heads.bin").write_bytes(b"0" * (6 * known.numbers(model.spec)))
    hub.repos[known.repo] = tmp_path / "served"
    card, events = run(discovery.attach_events(model))
    assert card is None
    assert not any(isinstance(event, Download) for event in events)


def test_heads_of_other_sizes_are_not_used(hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    model, other = model_called("llama-3.1-8b"), tiny.load("llama-mha")
    heads_in(tmp_path / "served", other.spec, "bin")
    hub.repos[published.of_model("llama-3.1-8b").repo] = tmp_path / "served"
    assert run(discovery.attach_events(model))[0] is None
    assert model.heads is None


@pytest.mark.parametrize(("name", "budget", "chunk"), [(NAMES[0], 16_384, 1_024), (NAMES[1], 6_000, 3_072)])
def test_the_recipe_is_the_papers(hub: Hub, tmp_path: Path, name: str, budget: int, chunk: int) -> None:  # noqa: F811
    model = model_called(name)
    heads_in(tmp_path / "served", model.spec, "bin")
    hub.repos[published.of_model(name).repo] = tmp_path / "served"
    discovery.attach(model)
    pipeline = Pipeline(model)
    policy = pipeline.choose_recipe(None, questions=1).recipe.policy
    assert (policy.name, policy.budget, policy.recent) == ("locret", budget, 2_500)
    assert (policy.tail, policy.pool, policy.sinks, policy.positions) == (100, 1, 0, "compact")
    assert pipeline.chunk_size == chunk
    assert Pipeline(model, "keydiff(budget=64)").chunk_size == CHUNK
    assert Pipeline(model, chunk_size=7).chunk_size == 7
    for units in (1, 100, 9_999, 50_000):
        policy = Pipeline(model, budget=units).choose_recipe(None).recipe.policy
        assert (policy.budget, policy.recent) == (units, min(2_500, units // 4))


def test_other_models_have_none_and_their_recipe_stays() -> None:
    assert published.of_model("smollm2-135m") is None
    assert published.of_model("meta-llama/Llama-3.1-8B") is None
    spec = tiny.load("llama").spec
    assert recipes.default(spec, heads=True).policy.pool == 17


def test_their_size_is_that_of_the_published_layers() -> None:
    spec = replace(tiny.load("llama").spec, layers=32, heads=32, kv_heads=8, head_dim=128)
    assert published.PublishedHeads.numbers(spec) == 32 * (1024 * (32 + 2 * 8) * 128 + 8 * 1024)
