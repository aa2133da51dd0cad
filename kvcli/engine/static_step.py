"""Decode steps of constant shape, which a CUDA graph or a record can replay."""

from __future__ import annotations

import torch
from torch import Tensor

from kvcli.cache.decode_cache import DecodeCache
from kvcli.models.model import Model


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


def forward_one(model: Model, cache: DecodeCache, token: Tensor) -> Tensor:
    """Return the logits ``[vocab]`` after a token id, int64 ``[1]``."""
    logits = model.forward(token, cache, logits=True)
    assert logits is not None
    return logits


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
            return forward_one(self.model, self.cache, self.token)
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
