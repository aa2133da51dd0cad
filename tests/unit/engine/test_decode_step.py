"""A step over host memory is the same work each time, so that a GPU can record it once and do it again."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

import kvcli_kernels.gather.ref as gather
import kvcli_kernels.reconstruct.ref as reconstruct
from kvcli.cache.decode_cache import DecodeCache
from kvcli.engine.generate import new_decode_cache
from kvcli.engine.prefill import prefill
from kvcli.engine.static_step import CudaGraphStep, StaticStep, dynamic_reason
from kvcli.recipe import parse
from kvcli.storage.offload.layer import BlockReader, PrefetchingReader
from tests import tiny
from tests.laws.helpers import distance, drain
from tests.laws.traced_step import LateStream, TracedStep, Waits, kernel
from tests.unit.kernels.interpreted import run
from tests.unit.storage.test_offload import ALL, FEW

FAMILIES = ["llama", "llama-mha", "qwen3", "phi3-longrope"]
QUESTION, STEPS = tiny.document(6, seed=5), tiny.document(14, seed=6)


@pytest.fixture
def kernels(monkeypatch) -> None:
    """References that are one kernel on a GPU count as one."""
    for module in (gather, reconstruct):
        name = module.__name__.split(".")[1]
        monkeypatch.setattr(module, name, kernel(getattr(module, name)))


def tail(model, recipe: str, *, steps: int = len(STEPS)) -> DecodeCache:
    """Behind a document and a question, with room for some steps."""
    context = drain(prefill(model, tiny.document(70), parse(recipe), chunk=16, horizon=160))
    begun = new_decode_cache(model, context)
    with torch.inference_mode():
        begun.reserve(len(QUESTION) + steps)
    model.forward(torch.tensor(QUESTION, device=model.device), begun, logits=False)
    begun.extend(len(QUESTION))
    return begun


def apart(model, plain: DecodeCache, other: DecodeCache, step, *, steps: int = len(STEPS)) -> float:
    """The largest distance between ordinary steps and others, over an answer."""
    found = []
    for number in STEPS[:steps]:
        token = torch.tensor([number], device=model.device)
        expected = model.forward(token, plain, logits=True)
        with torch.inference_mode():
            found.append(distance(step(token), expected))
        for one in (plain, other):
            one.extend(1)
    return max(found)


def readers(begun: DecodeCache) -> list[BlockReader]:
    return [held for held in begun.context_layers if isinstance(held, BlockReader)]


def memory(begun: DecodeCache) -> list[int]:
    """Where everything lies that a step finds and leaves."""
    kept: list[Tensor] = [t for layer in begun.layers for t in (layer.k, layer.v)]
    for reader in readers(begun):
        kept += [reader._counts, *(() if isinstance(reader, PrefetchingReader) else reader._staged)]
    return [t.data_ptr() for t in (*kept, *begun.staging._buffers.values())]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", FEW)
def test_steps_that_are_all_alike_are_the_steps(model, family: str, name: str) -> None:
    plain, other = (tail(model(family), f"full+{FEW[name]}") for _ in range(2))
    assert dynamic_reason(other) is None
    where = memory(other)
    assert apart(model(family), plain, other, StaticStep(model(family), other)) < 1e-5
    assert memory(other) == where
    assert [(r.hits, r.misses) for r in readers(plain)] == [(r.hits, r.misses) for r in readers(other)]
    assert all(r.misses for r in readers(other))
    assert all((r.hits > 0) != isinstance(r, PrefetchingReader) for r in readers(other))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("holds", [FEW, ALL], ids=["few", "all"])
@pytest.mark.parametrize("name", FEW)
def test_a_step_that_is_recorded_and_done_again_is_the_step(model, family: str, name: str, holds) -> None:
    """Nothing waits, and nothing that changes is anywhere but in memory that stays."""
    plain, other = (tail(model(family), f"full+{holds[name]}") for _ in range(2))
    traced = TracedStep(model(family), other)
    assert apart(model(family), plain, other, traced) < 1e-5


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", ["shadowkv", "infinigen"])
def test_what_is_done_aside_may_come_as_late_as_it_is_waited_for(model, name: str, monkeypatch) -> None:
    """The second stream leaves the recorded one and comes back to it, each time."""
    told: list[int] = []
    mark = LateStream.mark
    monkeypatch.setattr(LateStream, "mark", lambda self: (told.append(mark(self)), told[-1])[1])
    monkeypatch.setattr("kvcli.utils.copy_stream.CopyStream", LateStream)
    plain, other = (tail(model(), f"full+{FEW[name]}") for _ in range(2))
    traced = TracedStep(model(), other)
    assert any(told)
    assert apart(model(), plain, other, traced) < 1e-5


@pytest.mark.usefixtures("kernels")
def test_a_layer_that_cannot_says_why_and_cannot(model) -> None:
    """SmolLM3 has layers that do not turn keys, so there is no table for the kernel that makes them."""
    begun = tail(model("smollm3"), f"full+{FEW['shadowkv']}")
    assert "shadowkv" in str(dynamic_reason(begun))
    with pytest.raises(Waits, match="nonzero"):
        TracedStep(model("smollm3"), begun)
    for name in set(FEW) - {"shadowkv"}:
        assert dynamic_reason(tail(model("smollm3"), f"full+{FEW[name]}")) is None


@torch.inference_mode()
@pytest.mark.parametrize("name", ["quest", "shadowkv"])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_who_is_interrupted_leaves_nothing_wrong(model, name: str, at: int, monkeypatch) -> None:
    begun = tail(model(), f"full+{FEW[name]}")
    (reader, *_) = readers(begun)
    q = [torch.randn(4, 1, 8, generator=torch.Generator().manual_seed(i)) * 3 for i in range(3)]
    reader.attend(q[0], 0.3, 99)
    count, copy = 0, Tensor.copy_

    def interrupted(self: Tensor, *args: object) -> Tensor:
        nonlocal count
        count += 1
        copy(self, *args)
        if count == at:
            raise KeyboardInterrupt
        return self

    monkeypatch.setattr(Tensor, "copy_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reader.attend(q[1], 0.3, 99)
    monkeypatch.undo()
    for one in (q[1], q[2], q[0]):
        warm, cold = reader.attend(one, 0.3, 99), reader.layer.open().attend(one, 0.3, 99)
        assert torch.equal(warm[0], cold[0])


PROGRAM = """
import os

