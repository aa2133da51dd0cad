"""One decode step, and an asynchronous copy of the chosen token to the host."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from kvcli.cache.decode_cache import DecodeCache
from kvcli.engine.static_step import CudaGraphStep, dynamic_reason, forward_one
from kvcli.models.model import Model
from kvcli_kernels.backend import for_cpu

DecodeStep = Callable[[Tensor], Tensor]
"""Maps a token id, int64 ``[1]``, to the next token's logits ``[vocab]``; does not extend the decode cache."""


def make_decode_step(model: Model, cache: DecodeCache) -> DecodeStep:
    """Return the decode step for a cache.

    Static steps are recorded and replayed on a CPU. On a GPU they become a CUDA graph if ``KVCLI_CUDA_GRAPH=1``.
    """
    one_gpu = model.device.type == "cuda" and not model.spec.devices
    if one_gpu and os.environ.get("KVCLI_CUDA_GRAPH") == "1" and dynamic_reason(cache) is None:
        return CudaGraphStep(model, cache)
    if recordable(model, cache):
        from kvcli.engine.recorded_step import RecordedStep

        return RecordedStep(model, cache)

    def step(token: Tensor) -> Tensor:
        return forward_one(model, cache, token)

    return step


def recordable(model: Model, cache: DecodeCache) -> bool:
    """Whether steps are recorded and replayed (:mod:`kvcli.engine.recorded_step`)."""
    plain = model.device.type == "cpu" and model.dtype in (torch.float32, torch.bfloat16)
    return plain and for_cpu("attention") is not None and dynamic_reason(cache) is None


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
