"""Write docs/reference.md (the help of every command, every recipe) and the table of recipes in README.md."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kvcli import registry
from kvcli.cli.program import command as program
from kvcli.recipe import format_policy

TARGET = Path(__file__).parent / "reference.md"
README = Path(__file__).parent.parent / "README.md"
HEADINGS: dict[registry.Axis, str] = {
    "eviction": "eviction policies",
    "share": "layer sharing",
    "fold": "folds",
    "sparse_prefill": "sparse prefill",
    "storage": "KV storage",
}

_TABLE = re.compile(r"(?<=<!-- recipes -->\n).*?(?=<!-- end -->)", re.DOTALL)
_PAPER = re.compile(r"(\w+) et al\. (\d{4})\b.*?arXiv[: ](\d{4}\.\d{5})")


def commands(command: Any = None, name: str = "") -> Iterator[str]:
    """The words of every command, in the order of ``kvcli --help``; the program itself is the empty text."""
    command = command or program()
    yield name
    for word, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            yield from commands(inner, f"{name} {word}".strip())


def help_text(command: str) -> str:
    """What ``kvcli COMMAND --help`` prints on 100 columns."""
    plain = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    words = [sys.executable, "-m", "kvcli", *command.split(), "--help"]
    text = subprocess.run(words, env=plain, capture_output=True, text=True, check=True).stdout
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def policies(axis: registry.Axis) -> list[type[Any]]:
    """The classes of an axis, by name."""
    return [registry.lookup(axis, name) for name in registry.names(axis)]


def summary(cls: type[Any]) -> str:
    """The first sentence of a class's docstring, on one line."""
    text = " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=\.) ", text, maxsplit=1)[0]


def paper(cls: type[Any]) -> str:
    """A link to the paper that a policy's module names; a dash if it names none."""
    found = _PAPER.search(inspect.getdoc(sys.modules[cls.__module__]) or "")
    return f"[{found[1]} et al. {found[2]}](https://arxiv.org/abs/{found[3]})" if found else "–"


def reference(texts: dict[str, str]) -> str:
    """docs/reference.md, from the help text of each command."""
    parts = ["# Reference", "", "Written by `make docs` from the program; do not edit.", ""]
    for axis, heading in HEADINGS.items():
        if not registry.names(axis):
            continue
        parts += [f"## Recipes: {heading}", "", "| name | what it does | fields | paper |", "| --- | --- | --- | --- |"]
        for cls in policies(axis):
            fields = ", ".join(f.name for f in dataclasses.fields(cls)) or "none"
            parts.append(f"| `{format_policy(cls())}` | {summary(cls)} | {fields} | {paper(cls)} |")
        parts.append("")
    parts.append("## Commands")
    for command, text in texts.items():
        parts += ["", f"### kvcli {command}".rstrip(), "", "```", text, "```"]
    return "\n".join(parts) + "\n"


def recipes() -> str:
    """The table of README.md."""
    lines = ["| recipe | what it does | paper |", "| --- | --- | --- |"]
    for axis in HEADINGS:
        sign = "" if axis == "eviction" else "+"
        lines += [f"| `{sign}{cls().name}` | {summary(cls)} | {paper(cls)} |" for cls in policies(axis)]
    return "\n".join(lines) + "\n"


def with_recipes(readme: str) -> str:
    """README.md with its table of recipes written anew."""
    text, count = _TABLE.subn(lambda _: recipes(), readme)
    if count != 1:
        raise ValueError("README.md needs one <!-- recipes --> … <!-- end -->")
    return text


def main() -> None:
    names = list(commands())
    with ThreadPoolExecutor() as pool:
        texts = dict(zip(names, pool.map(help_text, names), strict=True))
    TARGET.write_text(reference(texts))
    README.write_text(with_recipes(README.read_text()))


if __name__ == "__main__":
    main()
