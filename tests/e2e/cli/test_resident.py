"""``kvcli ask`` by an engine: what a user sees is what a process of its own would have shown."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvcli.cli.resident import client
from tests import dtype
from tests.e2e import forked
from tests.e2e.cli.test_program import on_a_terminal
from tests.e2e.conftest import PROGRAM, Call, Kvcli, save_tiny
from tests.unit.models.test_encoder import made as save_encoder

pexpect = pytest.importorskip("pexpect")
pytestmark = pytest.mark.skipif(
    bool(dtype.NAME) or not hasattr(client.socket, "send_fds"), reason="engines run the program as it is installed"
)

TEXT = "Queequeg was a native of Kokovoko, an island far away to the West and South. "
Engines = Callable[[], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory with the sockets. At the end all engines are told to stop, and none is left."""
    path = tmp_path_factory.mktemp("runtime")
    yield path
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(path))
        found = client.engines("stop")
    wait_for(lambda: not any(alive(engine["pid"]) for engine in found))


@pytest.fixture
def environment(environment: dict[str, str], runtime: Path) -> dict[str, str]:
    """With engines. What belongs to their identity is the same in all tests of this file, so that they share one."""
    settings = {"KVCLI_KEEP_ALIVE": "300", "XDG_RUNTIME_DIR": str(runtime)}
    return {name: value for name, value in {**environment, **settings}.items() if name != "CI"}


