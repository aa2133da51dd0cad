"""The client's side: where the sockets are, which commands go to an engine, and what if the engine misbehaves."""

from __future__ import annotations

import os
import signal
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from kvcli.cli import app
from kvcli.cli.exit_codes import to_kvcli_error
from kvcli.cli.resident import client, identity, kept, protocol, sockets
from kvcli.errors import DamagedError, InputError

pytestmark = pytest.mark.skipif(not hasattr(socket, "send_fds"), reason="needs Unix sockets")

ASK = ["ask", "-q", "book.txt", "Who?"]
Behaviour = Callable[[socket.socket], None]


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("KVCLI_KEEP_ALIVE", "60")
    monkeypatch.setattr(client, "fits", lambda args: args[0] == "ask")  # pytest's own streams are no files
    monkeypatch.setattr(client, "_streams", list)
    monkeypatch.setattr(client, "GREETING", 0.3)
    monkeypatch.setattr(client, "BUSY", 0.3)
    return tmp_path


@pytest.fixture
def engine(runtime: Path) -> Iterator[Callable[[Behaviour], list[socket.socket]]]:
    """Something that listens where an engine would, and behaves in a given way towards each client."""
    assert runtime.is_dir()
    opened: list[socket.socket] = []
    accepted: list[socket.socket] = []
    found = sockets.open_directory()
    assert found is not None

    def start(behaviour: Behaviour) -> list[socket.socket]:
        listening = found.listen(identity.key())
        opened.append(listening)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                accepted.append(connection)
                threading.Thread(target=behaviour, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        return accepted

    yield start
    for one in opened:
        one.shutdown(socket.SHUT_RDWR)
        one.close()
    for one in accepted:
        one.close()
    found.close()


def greet(connection: socket.socket) -> protocol.Lines:
    """As far as the client's turn."""
    protocol.send(connection, pid=os.getpid())
    _, descriptors = protocol.receive_request(connection)
    for descriptor in descriptors:
        os.close(descriptor)
    protocol.send(connection, turn=True)
    lines = protocol.Lines(connection)
    assert lines.next() == {"go": True}
    return lines


# --- which engine says what ---


def test_the_exit_code_is_the_engines(engine: Callable[[Behaviour], list[socket.socket]]) -> None:
    def seven(connection: socket.socket) -> None:
        greet(connection)
        protocol.send(connection, wrote=True)
        protocol.send(connection, exit=7)

    engine(seven)
    assert client.run(ASK) == 7


def test_an_engine_that_does_not_answer_is_left_alone(engine: Callable[[Behaviour], list[socket.socket]]) -> None:
    engine(lambda _connection: None)
    assert client.run(ASK) is None


def test_a_busy_engine_is_waited_for_no_longer_than_a_moment(
    engine: Callable[[Behaviour], list[socket.socket]],
) -> None:
    def busy(connection: socket.socket) -> None:
        protocol.send(connection, pid=os.getpid())
        protocol.receive_request(connection)

    engine(busy)
    assert client.run(ASK) is None


@pytest.mark.parametrize("used", ["read", "wrote"])
def test_a_command_that_has_begun_to_read_or_write_is_not_run_twice(
    engine: Callable[[Behaviour], list[socket.socket]], used: str
) -> None:
    def dies(connection: socket.socket) -> None:
        greet(connection)
        protocol.send(connection, **{used: True})
        connection.close()

    engine(dies)
    with pytest.raises(client.EngineDied):
        client.run(ASK)
    assert app._by_engine(ASK) == 1


def test_an_engine_that_dies_before_is_no_error(engine: Callable[[Behaviour], list[socket.socket]]) -> None:
    def dies(connection: socket.socket) -> None:
        greet(connection)
        connection.close()

    engine(dies)
    assert client.run(ASK) is None


def test_an_engine_that_leaves_before_the_turn_is_tried_once_more(
    engine: Callable[[Behaviour], list[socket.socket]],
) -> None:
    def leaves(connection: socket.socket) -> None:
        protocol.send(connection, pid=os.getpid())
        protocol.receive_request(connection)
        connection.close()

    accepted = engine(leaves)
    assert client.run(ASK) is None
    assert len(accepted) == 2


def test_signals_are_passed_on(engine: Callable[[Behaviour], list[socket.socket]]) -> None:
    said: list[dict[str, int] | None] = []

    def interrupted(connection: socket.socket) -> None:
        lines = greet(connection)
        os.kill(os.getpid(), signal.SIGINT)
        said.append(lines.next())
        os.kill(os.getpid(), signal.SIGTERM)
        said.append(lines.next())
        protocol.send(connection, exit=130)

    engine(interrupted)
    before = signal.getsignal(signal.SIGINT)
    assert client.run(ASK) == 130
    assert said == [{"signal": signal.SIGINT}, {"signal": signal.SIGTERM}]
    assert signal.getsignal(signal.SIGINT) is before


# --- the directory ---


def test_directory_and_socket_are_private(runtime: Path) -> None:
    found = sockets.open_directory()
    assert found is not None
    with found.listen("key"):
        assert stat.S_IMODE((runtime / "kvcli").stat().st_mode) == 0o700
        assert stat.S_IMODE((runtime / "kvcli" / "key.sock").stat().st_mode) == 0o600
    found.close()


def test_a_directory_that_others_may_enter_is_refused(
    runtime: Path, capsys: pytest.CaptureFixture[str], engine: Callable[[Behaviour], list[socket.socket]]
) -> None:
    accepted = engine(lambda _connection: None)
    (runtime / "kvcli").chmod(0o750)
    with pytest.raises(sockets.UnsafeDirectory):
        sockets.open_directory()
    assert client.run(["ask", "book.txt", "Who?"]) is None
    assert "750" in capsys.readouterr().err
    assert not accepted


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(
    runtime: Path, engine: Callable[[Behaviour], list[socket.socket]], monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted = engine(lambda _connection: None)
    os.chown(runtime / "kvcli", 12345, 12345)
    with pytest.raises(sockets.UnsafeDirectory):
        sockets.open_directory()
    assert client.run(ASK) is None
    assert not accepted
    os.chown(runtime, 12345, 12345)  # a runtime directory of another user is not used at all
    monkeypatch.setenv("TMPDIR", str(runtime))
    assert sockets.folder() != str(runtime / "kvcli")


def test_a_link_in_place_of_the_directory_is_refused(runtime: Path) -> None:
    (runtime / "elsewhere").mkdir(mode=0o700)
    (runtime / "kvcli").symlink_to("elsewhere")
    with pytest.raises(sockets.UnsafeDirectory):
        sockets.open_directory()


def test_a_long_path_is_no_hindrance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    found = sockets.open_directory()
    assert found is not None
    with found.listen("key"):
        connection = found.connect("key", 1.0)
        assert connection is not None
        connection.close()
    found.close()


# --- which commands, and for how long ---


@pytest.mark.parametrize(
    "words",
    [
        ["map", "book.txt"],
        ["chat", "--no-server", "book.txt"],
        ["ask", "--help"],
        ["ask", "--no-server", "book.txt", "Who?"],
        ["ask", "/dev/fd/63", "Who?"],
        ["ask", "--file=/proc/self/fd/0", "Who?"],
        ["ask", "-f/dev/stdin", "Who?"],
        [],
    ],
)
def test_commands_of_this_process_alone(words: list[str]) -> None:
    assert not client.fits(words)


def test_after_two_dashes_nothing_is_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "isatty", lambda _number: False)
    monkeypatch.setattr(client.sys, "warnoptions", [])
    assert client.fits(["ask", "--", "book.txt", "--no-server"])
    assert not client.fits(["ask", "--no-server", "--", "book.txt", "Who?"])


@pytest.mark.parametrize(
    ("value", "ci", "seconds"),
    [("", "", 300), ("0", "", 0), ("90s", "", 90), ("5m", "", 300), ("", "true", 0), ("1h", "true", 3600)],
)
def test_how_long_an_engine_stays(monkeypatch: pytest.MonkeyPatch, value: str, ci: str, seconds: float) -> None:
    monkeypatch.setenv("KVCLI_KEEP_ALIVE", value)
    monkeypatch.setenv("CI", ci)
    assert client.keep_alive() == seconds


@pytest.mark.parametrize("value", ["soon", "-1", "1.5", "5 minutes"])
def test_a_time_that_is_none_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("KVCLI_KEEP_ALIVE", value)
    with pytest.raises(client.BadKeepAlive):
        client.keep_alive()


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HF_HOME", "LD_LIBRARY_PATH", "LC_ALL"])
def test_what_a_process_reads_once_makes_another_engine(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    first = identity.key()
    monkeypatch.setenv("KVCLI_MODEL", "other")  # read by each command
    assert identity.key() == first
    monkeypatch.setenv(name, "2")
    assert identity.key() != first


def test_a_change_of_the_program_makes_another_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "kvcli_kernels").mkdir()
    module = tmp_path / "kvcli_kernels" / "__init__.py"
    module.write_text("")
    monkeypatch.setattr(identity, "find_spec", lambda name: PathFinder.find_spec(name, [str(tmp_path)]))
    first = identity.key()
    module.write_text("x = 1")
    os.utime(module, ns=(1, module.stat().st_mtime_ns + 1_000_000))
    assert identity.key() != first


@pytest.mark.parametrize(
    ("problem", "doubtful"),
    [
        (InputError("no such file"), False),
        (DamagedError("torn"), False),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shapes differ"), True),
    ],
)
def test_after_a_fault_or_without_memory_the_model_is_loaded_again(
    monkeypatch: pytest.MonkeyPatch, problem: Exception, doubtful: bool
) -> None:
    """Also if the error is of one item of a batch, whose exit code is 8."""
    monkeypatch.setattr(kept, "doubtful", False)
    to_kvcli_error(problem)
    to_kvcli_error(InputError("the next file is missing"))
    assert kept.doubtful is doubtful
    kept.forget()
    assert not kept.doubtful
