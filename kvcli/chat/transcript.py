"""Saved conversations: text and token ids as JSON, 0600, one file each. Imports no torch.

A transcript names the document's files and options; the document's prefill is saved separately.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kvcli.errors import DamagedError, InputError, UsageError
from kvcli.utils import files as file_utils
from kvcli.utils.from_json import from_json

FORMAT = "kvcli-chat/1"
_NAME = re.compile(r"[\w][\w.-]{0,63}")


@dataclass(frozen=True)
class Turn:
    """One question and its answer.

    Attributes:
        question: as typed.
        answer: the text of the answer.
        ids: the generated tokens, without the end mark.
        finish: ``stop``, ``length`` or ``interrupted``.
        tps: tokens per second.
    """

    question: str
    answer: str
    ids: tuple[int, ...] = ()
    finish: str = "stop"
    tps: float = 0.0


@dataclass
class Transcript:
    """A saved conversation.

    Attributes:
        model: name, directory or repository, as typed; ``None`` for the default.
        fingerprint: of the model that generated the token ids.
        files: the documents' names as typed; prefill reads the names between several texts too.
        added: documents added later, in order.
        folder: the directory that relative names start from.
        hide_thoughts: whether reasoning is hidden.
        options: other options of the prefill, by their command-line names.
        sampling: sampling options; ``None`` for the model's defaults.
        system: the system message.
        turns: finished turns.
        absorbed: numbers of turns after which turns were evicted, ascending.
        unanswered: a question without a finished answer.
    """

    model: str | None = None
    fingerprint: str = ""
    files: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] | None = None
    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    absorbed: list[int] = field(default_factory=list)
    unanswered: str | None = None
    folder: str = ""
    hide_thoughts: bool = False
    made: str = ""
    format: str = FORMAT


def absolute(record: Transcript) -> list[str]:
    """Return absolute paths of :attr:`Transcript.files`."""
    return [str(Path(record.folder, name)) for name in record.files]


def folder() -> Path:
    """Return the directory of conversations, which are user data and not cache."""
    return file_utils.private_dir(file_utils.data_dir() / "chats")


def named(name: str) -> Path:
    """Return the file of a session. Raises ``UsageError`` for a name that could be a path."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{name}' is not a session name: use letters, digits, - _ and . only", "--session notes")
    return folder() / f"{name}.json"


def fresh() -> Path:
    """Return a new file name made of the current time."""
    name = datetime.now().strftime("%Y-%m-%d-%H%M%S")
    path, n = folder() / f"{name}.json", 1
    while path.exists():
        n += 1
        path = folder() / f"{name}-{n}.json"
    return path


def last() -> Path:
    """Return the most recently saved conversation. Raises ``InputError`` if there is none."""
    found = names()
    if not found:
        raise InputError("there is no conversation to continue", "kvcli chat FILE")
    return folder() / f"{found[0]}.json"


def names() -> list[str]:
    """Return the names of all conversations, the one saved last first."""
    return [p.stem for p in sorted(folder().glob("*.json"), key=lambda p: p.stat().st_mtime_ns, reverse=True)]


def save(path: Path, record: Transcript) -> None:
    """Write a transcript atomically and durably, 0600. Raises ``OSError``."""
    record.made = record.made or datetime.now(UTC).isoformat(timespec="seconds")
    write(path, json.dumps(asdict(record), ensure_ascii=False, indent=1) + "\n")


def write(path: Path, text: str) -> None:
    """Write a text file atomically, 0600. Raises ``OSError``."""
    with file_utils.atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogatepass")


def load(path: Path) -> Transcript:
    """Read a transcript.

    Raises:
        InputError: it cannot be read.
        DamagedError: it is not a conversation; states why.
    """
    try:
        text = path.read_bytes().decode("utf-8", "surrogatepass")
    except FileNotFoundError:
        raise InputError(f"there is no session {path.stem}", "/load, which lists them") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", "kvcli chat FILE") from None
    except UnicodeDecodeError:
        raise _damaged(path, "it is not text") from None
    try:
        found = json.loads(text)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        record = from_json(Transcript, found)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)[:120]) from None
    steps = [0, *record.absorbed, len(record.turns)]
    if steps != sorted(steps) or any(i < 0 for turn in record.turns for i in turn.ids):
        raise _damaged(path, "its turns are invalid")
    return record


def _damaged(path: Path, why: str) -> DamagedError:
    return DamagedError(f"{path} is damaged or no conversation: {why}", f"mv {path} {path}.damaged")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock a session for this process. Raises ``UsageError`` if another process has it open."""
    from filelock import FileLock, Timeout

    lock = FileLock(file_utils.private_dir(path.parent / "locks") / f"{path.name}.lock", mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(f"the session {path.stem} is open in another kvcli", "--session ANOTHER") from None
    try:
        yield
    finally:
        lock.release()
