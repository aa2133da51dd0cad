"""Training examples: texts with questions, from prose, question-answer records and conversations."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from kvcli.errors import InputError
from kvcli.retaining_heads.facts import insert_fact, interleave


@dataclass(frozen=True)
class Example:
    """A text, and questions with their answers.

    Attributes:
        text: the text to read.
        turns: ``(question, answer)`` pairs.
        question_first: whether the (one) question also precedes the text.
    """

    text: str
    turns: tuple[tuple[str, str], ...]
    question_first: bool = False


@dataclass(frozen=True)
class TrainingRecord:
    """One item of a question-answer file; short contexts are packed together."""

    context: str
    question: str
    answer: str


CHARS_PER_TOKEN = 4.2  # English prose; a window's length need not be exact
_REPETITIVE = 0.1  # share of windows that repeat one piece, as logs and tables do
_SHORT = 2000  # maximum characters of contexts that are packed together


class Corpus:
    """The source of training examples.

    An example depends only on the seed and its number, so a resumed training sees the same examples.

    Args:
        prose: whole texts, into which facts are inserted.
        records: questions with their own context.
        tokens: shortest and longest text, in tokens.
        question_first: share of examples whose question also precedes the text.
        seed: of all random choices.
    """

    def __init__(
        self,
        prose: Sequence[str],
        records: Sequence[TrainingRecord],
        *,
        tokens: tuple[int, int] = (512, 2048),
        question_first: float = 0.25,
        seed: int = 0,
    ) -> None:
        self.tokens, self.question_first, self.seed = tokens, question_first, seed
        self.prose = [t[: len(t) * 9 // 10] for t in prose]
        self._rest = "\n".join(t[len(t) * 9 // 10 :] for t in prose)
        self.short = [r for r in records if len(r.context) <= _SHORT]
        self.long = [r for r in records if len(r.context) > _SHORT]
        if not (prose or records):
            raise InputError("there is nothing to train on", "kvcli train -m MODEL book.txt …")

    @property
    def origin(self) -> dict[str, Any]:
        """The corpus's parameters as JSON, with one digest of texts, records and seed."""
        items = [self.seed, self.prose, self._rest, *([astuple(r) for r in some] for some in (self.short, self.long))]
        digest = hashlib.sha256(json.dumps(items).encode()).hexdigest()[:12]
        return {"data": digest, "tokens": list(self.tokens), "focus": self.question_first}

    def example(self, number: int) -> Example:
        """Return example ``number``."""
        rng = random.Random(f"{self.seed} {number}")
        room = int(rng.uniform(*self.tokens) * CHARS_PER_TOKEN)
        kinds = ["prose"] * (3 if self.prose else 0) + ["short"] * (2 if self.short else 0) + ["long"] * bool(self.long)
        kind = rng.choice(kinds)
        question_first = rng.random() < self.question_first
        if kind == "prose":
            text, turns = self._planted(room, rng)
        elif kind == "short":
            text, turns = self._packed(room, rng)
        else:
            text, turns = self._window(room, rng)
        return Example(text, tuple([rng.choice(turns)] if question_first else turns), question_first)

    def chance(self, number: int, choice: str = "chance") -> float:
        """Return a random number in [0, 1) for this example, independent of its data."""
        return random.Random(f"{self.seed} {choice} {number}").random()

    def held_out(self, tokens: int, count: int, facts: int = 6) -> list[Example]:
        """Return texts of about ``tokens`` with inserted facts, from the last tenth of the prose, which training never
        uses."""
        if not self.prose:
            return []
        made = []
        for number in range(count):
            rng = random.Random(f"{self.seed} held out {number}")
            text = self._rest
            room = int(tokens * CHARS_PER_TOKEN)
            start = rng.randrange(max(1, len(text) - room))
            planted = [insert_fact(rng) for _ in range(facts)]
            mixed = interleave(text[start : start + room], planted, rng)
            made.append(Example(mixed, tuple((f.question, f.answer) for f in planted)))
        return made

    def _planted(self, room: int, rng: random.Random) -> tuple[str, list[tuple[str, str]]]:
        text = rng.choices(self.prose, weights=[len(t) for t in self.prose])[0]
        start = rng.randrange(max(1, len(text) - room))
        facts = [insert_fact(rng) for _ in range(rng.choice([1, 2, 3, 4, 6, 8]))]
        window = text[start : start + room]
        if rng.random() < _REPETITIVE:
            piece = window[: rng.randint(80, 500)] + "\n"
            window = piece * max(1, room // len(piece))
        mixed = interleave(window, facts, rng)
        return mixed, [(f.question, f.claim if rng.random() < 0.4 else f"{f.answer}.") for f in facts]

    def _packed(self, room: int, rng: random.Random) -> tuple[str, list[tuple[str, str]]]:
        chosen: list[TrainingRecord] = []
        used = 0
        for record in rng.sample(self.short, min(len(self.short), 40)):
            if used and used + len(record.context) > room:
                break
            chosen.append(record)
            used += len(record.context)
        return "\n\n".join(r.context for r in chosen), [
            (r.question, r.answer) for r in rng.sample(chosen, min(5, len(chosen)))
        ]

    def _window(self, room: int, rng: random.Random) -> tuple[str, list[tuple[str, str]]]:
        """Cut a window of a long context around the answer; a random one if the context does not contain it."""
        record = rng.choice(self.long)
        at = record.context.find(record.answer)
        first, last = 0, max(0, len(record.context) - room)
        if at >= 0:
            first, last = max(0, min(at + len(record.answer) - room, last)), min(at, last)
        start = rng.randint(min(first, last), max(first, last))
        return record.context[start : start + room], [(record.question, record.answer)]


def load(paths: Iterable[Path]) -> tuple[list[str], list[TrainingRecord]]:
    """Read training files: ``.txt``/``.md`` prose, ``.json``/``.jsonl`` records or conversations, each also ``.gz``.

    Records are objects of one of these shapes:

    - ``{"context" | "text" | "document", "question", "answer" | "answers"}``;
    - ``{"messages": [{"role", "content"}, …]}`` or ``{"conversations": [{"from", "value"}, …]}``: everything before the
      last question is the text;
    - the published files of SQuALITY (``document``, ``questions``), QMSum (``meeting_transcripts``,
      ``specific_query_list``) and HotpotQA (``context`` as titled lists of sentences).

    Raises:
        InputError: a file is missing, broken, or of another shape; names file and line.
    """
    prose: list[str] = []
    records: list[TrainingRecord] = []
    for path in paths:
        text = _read(path)
        name = path.name.removesuffix(".gz")
        if not name.endswith((".json", ".jsonl", ".ndjson")):
            prose.append(text)
            continue
        for number, item in _items(path, text, lines=not name.endswith(".json")):
            try:
                more, found = _understand(item)
            except (KeyError, TypeError, IndexError, ValueError) as error:
                raise InputError(
                    f"{path}, record {number}: not a training record ({error!r})",
                    'one {"context": …, "question": …, "answer": …} per line',
                ) from error
            prose += more
            records += found
    return prose, records


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8", errors="strict")
    except (OSError, EOFError, gzip.BadGzipFile) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}", f"ls {path}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start})", f"file {path}") from error


