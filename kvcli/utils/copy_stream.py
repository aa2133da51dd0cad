"""A second stream for what is fetched ahead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class CopyStream:
    """On a GPU, work beside the main stream; anywhere else the same work, done at once."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @contextmanager
    def run(self) -> Iterator[None]:
        """Operations started here begin after all earlier operations of the main stream.

        Tensors of the main stream that they read must exist until :meth:`join`. ``record_stream`` would ensure that,
        but during a CUDA graph's capture its memory is not used again.
        """
        if self._stream is None:
            yield
            return
        import torch

        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            yield

    def mark(self) -> Any:
        """A point after all copies that were started so far."""
        return None if self._stream is None else self._stream.record_event()

    def wait(self) -> None:
        """Wait on the host until all operations of this stream are done."""
        if self._stream is not None:
            self._stream.synchronize()

    def join(self, mark: Any) -> None:
        """Later operations of the main stream begin after ``mark``; later operations of this stream may go on."""
        if self._stream is not None:
            import torch

            torch.cuda.current_stream(self._stream.device).wait_event(mark)
