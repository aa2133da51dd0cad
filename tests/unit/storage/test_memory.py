"""What offloading takes is planned apart for the GPU and for the machine, and refused with numbers."""

import dataclasses

import pytest

from kvcli.engine.prefill import freeze_and_keep
from kvcli.errors import ResourceError
from kvcli.planning import memory
from kvcli.recipe import parse
from kvcli.types import ModelSpec
from tests import tiny
from tests.laws.helpers import filled
from tests.unit.storage.test_offload import FEW

LLAMA = ModelSpec(
    "llama", "f", 32, 32, 8, 128, 4096, 14336, 128256, 131072, (None,) * 32, "bfloat16", "cuda:0", 16_060_522_496
)
HOLDS = ["quest", "infllm", "shadowkv", "infinigen"]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("length", [5, 70, 100])
def test_the_plan_says_what_a_context_takes(model, family: str, name: str, length: int) -> None:
    recipe, spec = parse(f"full+{FEW[name]}"), dataclasses.replace(model(family).spec, device="cuda:0")
    work = filled(model(family), tiny.document(length), str(recipe), 16)
    in_host = sum(layer.k.nbytes + layer.v.nbytes for layer in work.layers)
    context = freeze_and_keep(work, recipe)
    plan = memory.plan(spec, recipe, tokens=length, chunk=16, tail=0)
    notes = sum(layer.count for layer in work.layers) * spec.kv_heads * 8
    gathered = sum(tensor.nbytes for layer in work.layers for tensor in layer.state.values())
    assert plan.prefill == context.nbytes + notes + gathered
    assert plan.host == max(in_host, context.host_nbytes)
    here = memory.plan(model(family).spec, recipe, tokens=length, chunk=16, tail=0)
    assert (here.prefill, here.host) == (plan.prefill + plan.host, 0)


@pytest.mark.parametrize(
    ("name", "share"), [("quest", 1 / 7), ("infllm", 1 / 11), ("shadowkv", 1 / 6), ("infinigen", 1 / 4)]
)
def test_a_small_gpu_holds_a_long_document(name: str, share: float) -> None:
    """Llama-3.1-8B's shape at 126K tokens with the published settings."""
    full, few = (memory.plan(LLAMA, parse(r), tokens=129_024, chunk=1024, tail=512) for r in ("full", f"full+{name}"))
    notes = full.prefill - full.context
    assert few.prefill - notes < full.context * share
    assert few.host == 129_024 * 8 * 512 * 32
    assert full.host == 0


@pytest.mark.parametrize("name", HOLDS)
def test_host_memory_that_is_not_there_is_refused_with_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = memory.plan(LLAMA, parse(f"full+{name}"), tokens=129_024, chunk=1024, tail=512)
    monkeypatch.setattr(memory, "host_available", lambda: 8 * 2**30)
    with pytest.raises(ResourceError) as error:
        plan.check(2**40, "cuda:0")
    assert "15.8 GiB" in error.value.message
    assert "8.0 GiB is free" in error.value.message
    assert "--policy" in (error.value.hint or "")
    monkeypatch.setattr(memory, "host_available", lambda: 64 * 2**30)
    plan.check(2**40, "cuda:0")
    with pytest.raises(ResourceError, match="cuda:0"):
        plan.check(2**20, "cuda:0")
