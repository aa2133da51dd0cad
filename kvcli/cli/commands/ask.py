"""``kvcli ask [FILE…] QUESTION``: the options of the command, checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from kvcli.cli import answer_loop, completion, each_answers, library_answers, question_log, templates
from kvcli.cli.help import Command
from kvcli.cli.option_groups import MAIN, OptionGroup, option, takes_groups
from kvcli.cli.options import (
    AnswerOptions,
    EngineOptions,
    OutputOptions,
    PictureOptions,
    ReadOptions,
    RunOptions,
    as_json,
    named_files,
)
from kvcli.cli.output import AnswerWriter
from kvcli.cli.quotes_only import print_quotes
from kvcli.cli.request import Request, answer_format, parse_request, require_utf8
from kvcli.cli.resident import kept
from kvcli.cli.setup import open_request
from kvcli.cli.templates import Template
from kvcli.cli.views import citations
from kvcli.cli.views.activity import row
from kvcli.documents import STDIN
from kvcli.errors import UsageError

if TYPE_CHECKING:
    from kvcli.corpus.parts import Over


class Ask(Command):
    """``ask``: the last argument is the question, and the value of ``--cite`` may be left out."""

    usage = ("[FILE]...", "QUESTION")
    optional: ClassVar[dict[str, tuple[str, str]]] = {"--cite": ("|".join(citations.MODES), "on")}


@dataclass(frozen=True)
class QuestionOptions(OptionGroup):
    """The documents and questions of ``ask`` that options name."""

    PANEL: ClassVar[str] = "Questions"

    files: list[str] | None = named_files()
    questions: list[str] | None = option("-e, --question TEXT", "Question; repeat to ask several.", None, MAIN)
    question_files: list[str] | None = option("-Q, --questions FILE", "File of questions: one per line, or JSON Lines.")
    continued: bool = option("-c, --continue", "Continue the last question: its documents, options and answer.", False)
    each: bool = option("--each", "Ask about each file separately; kvcli map does it for many.", False)
    over: str | None = option("--over HOW", "Ask about each part, then join: chapters, pages:20 or tokens:8K.")
    top: int | None = option("--top N", "For a library (@NAME): passages to read again. Default: 4.", min=1)
    template: str = option(
        "-t, --template NAME",
        "Task: answer, quote, summary, …: kvcli templates ls",
        templates.DEFAULT,
        autocompletion=completion.tasks,
    )

    def request(self, words: list[str], usual: str | None) -> Request:
        """Documents and questions, in order; ``usual`` is that of the template. Raises ``UsageError``."""
        found = parse_request(words, self.files or [], self.questions or [], self.question_files or [], usual)
        if self.over and self.each:
            raise UsageError("--over and --each contradict each other", "leave out one of them")
        if self.each and (not found.files or STDIN in found.files):
            raise UsageError("--each needs at least one file", 'kvcli ask --each *.txt "…"')
        return found

    def library(self, request: Request) -> str | None:
        """The name of the library that is asked. Raises ``UsageError`` for options that have no part in it."""
        name = request.library
        if name is None and self.top is not None:
            raise UsageError("--top is for a library", 'kvcli ask @papers "…" --top 6')
        if name is not None and (self.over or self.each):
            raise UsageError("--over and --each ask about files, and @NAME is a library", "name the files")
        return name

    def cutting(self, answer: AskOptions, *, quotes_only: bool) -> Over | None:
        """How the document is cut. Raises ``UsageError`` for options that have no part in it."""
        if self.over is None:
            return None
        from kvcli.corpus.parts import Over

        given = {"--query-aware": answer.query_aware, "--from-quotes": answer.alone, "--quotes-only": quotes_only}
        given["--reread"] = answer.reread is not None
        for name, used in given.items():
            if used:
                raise UsageError(f"{name} has no effect with --over, which reads each part again", f"leave out {name}")
        return Over.parse(self.over)


@dataclass(frozen=True)
class AskOptions(AnswerOptions):
    """How ``ask`` answers."""

    stop: list[str] | None = option("--stop TEXT", "End the answer at this text; repeatable.")
    query_aware: bool = option(
        "--query-aware/--no-query-aware",
        "Put the question before the document as well. The prefill then serves only this question.",
        False,
    )
    from_quotes: bool | None = option(
        "--from-quotes/--no-from-quotes",
        "Answer in one line from the three likeliest sentences alone. Default: if the default model is asked a question"
        " and nothing says how to read.",
    )
    verbatim: bool = option(
        "--verbatim", "Like --from-quotes; the answer is successive words of one of these sentences.", False
    )
    schema: str | None = option("--schema FILE", "Answer in JSON that this JSON Schema allows, on one line.")
    choices: str | None = option("--choices A,B,…", "Answer with one of these texts.")
    reread: int | None = option(
        "--reread N", "Passages to re-read before the answer. Default: 3 if KV pairs were evicted.", min=0
    )

    def under(self, task: Template) -> AskOptions:
        """These options, and those of a template that were not given."""
        own: dict[str, Any] = {key.replace("-", "_"): value for key, value in task.sampling.items()}
        own["schema"] = task.schema if self.choices is None else None
        return replace(self, **{name: value for name, value in own.items() if getattr(self, name) is None})

    @property
    def formatted(self) -> bool:
        return self.schema is not None or self.choices is not None

    @property
    def alone(self) -> bool:
        """Whether the model sees nothing but the likeliest sentences."""
        return bool(self.from_quotes or self.verbatim)

    def refuse_unused(self) -> None:
        super().refuse_unused()
        if self.verbatim and self.from_quotes is False:
            raise UsageError("--verbatim and --no-from-quotes contradict each other", "leave out one of them")
        if self.verbatim and self.stop:
            raise UsageError("--stop would cut an answer of --verbatim", "leave out --stop")
        if self.schema is not None and self.choices is not None:
            raise UsageError("--schema and --choices contradict each other", "leave out one of them")
        cut = (
            "--stop" if self.stop else "--verbatim" if self.verbatim else "--from-quotes" if self.from_quotes else None
        )
        if self.formatted and cut:
            raise UsageError(f"{cut} would change an answer of a given form", f"leave out {cut}")

    def settings(self) -> dict[str, Any]:
        stop = tuple(require_utf8(text, "--stop") for text in self.stop or ())
        free = not (self.verbatim or self.query_aware or self.reread is not None)
        return {
            **super().settings(),
            "stop": stop,
            "query_aware": self.query_aware,
            "passages": self.reread,
            "from_quotes": None if free and self.from_quotes is None else self.alone,
            "verbatim": self.verbatim or None,
            "answer_format": answer_format(self.schema, self.choices),
        }


@dataclass(frozen=True)
class CiteOptions(OptionGroup):
    """Whether an answer's quotes are looked up."""

    PANEL: ClassVar[str] = "Citations"

    cite: str | None = option(
        "--cite [MODE]", "Find quotes in the document: off, on, strict. Default: on in a terminal.", None, MAIN
    )
    no_cite: bool = option("--no-cite", "The same as --cite off.", False)
    quotes: int = option("--quotes N", "Sentences of the document to print with an answer.", 3, min=0)
    rerank: str | None = option(
        "--rerank MODEL", "Embedding model or cross-encoder on this machine that ranks these sentences."
    )
    quotes_only: bool = option("--quotes-only", "Print only the sentences that may answer; load no model.", False)
    exit_status: bool = option(
        "--exit-status", "Exit with 10 if the text seems not to answer, or too little of the answer is in it.", False
    )
    covered: float = option(
        "--covered PERCENT", "With --exit-status: least share of the answer that is in the text.", 30.0, min=0, max=100
    )

    def __post_init__(self) -> None:
        if self.quotes_only and not self.quotes:
            raise UsageError("--quotes-only with --quotes 0 prints nothing", "--quotes 3")
        if self.rerank is not None and not self.quotes:
            raise UsageError("--rerank ranks quotes, and --quotes 0 prints none", "--quotes 3")

    def settings(self) -> dict[str, Any]:
        return {
            "exit_status": self.exit_status,
            "covered": self.covered / 100,
            "quotes": self.quotes,
            "rerank": self.rerank,
        }