def _items(path: Path, text: str, *, lines: bool) -> Iterable[tuple[int, Any]]:
    try:
        if lines:
            for number, line in enumerate(text.splitlines(), 1):
                if line.strip():
                    yield number, json.loads(line)
        else:
            data = json.loads(text)
            yield from enumerate(data if isinstance(data, list) else [data], 1)
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}", f"head -c 300 {path}") from error


def _understand(item: Any) -> tuple[list[str], list[TrainingRecord]]:
    """Return prose and records of one JSON object."""
    if "meeting_transcripts" in item:  # QMSum
        lines = [f"{t['speaker']}: {t['content']}" for t in item["meeting_transcripts"]]
        records = []
        for query in item["specific_query_list"]:
            said = [line for a, b in query["relevant_text_span"] for line in lines[int(a) : int(b) + 1]]
            records.append(TrainingRecord("\n".join(said), query["query"], query["answer"]))
        return ["\n".join(lines)], [r for r in records if r.context]
    if "document" in item and "questions" in item:  # SQuALITY: the answers summarise the story, so it is prose
        return [item["document"]], []
    if "messages" in item or "conversations" in item:
        turns = [
            (m.get("role") or m["from"], m.get("content") or m["value"])
            for m in item.get("messages") or item["conversations"]
        ]
        last = max(i for i, (role, _) in enumerate(turns) if role in ("assistant", "gpt"))
        head, _, question = turns[last - 1][1].rpartition("\n\n")
        text = "\n\n".join([content for _, content in turns[: last - 1]] + [head] * bool(head))
        return [], [TrainingRecord(text, question, turns[last][1])] if text else []
    context = item.get("context") or item.get("text") or item["document"]
    if isinstance(context, list):  # HotpotQA
        context = "\n\n".join(f"{title}\n{''.join(sentences)}" for title, sentences in context)
    if "title" in item and isinstance(item["title"], str):
        context = f"{item['title']}\n{context}"
    answer = item.get("answer") or item.get("answers")
    if isinstance(answer, list):
        answer = answer[0]
    if isinstance(answer, dict):  # SQuAD's {"text": […], "answer_start": […]}
        answer = answer["text"][0]
    return [], [TrainingRecord(str(context), str(item["question"]), str(answer))] if answer else []
