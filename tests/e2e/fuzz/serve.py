"""PDFium for many files in one process, where the product starts one for each: a thousand starts take minutes.

Everything else is as in :mod:`kvcli.documents.isolated`: what kills the process ends that file's pages early.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from kvcli.documents.document import Source


class Server:
    """Stands in for :func:`kvcli.documents.isolated.run`.

    Attributes:
        starts: how many processes it took; one more than files that killed theirs.
    """

    def __init__(self) -> None:
        self.starts = 0
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def run(self, module: str, source: Source, pages: str) -> Iterator[dict[str, Any]]:
        """The pieces of one file."""
        assert (module, pages) == ("kvcli.documents.pdf.pdfium", "[]")
        yield from self._pieces(source.data)  # all are there before the first is given: no reader leaves some behind

    def _pieces(self, data: bytes) -> list[dict[str, Any]]:
        process = self.process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(struct.pack("<Q", len(data)) + data)
        process.stdin.flush()
        found = []
        while (line := process.stdout.readline()).endswith(b"\n"):
            if (piece := json.loads(line)) is None:
                return found
            found.append(piece)
        self._end()
        return found

    def _start(self) -> subprocess.Popen[bytes]:
        program = f"import sys; sys.path[:] = {sys.path!r}; from tests.e2e.fuzz.serve import main; main()"
        self.process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.starts += 1
        return self.process

    def _end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.process = None


def main() -> None:
    """Read files, each behind its length; write their pieces, and ``null`` after each file."""
    from kvcli.documents import isolated
    from kvcli.documents.pdf import pdfium

    while size := sys.stdin.buffer.read(8):
        data = sys.stdin.buffer.read(struct.unpack("<Q", size)[0])
        isolated.bounded()
        for piece in pdfium.pieces(data):
            print(json.dumps(piece))
            isolated.bounded()
        print("null", flush=True)
