"""The card that kernels are launched on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def current_device(device: torch.device) -> AbstractContextManager[Any]:
    """Make a card the current one: Triton launches there, wherever its tensors are. Nothing on a machine without."""
    import torch

    return torch.cuda.device(device) if device.type == "cuda" and torch.cuda.device_count() > 1 else nullcontext()
