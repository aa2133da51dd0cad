"""``kvcli chat [FILE…]``: the options of the command, and the loop of lines that are typed or piped."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvcli.cli.exit_codes import PARTLY_FAILED, to_kvcli_error
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
from kvcli.cli.request import require_utf8
from kvcli.cli.signals import Interrupted
from kvcli.cli.views import terminal
from kvcli.documents import STDIN
from kvcli.errors import InputError, KvcliError, UsageError
from kvcli.planning.budget import Budget
from kvcli.prompt_cache.file_format import looks_like
from kvcli.types import ANSWER_TOKENS

if TYPE_CHECKING:
    from kvcli.chat.transcript import Transcript
    from kvcli.cli.chat.commands import Commands
    from kvcli.cli.chat.session import ChatSession

COMMAND = re.compile(r"/[a-z]*(\s|$)")
"""What is no question. A path, or a comment that was pasted, is one."""


def command(
    files: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE]...", help="What to read.", show_default=False)
    ] = None,
    named: Annotated[
        list[str] | None,
        typer.Option("-f", "--file", "--context", metavar="FILE", help="A file to read, repeatable."),
    ] = None,
    model: MODEL = None,
    system: SYSTEM = None,
    resume: Annotated[bool, typer.Option("-c", "--continue", help="Go on with the last conversation.")] = False,
    session: Annotated[
        str | None, typer.Option("--session", metavar="NAME", help="A conversation by name: begin it, or go on.")
    ] = None,
    max_tokens: MAX_TOKENS = None,
    temp: Annotated[
        float | None,
        typer.Option("--temp", metavar="T", min=0.0, help="Temperature; by default the model's own settings."),
    ] = None,
    top_p: TOP_P = None,
    top_k: TOP_K = None,
    min_p: MIN_P = None,
    seed: SEED = None,
    quiet: QUIET = False,
    verbose: VERBOSE = False,
    raw: Annotated[bool, typer.Option("-r", "--raw", help="No chat template: the text, then what is typed.")] = False,
    policy: POLICY = None,
    budget: BUDGET = None,
    kv_bits: KV_BITS = None,
    heads: HEADS = None,
    chunk: CHUNK = None,
    cite: Annotated[
        bool | None,
        typer.Option(
            "--cite/--no-cite",
            help="Look up what answers quote; on a terminal by default.",
            show_default=False,
        ),
    ] = None,
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
    debug: DEBUG = False,
) -> None:
    """Talk with a model about files, or about nothing in particular.

    FILE is anything that ``kvcli ask`` reads. /help lists the commands, Ctrl-D leaves. The conversation is saved as it
    goes, and its turns are evicted into the context when they have become many, so that it can go on for ever.
    Without a terminal each line of standard input is one question or command.
    """
    read = [*(named or []), *(files or [])]
    if STDIN in read:
        raise UsageError("standard input is what is said, and cannot be a document", "kvcli chat FILE")
    path, saved = _session(read, resume=resume, name=session)
    given = {
        "policy": policy,
        "budget": budget,
        "kv_bits": kv_bits,
        "heads": None if heads is None else _place(heads),
        "chunk": chunk,
        "raw": raw or None,
        "pages": ranges,
        "include": include,
        "exclude": exclude,
        "ocr": ocr or None,
        "dtype": dtype,
        "weights": None if weights == "bf16" else weights,
    }
    saved.options |= {name: value for name, value in given.items() if value is not None}
    saved.model = saved.model if model is None else _model(model)
    if system is not None:
        saved.system = require_utf8(system, "the system message")
    options = _settings(saved, max_tokens=max_tokens, device=device, offline=offline, quiet=quiet, verbose=verbose)
    sampling = {"temperature": temp, "top_p": top_p, "top_k": top_k, "min_p": min_p, "seed": seed}
    drawn = {name: value for name, value in sampling.items() if value is not None}
    looked_up = cite if cite is not None else sys.stdin.isatty() and terminal.is_terminal(sys.stdout)
    options = replace(options, cache=not no_cache, rebuild=rebuild, cite="on" if looked_up else "off")
    _run(options, saved, path, drawn, debug=debug)


def _session(files: list[str], *, resume: bool, name: str | None) -> tuple[Path, Transcript]:
    """Where the conversation is saved, and what there is of it."""
    from kvcli.chat import transcript

    if resume and name is not None:
        raise UsageError("-c goes on with the last conversation, --session NAME with that one", "leave out -c")
    path = transcript.last() if resume else transcript.fresh() if name is None else transcript.named(name)
    here = transcript.Transcript(files=[_name(file) for file in files], folder=str(Path.cwd()))
    if not path.exists():
        return path, here
    found = transcript.load(path)
    if files and transcript.absolute(here) != transcript.absolute(found):
        names = " ".join(found.files) or "no file"
        raise UsageError(f"the session {path.stem} is about {names}", "leave out FILE and type /add FILE")
    return path, found


def _name(file: str) -> str:
    """A document's as it is; a saved reading's, which is in no text, from wherever the conversation goes on."""
    path = Path(file).expanduser()
    return str(path.absolute() if looks_like(path) else path)


def _model(name: str) -> str:
    """An alias as it is, whatever lies here under its name; a directory or a GGUF by its place."""
    from kvcli.models.resolve import ALIASES

    return name if name in ALIASES else _place(name)


def _place(name: str) -> str:
    """What lies here, by a name that leads to it from wherever the conversation goes on."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


