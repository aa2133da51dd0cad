"""One decode step, and an asynchronous copy of the chosen token to the host."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from kvcli.cache.decode_cache import DecodeCache
from kvcli.models.model import Model
from kvcli_kernels.backend import for_cpu

DecodeStep = Callable[[Tensor], Tensor]
"""Maps a token id, int64 ``[1]``, to the next token's logits ``[vocab]``; does not extend the decode cache."""


def make_decode_step(model: Model, cache: DecodeCache) -> DecodeStep:
    """Return the decode step for a cache.

    Static steps are recorded and replayed on a CPU. On a GPU they become a CUDA graph if ``KVCLI_CUDA_GRAPH=1``.
    """
    one_card = model.device.type == "cuda" and not model.spec.devices
    if one_card and os.environ.get("KVCLI_CUDA_GRAPH") == "1" and dynamic_reason(cache) is None:
        return CudaGraphStep(model, cache)
    if recordable(model, cache):
        from kvcli.engine.recorded_step import RecordedStep

        return RecordedStep(model, cache)

    def step(token: Tensor) -> Tensor:
        return _forward_one(model, cache, token)

    return step


def recordable(model: Model, cache: DecodeCache) -> bool:
    """Whether steps are recorded and replayed (:mod:`kvcli.engine.recorded_step`)."""
    plain = model.device.type == "cpu" and model.dtype in (torch.float32, torch.bfloat16)
    return plain and for_cpu("attention") is not None and dynamic_reason(cache) is None


def dynamic_reason(cache: DecodeCache) -> str | None:
    """Explain why decode steps differ in shape or address; ``None`` if they are static."""
    if any(window is not None for window in cache.spec.sliding):
        return "sliding-window layers attend to other positions at every step"
    if cache.spec.state_bytes:
        return "recurrent layers replace their state at every step"
    if cache.spec.capped:
        return "capped logits have no kernel of constant shape"
    if cache.spec.passes:
        return "a layer uses the keys of a higher layer without those of the present token"
    if cache.spec.host_weight_bytes:
        return "layers in main memory are copied to the GPU at every step"
    layers = () if cache.context is None else cache.context.layers
    return next((layer.dynamic_reason for layer in layers if layer.dynamic_reason is not None), None)


class StaticStep:
    """Decode steps of constant shape: ids, positions and lengths are tensors on the device.

    Call :meth:`kvcli.cache.decode_cache.DecodeCache.reserve` for all expected tokens before the first step.
    """

    def __init__(self, model: Model, cache: DecodeCache) -> None:
        self.model, self.cache = model, cache
        self.token, self.position = (torch.zeros(1, dtype=torch.long, device=model.device) for _ in range(2))

    def __call__(self, token: Tensor) -> Tensor:
        self._set_inputs(token)
        return self._run()

    def _set_inputs(self, token: Tensor) -> None:
        self.token.copy_(token)
        self.position.fill_(self.cache.length)

    def _run(self) -> Tensor:
        self.cache.position = self.position
        try:
            return _forward_one(self.model, self.cache, self.token)
        finally:
            self.cache.position = None


class CudaGraphStep(StaticStep):
    """A static step, captured once as a CUDA graph and replayed with one host call."""

    def __init__(self, model: Model, cache: DecodeCache) -> None:
        super().__init__(model, cache)
        self.position.fill_(cache.length)
        warmup_stream = torch.cuda.Stream(model.device)  # type: ignore[no-untyped-call]
        warmup_stream.wait_stream(torch.cuda.current_stream(model.device))
        with torch.cuda.stream(warmup_stream):  # compile kernels and allocate workspaces before the capture
            for _ in range(2):
                self._run()
        torch.cuda.current_stream(model.device).wait_stream(warmup_stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = self._run()

    def __call__(self, token: Tensor) -> Tensor:
        self._set_inputs(token)
        self.graph.replay()
        return self.logits


def _forward_one(model: Model, cache: DecodeCache, token: Tensor) -> Tensor:
    logits = model.forward(token, cache, logits=True)
    assert logits is not None
    return logits


class AsyncTokenCopy:
    """Copies token ids to the host without draining the device's queue."""

    def __init__(self, device: torch.device) -> None:
        self.event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self.host = torch.zeros(1, dtype=torch.long, pin_memory=True)
            self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def send(self, token: Tensor) -> None:
        """Start the copy of a token id, int64 ``[1]``."""
        if self.event is None:
            self.host = token
        else:
            self.host.copy_(token, non_blocking=True)
            self.event.record()

    def result(self) -> int:
        """Wait for the copy, but not for work queued after it, and return the id."""
        if self.event is not None:
            self.event.synchronize()
        return int(self.host)
