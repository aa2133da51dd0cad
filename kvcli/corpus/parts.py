"""Questions that need the whole text: each part is asked about after the kept context, then the answers are joined.

A fixed cache and a few passages cannot answer "list every person". Here the document is read once. Each part of it is
read again after its frozen context (context ‖ part) and asked about; then the cache is rewound to the context. A last
question is asked about the answers. The answers of the parts are those of asking about each part by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from kvcli.documents.sentences import split_sentences
from kvcli.errors import InputError, UsageError
from kvcli.events import Answer, Token

if TYPE_CHECKING:
    from kvcli.documents import Document
    from kvcli.engine.prompt import Prompt
    from kvcli.pipeline import DocumentContext, Pipeline

FORMS = "--over chapters, --over pages:20 or --over tokens:8K"

SMALL = 200
"""Characters below which a part is read with the next one: a title, or a line of a table of contents."""

PART_TOKENS = 512
"""Longest answer about one part, in tokens."""

_WORDS = "chapter|letter|book|part|volume|act|scene|section|stave|canto|adventure|kapitel|teil|brief|chapitre|capítulo"
_NUMBER = r"(?:\d{1,3}|[ivxlcdm]{1,8}|one|two|three|four|five|six|seven|eight|nine|ten|the \w+)"
_HEADING = re.compile(
    rf"(?:(?i:{_WORDS})[ \t]+(?i:{_NUMBER})\b[^\n]{{0,80}}|[IVXLC]{{1,7}}\.(?:[ \t]+[^\n]{{1,80}})?)[ \t]*$"
)
_BLANK_LINE = re.compile(r"(?:\A|\n[ \t]*\n)[ \t]*(?=\S)")


@dataclass(frozen=True)
class Over:
    """How a document is cut: ``chapters``, ``pages`` or ``tokens`` of ``size`` each.

    With ``fallback`` a document without headings is cut into parts as long as the model can read again.
    """

    kind: str
    size: int = 0
    fallback: bool = False

    @classmethod
    def parse(cls, text: str) -> Over:
        """``chapters``, ``pages:20`` or ``tokens:8K``. Raises ``UsageError``."""
        match = re.fullmatch(r"(chapters?)|(pages|tokens):(\d{1,7})(k?)", text.strip().lower())
        if match is None:
            raise UsageError(f"--over {text} is not a way to cut a document", FORMS)
        if match[1]:
            return cls("chapters")
        size = int(match[3]) * (1024 if match[4] else 1)
        if size < (1 if match[2] == "pages" else 16):
            raise UsageError(f"--over {text}: the parts would be too small", FORMS)
        return cls(match[2], size)


@dataclass(frozen=True)
class TextPart:
    """The characters ``start`` to ``end`` of a document's text, and what to call them."""

    start: int
    end: int
    title: str


@dataclass(frozen=True)
class PartAnswer:
    """An answer about one part. ``number`` counts from 1; ``total`` is the number of parts."""

    part: TextPart
    number: int
    total: int
    answer: Answer


@dataclass(frozen=True)
class PartBegun:
    """A part is asked about, or the answers of parts are joined (``part`` is ``None``)."""

    part: TextPart | None
    number: int
    total: int


