"""The sizes in the catalogue are those of the published models."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from kvcli.models import catalogue
from kvcli.models import spec as model_spec
from kvcli.models.auto_class import auto_class
from kvcli.models.default_model import DEFAULT
from kvcli.models.packed_experts import packable
from kvcli.types import ModelSpec


@pytest.mark.parametrize("alias", catalogue.ALIASES.values(), ids=lambda alias: alias.name)
def test_sizes_give_the_published_number_of_parameters(alias: catalogue.Alias) -> None:
    """A wrong layer, width or vocabulary is off by more than the small biases and norms that the count leaves out."""
    for dtype, size in (("bfloat16", 2), ("float32", 4)):
        found = model_spec.spec(alias.source(), device="cpu", dtype=dtype)
        packed = 0 if "quantization_config" not in alias.config else alias.experts  # in 4 bits, and 8 for each 32
        expected = size * (alias.parameters - packed) + packed * (4 + 8 / 32) / 8
        assert found.weight_bytes == pytest.approx(expected, rel=2e-4)
        assert (found.max_positions, found.name) == (alias.window, alias.name)
    if not alias.more:
        full = alias.layers // alias.every if alias.sliding else alias.layers
        assert sum(width is None for width in found.sliding) == full


@pytest.mark.parametrize("alias", [a for a in catalogue.ALIASES.values() if a.linear], ids=lambda alias: alias.name)
def test_experts_and_recurrent_layers_are_those_of_transformers(alias: catalogue.Alias) -> None:
    """Parameters, matrices that are quantised and experts, of a model without weights that is built from the facts."""
    config = AutoConfig.for_model(**alias.config)
    with torch.device("meta"):
        module = auto_class(config).from_config(config)
    module.tie_weights()
    head = module.get_output_embeddings()
    parts = [(part, name, p) for part in module.modules() for name, p in part.named_parameters(recurse=False)]
    experts = sum(p.numel() for part, name, p in parts if packable(part, name))
    linear = sum(p.numel() for part, name, p in parts if isinstance(part, nn.Linear) and name == "weight")
    linear -= head.weight.numel()
    assert sum(p.numel() for p in module.parameters()) == alias.parameters
    assert (alias.linear, alias.experts) == (linear + experts, experts)
    values = vars(config)
    assert alias.used[0] in (1, values.get("num_experts_per_tok"), values.get("top_k_experts"))
    assert alias.active < alias.parameters or not experts
    attending = model_spec.spec(alias.source(), device="cpu", dtype="bfloat16")
    assert attending.layers < alias.layers or not attending.state_bytes


def test_facts_of_published_models() -> None:
    """Keys and values of attention layers only, states of the others, windows, heads of each layer; by hand."""

    def spec(name: str) -> ModelSpec:
        return model_spec.spec(catalogue.ALIASES[name].source(), device="cpu", dtype="bfloat16")

    large = spec("qwen3.6-27b")
    assert (large.layers, large.row_bytes) == (16, 16 * 4 * 256 * 2 * 2)
    assert large.state_bytes == 48 * (48 * 128 * 128 * 4 + (2 * 16 + 48) * 128 * 4 * 2)
    gemma = spec("gemma-4-26b-a4b")
    assert gemma.sliding == tuple(None if i % 6 == 5 else 1024 for i in range(30))
    assert {gemma.of_layer(5).kv_heads, gemma.of_layer(5).head_dim} == {2, 512}
    assert (gemma.of_layer(0).kv_heads, gemma.of_layer(0).head_dim) == (8, 256)
    assert spec("nemotron-3-nano").layers == 6
    assert spec("granite-4-h-small").layers == 4
    assert catalogue.ALIASES["qwen3.6-35b-a3b"].active == 3_454_988_928


@pytest.mark.parametrize("held", ["int8", "nf4"])
@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "gemma-4-31b", "nemotron-3-nano", "glm-4.7-flash"])
def test_few_bits_take_what_their_tensors_take(name: str, held: str) -> None:
    alias = catalogue.ALIASES[name]
    found = model_spec.spec(alias.source(), device="cpu", dtype="bfloat16", stored=held)
    bits = 8 if held == "int8" else 4.5
    whole = 47 * 20 * (192 + 256) * 512 if name == "glm-4.7-flash" else 0  # what unpacks latents
    expected = (alias.linear - whole) * bits / 8 + 2 * (alias.parameters - alias.linear + whole)
    assert found.weight_bytes == pytest.approx(expected, rel=0.01)
    assert found.latent == bool(whole)
    assert catalogue.known(alias.repo) is alias


def test_names_and_repositories_are_unique() -> None:
    aliases = list(catalogue.ALIASES.values())
    assert len({alias.repo for alias in aliases}) == len(aliases)
    assert [alias.parameters for alias in aliases] == sorted(alias.parameters for alias in aliases)
    assert DEFAULT in catalogue.ALIASES
