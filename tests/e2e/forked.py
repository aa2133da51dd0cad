"""Processes of kvcli that need not import torch: a server has, and each of them is a fork of it.

A start costs 3 to 10 s of processor time, nearly all of it for imports, and the tests start the program 150 times. A
forked process has a pid of its own and is a child of the test. It is given streams, terminal, working directory,
environment, umask and arguments like any other. ``Popen``, ``run`` and ``spawn`` are those of subprocess and pexpect.

A command is forked if it begins like ``PROGRAM`` or ``python -c``, and if its variables that are read once are those of
the server. All others are started as usual. A test of the start itself (which modules are imported, from where) uses
subprocess.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pexpect
import ptyprocess

from kvcli.cli.resident.identity import ALSO, READ_ONCE

_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of <linux/prctl.h>


class _Server:
    """Forks processes on request. It has one thread, so that a fork finds no lock held."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self.socket, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forked_server.py")), str(theirs.fileno())],
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        atexit.register(self.stop)

    def stop(self) -> None:
        self.socket.close()
        self.process.wait()

    def fork(self, command: Sequence[str], cwd: str, environment: Mapping[str, str], streams: Sequence[int]) -> int:
        """The pid of a process that runs ``command``. With one stream, that is its terminal."""
        os.umask(mask := os.umask(0))
        body = json.dumps([list(command), cwd, dict(environment), mask]).encode()
        libc = ctypes.CDLL(None)
        libc.prctl(_SUBREAPER, 1, 0, 0, 0)  # its parent, a fork of the server, ends at once: we are the next one
        try:
            socket.send_fds(self.socket, [struct.pack("i", len(body))], streams)
            self.socket.sendall(body)
            pid, done = (self.socket.recv(4, socket.MSG_WAITALL) for _ in range(2))
        finally:
            libc.prctl(_SUBREAPER, 0, 0, 0, 0)
        assert done, "the server that forks processes has ended"
        return int(struct.unpack("i", pid)[0])


@cache
def _server() -> _Server:
    from tests.e2e.conftest import surroundings

    return _Server(surroundings())


def _fits(command: Any, environment: Mapping[str, str] | None) -> bool:
    """Whether a fork of the server is what a process of its own would be."""
    from tests.e2e.conftest import PROGRAM, surroundings

    if sys.platform != "linux" or isinstance(command, str | bytes | os.PathLike):
        return False
    words = [os.fspath(word) for word in command]

    def once(variables: Mapping[str, str]) -> dict[str, str]:
        return {k: v for k, v in variables.items() if k.startswith(READ_ONCE) or k in ALSO or k.lower() in ALSO}

    program = words[: len(PROGRAM)] == PROGRAM or words[:2] == [sys.executable, "-c"]
    return program and once(os.environ if environment is None else environment) == once(surroundings())


class Popen(subprocess.Popen[Any]):
    """A process of kvcli, without its imports."""

    def _execute_child(
        self,
        args: Any,
        executable: Any,
        preexec_fn: Any,
        close_fds: bool,
        pass_fds: Any,
        cwd: Any,
        env: Any,
        *rest: Any,
    ) -> None:
        stdin, parents_stdin, parents_stdout, stdout, parents_stderr, stderr, *more = rest[3:]
        plain = not (rest[2] or preexec_fn or executable or pass_fds or any(more[1:4]) or more[5])
        if not plain or not _fits(args, env):
            super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)  # type: ignore[misc]
            return
        streams = [own if own != -1 else number for number, own in enumerate((stdin, stdout, stderr))]
        here = os.fsdecode(cwd) if cwd is not None else os.getcwd()  # noqa: PTH109
        self.pid = _server().fork([os.fspath(a) for a in args], here, os.environ if env is None else env, streams)
        self._child_created = True
        devnull = getattr(self, "_devnull", None)
        for ours, theirs in ((stdin, parents_stdin), (stdout, parents_stdout), (stderr, parents_stderr)):
            if ours != -1 and theirs != -1 and ours != devnull:
                os.close(ours)
        if devnull is not None:
            os.close(devnull)
        self._closed_child_pipe_fds = True


def run(command: Sequence[Any], **options: Any) -> subprocess.CompletedProcess[Any]:
    """``subprocess.run`` with such a process; options ``input``, ``capture_output``, ``timeout`` and those of Popen."""
    check = options.pop("check", False)
    given, timeout = options.pop("input", None), options.pop("timeout", None)
    if given is not None:
        options["stdin"] = subprocess.PIPE
    if options.pop("capture_output", False):
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, **options) as process:
        try:
            out, err = process.communicate(given, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(command, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


class spawn(pexpect.spawn):  # noqa: N801  # as pexpect names it
    """A process of kvcli on a terminal of its own, without its imports."""

    def _spawnpty(self, args: list[str], **options: Any) -> ptyprocess.PtyProcess:
        words = [os.fsdecode(word) for word in args]
        environment = options.get("env")
        if not _fits([sys.executable, *words[1:]] if words[0] == sys.executable else words, environment):
            return super()._spawnpty(args, **options)
        ours, theirs = os.openpty()
        try:
            ptyprocess.ptyprocess._setwinsize(ours, *(options.get("dimensions") or (24, 80)))
            here = os.fsdecode(options.get("cwd") or os.getcwd())  # noqa: PTH109
            pid = _server().fork(words, here, os.environ if environment is None else environment, [theirs])
        finally:
            os.close(theirs)
        return ptyprocess.PtyProcess(pid, ours)