@dataclass(frozen=True)
class AskOutput(OutputOptions):
    """Where answers of ``ask`` go, and in what form."""

    as_json: bool = as_json()
    output: str | None = option("-o, --output FILE", "Write the answer to FILE.")
    export: str | None = option(
        "--export FILE",
        "Also write answer and quotes to FILE.md or .html; FILE.pdf is a copy of the PDF with the quotes highlighted.",
    )
    no_headings: bool = option("--no-headings", "In a pipe, no heading before each of several answers.", False)
    no_stream: bool = option("-S, --no-stream", "Print the answer only when it is complete.", False)
    stream: bool = option(
        "--stream", "Print the answer while it is written. Default: of larger models, and without quotes.", False
    )
    no_log: bool = option("--no-log", "Keep question and answer out of kvcli logs.", False)
    stats: bool = option("--stats", "Print times, speed and memory to stderr.", False)

    def __post_init__(self) -> None:
        if self.stream and self.no_stream:
            raise UsageError("--stream and --no-stream contradict each other", "leave out one of them")

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "stats": self.stats, "log": not self.no_log}


@takes_groups
def command(
    words: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    *,
    question: QuestionOptions,
    read: ReadOptions,
    pictures: PictureOptions,
    answer: AskOptions,
    citing: CiteOptions,
    engine: EngineOptions,
    output: AskOutput,
) -> None:
    """Ask a question about documents.

    FILE is a PDF, EPUB, office, HTML, mail, notebook, text or source file. It can also be a directory, a web address
    (https://…), a saved prefill (book.kv), or @NAME for a library (kvcli library). Without FILE, piped standard input
    is the document. The last argument is the question; with -e or -Q every argument is a FILE. A prefill is saved, so
    further questions about the same documents start at once.

    \b
    Examples:
      kvcli ask book.pdf "Who tells the story?"
      kvcli ask @papers "Which paper measures energy?"
      kvcli ask src/ --include '*.py' "Where is the cache written?"
      kvcli ask book.pdf -Q questions.txt --json > answers.jsonl
      kvcli ask invoice.pdf "Who pays how much?" --schema invoice.schema.json
    """
    kept.refuse(engine.no_server)
    task = templates.load(question.template)
    citing = replace(citing, quotes_only=citing.quotes_only or task.quotes_only)
    request = question.request(words or [], task.question)
    answer, read = answer.under(task), replace(read, prompt=read.prompt.under(task))
    answer.refuse_unused()
    quiet = answer.formatted and not citing.exit_status and not output.as_json
    plain = citing.no_cite or citing.exit_status or output.as_json or output.output is not None
    cite = citations.mode(
        "off" if quiet and citing.cite is None else citing.cite or (None if plain else task.cite),
        no_cite=citing.no_cite,
        exit_status=citing.exit_status,
        as_json=output.as_json,
        output=output.output,
    )
    over = question.cutting(answer, quotes_only=citing.quotes_only)
    shown = {"cite": cite != "off", "strict": cite == "strict", "over": over}
    options = RunOptions.of(read, pictures, answer, citing, output, **shown)
    if cite == "off" and not citing.quotes_only:
        options = replace(options, quotes=0)
    if options.from_quotes is None and options.strict:
        options = replace(options, from_quotes=False)
    options = options.under(task, answer.max_tokens)
    if question.continued:
        options, files = question_log.continued(options, question_log.latest(), request.files)
        request = replace(request, files=files)
    named = question.question_files or []
    library = question.library(request)
    if library is not None and citing.rerank is not None:
        raise UsageError("--rerank has no effect on a library", f"kvcli library add {library} --embed MODEL FILE…")
    if options.images or options.image_pages:
        others = {"--each": question.each, "--quotes-only": citing.quotes_only, "a library": library is not None}
        if other := next((name for name, given in others.items() if given), None):
            raise UsageError(f"{other} takes no pictures", "leave out --image and --pages-as-images")
    inputs = [*request.files, *options.images, *named]
    writer = AnswerWriter(
        output.output,
        stream=False if output.no_stream or answer.formatted else output.stream or None,
        as_json=output.as_json,
        inputs=inputs,
        wrap=not answer.formatted,
        headings=not (output.no_headings or answer.formatted),
        export=output.export,
    )
    try:
        if citing.quotes_only:
            from_stdin = STDIN in named
            print_quotes(options, request, writer, stdin_is_questions=from_stdin, each=question.each)
        elif library is not None:
            library_answers.answer(options, library, request, writer, question.top or library_answers.TOP)
        elif question.each:
            each_answers.answer(options, request, writer)
        else:
            questions = 0 if over else len(request.questions)  # one reading serves all parts
            early = None if output.as_json or output.output is not None else request.questions[0].text
            run = open_request(options, request, questions=questions, stdin_is_questions=STDIN in named, early=early)
            loop = answer_loop.AnswerLoop(run, request.questions, writer)
            loop.banner()
            failed = loop.run(batch=request.batch)
            answer_loop.finish(failed, len(request.questions), "question", loop.without_citation, options)
    finally:
        row.keep_above(None)
        writer.close()
