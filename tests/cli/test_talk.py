"""``kvcli chat`` as a person meets it: a real terminal, keys, and a screen that is looked at."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import pytest

from tests.cli.conftest import PROGRAM

pexpect = pytest.importorskip("pexpect")
pyte = pytest.importorskip("pyte")

SENTENCE = "Queequeg was a native of Kokovoko, an island far away to the West and South. "
PASTE, PASTED = "\x1b[200~", "\x1b[201~"
UP, CTRL_C, CTRL_D, CTRL_R = "\x1b[A", "\x03", "\x04", "\x12"
ALT_ENTER, TAB, EDITOR = "\x1b\r", "\t", "\x18\x05"


class Talk:
    """A chat on a terminal of its own. What is waited for is looked for on the screen, with all that has left it."""

    def __init__(self, args: list[str], environment: dict[str, str], folder: Path, size: tuple[int, int]) -> None:
        rows, columns = size
        self.screen = pyte.HistoryScreen(columns, rows, history=100_000, ratio=0.001)
        self.stream = pyte.ByteStream(self.screen)
        self.child = pexpect.spawn(
            PROGRAM[0], [*PROGRAM[1:], "chat", *args], env=environment, cwd=str(folder), dimensions=size, timeout=60
        )
        self.child.delaybeforesend = None
        self.screen.write_process_input = self.child.send  # where the cursor is, when that is asked

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, _type: type | None, _value: BaseException | None, _trace: TracebackType | None) -> None:
        self.child.close(force=True)

    @property
    def rows(self) -> list[str]:
        """All rows from the first one on, as they stand now."""
        above = ["".join(line[x].data for x in range(self.screen.columns)) for line in self.screen.history.top]
        return [row.rstrip() for row in [*above, *self.screen.display]]

    @property
    def text(self) -> str:
        return "\n".join(self.rows)

    def wait(self, found: str | Callable[[], object], seconds: float = 60) -> None:
        """Until a pattern is on the screen, or something is true."""
        deadline = seconds
        while not (re.search(found, self.text) if isinstance(found, str) else found()):
            try:
                self.stream.feed(self.child.read_nonblocking(65536, timeout=0.5))
            except pexpect.TIMEOUT:
                deadline -= 0.5
                assert deadline > 0, f"{found} is not on the screen:\n{self.text}"
            except pexpect.EOF:
                assert re.search(found, self.text) if isinstance(found, str) else found(), self.text
                return

    def prompt(self, turn: int) -> None:
        """Until the bottom line offers a turn, with an empty prompt above it."""
        last = self.screen.lines - 1
        self.wait(
            lambda: (
                self.screen.buffer[last][0].data != " "
                and re.search(rf"turn {turn}\b", self.screen.display[last])
                and self.typed == ""
            )
        )

    @property
    def typed(self) -> str | None:
        """What stands behind the prompt."""
        rows = [row for row in self.screen.display[:-1] if row.strip()]
        at = next((i for i in reversed(range(len(rows))) if rows[i].startswith(">")), None)
        return None if at is None else "\n".join(row[2:].rstrip() for row in rows[at:])

    def send(self, keys: str) -> None:
        self.child.send(keys)

    def say(self, line: str, turn: int) -> None:
        """Type a line, send it, and wait for the next prompt."""
        self.send(line)
        self.wait(lambda: self.typed == line)
        self.send("\r")
        self.prompt(turn)

    def end(self) -> int:
        """Wait for its end; returns the exit code."""
        self.wait(lambda: not self.child.isalive())
        self.child.close()
        return int(self.child.exitstatus if self.child.exitstatus is not None else -self.child.signalstatus)


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


def turns(tmp_path: Path) -> list[dict[str, str]]:
    (path,) = (tmp_path / "data" / "chats").glob("*.json")
    return list(json.loads(path.read_text())["turns"])


def test_history_is_there_the_next_evening(chat: Open, tiny_model: Path) -> None:
    for turn, session in ((1, "a"), (1, "b")):
        talk = chat("-m", tiny_model, "-n", "4", "--session", session)
        talk.prompt(turn)
        if session == "b":
            talk.send(UP)
            talk.wait(lambda talk=talk: talk.typed == "What was it?")
            return
        talk.say("What was it?", 2)
        talk.send(CTRL_D)
        assert talk.end() == 0


def test_interrupted_in_prefill(chat: Open, slow_model: Path, folder: Path) -> None:
    """The checkpoint is kept, and the same command reads on."""
    (folder / "long.txt").write_text(SENTENCE * 700)
    talk = chat("-m", slow_model, "-n", "4", "--chunk-size", "256", "long.txt")
    talk.wait(r"prefill .* [1-9]\d? %")
    talk.send(CTRL_C)
    assert talk.end() == 130
    assert re.search(r"interrupted while reading, at [\d,]+ of [\d,]+ tokens; [1-9][\d,]* are saved", talk.text)
    assert "Traceback" not in talk.text
    again = chat("-m", slow_model, "-n", "4", "--chunk-size", "256", "long.txt")
    again.wait(r"reading resumed: +[\d,]+ of")
    again.send(CTRL_C)
    assert again.end() == 130


def test_interrupted_in_an_answer(chat: Open, slow_model: Path, tmp_path: Path) -> None:
    """What there is of it is kept, the chat goes on, and /retry asks again."""
    talk = chat("-m", slow_model, "-n", "2000")
    talk.prompt(1)
    talk.send("Who?\r")
    talk.wait(lambda: any(re.fullmatch(r"[a-h…]{4,}", row) for row in talk.rows))
    talk.send(CTRL_C)
    talk.prompt(2)
    assert "stopped" in talk.text
    (turn,) = turns(tmp_path)
    assert 4 <= len(turn["answer"]) < 2000
    assert turn["finish"] == "interrupted"
    assert turn["answer"][:40] in talk.text
    talk.say("/set max_tokens 4", 2)
    talk.say("/retry", 2)
    (again,) = turns(tmp_path)
    assert again["answer"] == turn["answer"][:4]
    talk.send(CTRL_D)
    assert talk.end() == 0
