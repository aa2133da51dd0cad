"""Readers in processes of their own, watched by the clock: what crashes or hangs there is one clear error here."""

import contextlib
import json
import threading
from collections.abc import Generator
from tempfile import TemporaryFile
from typing import Any

from kvcli.documents.document import Source
from kvcli.errors import InputError
from kvcli.utils import child_process

SILENCE = 600.0
"""Seconds without a page after which a reader is stopped; on a busy machine a second of work may take a minute."""

MEMORY = 4 << 30
"""Bytes of address space a reader may take."""

WORK = 30
"""Seconds of processor time one page may take."""


def bounded(work: int = WORK, memory: int = MEMORY) -> None:
    """To be called in the process of a reader before each page: bounds its memory and the work on that page.

    The system ends a process that goes beyond; :func:`run` then ends early.
    """
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        spent = resource.getrusage(resource.RUSAGE_SELF)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        limit = int(spent.ru_utime + spent.ru_stime) + work
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def run(module: str, source: Source, *args: str, silence: float = SILENCE) -> Generator[dict[str, Any], None, None]:
    """The JSON Lines that ``main()`` of ``module`` writes when it gets the file on standard input.

    Ends early if the process dies. Raises ``InputError`` if it says nothing for ``silence`` seconds.
    """
    late = threading.Event()
    with TemporaryFile() as data:
        data.write(source.data)
        data.seek(0)
        with child_process.running(child_process.own_module(module, *args), stdin=data) as process:

            def stop() -> None:
                late.set()
                process.kill()

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
