"""A second stream for what is fetched ahead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Aside:
    """On a card, work beside the main stream; anywhere else the same work, done at once."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @contextmanager
    def run(self, *used: Tensor) -> Iterator[None]:
        """What is told here begins after all that the main stream was told before; it reads the tensors ``used``."""
        if self._stream is None:
            yield
            return
        import torch

        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        for tensor in used:  # the main stream may drop them before they are read
            tensor.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            yield

    def mark(self) -> Any:
        """A point behind all that was told aside so far."""
        return None if self._stream is None else self._stream.record_event()

    def wait(self) -> None:
        """The host goes on when all that was told aside is done."""
        if self._stream is not None:
            self._stream.synchronize()

    def join(self, mark: Any) -> None:
        """What the main stream is told from now on begins after ``mark``; what was told aside since may go on."""
        if self._stream is not None:
            import torch

            torch.cuda.current_stream(self._stream.device).wait_event(mark)
