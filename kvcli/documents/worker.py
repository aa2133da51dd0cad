"""Readers in processes of their own, watched by the clock: what crashes or hangs there is one clear error here."""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Generator
from tempfile import TemporaryFile
from typing import Any

from kvcli.documents.document import Source
from kvcli.errors import InputError

SILENCE = 60.0
"""Seconds without a page after which a reader is stopped."""

_START = "import sys; sys.path[:] = {path!r}; from {module} import main; main()"


def run(module: str, source: Source, *args: str, silence: float = SILENCE) -> Generator[dict[str, Any], None, None]:
    """The JSON Lines that ``module`` writes when it gets the file on standard input.

    Ends early where the process dies. Raises ``InputError`` when it says nothing for ``silence`` seconds.
    """
    program = _START.format(path=sys.path, module=module)
    with TemporaryFile() as data:
        data.write(source.data)
        data.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-c", program, *args], stdin=data, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    late = threading.Event()

    def stop() -> None:
        late.set()
        process.kill()

    try:
        while process.stdout is not None:
            clock = threading.Timer(silence, stop)
            clock.start()
            try:
                line = process.stdout.readline()
            finally:
                clock.cancel()
            if late.is_set():
                raise InputError(
                    f"{source.name} cannot be read: one page took longer than {silence:.0f} seconds",
                    f"repair it: qpdf {source.quoted} repaired.pdf",
                )
            if not line.endswith(b"\n"):
                return
            with contextlib.suppress(ValueError):
                yield json.loads(line)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
