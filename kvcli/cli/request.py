"""Which arguments are documents, which one is the question, and what standard input holds."""

from __future__ import annotations

import json
import os
import select
import shlex
import stat
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvcli.cli.views import terminal
from kvcli.corpus.task import Question
from kvcli.documents import STDIN
from kvcli.documents.reader import LARGEST, is_url
from kvcli.documents.text import decode
from kvcli.errors import InputError, UsageError

if TYPE_CHECKING:
    from kvcli.engine.answer_format import AnswerFormat

TOKEN_BYTES = 16
"""More bytes than a token of any text has on average; prose has four."""

EXAMPLE = 'kvcli ask book.txt "Who is Pip?"'


@dataclass(frozen=True)
class Request:
    """The documents and the questions, in order; ``batch``: an error in one question does not end the run."""

    files: tuple[str, ...]
    questions: tuple[Question, ...]
    batch: bool

    @property
    def library(self) -> str | None:
        """The library that is named, if one is. Raises ``UsageError`` if a file is named too."""
        found = [name for name in self.files if name.startswith("@") and not Path(name).exists()]
        if found and len(self.files) > 1:
            raise UsageError(f"{found[0]} is a library, and another document was named too", "leave out one of them")
        return found[0][1:] if found else None


def parse_request(
    words: Sequence[str],
    files: Sequence[str],
    questions: Sequence[str],
    question_files: Sequence[str],
    usual: str | None = None,
) -> Request:
    """Positional ``words``, ``-f`` files, ``-e`` questions and ``-Q`` files as one request.

    Without ``-e`` and ``-Q`` the last word is the question. Every other word is a file. If the last one is a file too,
    the ``usual`` question is asked.
    Raises ``UsageError``.
    """
    words = list(words)
    if STDIN in question_files and STDIN in (*files, *words):
        raise UsageError("standard input cannot hold both a document and the questions", "kvcli ask FILE -Q -")
    asked = [Question(text) for text in questions]
    for name in question_files:
        asked += _load(name)
    batch = bool(question_files) or len(asked) > 1
    if not asked and usual is not None and (not words or _is_file(words[-1]) or Path(words[-1]).is_dir()):
        asked = [Question(usual)]
    if not asked:
        if not words:
            raise UsageError("no question was given", EXAMPLE)
        last = words.pop()
        if last.strip() and _is_file(last):
            named = " ".join(shlex.quote(w) for w in dict.fromkeys([*words, last]) if _is_file(w))
            whole = next((w for w in words if " " in w and not _is_file(w)), "…").replace('"', "'")
            raise UsageError(
                f"no question was given: the last argument must be the question, and {last} is a file",
                f'kvcli ask {named} "{whole}"',
            )
        _refuse_unquoted(words, last)
        asked = [Question(last)]
    for i, question in enumerate(asked, 1):
        which = f"question {i} of {len(asked)}" if len(asked) > 1 else "the question"
        if not question.text.strip():
            raise UsageError(f"{which} is empty", EXAMPLE)
        require_utf8(question.text, which)
    return Request((*files, *words), tuple(asked), batch)


