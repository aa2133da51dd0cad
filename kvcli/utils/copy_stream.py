"""A second stream for what is fetched ahead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class CopyStream:
    """On a card, work beside the main stream; anywhere else the same work, done at once."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @contextmanager
    def run(self) -> Iterator[None]:
        """What is told here begins after all that the main stream was told before.

        The main stream's tensors that it reads must live until :meth:`join`; ``record_stream`` would see to that, but
        memory that it is told of in a recording is not used again.
        """
        if self._stream is None:
            yield
            return
        import torch

        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
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
