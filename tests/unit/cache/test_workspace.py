"""Reading with everything in host memory: layers come and go on a second stream, and the reading is the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from kvcli.cache import workspace
from kvcli.models.load import wrap
from kvcli.utils.copy_stream import CopyStream
from tests import tiny
from tests.laws.helpers import filled

HOLD = "quest(page=4, pages=3)"
KEEPS = ["full", "knorm(budget=30)", "knorm(budget=30, tail=7, victims=merge)"]


class Late(CopyStream):
    """A stream that does nothing before it is waited for, and then everything in order."""

    current: Late

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.queue: list[tuple[Tensor, Tensor]] = []
        self.done = 0

    @contextmanager
    def run(self) -> Iterator[None]:
        Late.current = self
        yield

    def mark(self) -> int:
        return len(self.queue)

    def join(self, mark: int) -> None:
        for source, target in self.queue[self.done : mark]:
            target.copy_(source)
        self.done = max(self.done, mark)

    def wait(self) -> None:
        self.join(len(self.queue))

    @staticmethod
    def copy(source: Tensor, target: Tensor) -> None:
        Late.current.queue.append((source, target))


def units(model, keep: str, hold: str) -> list[Tensor]:
    work = filled(model, tiny.document(90), f"{keep}+{hold}", 16)
    return [t[:, : layer.count].clone() for layer in work.layers for t in (layer.k, layer.v, layer.pos)]


@pytest.mark.parametrize("family", ["llama", "llama-mha", "gemma3", "mistral-window"])
@pytest.mark.parametrize("keep", KEEPS)
def test_what_is_kept_is_the_same_wherever_it_lies(model, family: str, keep: str) -> None:
    for a, b in zip(units(model(family), keep, HOLD), units(model(family), keep, "dense"), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("keep", KEEPS)
def test_nothing_is_looked_at_before_it_has_come(model, family: str, keep: str, monkeypatch) -> None:
    """The same bits from a second stream that is as slow as it may be."""
    expected = units(model(family), keep, "dense")
    monkeypatch.setattr(workspace, "CopyStream", Late)
    monkeypatch.setattr(workspace, "_copy", Late.copy)
    for a, b in zip(units(model(family), keep, HOLD), expected, strict=True):
        assert torch.equal(a, b)
    assert Late.current.queue
    assert Late.current.done == len(Late.current.queue)


def test_each_layer_sets_out_while_the_one_before_computes(model, monkeypatch) -> None:
    told: list[object] = []
    join, fetch = CopyStream.join, workspace.Workspace._fetch
    monkeypatch.setattr(CopyStream, "join", lambda self, mark: (told.append("join"), join(self, mark))[1])
    monkeypatch.setattr(
        workspace.Workspace, "_fetch", lambda self, aside, x: (told.append(x.index), fetch(self, aside, x))[1]
    )
    filled(model(), tiny.document(16), f"full+{HOLD}", 16)
    assert told == [0, "join", 1, "join", 2, "join"]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_gpu_has_room_for_two_layers_and_no_more(model, family: str) -> None:
    spec, chunk, tokens = model(family).spec, 16, 90
    work = filled(model(family), tiny.document(tokens), f"full+{HOLD}", chunk)
    assert work.workspace.nbytes == 2 * (tokens + chunk) * spec.kv_heads * spec.unit_bytes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a second stream needs a CUDA GPU")
@pytest.mark.parametrize("keep", KEEPS)
def test_on_a_gpu_too(keep: str) -> None:
    gpu = wrap(tiny.build("llama").to("cuda"), None, name="llama", fingerprint=None)
    for a, b in zip(units(gpu, keep, HOLD), units(gpu, keep, "dense"), strict=True):
        assert torch.equal(a.cpu(), b.cpu())