def cut(document: Document, over: Over, prompt: Prompt, longest: int) -> list[TextPart]:
    """The parts of a document, in order; they cover its text.

    Args:
        document: the text.
        over: how it is cut.
        prompt: counts tokens.
        longest: tokens of a part; longer ones are cut at ends of sentences.

    Raises:
        InputError: the document has no headings, or no pages.
    """
    text = document.text
    if over.kind == "tokens":
        parts = [TextPart(0, len(text), "")]
        longest = min(longest, over.size)
    else:
        starts = _chapters(document, over) if over.kind == "chapters" else _pages(document, over.size)
        ends = [start for start, _ in starts[1:]] + [len(text)]
        parts = [TextPart(start, end, title) for (start, title), end in zip(starts, ends, strict=True)]
    parts = _without_small(parts)
    offsets = [(a + b) // 2 for a, b in prompt.offsets(text)]
    return _shorter(text, parts, offsets, longest)


def _chapters(document: Document, over: Over) -> list[tuple[int, str]]:
    """Where chapters begin: the headings of the format, the highest level that has several; else those of the words."""
    paths = [tuple((span.section or "").split(" › ")) if span.section else () for span in document.spans]
    files = [span.file for span in document.spans]
    for level in range(1, 4):
        names = [(file, *path[:level]) for file, path in zip(files, paths, strict=True)]
        found = [
            (document.spans[next(iter(group))[0]].start, name[-1])
            for name, group in groupby(enumerate(names), key=lambda pair: pair[1])
        ]
        if sum(len(name) > 1 for name in dict.fromkeys(names)) > 1:
            return _from_start(found, document)
    text, plain = document.text, list[tuple[int, str]]()
    for match in _BLANK_LINE.finditer(text):
        line = text[match.end() : match.end() + 200].partition("\n")[0]
        if _HEADING.match(line):
            plain.append((match.end(), " ".join(line.split())))
    if len(plain) < 2 and over.fallback:
        return [(0, "")]
    if len(plain) < 2:
        raise InputError(f"{document.files[0]} has no headings to cut it at", "--over tokens:8K")
    return _from_start(plain, document)


def _pages(document: Document, size: int) -> list[tuple[int, str]]:
    """Where every ``size`` pages begin."""
    pages = [
        (next(iter(group)).start, page)
        for (_, page), group in groupby(document.spans, key=lambda span: (span.file, span.page))
        if page is not None
    ]
    if not pages:
        raise InputError(f"{document.files[0]} has no pages", "--over chapters, or --over tokens:8K")
    found = []
    for i in range(0, len(pages), size):
        first, last = pages[i][1], pages[min(i + size, len(pages)) - 1][1]
        found.append((pages[i][0], f"page {first}" if first == last else f"pages {first}–{last}"))
    return _from_start(found, document)


def _from_start(found: list[tuple[int, str]], document: Document) -> list[tuple[int, str]]:
    return found if not found[0][0] else [(0, document.files[0]), *found]


def _without_small(parts: Sequence[TextPart]) -> list[TextPart]:
    """Parts with hardly any text belong to the next one, which keeps its title; at the end to the one before."""
    out, start = list[TextPart](), None
    for part in parts:
        begin = part.start if start is None else start
        if part.end - begin < SMALL:
            start = begin
        else:
            out.append(replace(part, start=begin))
            start = None
    if start is not None:
        out = (
            [*out[:-1], replace(out[-1], end=parts[-1].end)]
            if out
            else [TextPart(start, parts[-1].end, parts[-1].title)]
        )
    return out


def _shorter(text: str, parts: Sequence[TextPart], middles: Sequence[int], longest: int) -> list[TextPart]:
    """Parts of at most about ``longest`` tokens, cut where sentences begin if one does in their second half."""
    from bisect import bisect_left

    begins = [sentence.start for sentence in split_sentences(text)]
    out = list[TextPart]()
    for part in parts:
        pieces, start = list[tuple[int, int]](), part.start
        last = bisect_left(middles, part.end)
        while last - (first := bisect_left(middles, start)) > longest:
            end = middles[first + longest]
            i = bisect_left(begins, end + 1) - 1
            half = middles[first + longest // 2]
            end = begins[i] if i >= 0 and begins[i] > half else end
            pieces.append((start, end))
            start = end
        pieces.append((start, part.end))
        several = len(pieces) > 1
        for n, (a, b) in enumerate(pieces, 1):
            numbered = f"{part.title} ({n} of {len(pieces)})".strip() if part.title else f"part {n}"
            out.append(TextPart(a, b, numbered if several or not part.title else part.title))
    return out


def part_tokens(pipeline: Pipeline) -> int:
    """Tokens of a part that a model can read again: at most 8,192, a quarter of its window."""
    return max(256, min(8192, pipeline.model.spec.max_positions // 4))


def longest_question(pipeline: Pipeline, document: Document, parts: Sequence[TextPart], question: str) -> list[int]:
    """The ids that are read after the context for the longest part: what the prefill leaves room for."""
    longest = max(parts, key=lambda part: part.end - part.start)
    return pipeline.prompt.question(question, passages=[document.text[longest.start : longest.end].strip()])


def ask_over(
    pipeline: Pipeline,
    context: DocumentContext,
    parts: Sequence[TextPart],
    question: str,
    *,
    join: str | None = None,
    max_tokens: int,
    **options: Any,
) -> Iterator[PartBegun | PartAnswer | Any]:
    """Ask a question about each part, then about the answers.

    Args:
        pipeline, context: the document was read once.
        parts: from :func:`cut`.
        question: what is asked about each part.
        join: what is asked about the answers; by default the question; if empty, the answers are put together.
        max_tokens: longest answer at the end.
        options: of :meth:`kvcli.Pipeline.ask`.

    Yields:
        :class:`PartBegun` and :class:`PartAnswer` for each part, and events of :meth:`kvcli.Pipeline.ask` for the last
        question; one ``Answer`` is the last.
    """
    from kvcli.engine.kept_tokens import KeptTokens

    assert context.document is not None
    text, kept = context.document.text, KeptTokens()
    total, answers = len(parts), list[tuple[str, Answer]]()
    one = {name: value for name, value in options.items() if name not in ("quotes", "passages")}
    short = max_tokens if join == "" else min(max_tokens, PART_TOKENS)

    def asked(words: str, wanted: str) -> Answer:
        """One answer after the context and some words; the cache is rewound to what both questions share."""
        events = pipeline.ask(context, wanted, again=[words], max_tokens=short, passages=0, kept=kept, **one)
        *_, end = events
        assert isinstance(end, Answer)
        return end

    for number, part in enumerate(parts, 1):
        yield PartBegun(part, number, total)
        answer = asked(text[part.start : part.end].strip(), question)
        answers.append((part.title, answer))
        yield PartAnswer(part, number, total, answer)
    if join == "" or total == 1:
        yield from _together(answers, total)
        return
    wanted = join or question
    said = [f"{title}: {answer.text.strip()}" for title, answer in answers]
    while len(groups := _groups(said, pipeline)) > 1:
        if len(groups) == len(said):  # no two answers fit together
            break
        yield PartBegun(None, total, total)
        said = [group if group in said else asked(group, wanted).text.strip() for group in groups]
    yield PartBegun(None, total, total)
    yield from pipeline.ask(
        context, wanted, again=["\n\n".join(said)], max_tokens=max_tokens, **{**options, "passages": 0}
    )


def _together(answers: Sequence[tuple[str, Answer]], total: int) -> Iterator[Token | Answer]:
    """The answers of all parts under their titles, as one answer."""
    several = total > 1
    texts = [f"## {title}\n\n{answer.text.strip()}" if several else answer.text for title, answer in answers]
    yield Token(0, "\n\n".join(texts))
    ends = [answer for _, answer in answers]
    made = sum(answer.completion_tokens for answer in ends)
    reason = next((answer.finish_reason for answer in ends if answer.finish_reason != "stop"), "stop")
    yield Answer(
        "\n\n".join(texts),
        reason,
        sum(answer.prompt_tokens for answer in ends),
        made,
        ends[0].first_token_s,
        sum(answer.decode_s for answer in ends),
        stopped_repeating=any(answer.stopped_repeating for answer in ends),
    )


def _groups(said: Sequence[str], pipeline: Pipeline) -> list[str]:
    """Answers joined in order, as many as fit into one part each."""
    limit, out, room = part_tokens(pipeline), list[str](), 0
    for text in said:
        size = len(pipeline.prompt.reply(text)) + 2
        if out and size <= room:
            out[-1] += f"\n\n{text}"
            room -= size
        else:
            out.append(text)
            room = limit - size
    return out
