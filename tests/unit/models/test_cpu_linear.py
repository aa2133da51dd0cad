"""Layers that choose their product: where they stand, and that an answer stays what it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from kvcli.engine.generate import new_decode_cache
from kvcli.engine.prefill import prefill
from kvcli.engine.recorded_step import RecordedStep
from kvcli.engine.static_step import StaticStep
from kvcli.models import cpu_linear
from kvcli.models import spec as model_spec
from kvcli.models.load import wrap
from kvcli.models.model import Model
from kvcli.models.weights import ModelSource
from kvcli.recipe import parse
from kvcli_kernels import team
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


def of_whole_blocks(seed: int) -> LlamaForCausalLM:
    config = tiny.FAMILIES["llama-tied"]()
    config.update({"hidden_size": 64, "intermediate_size": 96, "vocab_size": 128})
    return tiny.randomise(LlamaForCausalLM(config), seed)


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    of_whole_blocks(1).to(torch.bfloat16).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_of_a_quantised_file_decodes_with_few_bits(converted: Path, dtype: str) -> None:
    source = ModelSource("llama", converted, "gguf", bits=4)
    said = model_spec.spec(source, device="cpu", dtype=dtype)
    module = AutoModelForCausalLM.from_pretrained(converted, dtype=getattr(torch, dtype))
    model = wrap(module, None, name="llama", fingerprint=None)
    for _ in range(2):  # made, then mapped
        taken = cpu_linear.map_packed(model.module, converted)
        assert taken + cpu_linear.map_stored(model.module, converted) == said.mapped_bytes > 0
    assert (converted / cpu_linear.PACKED).is_file()
    assert all(layer.packed is not None for layer in layers(model))
    many, few = torch.randn(1, 40, 64, dtype=module.dtype), torch.randn(1, 1, 64, dtype=module.dtype)
    layer = layers(model)[0]
    with torch.inference_mode():
        assert torch.equal(layer(many), torch.nn.functional.linear(many, layer.weight))
        apart = (layer(few).float() - few.float() @ layer.weight.float().T).norm() / layer(few).float().norm()
    assert 0 < apart < 0.02


def test_damaged_and_foreign_packed_weights_are_not_taken(converted: Path) -> None:
    model = loaded(converted)
    expected = [layer.packed for layer in layers(model) if cpu_linear.map_packed(model.module, converted)]
    for content in (b"", b"no file of tensors", None):
        if content is None:  # of another model
            other = of_whole_blocks(9)
            (converted / cpu_linear.PACKED).unlink()
            cpu_linear.map_packed(wrap(other, None, name="other", fingerprint=None).module, converted)
        else:
            (converted / cpu_linear.PACKED).write_bytes(content)
        fresh = loaded(converted)
        assert cpu_linear.map_packed(fresh.module, converted) > 0
        for layer in layers(fresh):
            assert layer.packed.stands_for(layer.weight)
    assert expected


def test_files_of_few_bits_are_told_from_others() -> None:
    assert ModelSource("m", Path(), "gguf", bits=4).few_bits
    assert ModelSource("m", Path(), "gguf", bits=8).few_bits
    assert not ModelSource("m", Path(), "gguf", bits=16).few_bits
    assert not ModelSource("m", Path(), "directory").few_bits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_replayed_steps_that_threads_share_are_plain_steps(
    converted: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(team, "_LEAST", 1)
    monkeypatch.setattr(team, "_PART", 256)
    module = AutoModelForCausalLM.from_pretrained(converted, dtype=getattr(torch, dtype))
    model = wrap(module, None, name="llama", fingerprint=None)
    assert cpu_linear.map_packed(model.module, converted)
    context = drain(prefill(model, tiny.document(60), parse("full"), horizon=300))
    found = []
    for kind in (StaticStep, RecordedStep):
        tail = new_decode_cache(model, context)
        tail.reserve(100)
        made = kind(model, tail)
        rows = []
        for token in tiny.document(40, seed=2):
            rows.append(made(torch.tensor([token])).clone())
            tail.extend(1)
        found.append(torch.stack(rows))
    assert made.calls is not None
    assert torch.equal(*found)
