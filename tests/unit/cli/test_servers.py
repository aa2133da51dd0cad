"""Servers that are listed are those that run, however they end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvcli.cli.resident import servers

PROGRAM = """
import os, signal, sys, time
from kvcli.cli.resident import servers
port = int(sys.argv[1])
with servers.registered(servers.Server(os.getpid(), port, f"http://127.0.0.1:{port}", "m", "cpu", 2, None, 1.0)):
    signal.signal(signal.SIGTERM, signal.SIG_IGN if sys.argv[2:] else signal.SIG_DFL)
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "kvcli"


def start(port: int, *more: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(port), *more], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_none_without_a_directory(directory: Path) -> None:
    assert servers.running() == []
    assert not directory.exists()


def test_those_that_run_by_port() -> None:
    processes = {port: start(port) for port in (80, 8421, 900)}
    try:
        found = servers.running()
        assert [(one.port, one.pid) for one in found] == [(p, processes[p].pid) for p in (80, 900, 8421)]
        assert [one.port for one in servers.running(900)] == [900]
        assert servers.running(901) == []
    finally:
        for process in processes.values():
            end(process)


def test_one_that_was_killed_is_not_listed_and_its_file_goes(directory: Path) -> None:
    process = start(8421)
    end(process)
    assert (directory / "serve-8421").exists()
    assert servers.running() == []
    assert not (directory / "serve-8421").exists()


def test_stop_ends_that_one() -> None:
    first, second = start(1), start(2)
    try:
        (one,) = servers.running(1)
        assert servers.stop(one)
        assert [other.port for other in servers.running()] == [2]
    finally:
        end(first)
        end(second)


def test_one_that_does_not_end_is_said() -> None:
    process = start(3, "stubborn")
    try:
        (one,) = servers.running()
        assert not servers.stop(one, seconds=0.2)
    finally:
        end(process)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"pid": 1}'])
def test_a_damaged_file_is_no_server(directory: Path, text: bytes) -> None:
    process = start(8421)
    try:
        (directory / "serve-8421").write_bytes(text)
        assert servers.running() == []
    finally:
        end(process)
