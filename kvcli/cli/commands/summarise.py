"""``kvcli summarise FILE``: a summary of a whole document, from its parts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from kvcli.cli import answer_loop
from kvcli.cli.commands.ask import AskOutput
from kvcli.cli.option_groups import MAIN, OptionGroup, option, takes_groups
from kvcli.cli.options import (
    FILES,
    ReadOptions,
    RunOptions,
)
from kvcli.cli.output import AnswerWriter
from kvcli.cli.request import Request
from kvcli.cli.setup import banner, open_request
from kvcli.corpus.parts import Over
from kvcli.corpus.task import Question
from kvcli.errors import UsageError

TOKENS_PER_WORD, SPARE = 2, 64
"""Longest answer: so many tokens for each word, and some more."""

PART_WORDS = 80
"""Words of the summary of one part if they are joined."""


@dataclass(frozen=True)
class SummaryOptions(OptionGroup):
    """Options of the summary."""

    PANEL: ClassVar[str] = "Summary"

    words: int = option("--words N", "About so many words.", 300, MAIN, min=10)
    by: str | None = option("--by HOW", "A summary of each chapter, pages:20 or tokens:8K.", None, MAIN)


@takes_groups
def command(
    files: FILES = None,
    *,
    summary: SummaryOptions,
    read: ReadOptions,
    output: AskOutput,
) -> None:
    """Summarise a document: each part, then the whole.

    The document is read once. Each chapter is read again and summarised while the model attends to the rest too, and
    the summaries are joined into one. A text without headings is cut into equal parts. It is the same as
    kvcli ask FILE "Summarise …" --over chapters.

    \b
    Examples:
      kvcli summarise book.epub
      kvcli summarise book.epub --by chapter --words 60
    """
    if not files:
        raise UsageError("no document was given", "kvcli summarise book.epub")
    by = None if summary.by is None else Over.parse(summary.by)
    part = f"Summarise this text in about {summary.words if by else min(PART_WORDS, summary.words)} words."
    whole = (
        "The text has summaries of the parts of one document, in order."
        f" Summarise the whole document in about {summary.words} words."
    )
    options = RunOptions.of(read, output)
    options = replace(
        options,
        after="",
        max_tokens=TOKENS_PER_WORD * summary.words + SPARE,
        over=by or Over("chapters", fallback=True),
        join="" if by else whole,
    )
    request = Request(tuple(files), (Question(part),), batch=False)
    writer = AnswerWriter(
        output.output,
        stream=not output.no_stream,
        as_json=output.as_json,
        inputs=files,
        headings=False,
        export=output.export,
    )
    try:
        run = open_request(options, request, questions=0)
        banner(run)
        answer_loop.AnswerLoop(run, request.questions, writer).run(batch=False)
    finally:
        writer.close()
