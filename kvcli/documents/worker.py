"""Readers in a process of their own, one for all files that are read together: all but PDF, images and plain text.

Their parsers are C libraries, and a short file may make much of them. The process bounds its memory, and its
processor time by the size of each file. If it dies, that file is refused and the next one gets a new process.
"""

import json
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from dataclasses import asdict
from importlib import import_module
from types import TracebackType
from typing import Any, Self

from kvcli.documents.document import Extract, Options, Part, Source
from kvcli.documents.isolated import MEMORY, SILENCE, WORK, bounded
from kvcli.errors import InputError, UsageError
from kvcli.utils import child_process

READERS = frozenset(("docx", "epub", "html", "pptx", "xlsx", "odf", "rtf", "mail", "notebook"))
"""Modules beside this one whose ``extract`` runs here."""

PER_MIB = 4
"""Seconds of processor time for each MiB of a file, beside those that any file has."""

_ANEW = "save it anew in the program that made it, or as plain text"


class ReaderProcess:
    """Reads files in a process that starts with the first of them. To be used in a ``with`` statement."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.running = ExitStack()
        self.starts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()

    def extract(self, reader: str, source: Source, silence: float = SILENCE) -> Extract:
        """What ``reader`` makes of a file.

        Raises what the reader raises, and ``InputError`` if the file takes too much time or memory.
        """
        process = self.process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        options = asdict(source.options)
        task = {"reader": reader, "name": source.name, "quoted": source.quoted, "options": options}
        clock = threading.Timer(silence, process.kill)
        clock.start()
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps({**task, "size": len(source.data)}).encode() + b"\n")
                process.stdin.write(source.data)
                process.stdin.flush()
            line = process.stdout.readline()
        finally:
            clock.cancel()
        if not line.endswith(b"\n"):
            raise self._died(process, source)
        answer: dict[str, Any] = json.loads(line)
        if (error := answer.pop("error", None)) is not None:
            if answer["kind"] == "memory":
                self.end()
            raise (UsageError if answer["kind"] == "usage" else InputError)(error, answer["hint"])
        answer["parts"] = [Part(*part) for part in answer["parts"]]
        return Extract(**answer)

    def end(self) -> None:
        """Stop the process; a later file starts another."""
        self.process = None
        self.running.close()

    def command(self) -> list[str]:
        """The program of the process."""
        return child_process.own_module("kvcli.documents.worker")

    def _start(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        self.process = self.running.enter_context(child_process.running(self.command(), stdin=subprocess.PIPE))
        return self.process

    def _died(self, process: subprocess.Popen[bytes], source: Source) -> InputError:
        """Why there is no answer."""
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        code = process.returncode
        self.end()
        if code == -getattr(signal, "SIGXCPU", 0) or code == -getattr(signal, "SIGKILL", 0):
            why = f"it takes more than {seconds(len(source.data))} seconds of processor time"
        else:
            why = "its parser broke off"
        return InputError(f"{source.name} ({len(source.data):,} bytes) cannot be read: {why}", _ANEW)


def seconds(size: int) -> int:
    """Seconds of processor time for a file of ``size`` bytes."""
    return WORK + PER_MIB * (size >> 20)


def main() -> None:
    """Read tasks and files from standard input; write one JSON object for each."""
    sys.setrecursionlimit(5_000)  # 256 levels of XML, a few calls for each
    stdin = sys.stdin.buffer
    while line := stdin.readline():
        task = json.loads(line)
        data = stdin.read(task["size"])
        if len(data) < task["size"]:
            return
        bounded(seconds(len(data)))
        sys.stdout.write(json.dumps(_answer(task, data)) + "\n")
        sys.stdout.flush()


def _answer(task: dict[str, Any], data: bytes) -> dict[str, Any]:
    source = Source(data, task["name"], task["quoted"], Options(**task["options"]))
    try:
        reader = import_module(f"kvcli.documents.{task['reader']}")
        found = asdict(reader.extract(source))
    except (InputError, UsageError) as error:
        return {
            "error": error.message,
            "hint": error.hint,
            "kind": "usage" if isinstance(error, UsageError) else "input",
        }
    except MemoryError:
        limit = f"more than {MEMORY >> 30} GiB of memory"
        return {"error": f"{source.name} cannot be read: it takes {limit}", "hint": _ANEW, "kind": "memory"}
    found["parts"] = [list(part.values()) for part in found["parts"]]
    return found


if __name__ == "__main__":
    main()
