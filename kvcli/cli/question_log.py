"""The log of ``kvcli ask``: questions, answers and the places that they cite, in SQLite in the data directory.

It is 0600, keeps the last 10,000 answers, and is written unless ``--no-log``, ``--no-cache`` or ``kvcli logs off`` say
no. A log that cannot be written is one warning, never a failed answer.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvcli.documents import STDIN, Options
from kvcli.documents.reader import is_url
from kvcli.errors import DamagedError, InputError, KvcliError
from kvcli.planning.budget import Budget
from kvcli.utils import files
from kvcli.utils.from_json import from_json

if TYPE_CHECKING:
    from kvcli.cli.options import RunOptions
    from kvcli.documents.quotes import Citation
    from kvcli.events import Quote

MOST = 10_000
"""Answers that are kept."""

HISTORY = 6_000
"""Characters of earlier questions and answers that ``ask --continue`` repeats to the model."""

_CONTEXT = ("model", "system", "raw", "policy", "kv_bits", "heads", "chunk", "dtype", "weights")
"""Fields of the options that decide which saved prefill is used."""

_TABLE = """
create table if not exists answers (
  id integer primary key, made real not null, folder text not null, files text not null, question text not null,
  answer text not null, finish text not null, model text not null, places text not null, options text not null,
  previous integer)
"""


@dataclass(frozen=True)
class QuotePlace:
    """A place that an answer cites: the file as it was named, its page (from 1) or line, and the text there.

    ``label`` is what is printed on the page.
    """

    file: str
    page: int | None
    line: int | None
    quote: str
    label: str | None = None


@dataclass(frozen=True)
class Logged:
    """One answer of the log.

    Attributes:
        id: number, from 1.
        made: seconds since 1970.
        folder: the working directory; names of files start from there.
        files: names of the documents.
        places: what the answer cites, and then the sentences of the text that may answer.
        options: the fields of the run's options that a continuation takes over.
        previous: the answer that this one continues.
    """

    id: int
    made: float
    folder: str
    files: tuple[str, ...]
    question: str
    answer: str
    finish: str
    model: str
    places: tuple[QuotePlace, ...]
    options: dict[str, Any]
    previous: int | None

    def path(self, name: str) -> str:
        """A name of a file, from the working directory of now."""
        kept = is_url(name) or name.startswith("@") or Path.cwd() == Path(self.folder)
        return name if kept else str(Path(self.folder, name))


def path() -> Path:
    """Where the log is. It need not exist."""
    return files.data_dir() / "log.sqlite3"


@contextmanager
def _open() -> Iterator[sqlite3.Connection]:
    """The log, made if it is not there. Raises ``DamagedError`` if it is no log."""
    place = path()
    with suppress(FileExistsError):
        os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        with closing(sqlite3.connect(place, timeout=5)) as log, log:
            log.execute(_TABLE)
            yield log
    except (sqlite3.Error, ValueError, TypeError) as error:
        raise DamagedError(f"{place} cannot be used: {error}", "kvcli logs clear") from None


def places(cited: Sequence[Citation], uncited: Sequence[Quote]) -> list[QuotePlace]:
    """The places that ``kvcli open`` opens by number: what an answer cites, then other sentences that may answer."""
    found = list[QuotePlace]()
    for c in cited:
        file, page, label = (c.span.file, c.span.page, c.span.label) if c.span else ("", None, None)
        found.append(QuotePlace(file, page, c.line, c.quote, label))
    return found + [QuotePlace(q.source, q.page, q.line, q.text, q.label) for q in uncited]


def add(
    options: RunOptions,
    documents: Sequence[str],
    record: dict[str, Any],
    places: Sequence[QuotePlace],
    previous: int | None,
) -> str | None:
    """Log one answer, given as its JSON; returns why that failed."""
    kept: dict[str, Any] = {name: getattr(options, name) for name in _CONTEXT} | {"reading": asdict(options.reading)}
    if options.images or options.image_pages:
        kept["pictures"] = [[str(Path(name).absolute()) for name in options.images], options.image_pages]
    if options.budget is not None:
        kept["budget"] = [options.budget.value, options.budget.unit]
    row = (
        time.time(),
        str(Path.cwd()),
        json.dumps(list(documents)),
        record["question"],
        record["answer"],
        record["finish_reason"],
        str(record["model"].get("name", "")),
        json.dumps([asdict(place) for place in places]),
        json.dumps(kept),
        previous,
    )
    row = tuple(_storable(value) for value in row)
    try:
        with _open() as log:
            log.execute(f"insert into answers values (null, {', '.join('?' * len(row))})", row)
            log.execute("delete from answers where id <= (select max(id) from answers) - ?", (MOST,))
    except (KvcliError, OSError) as error:
        return f"the answer was not logged: {error}"
    return None


def _storable(value: Any) -> Any:
    """SQLite takes no halves of surrogate pairs."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def last(count: int, words: Sequence[str] = ()) -> list[Logged]:
    """The last ``count`` answers in which all ``words`` occur in question, answer or names of files, oldest first."""
    if not path().exists():
        return []
    where = " and ".join(["(question || ' ' || answer || ' ' || files) like ? escape '\\'"] * len(words)) or "1"
    escaped = [f"%{_escaped(word)}%" for word in words]
    with _open() as log:
        found = log.execute(f"select * from answers where {where} order by id desc limit ?", (*escaped, count))
        return [_logged(row) for row in found][::-1]


