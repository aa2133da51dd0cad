"""``kvcli chat [FILE…]``: the options of the command, and the loop over typed or piped lines."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from kvcli.cli import completion
from kvcli.cli.option_groups import MAIN, OptionGroup, option, takes_groups
from kvcli.cli.options import (
    AnswerOptions,
    EngineOptions,
    OutputOptions,
    PictureOptions,
    ReadOptions,
    RunOptions,
    named_files,
)
from kvcli.cli.resident import kept
from kvcli.cli.views import terminal
from kvcli.documents import STDIN
from kvcli.errors import UsageError
from kvcli.prompt_cache.file_format import looks_like

if TYPE_CHECKING:
    from kvcli.chat.transcript import Transcript

UNSAVED = ("model", "system", "device", "offline")
"""Options that a conversation does not save with the others."""


@dataclass(frozen=True)
class ConversationOptions(OptionGroup):
    """Which conversation, about which documents."""

    PANEL: ClassVar[str] = "Conversation"

    named: list[str] | None = named_files()
    resume: bool = option("-c, --continue", "Continue the last conversation.", False, MAIN)
    session: str | None = option(
        "--session NAME",
        "Start or continue the conversation NAME.",
        None,
        MAIN,
        autocompletion=completion.sessions,
    )
    cite: bool | None = option(
        "--cite/--no-cite", "Find quotes in the document. Default: on in a terminal.", None, MAIN
    )

    quotes: int = option("--quotes N", "Sentences of the document to print with an answer.", 3, min=0)

    def settings(self) -> dict[str, Any]:
        shown = sys.stdin.isatty() and terminal.is_terminal(sys.stdout) if self.cite is None else self.cite
        return {"cite": shown, "quotes": self.quotes}


@takes_groups
def command(
    files: Annotated[list[str] | None, typer.Argument(metavar="FILE", help="Documents.")] = None,
    *,
    conversation: ConversationOptions,
    read: ReadOptions,
    pictures: PictureOptions,
    answer: AnswerOptions,
    engine: EngineOptions,
    output: OutputOptions,
) -> None:
    """Chat with a model, with or without documents.

    FILE is a document as in kvcli ask. /help lists the commands, Ctrl-D leaves. The conversation is saved after every
    turn. If its turns no longer fit, the oldest are compressed like the document. If standard input is not
    a terminal, each of its lines is one question or command.
    """
    kept.refuse(engine.no_server)
    names = [*(conversation.named or []), *(files or [])]
    if STDIN in names:
        raise UsageError("standard input holds the questions and cannot be a document", "kvcli chat FILE")
    path, saved = _session(names, resume=conversation.resume, name=conversation.session)
    model, recipe, prompt = read.model, read.recipe, read.prompt
    if recipe.heads is not None:
        recipe = replace(recipe, heads=_absolute(recipe.heads))
    if pictures.image is not None:
        pictures = replace(pictures, image=[_absolute(name) for name in pictures.image])
    groups: list[OptionGroup] = [model, read.document, recipe, prompt, pictures]
    given = {name: value for group in groups for name, value in asdict(group).items() if name not in UNSAVED}
    saved.options |= {name: value for name, value in given.items() if value not in (None, False, "bf16")}
    if model.model is not None:
        saved.model = _model(model.model)
    saved.system = saved.system if prompt.system is None else prompt.system
    known = {**saved.options, "model": saved.model, "system": saved.system}
    restored = [replace(g, **{name: known[name] for name in asdict(g) if known.get(name)}) for g in groups]
    options = RunOptions.of(*restored, answer, read.cache, output, conversation)
    _run(options, saved, path, answer.sampling, debug=output.debug)


def _session(files: list[str], *, resume: bool, name: str | None) -> tuple[Path, Transcript]:
    """The file of the conversation, and its content."""
    from kvcli.chat import transcript

    if resume and name is not None:
        raise UsageError("-c and --session exclude each other", "leave out -c")
    path = transcript.last() if resume else transcript.fresh() if name is None else transcript.named(name)
    here = transcript.Transcript(files=[_name(file) for file in files], folder=str(Path.cwd()))
    if not path.exists():
        return path, here
    found = transcript.load(path)
    if files and transcript.absolute(here) != transcript.absolute(found):
        names = " ".join(found.files) or "no file"
        raise UsageError(f"the session {path.stem} has other documents: {names}", "leave out FILE and type /add FILE")
    return path, found


def _name(file: str) -> str:
    """The name of a document as it is; the absolute path of a saved prefill."""
    path = Path(file).expanduser()
    return str(path.absolute() if looks_like(path) else path)


def _model(name: str) -> str:
    """An alias as it is; the absolute path of a directory or GGUF file."""
    from kvcli.models.catalogue import ALIASES

    return name if name in ALIASES else _absolute(name)


def _absolute(name: str) -> str:
    """The absolute path of an existing file; other names as they are."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


def _run(options: RunOptions, saved: Transcript, path: Path, drawn: dict[str, Any], *, debug: bool) -> None:
    from kvcli.cli.chat.lines import lines
    from kvcli.cli.chat.setup import ChatSetup

    interactive = sys.stdin.isatty()
    setup = ChatSetup(options, saved.files, saved.added, Path(saved.folder))
    from kvcli.cli.chat.loop import Chat
    from kvcli.cli.chat.session import ChatSession

    given = saved.sampling
    if drawn:
        from kvcli.engine.sampling import Sampling

        given = asdict(Sampling(**{**(saved.sampling or setup.sampling()), **drawn}))
    session = ChatSession(setup, saved, path, given, interactive=interactive)
    try:
        session.open()
        chat = Chat(session, debug=debug)
        if interactive and not options.quiet:
            session.recall()
            terminal.note("chat", "type a question; /help lists commands, Ctrl-D leaves")
        if kept.active:  # the client reads the lines
            kept.chat = chat
            return
        for line in lines(chat.state()["names"], lambda: str(chat.state()["status"])):
            chat.take(line)
            if chat.leave:
                break
    finally:
        if kept.chat is None:
            session.close()
    if code := chat.end():
        raise typer.Exit(code)