from triton.runtime.interpreter import GridExecutor

import kvcli_kernels.gather.triton, kvcli_kernels.landmarks.triton, kvcli_kernels.merge.triton
import kvcli_kernels.packed_attention.triton, kvcli_kernels.reconstruct.triton, kvcli_kernels.varlen.triton
from tests import tiny
from tests.unit.storage.test_offload import FEW
from tests.unit.engine.test_decode_step import apart, tail
from tests.laws.traced_step import TracedStep, kernel

torch.empty, torch.empty_like = made, like
launch = GridExecutor.__call__
GridExecutor.__call__ = kernel(launch)
os.environ["TRITON_INTERPRET"] = "0"
model = tiny.load("llama")
for recipe in (*(f"full+{hold}" for hold in FEW.values()), "knorm(budget=24)+kivi(bits=4, group=8)"):
    os.environ["TRITON_INTERPRET"] = "0"
    plain, other = (tail(model, recipe) for _ in range(2))
    os.environ["TRITON_INTERPRET"] = "1"
    traced = TracedStep(model, other)
    assert sum(func is launch for func, *_ in traced.trace.calls) > 5
    os.environ["TRITON_INTERPRET"] = "0"
    distance = apart(model, plain, other, traced, steps=2)  # the interpreter takes a second for each
    assert distance < 1e-4, (recipe, distance)
print("same")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is for Linux")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU records for itself")
def test_with_the_kernels_of_a_gpu(tmp_path: Path) -> None:
    """What stands around each kernel is recorded as on a GPU; each launch is one thing to do again."""
    assert run(PROGRAM, tmp_path) == "same"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a graph needs a CUDA GPU")
@pytest.mark.parametrize("family", ["llama", "llama-mha"])
@pytest.mark.parametrize("name", FEW)
def test_a_graph_of_a_step_is_the_step(family: str, name: str) -> None:
    from kvcli.models.load import wrap

    gpu = wrap(tiny.build(family).to("cuda"), None, name=family, fingerprint=None)
    plain, other = (tail(gpu, f"full+{FEW[name]}") for _ in range(2))
    with torch.inference_mode():
        graph = CudaGraphStep(gpu, other)
    where = memory(other)
    assert apart(gpu, plain, other, graph) < 1e-4
    assert memory(other) == where
    assert all(r.misses for r in readers(other))
