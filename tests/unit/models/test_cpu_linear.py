"""Layers that choose their product: where they stand, and that an answer stays what it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from kvcli.engine.generate import new_decode_cache
from kvcli.engine.prefill import prefill
from kvcli.models import cpu_linear
from kvcli.models import spec as model_spec
from kvcli.models.load import wrap
from kvcli.models.model import Model
from kvcli.models.source import ModelSource
from kvcli.recipe import parse
from tests import tiny
from tests.laws.helpers import drain

NORMS = 7 * tiny.SIZES["hidden_size"] * 2  # bytes of the norms of three layers and of the last one
FAMILIES = ("llama", "qwen2", "phi3-longrope", "gemma3")


def classes(module: nn.Module) -> set[type]:
    return {type(m) for m in module.modules() if isinstance(m, nn.Linear)}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_that_of_torch_to_the_last_bits_of_bfloat16(family: str) -> None:
    model = wrap(tiny.build(family).to(torch.bfloat16), None, name=family, fingerprint=None)
    assert classes(model.module) == {cpu_linear.CpuDecodeLinear}
    context = drain(prefill(model, tiny.document(60), parse("full")))
    found = []
    for kind in (cpu_linear.CpuDecodeLinear, nn.Linear):
        for layer in [m for m in model.module.modules() if isinstance(m, nn.Linear)]:
            layer.__class__ = kind
        tail = new_decode_cache(model, context)
        found.append(torch.stack([step(model, tail, token) for token in (5, 6, 7)]))
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 0.05


def step(model, tail, token: int) -> torch.Tensor:
    logits = model.forward(torch.tensor([token]), tail, logits=True)
    tail.extend(1)
    return logits.float()


def test_as_transformers_made_it_it_is_torchs() -> None:
    model = wrap(tiny.build("llama").to(torch.bfloat16), None, name="llama", fingerprint=None)
    with model.reference() as module:
        assert classes(module) == {nn.Linear}
    assert classes(model.module) == {cpu_linear.CpuDecodeLinear}


def test_other_layers_stay() -> None:
    assert classes(wrap(tiny.build("llama").half(), None, name="llama", fingerprint=None).module) == {nn.Linear}

    class Quantised(nn.Linear):
        pass

    module = nn.Sequential(Quantised(4, 4), nn.Linear(4, 4)).to(torch.bfloat16)
    cpu_linear.install(module)(True)
    assert [type(m) for m in module] == [Quantised, cpu_linear.CpuDecodeLinear]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A model whose numbers are those of bfloat16, as its file is; its head is its embedding."""
    module = tiny.build("llama-tied").to(torch.bfloat16)
    module.save_pretrained(tmp_path)
    return tmp_path


def loaded(directory: Path) -> Model:
    module = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model = wrap(module, None, name="llama", fingerprint=None)
    cpu_linear.map_stored(model.module, directory)
    return model


def layers(model: Model) -> list[cpu_linear.CpuDecodeLinear]:
    return [m for m in model.module.modules() if isinstance(m, cpu_linear.CpuDecodeLinear)]


def test_a_float32_model_decodes_with_the_weights_of_its_file(saved: Path) -> None:
    """The same numbers in half the bytes: steps differ by the order of sums only, and prefill not at all."""
    model = loaded(saved)
    said = model_spec.spec(ModelSource("llama", saved, "directory"), device="cpu", dtype="float32")
    assert cpu_linear.map_stored(model.module, saved) == said.mapped_bytes == said.weight_bytes // 2 - NORMS
    assert all(layer.stored is not None for layer in layers(model))
    found, prefills = [], []
    for _ in range(2):
        context = drain(prefill(model, tiny.document(60), parse("full")))
        prefills.append(context.layers[2].dense()[0])
        tail = new_decode_cache(model, context)
        found.append(torch.stack([step(model, tail, token) for token in (5, 6, 7)]))
        for layer in layers(model):
            layer.stored = None
    assert torch.equal(*prefills)
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 1e-5


def test_weights_that_are_not_the_files_are_not_replaced(saved: Path) -> None:
    module = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32)
    with torch.no_grad():
        module.model.layers[0].self_attn.q_proj.weight *= 1.5
        module.model.layers[1].mlp.up_proj.weight.copy_(module.model.layers[1].mlp.up_proj.weight.flip(0))
    model = wrap(module, None, name="llama", fingerprint=None)
    assert cpu_linear.map_stored(model.module, saved) > 0
    assert sum(layer.stored is None for layer in layers(model)) == 2
    assert module.model.layers[0].self_attn.q_proj.stored is None
    assert module.model.layers[1].mlp.up_proj.stored is None


def test_a_file_in_float32_is_not_mapped(tmp_path: Path) -> None:
    module = tiny.build("llama")
    module.save_pretrained(tmp_path)
    model = wrap(module, None, name="llama", fingerprint=None)
    assert cpu_linear.map_stored(model.module, tmp_path) == 0