def require_utf8(text: str, what: str) -> str:
    """``text``, unless it holds bytes that are not characters. Raises ``UsageError``."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} is not valid UTF-8", "check the terminal's encoding: locale") from None
    return text


def _is_file(word: str) -> bool:
    try:
        return is_url(word) or Path(word).is_file()
    except (OSError, ValueError):
        return False


def _refuse_unquoted(words: list[str], last: str) -> None:
    """Refuse ``kvcli ask book.txt who is pip``: words before the last one that are not files."""
    bare = [w for w in words if w != STDIN and w[:1] != "@" and not {"/", "."} & set(w) and not Path(w).exists()]
    if bare and words[-len(bare) :] == bare:
        files = [shlex.quote(w) for w in words if w not in bare]
        question = " ".join([*bare, last]).replace('"', "'")
        command = " ".join(["kvcli ask", *files, f'"{question}"'])
        if " " in bare[0] or bare[0][-1:] == "?":
            command = " ".join(["kvcli ask", *files, f'"{bare[0]}"'])
            raise UsageError(
                f"{bare[0]!r} is not a file, and only the last argument, {last!r}, is the question", command
            )
        raise UsageError(f"there is no file {bare[0]}; a question of several words needs quotes", command)


def _load(name: str) -> list[Question]:
    """Questions of a file: one per line, or one ``{"id": …, "question": "…"}`` per line of a ``.jsonl`` file."""
    try:
        data = read_stdin() if name == STDIN else Path(name).read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot read the questions in {name}: {reason}", f"ls {shlex.quote(name)}") from None
    text, _ = decode(data, name, shlex.quote(name))
    lines = [(n, line.strip()) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise InputError(f"{name} has no questions", "write one question per line")
    jsonl = name.endswith((".jsonl", ".ndjson"))
    return [_from_json(name, n, line) if jsonl else Question(line) for n, line in lines]


def _from_json(name: str, line: int, text: str) -> Question:
    shape = 'one {"id": 1, "question": "…"} per line'
    try:
        item = json.loads(text)
    except ValueError as error:
        raise InputError(f"line {line} of {name} is not JSON: {error}", shape) from None
    if not isinstance(item, dict) or not isinstance(item.get("question"), str):
        raise InputError(f'line {line} of {name} has no "question" text', shape)
    return Question(item["question"], item.get("id"))


def answer_format(schema: str | None, choices: str | None) -> AnswerFormat | None:
    """The form of ``--schema FILE`` or ``--choices A,B``. Raises ``InputError`` or ``UsageError``."""
    if schema is None and choices is None:
        return None
    from kvcli.engine.answer_format import AnswerFormat

    if choices is not None:
        return AnswerFormat.choices([require_utf8(text.strip(), "--choices") for text in choices.split(",")])
    assert schema is not None
    try:
        found = json.loads(Path(schema).read_bytes())
    except OSError as error:
        raise InputError(f"cannot read the schema {schema}: {error.strerror}", f"ls {shlex.quote(schema)}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"the schema {schema} is not JSON: {error}", f"jq . {shlex.quote(schema)}") from None
    if not isinstance(found, dict):
        raise InputError(f"the schema {schema} is not a JSON object", '{"type": "object", "properties": {…}}')
    return AnswerFormat.json_schema(found)


def piped() -> bool:
    """Whether standard input is a pipe or a file."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def standard_input(
    request: Request, *, stdin_is_questions: bool, quiet: bool, tokens: Callable[[], int] | None = None
) -> bytes | None:
    """Standard input if it is a document: ``-`` was named, or it is a pipe and no file was named.

    ``tokens``: how many of them the plan has room for.
    """
    named = STDIN in request.files
    if not named and (request.files or stdin_is_questions or not piped()):
        return None
    if named and sys.stdin.isatty():
        terminal.note("document", "type or paste the document, then press Ctrl-D on an empty line", quiet=quiet)
    else:
        waiting = sys.platform != "win32" and not select.select([sys.stdin], [], [], 2.0)[0]
        terminal.note("document", "waiting for standard input", quiet=quiet or not waiting)
    return read_stdin(tokens)


def read_stdin(tokens: Callable[[], int] | None = None) -> bytes:
    """All of standard input, up to what a document may have and what the plan has room for.

    Raises ``InputError`` with the bound if there is more.
    """
    from kvcli.planning.memory import largest_text
    from kvcli.utils.sizes import format_bytes

    room = largest_text(None, None, chunk=1) if tokens is None else tokens()
    most = min(LARGEST, TOKEN_BYTES * room)
    data = sys.stdin.buffer.read(most + 1)
    if len(data) > most:
        why = "the most that kvcli reads" if most == LARGEST else f"and there is room for {room:,} tokens"
        raise InputError(
            f"standard input has more than {format_bytes(most)}, {why}",
            "give a file, or less of it: … | head -c 100M | kvcli ask …",
        )
    return data
