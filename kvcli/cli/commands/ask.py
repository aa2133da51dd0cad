"""``kvcli ask [FILE…] QUESTION``: the options of the command, checked."""

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from kvcli.cli import answer_loop
from kvcli.cli.options import (
    BUDGET,
    CHUNK,
    DEBUG,
    DEVICE,
    DTYPE,
    EXCLUDE,
    HEADS,
    INCLUDE,
    KV_BITS,
    MAX_TOKENS,
    MIN_P,
    MODEL,
    NO_CACHE,
    OCR,
    OFFLINE,
    PAGES,
    POLICY,
    QUIET,
    REBUILD,
    SEED,
    SYSTEM,
    TOP_K,
    TOP_P,
    VERBOSE,
    WEIGHTS,
    RunOptions,
    reading_options,
)
from kvcli.cli.output import AnswerWriter
from kvcli.cli.quotes_only import print_quotes
from kvcli.cli.request import parse_request, require_utf8
from kvcli.cli.views import citations
from kvcli.documents import STDIN
from kvcli.errors import UsageError
from kvcli.planning.budget import Budget
from kvcli.types import ANSWER_TOKENS


class Ask(TyperCommand):
    """``ask`` with a usage line that tells files from the question, which one list of words cannot."""

    def collect_usage_pieces(self, _ctx: Any) -> list[str]:
        return ["[OPTIONS]", "[FILE]...", "QUESTION"]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, citations.words(args))


