"""The input line: history, completion, several lines, an editor and a status line."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import has_completions, is_searching
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output

from kvcli.cli.views import terminal
from kvcli.utils import files

PATHS = ("/add", "/export")


class CommandCompleter(Completer):
    """Completes commands, and paths after commands that take a file."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Completions of the text before the cursor."""
        text = document.text_before_cursor
        if not text.startswith("/"):
            return
        command, space, rest = text.partition(" ")
        if not space:
            for name in self.names:
                if name.startswith(command[1:]):
                    yield Completion(f"/{name}", start_position=-len(command))
        elif command in PATHS:
            word = re.split(r"(?<!\\) ", rest)[-1]
            yield from self._paths.get_completions(Document(word), complete_event)


def keys() -> KeyBindings:
    """Enter sends; Alt-Enter, or Enter after a backslash, starts a new line."""
    bindings = KeyBindings()

    @bindings.add("enter", filter=~has_completions & ~is_searching)
    def _send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.newline()
        else:
            buffer.validate_and_handle()

    @bindings.add("enter", filter=has_completions)
    def _choose(event: KeyPressEvent) -> None:
        event.current_buffer.complete_state = None

    @bindings.add("c-x", "c-e")
    def _edit(event: KeyPressEvent) -> None:
        event.current_buffer.open_in_editor(validate_and_handle=False)  # the message is sent by Enter

    @bindings.add("escape", "enter")
    def _line(event: KeyPressEvent) -> None:
        event.current_buffer.newline()

    return bindings


def _history() -> FileHistory:
    """The typed lines, in a file that only its owner can read."""
    path = files.data_dir() / "history"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    path.chmod(0o600)
    return FileHistory(path)


class InputLine:
    """Reads messages from a terminal."""

    def __init__(self, status: Callable[[], str], names: Iterable[str]) -> None:
        self.session: PromptSession[str] = PromptSession(
            history=_history(),
            completer=CommandCompleter(names),
            complete_while_typing=False,
            key_bindings=keys(),
            multiline=True,
            enable_open_in_editor=False,
            tempfile_suffix=".md",
            bottom_toolbar=lambda: FormattedText([("", self.bottom(status()))]),
            prompt_continuation="  ",
            output=create_output(sys.stdout if terminal.is_terminal(sys.stdout) else sys.stderr),
        )

    def bottom(self, line: str) -> str:
        """The status line, shortened if the window is narrow."""
        return line if len(line) <= self.session.output.get_size().columns else line.replace(" · ", "·")

    def read(self) -> str | None:
        """One message, or ``None`` at Ctrl-D. Ctrl-C empties the line."""
        while True:
            try:
                return self.session.prompt("> ")
            except KeyboardInterrupt:
                continue
            except EOFError:
                return None


def confirm(question: str) -> bool:
    """Ask a yes-or-no question; Ctrl-C and Ctrl-D mean no."""
    from prompt_toolkit import prompt
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.input import create_input

    try:
        with create_app_session(create_input(sys.stdin), create_output(sys.stdout)):  # an engine has many terminals
            return prompt(f"{question} [Y/n] ").strip().lower() in ("", "y", "yes")
    except (KeyboardInterrupt, EOFError):
        return False
