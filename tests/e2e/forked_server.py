"""Imports what ``kvcli ask`` imports, once, and forks a process for each request (tests/e2e/forked.py)."""

from __future__ import annotations

import fcntl
import gc
import importlib
import io
import json
import os
import socket
import struct
import sys
import termios
import time
from pathlib import Path
from typing import Any

MODULES = (
    "kvcli.chat.setup", "kvcli.cli.answer_loop", "kvcli.cli.app", "kvcli.cli.commands.ask", "kvcli.cli.commands.chat",
    "kvcli.cli.commands.serve", "kvcli.cli.commands.train", "kvcli.cli.program", "kvcli.cli.resident.client",
    "kvcli.documents.plain", "kvcli.models.load", "kvcli.pipeline", "kvcli.retaining_heads.trainer",
    "kvcli_kernels.attention.cpu", "kvcli_kernels.linear.cpu", "kvcli_kernels.linear.packed",
    "kvcli_kernels.small_operations", "kvcli_kernels.team_loop", "numpy.ma", "prompt_toolkit",
    "pydantic.main", "rich.progress", "transformers.conversion_mapping",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama", "typer._adapters",
)  # fmt: skip


def serve(requests: socket.socket) -> tuple[list[str], tuple[str, dict[str, str], int, list[int]]] | None:
    """Fork until nobody asks. Returns the request in each forked process, and ``None`` at the end of the server."""
    while True:
        head, streams, _, _ = socket.recv_fds(requests, 4, 3)
        if not head:
            return None
        command, cwd, environment, mask = json.loads(requests.recv(struct.unpack("i", head)[0], socket.MSG_WAITALL))
        between = os.fork()
        if not between:
            parent = os.getpid()
            pid = os.fork()
            if not pid:
                while os.getppid() == parent:
                    time.sleep(0.001)
                return command, (cwd, environment, mask, streams)
            requests.sendall(struct.pack("i", pid))
            os._exit(0)
        os.waitpid(between, 0)
        for stream in streams:
            os.close(stream)
        requests.sendall(b"done")  # the test is its parent now


def become(cwd: str, environment: dict[str, str], mask: int, streams: list[int]) -> None:
    """Take streams, terminal, working directory, variables and umask of a new process."""
    if len(streams) == 1:
        os.setsid()
        fcntl.ioctl(streams[0], termios.TIOCSCTTY, 0)
    moved = [fcntl.fcntl(stream, fcntl.F_DUPFD, 10) for stream in streams * (3 // len(streams))]
    for number, stream in enumerate(moved):
        os.dup2(stream, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(cwd)
    os.umask(mask)
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        old: Any = getattr(sys, name)
        raw = io.FileIO(number, "w" if number else "r", closefd=False)
        buffered: Any = (raw if old.write_through else io.BufferedWriter(raw)) if number else io.BufferedReader(raw)
        new = io.TextIOWrapper(
            buffered,
            encoding=old.encoding,
            errors=old.errors,
            line_buffering=number == 2 or os.isatty(number),
            write_through=old.write_through,
        )
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


def main() -> None:
    """Import, and fork; a forked process runs its command from here, and ends as Python ends."""
    del sys.path[0]  # the folder of this file
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "true",
        "GOMP_SPINCOUNT": "1000",
    }.items():
        os.environ.setdefault(name, value)  # as the program does before its imports
    from kvcli.models import partial_imports

    partial_imports.install()
    for name in MODULES:
        importlib.import_module(name)
    sys.modules["transformers.conversion_mapping"].get_checkpoint_conversion_mapping("llama")  # kept by transformers
    target = importlib.import_module("numba.core.registry").cpu_target
    target.typing_context.refresh()  # imports what compiled kernels are loaded with
    target.target_context.refresh()
    gc.collect()
    gc.freeze()  # a collection in a forked process leaves these pages shared
    assert len([*Path("/proc/self/task").iterdir()]) == 1, "a process with threads must not be forked"
    requests = socket.socket(fileno=int(sys.argv[1]))
    request = serve(requests)
    if request is None:
        return
    requests.detach()
    command, place = request
    become(*place)
    if command[1] == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *command[3:]]
        exec(compile(command[2], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = ["kvcli", *command[3:]]
        app = importlib.import_module("kvcli.cli.app")
        app.main()


if __name__ == "__main__":
    main()
