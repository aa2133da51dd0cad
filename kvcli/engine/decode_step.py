"""One token through the model, and its number read while the card is already at the next."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from kvcli.cache.decode_cache import DecodeCache
from kvcli.models.model import Model

DecodeStep = Callable[[Tensor], Tensor]
"""From a token's id, int64 ``[1]``, to the next one's logits ``[vocab]``; the tail is not extended."""


def make_decode_step(model: Model, tail: DecodeCache) -> DecodeStep:
    """The way to take steps behind a tail: with ``KVCLI_CUDA_GRAPH=1`` one CUDA graph, where all steps are alike."""
    if model.device.type == "cuda" and os.environ.get("KVCLI_CUDA_GRAPH") == "1" and dynamic_reason(tail) is None:
        return CudaGraphStep(model, tail)

    def step(token: Tensor) -> Tensor:
        return _forward_one(model, tail, token)

    return step


def dynamic_reason(tail: DecodeCache) -> str | None:
    """Why steps behind a tail are not all alike; ``None`` where they are."""
    if any(window is not None for window in tail.spec.sliding):
        return "layers with a window of their own see other places at every step"
    if tail.spec.host_weight_bytes:
        return "layers in main memory are brought to the card at every step"
    layers = () if tail.context is None else tail.context.layers
    return next((layer.dynamic_reason for layer in layers if layer.dynamic_reason is not None), None)


class StaticStep:
    """Steps that are all the same work: ids, places and lengths are numbers on the device, and no shape ever changes.

    The tail has room for all tokens that will come (:meth:`kvcli.cache.decode_cache.DecodeCache.reserve`) before the
    first step.
    """

    def __init__(self, model: Model, tail: DecodeCache) -> None:
        self.model, self.tail = model, tail
        self.token, self.position = (torch.zeros(1, dtype=torch.long, device=model.device) for _ in range(2))

    def __call__(self, token: Tensor) -> Tensor:
        self._put(token)
        return self._work()

    def _put(self, token: Tensor) -> None:
        self.token.copy_(token)
        self.position.fill_(self.tail.length)

    def _work(self) -> Tensor:
        self.tail.position = self.position
        try:
            return _forward_one(self.model, self.tail, self.token)
        finally:
            self.tail.position = None


class CudaGraphStep(StaticStep):
    """The same, recorded once and replayed: a step costs the host one call."""

    def __init__(self, model: Model, tail: DecodeCache) -> None:
        super().__init__(model, tail)
        self.position.fill_(tail.length)
        aside = torch.cuda.Stream(model.device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(model.device))
        with torch.cuda.stream(aside):  # kernels are compiled and workspaces taken before anything is recorded
            for _ in range(2):
                self._work()
        torch.cuda.current_stream(model.device).wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = self._work()

    def __call__(self, token: Tensor) -> Tensor:
        self._put(token)
        self.graph.replay()
        return self.logits


def _forward_one(model: Model, tail: DecodeCache, token: Tensor) -> Tensor:
    logits = model.forward(token, tail, logits=True)
    assert logits is not None
    return logits


class AsyncTokenCopy:
    """Brings token ids to the host without making the device's queue run empty."""

    def __init__(self, device: torch.device) -> None:
        self.event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self.host = torch.zeros(1, dtype=torch.long, pin_memory=True)
            self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def send(self, token: Tensor) -> None:
        """Set a token's id going, int64 ``[1]``."""
        if self.event is None:
            self.host = token
        else:
            self.host.copy_(token, non_blocking=True)
            self.event.record()

    def number(self) -> int:
        """Wait for the id that was sent, and for nothing that was begun since."""
        if self.event is not None:
            self.event.synchronize()
        return int(self.host)
