"""What is asked of a corpus: documents, questions and the settings of every answer. Imports no torch."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvcli.documents import Options
from kvcli.documents.reader import expand, is_url, load_file
from kvcli.engine.prompt import usual
from kvcli.errors import InputError, KvcliError, UsageError
from kvcli.models import defaults
from kvcli.utils.files import sha256

if TYPE_CHECKING:
    from kvcli.documents.web import Web
    from kvcli.engine.answer_format import AnswerFormat
    from kvcli.models.model import Model
    from kvcli.pipeline import DocumentContext, Pipeline, TokenizedDocument
    from kvcli.planning.budget import Budget
    from kvcli.prompt_cache.directory import CacheDirectory
    from kvcli.recipe import Recipe
    from kvcli.types import ModelSpec


@dataclass(frozen=True)
class Question:
    """One question; ``id`` comes from a JSON Lines file."""

    text: str
    id: Any = None


@dataclass(frozen=True)
class Settings:
    """How every document is read and every question answered; sent to each worker.

    Attributes:
        model, device, dtype, weights, heads, offline: as of :func:`kvcli.load_model`.
        policy, budget, kv_bits, chunk, system, raw, before, after: as of :class:`kvcli.Pipeline`.
        max_tokens, allow_repetition, sampling, stop, passages, quotes, from_quotes, verbatim, answer_format: as of
            :meth:`kvcli.Pipeline.ask`; ``sampling`` are fields of ``Sampling``.
        query_aware: the question is put before the document too.
        cite: whether the answer's quotes are looked up.
        reading: which parts of the documents are read.
        cache, rebuild: whether prefills are saved and used, and computed again.
        field_quotes: whether each field of a JSON answer gets the sentence that has its value.
    """

    model: str | None = None
    device: str | None = None
    dtype: str | None = None
    weights: str = "bf16"
    heads: str | None = None
    offline: bool = False
    policy: str | None = None
    budget: Budget | None = None
    kv_bits: int | None = None
    chunk: int | None = None
    system: str | None = None
    raw: bool = False
    before: str = ""
    after: str = ""
    max_tokens: int = 2048
    allow_repetition: bool = False
    sampling: dict[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    passages: int | None = None
    query_aware: bool = False
    from_quotes: bool | None = False
    verbatim: bool | None = None
    answer_format: AnswerFormat | None = None
    quotes: int = 0
    cite: bool = True
    reading: Options = field(default_factory=Options)
    cache: bool = True
    rebuild: bool = False
    field_quotes: bool = False

    def pipeline(self, model: Model, cache: CacheDirectory | None) -> Pipeline:
        """The pipeline of these settings. Raises ``UsageError`` as :class:`kvcli.Pipeline`."""
        from kvcli.pipeline import Pipeline

        return Pipeline(
            model,
            self.policy,
            cache=cache,
            budget=self.budget,
            kv_bits=self.kv_bits,
            chunk_size=self.chunk,
            system=self.system,
            raw=self.raw,
            before=self.before,
            after=self.after,
        )

    @property
    def usual(self) -> bool:
        """Whether nothing says how documents are read, or what an answer is like that quotes alone cannot give."""
        given = (self.policy, self.budget, self.kv_bits, self.heads, self.chunk, self.answer_format)
        return not (self.stop or self.rebuild) and all(value is None for value in given)

    @property
    def by_quotes(self) -> bool | None:
        """``from_quotes``; what is usual by default is false if not everything is :attr:`usual`."""
        return False if self.from_quotes is None and not self.usual else self.from_quotes

    def skips_prefill(self, spec: ModelSpec, recipe: Recipe, tokens: int, questions: Sequence[str]) -> bool:
        """Whether a document need not be read for some question, if a sentence of it seems to answer."""
        if self.by_quotes is not None:
            return self.by_quotes
        evicts = (recipe.policy.budget or tokens) < tokens
        return evicts and spec.name in defaults.ASKED_BY_EXAMPLES and any(usual(self, each) for each in questions)

    def unread(self, pipeline: Pipeline, source: TokenizedDocument, *asked: Any) -> DocumentContext | None:
        """:meth:`kvcli.Pipeline.unread`, if quotes alone may answer: the document without prefill."""
        way = self.by_quotes
        return None if way is False else pipeline.unread(source, *asked, default=way is None)

    @property
    def sampling_record(self) -> dict[str, Any]:
        """All settings of sampling, for the record of an answer."""
        from kvcli.engine.sampling import Sampling

        return {**dataclasses.asdict(Sampling(**self.sampling)), "max_tokens": self.max_tokens, "stop": list(self.stop)}

    def identity(self, name: str, fingerprint: str, *, alone: bool) -> str:
        """Digest of everything that an answer depends on but the document and the question.

        Args:
            name, fingerprint: of the model, and of it and the precision of its weights.
            alone: whether each document gets one question: the default recipe may then read for it.
        """
        elsewhere = {"model", "device", "weights", "offline", "cache", "rebuild"}  # the fingerprint, or of no effect
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(Settings) if f.name not in elsewhere}
        if self.by_quotes is not None or name not in defaults.ASKED_BY_EXAMPLES:
            values["from_quotes"] = bool(self.by_quotes)
        values |= {"fingerprint": fingerprint, "alone": alone and self.policy is None, "likely_sources": False}
        return hashlib.sha256(json.dumps(values, sort_keys=True, default=_plain).encode()).hexdigest()


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value)


@dataclass(frozen=True)
class DocumentTask:
    """One document and the questions that are left to ask about it.

    Attributes:
        name: the file as the user named it; its name in records.
        sha256: digest of its bytes; empty if it cannot be read.
        questions: in order.
        keys: of each question, what names its answer (:func:`answer_key`).
        failure_key: names the failure of the whole document.
        data: the file's bytes, if a worker cannot open it.
        suffix: the ending that a file of its type has, if it came from the web.
        alone: whether the document gets one question in all.
        size: bytes.
        path: where a worker on another machine opens the file.
    """

    name: str
    sha256: str
    questions: tuple[Question, ...]
    keys: tuple[str, ...]
    failure_key: str
    data: bytes | None = None
    alone: bool = False
    size: int = 0
    path: str | None = None
    suffix: str = ""

    def without(self, done: Iterable[str]) -> DocumentTask:
        """This task without the questions whose keys are ``done``."""
        done = set(done)
        left = [(q, k) for q, k in zip(self.questions, self.keys, strict=True) if k not in done]
        return replace(self, questions=tuple(q for q, _ in left), keys=tuple(k for _, k in left))


def answer_key(document: str, question: Question | None, identity: str) -> str:
    """24 hexadecimal digits that name an answer by content: document, question and settings."""
    asked = None if question is None else [question.text, question.id]
    return hashlib.sha256(json.dumps([document, asked, identity], sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Unreadable:
    """A file that cannot be opened, the key of its failure, and why."""

    name: str
    key: str
    error: KvcliError

    def record(self) -> dict[str, Any]:
        """The line of the failure."""
        return {**self.error.to_json(), "key": self.key, "file": self.name}


@dataclass(frozen=True)
class DocumentTasks:
    """The files of a run.

    Attributes:
        tasks: one for each different document, in the order of the files.
        unreadable: files that cannot be opened.
        notes: what the user should know: files named twice, copies, files of directories that are left out.
    """

    tasks: tuple[DocumentTask, ...]
    unreadable: tuple[Unreadable, ...]
    notes: tuple[str, ...]

    @property
    def keys(self) -> list[str]:
        """The keys of all lines that the run may write: first unreadable files, then each document."""
        own = [key for task in self.tasks for key in (*task.keys, task.failure_key)]
        return [*(file.key for file in self.unreadable), *own]


def find_files(names: Sequence[str], reading: Options) -> tuple[list[str], list[str]]:
    """The files of a command line, patterns and directories expanded, each once; and notes.

    Raises:
        UsageError: no name was given.
        InputError: a pattern matches no file.
    """
    if not names:
        raise UsageError("no document was given", "kvcli map *.pdf -Q questions.txt -o answers.jsonl")
    expanded = list[str]()
    for name in names:
        if re.search(r"[*?\[]", name) and not os.path.lexists(name):  # of a name that cannot be, False
            found = sorted(glob.glob(name, recursive=True))  # noqa: PTH207  # Path.glob takes no absolute pattern
            if not found:
                raise InputError(f"no file matches {name}", f"ls {Path(name).parent}")
            expanded += found
        else:
            expanded.append(name)
    files, notes = expand(expanded, reading)
    again = len(expanded) - len(set(expanded))
    if again:
        notes.append(f"{again:,} of {len(expanded):,} files were named twice; each is asked about once")
    return files, notes


def corpus(
    files: Sequence[str],
    notes: Sequence[str],
    questions: Sequence[Question],
    identity: str,
    web: Web | None = None,
) -> DocumentTasks:
    """The tasks of a run: every question about every different document.

    Args:
        files, notes: from :func:`find_files`.
        questions: in order; the same one twice is asked once.
        identity: from :meth:`Settings.identity`.
        web: fetches the web addresses among the files.
    """
    tasks, unreadable, said = dict[str, DocumentTask](), list[Unreadable](), list(notes)
    asked = tuple(dict.fromkeys((q.text, json.dumps(q.id, sort_keys=True)) for q in questions))
    unique = tuple(Question(text, json.loads(name)) for text, name in asked)
    copies = list[tuple[str, str]]()
    for name in files:
        data: bytes | None = None
        suffix = ""
        try:
            if web is not None and is_url(name):
                fetched = web.fetch(name)
                data, suffix = fetched.data, fetched.suffix
            elif not Path(name).is_file():  # a pipe, which can be read once, or an error
                data = load_file(name)
            digest = sha256(Path(name)) if data is None else hashlib.sha256(data).hexdigest()
            size = Path(name).stat().st_size if data is None else len(data)
        except (KvcliError, OSError, ValueError) as problem:
            error = problem if isinstance(problem, KvcliError) else _why(name)
            unreadable.append(Unreadable(name, answer_key(f"file {name}", None, identity), error))
            continue
        if digest in tasks:
            copies.append((name, tasks[digest].name))
            continue
        keys = tuple(answer_key(digest, question, identity) for question in unique)
        failure = answer_key(digest, None, identity)
        tasks[digest] = DocumentTask(name, digest, unique, keys, failure, data, len(unique) == 1, size, suffix=suffix)
    if copies:
        (copy, first), count = copies[0], len(copies)
        which = f"{copy} is a copy of {first}" if count == 1 else f"{count:,} files are copies, {copy} of {first}"
        said.append(f"{which}; each document is asked about once")
    return DocumentTasks(tuple(tasks.values()), tuple(unreadable), tuple(said))


def _why(name: str) -> KvcliError:
    """Why a file cannot be read, in the words of the reader."""
    try:
        load_file(name)
    except KvcliError as error:
        return error
    return InputError(f"{name} changed while it was read", "the same command again")
