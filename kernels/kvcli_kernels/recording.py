"""What a recorder of tensor operations must know of functions that torch does not see.

A decode step on a CPU can be recorded once and replayed (:mod:`kvcli.engine.recorded_step`). A compiled function takes
the memory of tensors; it says through :func:`run` what it does, so that a replay does it again on the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor


class Recorder(Protocol):
    """Takes calls of functions that torch does not see."""

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


def array(x: Tensor) -> Any:
    """The memory of a CPU tensor as a numpy array, bfloat16 as its bits (uint16)."""
    with torch._C.DisableTorchFunction():  # a recorder refuses ``numpy`` elsewhere
        return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()
