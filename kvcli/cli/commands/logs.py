"""``kvcli logs``: questions and answers of ``kvcli ask``. Imports no torch."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated, Any

import typer

from kvcli.cli import defaults, question_log
from kvcli.cli.option_groups import MAIN, annotation
from kvcli.cli.options import DEBUG, JSON
from kvcli.cli.views import terminal
from kvcli.errors import UsageError
from kvcli.utils import config_file

ACTIONS = ("on", "off", "clear", "path")
SETTING = ("ask", "no-log")


def command(
    ctx: typer.Context,
    action: Annotated[
        str | None,
        typer.Argument(metavar="ACTION", help="on or off: write the log or not; clear: delete it; path: where it is."),
    ] = None,
    count: Annotated[int, annotation("-n, --count N", "How many answers.", MAIN, min=1)] = 5,
    search: Annotated[str | None, annotation("--search WORDS", "Only those with all these words.", MAIN)] = None,
    as_json: JSON = False,
    _debug: DEBUG = False,
) -> None:
    """Show the last questions and answers of kvcli ask.

    They are in a file that only you can read. kvcli ask --no-log writes nothing, and neither does --no-cache.

    \b
    Examples:
      kvcli logs -n 20 --search "harbour dues"
      kvcli logs off
    """
    if action is None:
        _show(question_log.last(count, (search or "").split()), as_json=as_json)
    elif action not in ACTIONS:
        raise UsageError(f"kvcli logs {action}: expected {', '.join(ACTIONS)}", "kvcli logs --search WORDS")
    elif action == "path":
        print(question_log.path())
    elif action == "clear":
        terminal.note("deleted", terminal.plural(question_log.clear(), "answer"))
    else:
        with suppress(KeyError):
            config_file.change(SETTING, True if action == "off" else None)
        defaults.defaults(ctx.find_root().command, config_file.read())
        terminal.note("logs", f"{action}, in {config_file.path()}")


def _show(found: list[question_log.Logged], *, as_json: bool) -> None:
    if as_json:
        terminal.print_json(logs=[_facts(entry) for entry in found])
        return
    for entry in found:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.made))
        about = " · ".join([f"#{entry.id}", made, entry.model, *([" ".join(entry.files)] if entry.files else [])])
        terminal.paragraph(sys.stdout, terminal.oneline(about), "dim", indent=2)
        terminal.paragraph(sys.stdout, f"> {terminal.oneline(entry.question)}", "bold", indent=2)
        for line in terminal.strip_control(entry.answer).splitlines():
            terminal.paragraph(sys.stdout, line)
        print(flush=True)
    if not found:
        terminal.note("logs", f"no answers · {question_log.path()}")


def _facts(entry: question_log.Logged) -> dict[str, Any]:
    facts = asdict(entry)
    del facts["options"]
    return {**facts, "made": round(entry.made, 3)}
