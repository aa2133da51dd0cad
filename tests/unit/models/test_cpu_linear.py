"""Layers that choose their product: where they stand, and that an answer stays what it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kvcli.engine.generate import new_decode_cache
from kvcli.engine.prefill import prefill
from kvcli.models import cpu_linear
from kvcli.models.load import wrap
from kvcli.recipe import parse
from tests import tiny
from tests.laws.helpers import drain

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


def test_float32_and_other_layers_stay() -> None:
    assert classes(wrap(tiny.build("llama"), None, name="llama", fingerprint=None).module) == {nn.Linear}

    class Quantised(nn.Linear):
        pass

    module = nn.Sequential(Quantised(4, 4), nn.Linear(4, 4)).to(torch.bfloat16)
    cpu_linear.install(module)(True)
    assert [type(m) for m in module] == [Quantised, cpu_linear.CpuDecodeLinear]
