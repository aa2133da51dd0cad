"""What a recorder of tensor operations must know of functions that torch does not see.

A decode step on a CPU can be recorded once and replayed (:mod:`kvcli.engine.recorded_step`). A compiled function takes
the memory of tensors. It is run through :func:`run`, so that a replay repeats its work on the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor


class Recorder(Protocol):
    """Takes calls of functions that torch does not see.

    Attributes:
        frees: whether a replay calls functions anew, so that memory within them is free between steps.
    """

    frees: bool

    def call(self, work: Callable[[], object], inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Run ``work``, which computes ``outputs`` from what is in ``inputs``, and record it as one operation."""


recorder: ContextVar[Recorder | None] = ContextVar("recorder", default=None)
"""The recorder of this thread, if its operations are recorded."""


def run(work: Callable[[], object], inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Run a compiled function, and let the recorder know, if there is one."""
    if (active := recorder.get()) is None:
        work()
    else:
        active.call(work, inputs, outputs)


def attend(q: Tensor, work: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Compute an attention term ``(o, lse)`` for queries ``[H, m, D]`` as one operation, ``work``.

    For storages that expand keys. Otherwise, what does not depend on the token would be computed once and kept for all
    replays. Expanded keys of all layers are as large as the cache that such a storage avoids.
    """
    if (active := recorder.get()) is None or not active.frees:
        return work()
    o, lse = torch.empty_like(q), torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)

    def copied() -> None:
        found, total = work()
        o.copy_(found)
        lse.copy_(total)

    run(copied, (q,), (o, lse))
    return o, lse


def array(x: Tensor) -> Any:
    """The memory of a CPU tensor as a numpy array, bfloat16 as its bits (uint16)."""
    with torch._C.DisableTorchFunction():  # a recorder refuses ``numpy`` elsewhere
        return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()