def _settings(
    saved: Transcript, *, max_tokens: int | None, device: str | None, offline: bool, quiet: bool, verbose: bool
) -> RunOptions:
    """What the conversation was begun with, checked as if it had been typed."""
    known = saved.options
    if known.get("raw") and saved.system:
        raise UsageError("--system has no place in a raw prompt", "leave out --raw or --system")
    return RunOptions(
        model=saved.model,
        system=saved.system,
        raw=bool(known.get("raw")),
        max_tokens=max_tokens or ANSWER_TOKENS,
        allow_repetition=max_tokens is not None,
        policy=known.get("policy"),
        budget=None if known.get("budget") is None else Budget.parse(known["budget"]),
        kv_bits=known.get("kv_bits"),
        heads=known.get("heads"),
        chunk=known.get("chunk"),
        reading=reading_options(known.get("pages"), known.get("include"), known.get("exclude"), bool(known.get("ocr"))),
        device=device,
        dtype=known.get("dtype"),
        weights=known.get("weights") or "bf16",
        offline=offline,
        quiet=quiet,
        verbose=verbose,
    )


def _run(options: RunOptions, saved: Transcript, path: Path, drawn: dict[str, Any], *, debug: bool) -> None:
    from kvcli.cli.chat.commands import Commands
    from kvcli.cli.chat.session import ChatSession
    from kvcli.cli.chat.setup import ChatSetup

    interactive = sys.stdin.isatty()
    setup = ChatSetup(options, saved.files, saved.added, Path(saved.folder))
    given = saved.sampling
    if drawn:
        from kvcli.engine.sampling import Sampling

        given = asdict(Sampling(**{**(saved.sampling or setup.sampling()), **drawn}))
    session = ChatSession(setup, saved, path, given, interactive=interactive)
    try:
        session.open()
        if interactive:
            from kvcli.cli.chat.input import InputLine, confirm

            prompt = InputLine(session, Commands.names())
            terminal.note("chat", "type a question; /help lists commands, Ctrl-D leaves", quiet=options.quiet)
            _loop(session, Commands(session, confirm), iter(prompt.read, None), debug=debug)
        else:
            _loop(session, Commands(session, lambda _: True), _piped(), debug=debug)
    finally:
        session.close()
    if interactive and session.talk.turns:
        terminal.note("saved", f"kvcli chat --session {session.path.stem}", quiet=options.quiet)
    if session.failed and not interactive:
        raise typer.Exit(PARTLY_FAILED)


def _piped() -> Iterator[str | KvcliError]:
    """Lines of standard input; an error stands for one that is no text."""
    for n, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield line.decode("utf-8-sig" if n == 1 else "utf-8")
        except UnicodeDecodeError:
            yield InputError(f"line {n} of standard input is not UTF-8", "iconv -t utf-8")


def _loop(session: ChatSession, commands: Commands, lines: Iterator[str | KvcliError], *, debug: bool) -> None:
    """Every line a question or a command; what goes wrong with one is said, and the next one is taken."""
    for line in lines:
        try:
            if isinstance(line, KvcliError):
                raise line
            text = line.strip()
            if COMMAND.match(text):
                commands.run(require_utf8(text, "the command"))
            elif text:
                session.ask(require_utf8(text, "the question"))
        except Interrupted:
            raise
        except KeyboardInterrupt as stop:
            if not session.interactive:
                raise Interrupted(
                    "interrupted; the conversation is saved", f"kvcli chat --session {session.path.stem}", cause=stop
                ) from None
        except BrokenPipeError:
            raise
        except Exception as problem:
            if debug:
                traceback.print_exception(problem)
            session.problem(to_kvcli_error(problem))
        if commands.leave:
            return
