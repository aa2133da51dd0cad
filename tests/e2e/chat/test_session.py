"""``kvcli chat`` as a person meets it: a real terminal, keys, and a screen that is looked at.

Starting takes longest, so that one chat goes through as many hands as it can.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

pytest.importorskip("pexpect")
pytest.importorskip("pyte")

from tests.e2e.terminal import Talk, squeezed
from tests.handmade import rambler, thinker

SENTENCE = "Queequeg was a native of Kokovoko, an island far away to the West and South. "
PASTE, PASTED = "\x1b[200~", "\x1b[201~"
UP, CTRL_C, CTRL_D, CTRL_R = "\x1b[A", "\x03", "\x04", "\x12"
ALT_ENTER, TAB, EDITOR = "\x1b\r", "\t", "\x18\x05"
Open = Callable[..., Talk]


@pytest.fixture
def chat(environment: dict[str, str], folder: Path, tmp_path: Path) -> Iterator[Open]:
    """``chat(ARGS, …)`` opens one."""
    environment["KVCLI_DATA_DIR"] = str(tmp_path / "data")
    opened: list[Talk] = []

    def begin(*args: str | Path, size: tuple[int, int] = (24, 100), **more: str) -> Talk:
        opened.append(Talk([*map(str, args)], {**environment, **more}, folder, size))
        return opened[-1]

    yield begin
    for talk in opened:
        talk.child.close(force=True)


def turns(tmp_path: Path, name: str) -> list[dict[str, str]]:
    return list(json.loads((tmp_path / "data" / "chats" / f"{name}.json").read_text())["turns"])


def test_an_evening_of_keys_and_one_of_commands(chat: Open, tiny_model: Path, folder: Path, tmp_path: Path) -> None:
    """Paste, new lines, history and its search, completion, an editor, Ctrl-C, Ctrl-D; then every command."""
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nprintf 'Written in an editor.' > \"$1\"\n")
    editor.chmod(0o700)
    talk = chat("-m", tiny_model, "-n", "4", "--session", "keys", EDITOR=str(editor), VISUAL=str(editor))
    talk.prompt(1)
    talk.key(f"{PASTE}Three lines\nare one\n\nmessage.{PASTED}", "Three lines\nare one\nmessage.")
    talk.send("\r")
    talk.prompt(2)
    talk.key("one" + ALT_ENTER + "two\\\rthree", "one\ntwo\nthree")
    talk.send("\r")
    talk.prompt(3)
    talk.key("/unfinished", "/unfinished")
    talk.key(CTRL_C, "")
    talk.key("/me" + TAB, "/memory")
    talk.key(CTRL_C, "")
    talk.key(EDITOR, "Written in an editor.")
    talk.send("\r")
    talk.prompt(4)
    talk.key(UP, "Written in an editor.")
    talk.key(CTRL_C, "")
    talk.send(CTRL_R + "two")
    talk.wait(r"I-search backward: two")
    talk.key("\r", "one\ntwo\nthree")
    talk.send("\r")
    talk.prompt(5)
    talk.send(CTRL_D)
    assert talk.end() == 0
    assert "saved    kvcli chat --session keys" in talk.text
    said = ["Three lines\nare one\n\nmessage.", "one\ntwo\nthree", "Written in an editor.", "one\ntwo\nthree"]
    assert [t["question"] for t in turns(tmp_path, "keys")] == said
    assert (tmp_path / "data" / "history").stat().st_mode & 0o777 == 0o600
    every_command(chat, tiny_model, folder, tmp_path)


def every_command(chat: Open, tiny_model: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "book.html").write_text(f"<h1>One</h1><p>{SENTENCE * 20}</p><h1>Two</h1><p>{SENTENCE * 20}</p>")
    (folder / "more.txt").write_text("He was the son of a king. " * 30)
    talk = chat("-m", tiny_model, "-n", "4", "--session", "a", "book.html", size=(60, 110))
    talk.prompt(1)
    talk.key(UP, "one\ntwo\nthree")  # the history of the evening before
    talk.key(CTRL_C, "")
    steps = [
        ("Who?", 2, r"likely source|line \d"),
        ("/help", 2, r"/export FILE\.md(.*\n)*.*Ctrl-X Ctrl-E"),
        ("/files", 2, r"book\.html · [\d,]+ characters"),
        ("/page 3", 2, r"no page 3"),
        ("/find KOKOVOKO", 2, r"line \d+: ….*Kokovoko"),
        ("/sources", 2, r"likely source|no quote"),
        ("/quotes", 2, r"no sentence"),
        ("/open 1", 2, r"no quotes"),
        ("/retry", 2, r"again +Who\?"),
        ("/stats", 2, r"session +a · "),
        ("/memory", 2, r"in use +[\d.]+ [GM]iB of"),
        ("/kv", 2, r"tokens kept per KV head"),
        ("/set temp 0.5", 2, ""),
        ("/set think hide", 2, ""),
        ("/set", 2, r"temperature 0\.5.*\nthink +hide\ncite +on"),
        ("/undo", 1, r"undone +Who\?"),
        ("/nonsense", 1, r"/nonsense"),
        ("/fils", 1, r"/files\?"),
        ("/save b", 1, r"--session b"),
        ("/export out.md", 1, r"exported +out\.md"),
        ("/export out.json", 1, r"exported +out\.json"),
        ("/system", 1, r"no system prompt"),
        ("Again?", 2, r""),
        ("/clear", 1, r"cleared +"),
        ("/load a", 1, r"session +a · "),
    ]
    for line, turn, found in steps:
        between = talk.say(line, turn)
        assert re.search(found, between), f"{line}: {found} is not in\n{between}"
    for line, answer, found in (
        ("/add more.txt", "n", r"^"),
        ("/add more.txt", "", r"read +[\d,]+ tokens"),
        ("/system Be brief.", "y", r"prefill +[\d,]+ tokens"),
    ):
        talk.key(line, line)
        talk.send("\r")
        talk.wait(lambda: squeezed(talk.text).endswith("[Y/n]"))
        assert re.search(r"process(all)?[\d,]+(more)?tokens.*atthepeak\)?\?\[Y/n\]$", squeezed(talk.text))
        talk.send(answer + "\r")
        talk.prompt(1)
        assert re.search(found, talk.text.rpartition("[Y/n]")[2])
    assert "more.txt · " in talk.say("/files", 1)
    bottom_line(talk, tmp_path)
    talk.send("/exit\r")
    assert talk.end() == 0
    assert "Traceback" not in talk.text
    saved = json.loads((tmp_path / "data" / "chats" / "a.json").read_text())
    assert (saved["system"], saved["hide_thoughts"], len(saved["added"])) == ("Be brief.", True, 1)
    assert [t["question"] for t in turns(tmp_path, "b")] == []


def bottom_line(talk: Talk, tmp_path: Path) -> None:
    """Each of its parts, beside what the banner, the operating system and the saved turn say."""
    talk.say("What then?", 2)
    talk.wait(lambda: talk.screen.display[-1].rstrip().endswith("tok/s"))
    line = talk.screen.display[-1].strip()
    model, recipe, kept, turn, memory, speed = line.split(" · ")
    talk.resize(60, len(line) - 2)
    talk.wait(lambda: talk.screen.display[-1].strip() == line.replace(" · ", "·"))
    banner = re.findall(r"model +\S*?(\w+) \S+ · cpu · (\w+) ", talk.text)[-1]
    assert (model, recipe, turn) == (*banner, "1 turn")
    read = re.findall(r"read +([\d,]+) tokens · kept ([\d,]+) KV pairs", talk.text)[-1]
    assert kept == f"kept {read[1]} of {read[0]}"
    used, total = map(float, re.fullmatch(r"([\d.]+)/([\d.]+) GiB", memory).groups())  # type: ignore[union-attr]
    assert used == pytest.approx(psutil.Process(talk.child.pid).memory_info().rss / 2**30, abs=0.11)
    assert total == pytest.approx(psutil.virtual_memory().total / 2**30, abs=0.06)
    last = json.loads((tmp_path / "data" / "chats" / "a.json").read_text())["turns"][-1]
    assert float(speed.removesuffix(" tok/s")) == pytest.approx(last["tps"], abs=0.06)


def test_thoughts_are_shown_and_hidden(chat: Open, tmp_path: Path) -> None:
    """What a model thinks is saved and never lost: what is hidden is only not shown, in a resumed chat too."""
    model = thinker(tmp_path / "thinker")
    talk = chat("-m", model, "--session", "a")
    talk.prompt(1)

    def said(talk: Talk, line: str, turn: int) -> list[str]:
        return talk.say(line, turn).partition("\n>")[0].split()

    assert said(talk, "Who?", 2) == ["hm", "Pip"]
    talk.say("/set think hide", 2)
    assert said(talk, "Who then?", 3) == ["Pip"]
    talk.send(CTRL_D)
    assert talk.end() == 0
    assert {t["answer"] for t in turns(tmp_path, "a")} == {"<think>hm</think>Pip"}
    talk = chat("-c")
    talk.prompt(3)
    assert said(talk, "/retry", 3)[2:] == ["then?", "Pip"]
    talk.say("/set think show", 3)
    assert said(talk, "And now?", 4) == ["hm", "Pip"]


def test_interrupts_and_a_kill(chat: Open, tiny_model: Path, folder: Path, tmp_path: Path) -> None:
    """Stopped while it reads, the same command reads on; stopped in an answer, it goes on; killed, it is resumed."""
    (folder / "long.txt").write_text(SENTENCE * 400)
    options = (
        "-m",
        tiny_model,
        "-n",
        "3000",
        "--allow-repetition",
        "--no-cite",
        "--chunk-size",
        "64",
        "--session",
        "a",
        "long.txt",
    )
    talk = chat(*options)
    talk.wait(r"prefill .* [1-9]\d? %")
    talk.send(CTRL_C)
    assert talk.end() == 130
    assert re.search(r"at [\d,]+ of [\d,]+ tokens; [1-9][\d,]* saved", talk.text)
    assert "Traceback" not in talk.text

    talk = chat(*options)
    talk.wait(r"resumed +[1-9][\d,]* of")
    talk.prompt(1)
    talk.key("Who?", "Who?")
    talk.send("\r")
    talk.wait(lambda: any(re.fullmatch(r"[a-h…]{8,}", row) for row in talk.rows))
    talk.send(CTRL_C)
    talk.prompt(2)
    assert re.search(r"stopped +.*/retry", talk.text)
    (stopped,) = turns(tmp_path, "a")
    assert stopped["finish"] == "interrupted"
    assert 8 <= len(stopped["answer"]) < 3000
    assert stopped["answer"] in squeezed(talk.text)
    talk.say("/set max_tokens 4", 2)
    talk.say("/retry", 2)
    (again,) = turns(tmp_path, "a")
    assert again["answer"] == stopped["answer"][:4]
    talk.say("/set max_tokens 3000", 2)
    talk.key("Where?", "Where?")
    talk.send("\r")
    talk.wait(lambda: any(re.fullmatch(r"[a-h…]{8,}", row) for row in talk.rows[talk.rows.index("> Where?") :]))
    os.kill(talk.child.pid, signal.SIGKILL)
    assert talk.end() == -signal.SIGKILL
    assert turns(tmp_path, "a") == [again]

    talk = chat("-c", "-n", "4", "--no-cite")
    talk.prompt(2)
    assert re.search(r"cached +[\d,]+ tokens", talk.text)
    assert "prefill" not in talk.text
    assert re.search(r"session +.*/retry", talk.text)
    talk.say("/retry", 3)
    assert [t["question"] for t in turns(tmp_path, "a")] == ["Who?", "Where?"]
    assert turns(tmp_path, "a")[0] == again


def test_a_long_answer_stands_once(chat: Open, tmp_path: Path) -> None:
    """More than 300 rows of it in a window of 24; and again where the window changes on the way."""
    model = rambler(tmp_path / "rambler")
    talk = chat("-m", model, "-n", "1600", "--temp", "1", "--seed", "5", "--session", "a")
    talk.prompt(1)
    for line, sizes in (("Who?", ()), ("/retry", ((30, 120), (20, 60), (24, 100)))):
        talk.key(line, line)
        before = talk.scrolled
        talk.send("\r")
        for n, size in enumerate(sizes, 1):
            talk.wait(lambda before=before, n=n: talk.scrolled > before + 60 * n)
            assert "the answer was truncated" not in "\n".join(talk.rows[before + 24 :])
            talk.resize(*size)
        talk.prompt(2)
        (turn,) = turns(tmp_path, "a")
        shown = talk.text.rpartition(f"> {line}\n")[2].partition("kvcli: warning")[0].removeprefix("again    Who?\n")
        assert squeezed(shown) == squeezed(turn["answer"])
        assert shown.count("\n") > 300
