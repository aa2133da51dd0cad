"""Write the manual page kvcli.1 from the help of every command: ``python docs/man.py build/kvcli.1``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvcli.cli.help import _names, _text
from kvcli.cli.program import PANELS
from kvcli.cli.program import command as program
from kvcli.utils.version import __version__


def escaped(text: str) -> str:
    """A text for roff: its signs are text, and no line begins a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "")
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in text.splitlines())


def section(words: str, command: Any) -> Iterator[str]:
    """One command: usage, help and options; then its subcommands."""
    context = command.make_context(words, [], resilient_parsing=True)
    yield f".SH {escaped(words.upper())}"
    usage = " ".join(command.collect_usage_pieces(context))
    yield f".B {escaped(words)}\n{escaped(usage)}\n.PP"
    for block in (command.help or "").replace("\b\n", "\b").split("\n\n"):
        body = block.strip()
        if body.startswith("\b"):
            yield f".nf\n{escaped(body[1:])}\n.fi\n.PP"
        elif body:
            yield f"{escaped(' '.join(body.split()))}\n.PP"
    for param in command.get_params(context):
        if param.param_type_name == "option" and not param.hidden:
            yield f".TP\n.B {escaped(_names(param))}\n{escaped(_text(param))}"
    for name, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            yield from section(f"{words} {name}", inner)


def page() -> str:
    """The whole manual page."""
    top = program()
    parts = [
        f'.TH KVCLI 1 "" "kvcli {__version__}" "User commands"',
        f".SH NAME\nkvcli \\- {escaped(top.help.rstrip('.'))}",
        ".SH SYNOPSIS\n.B kvcli\nCOMMAND [OPTIONS] [ARGUMENTS]",
    ]
    for commands in PANELS.values():
        for name in commands:
            parts += section(f"kvcli {name}", top.commands[name])
    parts.append(
        ".SH ENVIRONMENT\nEvery option has a variable: KVCLI_ and its long name, KVCLI_MAX_TOKENS for "
        "\\-\\-max\\-tokens.\n.SH EXIT STATUS\n0 answered, 1 internal error, 2 usage, 3 input, 4 model, 5 resources, "
        "6 too long, 7 damaged, 8 part of a batch failed, 10 not covered by the text (\\-\\-exit\\-status), 130 "
        "interrupted, 141 closed pipe, 143 terminated."
    )
    return "\n".join(parts) + "\n"


def main() -> None:
    """Write the page to the file that is named."""
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
