"""How a run ends: every exception becomes one error with one exit code.

    0 answered    1 internal error    130 Ctrl-C    141 stdout was closed    143 SIGTERM
    2 usage       3 input       4 model       5 resources       6 too long       7 damaged
    8 part of a batch failed    10 with --exit-status: an answer is not covered by the text

2 to 7 are the leaves of :mod:`kvcli.errors`.
"""

import difflib
import json
import os
import sys
import traceback
from contextlib import suppress
from typing import Any

import typer

from kvcli.cli.resident import kept
from kvcli.cli.signals import INTERRUPTS, Interrupted
from kvcli.cli.views import terminal
from kvcli.errors import KvcliError, ResourceError, UsageError

PARTLY_FAILED = 8
BROKEN_PIPE = 141


def to_kvcli_error(problem: BaseException) -> KvcliError:
    """The error to print for any exception. After some, an engine loads its model again."""
    error = _error(problem)
    kept.doubtful = kept.doubtful or error.exit in (KvcliError.exit, ResourceError.exit)
    return error


def _error(problem: BaseException) -> KvcliError:
    if isinstance(problem, KvcliError):
        return problem
    if isinstance(problem, INTERRUPTS):
        return Interrupted("interrupted", cause=problem)
    if hasattr(problem, "format_message"):  # click's errors, from whichever copy of click typer uses
        return _usage(problem)
    return KvcliError.of(problem)


def _usage(problem: Any) -> UsageError:
    context = getattr(problem, "ctx", None)
    path = context.command_path if context is not None else "kvcli"
    option = getattr(problem, "option_name", None)
    if type(problem).__name__ == "NoSuchOption":
        near = difflib.get_close_matches(option, problem.possibilities or (), n=1, cutoff=0.75)
        nearest = f"; did you mean {near[0]}?" if near else ""
        return UsageError(f"there is no option {option}{nearest}", f"{path} --help")
    message = _wrong_value(problem) or str(problem.format_message()).strip().rstrip(".")
    return UsageError(message[:1].lower() + message[1:], f"{path} --help")


def _wrong_value(problem: Any) -> str | None:
    """What is wrong with a number; typer says it in the words of pydantic."""
    cause, param = problem.__cause__, getattr(problem, "param", None)
    if param is None or not hasattr(cause, "errors"):
        return None
    wrong = cause.errors()[0]
    bounds = wrong.get("ctx", {})
    what = {
        "float_parsing": "is not a number",
        "int_parsing": "is not a whole number",
        "int_from_float": "is not a whole number",
        "greater_than_equal": f"is less than {bounds.get('ge', 0):g}",
        "less_than_equal": f"is more than {bounds.get('le', 0):g}",
        "greater_than": f"is not more than {bounds.get('gt', 0):g}",
        "less_than": f"is not less than {bounds.get('lt', 0):g}",
    }.get(wrong["type"])
    name = param.opts[-1] if param.param_type_name == "option" else param.metavar or param.name
    return what and f"{name} {wrong['input']} {what}"


def finish(problem: BaseException, *, as_json: bool, debug: bool) -> int:
    """Print how the run ended, an error to stderr and with ``--json`` to stdout too; returns the exit code."""
    if isinstance(problem, typer.Exit):
        return problem.exit_code
    if isinstance(problem, typer.Abort):  # Ctrl-C or Ctrl-D at a yes-or-no question
        return 130
    if isinstance(problem, BrokenPipeError):
        return silence_broken_pipe()
    if type(problem).__name__ == "NoArgsIsHelpError":
        print(problem, file=sys.stderr)
        return UsageError.exit
    if debug:
        traceback.print_exception(problem)
    error = to_kvcli_error(problem)
    try:
        if as_json:
            terminal.write(sys.stdout, json.dumps(error.to_json(), ensure_ascii=False))
        terminal.error(error)
    except BrokenPipeError:
        return silence_broken_pipe()
    return error.exit


def silence_broken_pipe() -> int:
    """Print nothing more to a closed stream, also when Python flushes at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (BrokenPipeError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(null, stream.fileno())
    os.close(null)
    return BROKEN_PIPE