def command(
    words: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    model: MODEL = None,
    system: SYSTEM = None,
    files: Annotated[
        list[str] | None,
        typer.Option(
            "-f",
            "--file",
            "--context",
            metavar="FILE",
            help="A file to read, repeatable; - is standard input.",
        ),
    ] = None,
    questions: Annotated[
        list[str] | None,
        typer.Option("-e", "--question", metavar="TEXT", help="A question, repeatable: one reading, many answers."),
    ] = None,
    question_files: Annotated[
        list[str] | None,
        typer.Option("-Q", "--questions", metavar="FILE", help="Questions, one per line or JSON Lines; - is stdin."),
    ] = None,
    max_tokens: MAX_TOKENS = None,
    temp: Annotated[float, typer.Option("--temp", metavar="T", min=0.0, help="Temperature; 0 is greedy.")] = 0.0,
    top_p: TOP_P = None,
    top_k: TOP_K = None,
    min_p: MIN_P = None,
    seed: SEED = None,
    stop: Annotated[
        list[str] | None,
        typer.Option("--stop", metavar="TEXT", help="Text that ends the answer; repeatable."),
    ] = None,
    no_stream: Annotated[bool, typer.Option("-S", "--no-stream", help="Print the answer when it is complete.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per answer.")] = False,
    quiet: QUIET = False,
    verbose: VERBOSE = False,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write the answer there, not to stdout."),
    ] = None,
    raw: Annotated[bool, typer.Option("-r", "--raw", help="No chat template: the text, then the question.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Times, speed and memory on stderr.")] = False,
    policy: POLICY = None,
    budget: BUDGET = None,
    kv_bits: KV_BITS = None,
    heads: HEADS = None,
    query_aware: Annotated[
        bool,
        typer.Option(
            "--query-aware/--no-query-aware", help="Read for this question alone: put it before the text too."
        ),
    ] = False,
    reread: Annotated[
        int | None,
        typer.Option(
            "--reread",
            metavar="N",
            min=0,
            help="Read N passages again before the answer. Default: 3 if units were evicted.",
        ),
    ] = None,
    chunk: CHUNK = None,
    cite: Annotated[
        str | None,
        typer.Option(
            "--cite", metavar="[MODE]", help="Look up what the answer quotes: on, off, strict; on a terminal on."
        ),
    ] = None,
    no_cite: Annotated[bool, typer.Option("--no-cite", help="Look nothing up: the answer alone.")] = False,
    quotes: Annotated[
        int,
        typer.Option("--quotes", metavar="N", min=0, help="Sentences of the text to print with a cited answer."),
    ] = 3,
    quotes_only: Annotated[
        bool, typer.Option("--quotes-only", help="Print the sentences that may answer, found by words; no answer.")
    ] = False,
    exit_status: Annotated[
        bool, typer.Option("--exit-status", help="Exit 10 where no quote of an answer is verified.")
    ] = False,
    each: Annotated[bool, typer.Option("--each", help="Every file by itself: one answer per file.")] = False,
    no_cache: NO_CACHE = False,
    rebuild: REBUILD = False,
    ranges: PAGES = None,
    include: INCLUDE = None,
    exclude: EXCLUDE = None,
    ocr: OCR = False,
    device: DEVICE = None,
    dtype: DTYPE = None,
    weights: WEIGHTS = "bf16",
    offline: OFFLINE = False,
    _debug: DEBUG = False,
) -> None:
    """Ask a question about files or standard input.

    FILE is a PDF, EPUB, DOCX, HTML, Markdown, text or source file, or a directory; several are read in order.
    Without FILE, piped standard input is the document. QUESTION is the last argument, in quotes; several
    questions (-e, -Q) share one reading. Readings are saved: the next question about the same text reads nothing.
    FILE may also be a saved reading of ``kvcli prefill -o book.kv``.
    """
    named = question_files or []
    request = parse_request(words or [], files or [], questions or [], named)
    if temp == 0 and (
        unused := [o for o, v in (("--top-p", top_p), ("--top-k", top_k), ("--min-p", min_p)) if v is not None]
    ):
        raise UsageError(f"{' and '.join(unused)} would change nothing at temperature 0", f"--temp 0.7 {unused[0]} …")
    given = {"temperature": temp or None, "top_p": top_p, "top_k": top_k, "min_p": min_p, "seed": seed}
    options = RunOptions(
        model=model,
        system=None if system is None else require_utf8(system, "the system message"),
        raw=raw,
        max_tokens=max_tokens or ANSWER_TOKENS,
        allow_repetition=max_tokens is not None,
        sampling={k: v for k, v in given.items() if v is not None},
        stop=tuple(require_utf8(s, "--stop") for s in stop or []),
        policy=policy,
        budget=None if budget is None else Budget.parse(budget),
        kv_bits=kv_bits,
        heads=heads,
        query_aware=query_aware,
        passages=reread,
        cite=citations.mode(cite, no_cite=no_cite, exit_status=exit_status, as_json=as_json, output=output),
        exit_status=exit_status,
        quotes=quotes,
        quotes_only=quotes_only,
        chunk=chunk,
        cache=not no_cache,
        rebuild=rebuild,
        reading=reading_options(ranges, include, exclude, ocr),
        device=device,
        dtype=dtype,
        weights=weights,
        offline=offline,
        stats=stats,
        quiet=quiet,
        verbose=verbose,
    )
    if each and (not request.files or STDIN in request.files):
        raise UsageError("--each needs files, each to be asked by itself", 'kvcli ask --each *.txt "…"')
    if quotes_only and not quotes:
        raise UsageError("--quotes-only prints quotes, and --quotes 0 asks for none", "--quotes 3")
    if raw and system:
        raise UsageError("--system has no place in a raw prompt", "leave out --raw or --system")
    writer = AnswerWriter(output, stream=not no_stream, as_json=as_json, inputs=[*request.files, *named])
    try:
        if quotes_only:
            print_quotes(options, request, writer, stdin_is_questions=STDIN in named, each=each)
        elif each:
            answer_loop.answer_each(options, request, writer)
        else:
            loop = answer_loop.open_loop(options, request, writer, stdin_is_questions=STDIN in named)
            failed = loop.run(batch=request.batch)
            answer_loop.finish(failed, len(request.questions), "question", loop.without_citation, options)
    finally:
        writer.close()
