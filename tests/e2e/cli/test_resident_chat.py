"""``kvcli chat`` by an engine: the client reads the lines, and the engine runs them between other commands."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import forked
from tests.e2e.cli import test_resident as resident
from tests.e2e.conftest import PROGRAM, Call, Kvcli
from tests.e2e.terminal import Talk

pytestmark = resident.pytestmark
book, engines, environment, runtime = resident.book, resident.engines, resident.environment, resident.runtime
Engines = resident.Engines

SCRIPT = b"\xef\xbb\xbfWho?\n/help\n\nWhere is \xff?\n/nosuch\n/undo\n/stats\nWhere is Kokovoko?\n/export out.md\n"
CASES: dict[str, tuple[list[str], bytes]] = {
    "a script": (["-n", "6", "--cite", "book.txt"], SCRIPT),
    "continued": (["-n", "6"], b"And who?\n/exit\nNever asked\n"),
    "another document": (["book.txt", "more.txt"], b""),
    "no lines": (["--policy", "keydiff(budget=64)", "--session", "b", "book.txt"], b""),
    "a missing file": (["--session", "c", "missing.txt"], b"Who?\n"),
    "an unknown option": (["--nosuch"], b"Who?\n"),
}


@pytest.fixture(autouse=True)
def more(folder: Path) -> None:
    (folder / "more.txt").write_text("He was the son of a king. " * 30)


@pytest.fixture
def chat(environment: dict[str, str], folder: Path) -> Iterator[Any]:
    """``chat(ARGS, …)`` opens one on a terminal of its own."""
    opened: list[Talk] = []

    def begin(*args: str | Path, **more: str) -> Talk:
        opened.append(Talk([*map(str, args)], {**environment, **more}, folder, (40, 110)))
        return opened[-1]

    yield begin
    for talk in opened:
        talk.child.close(force=True)


def test_a_piped_chat_is_that_of_a_process_of_its_own(
    call: Call, kvcli: Kvcli, engines: Engines, tiny_model: Path, folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Exit code, output, messages, exported and saved conversation."""
    for name, (words, stdin) in CASES.items():
        args = ["chat", "-m", str(tiny_model), *([] if "--session" in words else ["--session", "a"]), *words]
        found = []
        for directory in ("alone", "served"):
            (folder / "out.md").unlink(missing_ok=True)
            own = {"KVCLI_DATA_DIR": str(tmp_path / directory), "KVCLI_CACHE_DIR": str(tmp_path / directory)}
            before = sum(engine["commands"] for engine in engines())
            if directory == "alone":
                for variable, value in own.items():
                    monkeypatch.setenv(variable, value)
                done = call(*args, stdin=stdin)
                code, texts = done.code, [done.out, done.err]
            else:
                ran = kvcli(*args, stdin=stdin, **own)
                code, texts = ran.returncode, [ran.stdout.decode(), ran.stderr.decode()]
                assert sum(engine["commands"] for engine in engines()) == before + 1, name
            saved = [
                [turn["question"] for turn in json.loads(path.read_text())["turns"]]
                for path in sorted((tmp_path / directory).glob("chats/*.json"))
            ]
            exported = (folder / "out.md").read_text() if (folder / "out.md").exists() else None
            texts = [resident.clean(text, str(tmp_path / directory)) for text in texts]
            found.append((code, texts, saved, exported))
        assert found[0] == found[1], name


def test_a_chat_on_a_terminal_leaves_the_engine_to_others(
    chat: Any, kvcli: Kvcli, engines: Engines, slow_model: Path, tmp_path: Path
) -> None:
    """An editor, a question of the engine, Ctrl-C, a second chat, ``ask`` in between, and an end from outside."""
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\n: < /dev/tty\nprintf 'Written in an editor.' > \"$1\"\n")
    editor.chmod(0o700)
    talk = chat(
        "-m",
        slow_model,
        "-n",
        "4",
        "--allow-repetition",
        "--session",
        "a",
        "book.txt",
        EDITOR=str(editor),
        VISUAL=str(editor),
    )
    talk.prompt(1)
    (engine,) = engines()
    assert (engine["state"], engine["leaves_in_s"]) == ("chat", None)
    talk.key("\x18\x05", "Written in an editor.")
    talk.send("\r")
    talk.prompt(2)
    talk.send("/add more.txt\r")
    talk.wait(r"process [\d,]+ more tokens.*\[Y/n\]")
    talk.send("y\r")
    talk.wait(r"read +[\d,]+ tokens")
    talk.prompt(2)
    talk.say("/set max_tokens 20000", 2)
    talk.send("And then?\r")
    talk.wait(r"[a-h]{8}")
    talk.send("\x03")
    talk.wait("the partial answer is kept")
    talk.prompt(3)
    other = chat("-m", slow_model, "-n", "4", "--session", "b")
    other.prompt(1)
    other.say("Hello?", 2)
    taken = kvcli("chat", "-m", slow_model, "--session", "a", stdin=b"")
    assert b"open in another kvcli" in taken.stderr
    asked = kvcli("ask", "-q", "-m", slow_model, "-n", "4", "book.txt", "Who?")
    assert (asked.returncode, len(asked.stdout.strip())) == (0, 4)
    other.send("\x04")
    assert other.end() == 0
    talk.say("/set max_tokens 4", 3)
    talk.say("Still there?", 4)
    (now,) = engines()  # both chats and the others had one engine
    assert (now["pid"], now["state"], now["commands"]) == (engine["pid"], "chat", engine["commands"] + 3)
    talk.child.kill(signal.SIGTERM)
    assert talk.end() in (143, -signal.SIGTERM)
    resident.wait_for(lambda: engines()[0]["state"] == "idle")
    again = kvcli("chat", "-m", slow_model, "--session", "a", stdin=b"/stats\n")
    assert b"turns 3" in b" ".join(again.stdout.split())


def test_an_engine_that_dies_between_two_lines_loses_no_turn(
    tiny_model: Path, folder: Path, environment: dict[str, str], engines: Engines, kvcli: Kvcli
) -> None:
    words = [*PROGRAM, "chat", "-m", str(tiny_model), "-n", "4", "--session", "d", "book.txt"]
    pipe = subprocess.PIPE
    with forked.Popen(words, cwd=folder, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0) as process:
        process.stdin.write(b"Who?\n")
        assert process.stdout.readline().strip()
        resident.wait_for(lambda: engines()[0]["state"] == "chat")
        resident.kill(engines)
        _, err = process.communicate(b"Where?\n", timeout=300)
    assert process.returncode == 1
    assert b"the conversation is saved" in err
    assert b"kvcli chat -c" in err
    again = kvcli("chat", "-m", tiny_model, "-c", stdin=b"/stats\n")
    assert b"turns 1" in b" ".join(again.stdout.split())


def test_the_client_of_a_chat_imports_no_torch(
    kvcli: Kvcli, tiny_model: Path, folder: Path, environment: dict[str, str]
) -> None:
    code = (
        "import atexit, sys; heavy = ('torch', 'transformers', 'numpy', 'typer', 'rich', 'prompt_toolkit');"
        "atexit.register(lambda: print([m for m in heavy if m in sys.modules], file=sys.stderr));"
        "from kvcli.cli.app import main; main()"
    )
    args = ["chat", "-q", "-m", str(tiny_model), "-n", "4", "--session", "e"]
    assert kvcli(*args, stdin=b"").returncode == 0  # there is an engine
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *args],
        cwd=folder, env=environment, capture_output=True, check=True, input=b"Who?\n",
    )  # fmt: skip
    assert done.stderr.decode().strip() == "[]"
    assert len(done.stdout.strip()) == 4