@pytest.fixture
def engines(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> Engines:
    """What ``kvcli ps`` would show."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    return lambda: client.engines("status")


@pytest.fixture(autouse=True)
def book(folder: Path) -> Path:
    (folder / "book.txt").write_text(TEXT * 20)
    (folder / "questions.txt").write_text("Who?\nWhere is Kokovoko?\n")
    return folder / "book.txt"


def alive(pid: int) -> bool:
    """Whether a process runs; not a zombie, which an engine becomes whose first client still runs."""
    with contextlib.suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def wait_for(condition: Callable[[], Any], seconds: float = 300.0) -> Any:
    """The first true value of ``condition``."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def kill(engines: Engines) -> None:
    """``kill -9`` of every engine."""
    for engine in engines():
        os.kill(engine["pid"], signal.SIGKILL)
        wait_for(lambda pid=engine["pid"]: not alive(pid))


# --- the same as without an engine ---

CASES: dict[str, tuple[list[str], bytes | None]] = {
    "an answer": (["-n", "6", "book.txt", "Who?"], None),
    "the same again": (["-n", "6", "book.txt", "Who?"], None),
    "statistics": (["-n", "6", "--stats", "book.txt", "Who?"], None),
    "citations": (["-n", "6", "--cite", "on", "book.txt", "Where is Kokovoko?"], None),
    "no verified quote": (["-n", "6", "--cite", "strict", "--exit-status", "book.txt", "Where is Kokovoko?"], None),
    "JSON": (["-n", "6", "--json", "book.txt", "Where is Kokovoko?"], None),
    "JSON Lines": (["-n", "6", "--json", "-Q", "questions.txt", "book.txt"], None),
    "each file": (["-n", "6", "--each", "book.txt", "missing.txt", "-e", "Who?"], None),
    "a schema": (["-n", "40", "--schema", "n.json", "--json", "book.txt", "How many?"], None),
    "a schema that is torn": (["--schema", "questions.txt", "book.txt", "How many?"], None),
    "choices": (["--choices", "yes,no,unclear", "book.txt", "Is he from Kokovoko?"], None),
    "an encoder": (["-n", "6", "--rerank", "encoder", "book.txt", "Where is Kokovoko?"], None),
    "an encoder, quotes only": (["--quotes-only", "--rerank", "encoder", "book.txt", "Where is Kokovoko?"], None),
    "an unknown encoder": (["--rerank", "nosuch", "book.txt", "Who?"], None),
    "standard input": (["-n", "6", "Who?"], TEXT.encode() * 3),
    "standard input by name": (["-n", "6", "-q", "-", "Who?"], b"\xef\xbb\xbf" + TEXT.encode()),
    "questions on standard input": (["-n", "6", "-q", "book.txt", "-Q", "-"], b"Who?\nWhere?\n"),
    "nothing on standard input": (["-n", "6", "Who?"], b""),
    "another recipe": (["-n", "6", "--policy", "keydiff(budget=128)", "--kv-bits", "4", "book.txt", "Who?"], None),
    "not saved": (["-n", "6", "--no-cache", "-S", "book.txt", "Who?"], None),
    "a seed": (["-n", "12", "--temp", "1", "--seed", "7", "book.txt", "Who?"], None),
    "quotes only": (["--quotes-only", "book.txt", "Where is Kokovoko?"], None),
    "a missing file": (["missing.txt", "Who?"], None),
    "a missing file as JSON": (["--json", "missing.txt", "Who?"], None),
    "no question": (["book.txt"], None),
    "no arguments": ([], None),
    "an unknown option": (["--nosuch", "book.txt", "Who?"], None),
    "a wrong value": (["--chunk-size", "none", "book.txt", "Who?"], None),
    "an unknown model": (["-m", "nosuch", "book.txt", "Who?"], None),
    "too long": (["--policy", "full", "long.txt", "Who?"], None),
    "an answer into a file": (["-n", "6", "-q", "-o", "answer.txt", "book.txt", "Who?"], None),
    "bytes that are no characters": (["-n", "6", "book.txt", os.fsdecode(b"Who\xff?")], None),
}

_TIMES = re.compile(r"\d[\d.,]*(?: ?[KMG]iB\b|(?= ?(s|tok/s)\b))|(?<=measured )[+-][\d.]+ %")
_UNLIKE = ("timing", "memory")


def clean(text: str, cache: str) -> str:
    """Without times, memory, the place of the cache, and the start, which an engine does not have."""
    return _TIMES.sub("N", text.replace(cache, "CACHE")).replace("start N s · ", "")


def comparable(out: str) -> Any:
    """JSON without times and memory; other text as it is."""
    if not out.startswith("{"):
        return out
    found = [json.loads(line) for line in out.splitlines()]
    return [{name: value for name, value in one.items() if name not in _UNLIKE} for one in found]


def test_a_table_of_commands(
    call: Call, kvcli: Kvcli, engines: Engines, tiny_model: Path, folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Exit code, output and messages of each command, in order, so that saved prefills are those of the one before."""
    (folder / "long.txt").write_text(TEXT * 200)
    (folder / "n.json").write_text('{"type": "object", "properties": {"n": {"enum": [1, 22]}}, "required": ["n"]}')
    save_encoder(folder / "encoder")
    for name, (words, stdin) in CASES.items():
        args = ["ask", *([] if "-m" in words else ["-m", str(tiny_model)]), *words]
        monkeypatch.setenv("KVCLI_CACHE_DIR", str(tmp_path / "alone"))
        devnull = b"" if stdin is None else stdin
        alone = call(*args, stdin=stdin) if stdin is not None else call(*args)
        written = (folder / "answer.txt").read_bytes() if (folder / "answer.txt").exists() else None
        (folder / "answer.txt").unlink(missing_ok=True)
        before = sum(engine["commands"] for engine in engines())
        done = kvcli(*args, stdin=stdin, KVCLI_CACHE_DIR=str(tmp_path / "served"))
        assert sum(engine["commands"] for engine in engines()) == before + 1, (name, devnull)
        out, err = done.stdout.decode(), done.stderr.decode()
        assert done.returncode == alone.code, (name, err)
        assert comparable(out) == comparable(alone.out), name
        assert clean(err, str(tmp_path / "served")) == clean(alone.err, str(tmp_path / "alone")), name
        if written is not None:
            assert (folder / "answer.txt").read_bytes() == written
            (folder / "answer.txt").unlink()


def test_prefill_prints_the_path_of_the_client(kvcli: Kvcli, engines: Engines, tiny_model: Path, folder: Path) -> None:
    args = ("prefill", "-q", "-m", tiny_model, "--policy", "keydiff(budget=64)", "book.txt", "-o", "../book.kv")
    done = kvcli(*args)
    assert (done.returncode, done.stdout) == (0, b"../book.kv\n")
    assert (folder.parent / "book.kv").is_file()
    asked = kvcli("ask", "-m", tiny_model, "-n", "4", "--json", "../book.kv", "Who?")
    assert json.loads(asked.stdout)["kv"]["cache"] == "hit"
    assert len(engines()) == 1


def test_the_umask_is_that_of_the_client(kvcli: Kvcli, tiny_model: Path, folder: Path) -> None:
    for mask in (0o077, 0o022):
        before = os.umask(mask)
        try:
            assert kvcli("ask", "-q", "-m", tiny_model, "-n", "4", "-o", f"{mask}.txt", "Who?").returncode == 0
        finally:
            os.umask(before)
        assert (folder / f"{mask}.txt").stat().st_mode & 0o777 == 0o666 & ~mask


def test_the_locale_is_that_of_the_client(kvcli: Kvcli, tiny_model: Path, folder: Path) -> None:
    (folder / "größe.txt").write_text("Größe 🐋\n" * 9)
    for encoding, plain in (("ascii", True), ("utf-8", False)):
        done = kvcli("ask", "--json", "-m", tiny_model, "-n", "3", "größe.txt", "Wie?", PYTHONIOENCODING=encoding)
        assert done.returncode == 0, done.stderr
        assert done.stdout.isascii() is plain


def test_a_model_that_changed_is_loaded_again(kvcli: Kvcli, folder: Path) -> None:
    for letters in ("abcd", "wxyz"):
        save_tiny(folder / "model", letters=letters)
        done = kvcli("ask", "-q", "-m", "model", "-n", "6", "book.txt", "Who?")
        assert {*done.stdout.decode().strip()} <= {*letters}, done


def test_a_batch_that_fails_in_part_keeps_the_model(kvcli: Kvcli, engines: Engines, tiny_model: Path) -> None:
    for words, code in ((["--each", "book.txt", "none.txt"], 8), (["--rerank", "nosuch", "book.txt"], 4)):
        assert kvcli("ask", "-q", "-m", tiny_model, "-n", "2", "book.txt", "Who?").returncode == 0
        assert kvcli("ask", "-q", "-m", tiny_model, "-n", "2", *words, "-e", "Who?").returncode == code
        assert [engine["model"] for engine in engines()] == [str(tiny_model)]


# --- the client ---


def test_the_client_imports_neither_torch_nor_typer(
    kvcli: Kvcli, tiny_model: Path, folder: Path, environment: dict[str, str]
) -> None:
    code = (
        "import atexit, sys; heavy = ('torch', 'transformers', 'numpy', 'typer', 'rich', 'subprocess');"
        "atexit.register(lambda: print([m for m in heavy if m in sys.modules], file=sys.stderr));"
        "from kvcli.cli.app import main; main()"
    )
    args = ["ask", "-q", "-m", str(tiny_model), "-n", "4", "book.txt", "Who?"]
    assert kvcli(*args).returncode == 0  # there is an engine
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *args],
        cwd=folder, env=environment, capture_output=True, check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.stderr.decode().strip() == "[]"
    assert len(done.stdout.strip()) == 4


def test_what_belongs_to_this_process_is_not_given_to_an_engine(kvcli: Kvcli, engines: Engines, folder: Path) -> None:
    before = sum(engine["commands"] for engine in engines())
    done = kvcli("ask", "--quotes-only", "/dev/stdin", "Where is Kokovoko?", stdin=TEXT.encode())
    assert done.stdout.count(b"Kokovoko") == 1
    assert kvcli("ask", "-q", "--no-server", "-m", "nosuch", "Who?").returncode == 4
    assert kvcli("ask", "-q", "-m", "nosuch", "Who?", KVCLI_KEEP_ALIVE="0").returncode == 4
    assert kvcli("ask", "-q", "-m", "nosuch", "Who?", KVCLI_KEEP_ALIVE="", CI="true").returncode == 4
    (folder.parent / "config.toml").write_text("[ask]\nno-server = true\n")
    for env in ({"KVCLI_NO_SERVER": "1"}, {"KVCLI_CONFIG": str(folder.parent / "config.toml")}):
        assert kvcli("ask", "-q", "-m", "nosuch", "Who?", **env).returncode == 4
    assert sum(engine["commands"] for engine in engines()) == before
    wrong = kvcli("ask", "-q", "book.txt", "Who?", KVCLI_KEEP_ALIVE="soon")
    assert (wrong.returncode, wrong.stdout) == (2, b"")


def test_ps(kvcli: Kvcli, call: Call, tiny_model: Path, validate: Any) -> None:
    assert kvcli("ask", "-q", "-m", tiny_model, "-n", "2", "Who?").returncode == 0
    shown = call("ps", "--json").json
    validate(shown)
    (engine,) = shown["engines"]
    assert (engine["state"], engine["device"], engine["model"]) == ("idle", "cpu", str(tiny_model))
    assert str(engine["pid"]) in call("ps").out


# --- signals and pipes ---


def start(model: Path, folder: Path, environment: dict[str, str], *words: str) -> subprocess.Popen[bytes]:
    command = [*PROGRAM, "ask", "-m", str(model), *words]
    pipe = subprocess.PIPE
    return forked.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, bufsize=0
    )


def test_the_reader_goes_away(engines: Engines, tiny_model: Path, folder: Path, environment: dict[str, str]) -> None:
    with start(
        tiny_model, folder, environment, "-q", "-n", "3000", "--allow-repetition", "book.txt", "Who?"
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.wait(300) == 141
        assert process.stderr.read() == b""
    (engine,) = engines()
    assert engine["state"] == "idle"


def test_ctrl_c_saves_a_prefill_and_the_same_command_goes_on(
    engines: Engines, slow_model: Path, folder: Path, environment: dict[str, str]
) -> None:
    (folder / "long.txt").write_text(TEXT * 600)
    words = ("-n", "4", "--policy", "keydiff(budget=64)", "--json", "long.txt", "Who?")
    for number, code, seconds in ((signal.SIGINT, 130, 1.0), (signal.SIGTERM, 143, 0.3)):
        with start(slow_model, folder, environment, *words) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith((b"resumed ", b"model ")):
                    break
            time.sleep(seconds)
            process.send_signal(number)
            out, err = process.communicate(timeout=300)
        assert process.returncode == code, err
        assert json.loads(out)["error"]["exit"] == code
        assert b"saved" in err
    with start(slow_model, folder, environment, *words) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert json.loads(out)["kv"]["cache"] in ("resumed", "hit")
    assert b"resumed " in err or b"cached " in err
    assert len(engines()) == 1


def test_ctrl_c_in_an_answer_keeps_what_is_written(
    slow_model: Path, folder: Path, environment: dict[str, str], engines: Engines
) -> None:
    with start(slow_model, folder, environment, "-n", "20000", "--allow-repetition", "book.txt", "Who?") as process:
        assert process.stdout is not None
        first = process.stdout.read(5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert (first + out).endswith(b"\n")
    assert (first + out).count(b"\n") == 1
    assert re.search(rb"stopped +after [\d,]+ token", err)
    assert engines()[0]["state"] == "idle"


def test_a_client_that_is_killed_leaves_no_work(
    slow_model: Path, folder: Path, environment: dict[str, str], engines: Engines
) -> None:
    with start(slow_model, folder, environment, "-n", "20000", "--allow-repetition", "book.txt", "Who?") as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.kill()
    wait_for(lambda: engines()[0]["state"] == "idle")


def test_two_clients_at_once(kvcli: Kvcli, slow_model: Path, folder: Path, environment: dict[str, str]) -> None:
    """The engine is busy with one for longer than the other waits: that one runs the command itself."""
    long = start(slow_model, folder, environment, "-q", "-n", "20000", "--allow-repetition", "book.txt", "Who?")
    with long:
        assert long.stdout is not None
        long.stdout.read(1)
        with start(slow_model, folder, environment, "-q", "-n", "6", "book.txt", "Who?") as other:
            out, _ = other.communicate(timeout=300)
        assert long.poll() is None
        long.send_signal(signal.SIGINT)
        long.communicate(timeout=300)
    assert other.returncode == 0
    alone = kvcli("ask", "-q", "-m", slow_model, "-n", "6", "book.txt", "Who?")
    assert out == alone.stdout


# --- engines that die; from here on they are started anew ---


def test_an_engine_that_dies_in_a_prefill_costs_nothing_but_time(
    kvcli: Kvcli, slow_model: Path, folder: Path, environment: dict[str, str], engines: Engines
) -> None:
    (folder / "long.txt").write_text(TEXT * 60)
    words = ("-n", "6", "--policy", "keydiff(budget=64)", "long.txt", "Who?")
    with start(slow_model, folder, environment, *words) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(b"model "):
                break
        kill(engines)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out == kvcli("ask", "-q", "-m", slow_model, *words).stdout


def test_on_a_terminal_a_new_engine_is_announced_and_one_that_dies_in_an_answer_is_an_error(
    slow_model: Path, folder: Path, environment: dict[str, str], engines: Engines
) -> None:
    kill(engines)
    words = ["ask", "-m", str(slow_model), "-n", "20000", "--allow-repetition", str(folder / "book.txt"), "Who?"]
    child = on_a_terminal(words, {**environment, "COLUMNS": "120"})
    child.expect("starting")
    child.expect("[a-h]{5}")
    kill(engines)
    child.expect(pexpect.EOF)
    child.close()
    text = child.logfile_read.getvalue().decode()
    assert child.exitstatus == 1
    assert "error:" in text
    assert "--no-server" in text


def test_a_stale_socket_is_replaced_and_nothing_of_the_working_directory_runs(
    tiny_model: Path, folder: Path, tmp_path: Path, engines: Engines, runtime: Path, environment: dict[str, str]
) -> None:
    """An engine was killed: its socket is still there."""
    if not list((runtime / "kvcli").glob("*.sock")):  # this test is the first on its worker
        with start(tiny_model, folder, environment, "-q", "-n", "2", "book.txt", "Who?") as process:
            process.communicate(timeout=300)
    kill(engines)
    assert list((runtime / "kvcli").glob("*.sock"))
    mark = tmp_path / "RAN"
    for name in ("json", "torch", "numpy", "transformers", "sitecustomize", "kvcli", "typer"):
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write({name!r})\n")
    words = [sys.executable, "-P", "-m", "kvcli", "ask", "-q", "-m", str(tiny_model), "-n", "4", "book.txt", "Who?"]
    with subprocess.Popen(words, cwd=folder, env={**environment, "KVCLI_KEEP_ALIVE": "2"}) as process:
        assert process.wait(300) == 0
    assert not mark.exists(), mark.read_text()
    (engine,) = engines()
    assert len(list((runtime / "kvcli").glob("*.sock"))) == 1
    wait_for(lambda: not alive(engine["pid"]))  # idle for two seconds
    assert not list((runtime / "kvcli").glob("*.sock"))
    assert not list((runtime / "kvcli").glob("*.log"))
