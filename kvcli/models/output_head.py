"""The language-model head computes logits of the rows that are wanted, whatever its model can be asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Rows = slice | Tensor | None


class OutputHead:
    """A hook before a model's language-model head that keeps some rows. Not all models have ``logits_to_keep``.

    The rows are copied. They are a slice of longer ones, and with a slice's strides torch's linear copies the head's
    whole weight instead: 54 MiB for the default model at every question.
    """

    def __init__(self, head: nn.Module) -> None:
        self._rows: Rows = None
        head.register_forward_pre_hook(self._keep)

    def _keep(self, _head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._rows is None:
            return None
        hidden = args[0][:, self._rows]
        return (hidden.clone(memory_format=torch.contiguous_format), *args[1:])

    @contextmanager
    def keeping(self, rows: Rows) -> Iterator[None]:
        """Compute logits of these rows only: a slice, or int64 ``[r]``; ``None`` for all."""
        self._rows = rows
        try:
            yield
        finally:
            self._rows = None

    @staticmethod
    def logits(output: Any, rows: Rows) -> Tensor:
        """The rows' logits ``[r, vocab]``, from a model that computed only those, or all if it has no such head."""
        found: Tensor = output.logits[0]
        count = found.shape[0]
        if (
            rows is None
            or (isinstance(rows, Tensor) and count == len(rows))
            or (isinstance(rows, slice) and count == 1)
        ):
            return found
        return found[rows]