def _escaped(word: str) -> str:
    for special in "\\%_":
        word = word.replace(special, f"\\{special}")
    return word


def _logged(row: tuple[Any, ...]) -> Logged:
    number, made, folder, named, question, answer, finish, model, places, options, previous = row
    return Logged(
        number,
        made,
        folder,
        tuple(json.loads(named)),
        question,
        answer,
        finish,
        model,
        tuple(from_json(QuotePlace, place) for place in json.loads(places)),
        json.loads(options),
        previous,
    )


def latest() -> Logged:
    """The last answer. Raises ``InputError`` if there is none."""
    if not (found := last(1)):
        raise InputError("the log has no answer yet", 'kvcli ask FILE "…"; if the log is off: kvcli logs on')
    return found[0]


def history(entry: Logged) -> tuple[tuple[str, str], ...]:
    """Questions and answers up to this one, oldest first, as far as they fit into ``HISTORY`` characters."""
    turns, number, size = list[tuple[str, str]](), entry.previous, len(entry.question) + len(entry.answer)
    turns.append((entry.question, entry.answer))
    with _open() as log:
        while number is not None:
            query = "select question, answer, previous from answers where id = ?"
            if (row := log.execute(query, (number,)).fetchone()) is None:
                break
            size += len(row[0]) + len(row[1])
            if size > HISTORY:
                break
            turns.append((row[0], row[1]))
            number = row[2]
    return tuple(reversed(turns))


def continued(options: RunOptions, entry: Logged, named: Sequence[str]) -> tuple[RunOptions, tuple[str, ...]]:
    """Options and files of a question that continues ``entry``: those of then, where none are given now.

    Raises:
        InputError: the last question was about standard input.
    """
    from kvcli.cli.options import RunOptions as Defaults

    stored, plain = entry.options, Defaults()
    more: dict[str, Any] = {k: stored[k] for k in _CONTEXT if k in stored and getattr(options, k) == getattr(plain, k)}
    if not named:
        if "stdin" in entry.files or STDIN in entry.files:
            raise InputError("the last question was about standard input, which is gone", "name a FILE")
        if options.reading == Options():
            more["reading"] = from_json(Options, stored.get("reading", {}))
        if not options.images and "pictures" in stored:
            images, ranges = stored["pictures"]
            more |= {"images": tuple(images), "image_pages": tuple((a, b) for a, b in ranges)}
        if options.budget is None and stored.get("budget"):
            more["budget"] = Budget(*stored["budget"])
    found = tuple(named) or tuple(entry.path(name) for name in entry.files)
    return replace(options, **more, history=history(entry), previous=entry.id), found


def clear() -> int:
    """Delete the log; returns how many answers it had."""
    place, count = path(), 0
    if place.exists():
        with suppress(DamagedError), _open() as log:
            count = log.execute("select count(*) from answers").fetchone()[0]
        place.unlink()
    return count
