"""Write docs/reference.md: the help of every command and the table of policies, from the program itself."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

from kvcli import registry
from kvcli.recipe import format_policy

CACHE = ("ls", "show", "rm", "prune", "verify", "export", "import", "path")
COMMANDS = [
    "",
    "ask",
    "chat",
    "prefill",
    "kv",
    "plan",
    "bench",
    *(f"cache {c}".rstrip() for c in ("", *CACHE)),
    "train",
    "calibrate",
    "eval",
    "extract",
    "models",
    "models ls",
    "models pull",
    "models show",
    "recipes",
    "doctor",
]
TARGET = Path(__file__).parent / "reference.md"


def help_text(command: str) -> str:
    """What ``kvcli COMMAND --help`` prints on 100 columns."""
    plain = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    words = [sys.executable, "-m", "kvcli", *command.split(), "--help"]
    text = subprocess.run(words, env=plain, capture_output=True, text=True, check=True).stdout
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def policies(axis: registry.Axis) -> list[str]:
    """Rows of a table: name and fields, then the first sentence of the docstring."""
    rows = ["| policy | what it does |", "| --- | --- |"]
    for name in registry.names(axis):
        cls = registry.lookup(axis, name)
        fields = ", ".join(f.name for f in dataclasses.fields(cls))
        rows.append(f"| `{format_policy(cls())}` | {(cls.__doc__ or '').splitlines()[0]} Fields: {fields or 'none'}. |")
    return rows


def main() -> None:
    parts = [
        "# Reference",
        "",
        "Written by `make docs` from the program; do not edit.",
        "",
        "## Recipes: eviction policies",
        "",
    ]
    parts += [*policies("eviction"), "", "## Recipes: KV storage", "", *policies("storage"), "", "## Commands"]
    for command in COMMANDS:
        parts += ["", f"### kvcli {command}".rstrip(), "", "```", help_text(command), "```"]
    TARGET.write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
