"""``--help`` in titled sections, which are typer's help panels without boxes: 80 columns hold them, and no colour."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from typer.core import TyperCommand, TyperGroup

from kvcli.cli.option_groups import MAIN
from kvcli.cli.views.activity import row
from kvcli.errors import UsageError

FEW = 8
"""A command with at most so many options shows them in one section."""

COLUMN = 26
"""Widest first column; a longer name has a line of its own."""


class Command(TyperCommand):
    """A command whose options are shown by panel.

    ``usage`` replaces the arguments of the usage line, which typer cannot derive if one list holds two kinds of them.
    ``takes_defaults`` is whether ``config.toml`` can set its options.
    ``optional`` has each option whose value may be left out: a pattern of its values, and the one that is then meant.
    """

    usage: ClassVar[tuple[str, ...]] = ()
    takes_defaults: ClassVar[bool] = True
    optional: ClassVar[dict[str, tuple[str, str]]] = {}

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, with_values(args, self.optional))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [param for param in self.get_params(ctx) if param.param_type_name == "argument"]
        return ["[OPTIONS]", *(self.usage or map(_argument, arguments))]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_options(self, ctx, formatter)


def with_values(args: Sequence[str], optional: dict[str, tuple[str, str]]) -> list[str]:
    """The arguments with the values of :attr:`Command.optional` options added that were left out."""
    out, rest = list[str](), list(args)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*out, word, *rest]
        if word in optional:
            pattern, usual = optional[word]
            word = f"{word}={rest.pop(0) if rest and re.fullmatch(pattern, rest[0]) else usual}"
        out.append(word)
    return out


class Group(TyperGroup):
    """A command with subcommands, which are shown by panel, each on one line."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_options(self, ctx, formatter)
        _write(self.summaries(ctx), formatter)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands and args[0][:1] != "-":
            files = [word for word in args if Path(word).exists()]
            if args[0] in files and ctx.parent is None:
                question = next((word for word in args if word not in files), "…")
                hint = f'kvcli ask {" ".join(map(shlex.quote, files))} "{question}"'
                raise UsageError(f"{args[0]} is a file, and a command comes first", hint)
            near = difflib.get_close_matches(args[0], [*self.list_commands(ctx), "help"], n=1, cutoff=0.6)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"there is no command {args[0]}{meant}", f"{ctx.command_path} --help")
        return super().resolve_command(ctx, args)

    def summaries(self, ctx: Any) -> dict[str, list[tuple[str, str]]]:
        """Name and first line of the help of each command, by panel."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            if not command.hidden:
                panel = getattr(command, "rich_help_panel", None) or "Commands"
                sections.setdefault(panel, []).append((name, (command.help or "").partition("\n")[0]))
        return sections


def _write_options(command: Any, ctx: Any, formatter: Any) -> None:
    row.clear()  # the help is printed by typer
    shown = [param for param in command.get_params(ctx) if not getattr(param, "hidden", False)]
    options = [param for param in shown if param.param_type_name == "option"]
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], MAIN: []}
    last = "Options" if len(options) <= FEW else "Output"
    for param in shown:
        if param.param_type_name == "argument":
            if param.help:
                sections["Arguments"].append((_argument(param), param.help))
            continue
        panel = last if len(options) <= FEW else getattr(param, "rich_help_panel", None) or last
        sections.setdefault(panel, []).append((_names(param), _text(param)))
    _write(sections, formatter)


def _argument(param: Any) -> str:
    """``FILE``, ``[FILE]`` if it may be left out, ``[FILE]...`` if there may be several."""
    name = param.metavar if param.required else f"[{param.metavar}]"
    return name if param.nargs == 1 else f"{name}..."


def _names(param: Any) -> str:
    """``-m, --model NAME``; ``--[no-]cite`` for a switch with an opposite."""
    names = sorted(param.opts, key=lambda name: name.startswith("--"))  # typer gives those of --help in any order
    if param.secondary_opts:
        names[-1] = f"--[no-]{names[-1].removeprefix('--')}"
    return ", ".join(names) + (f" {param.metavar}" if param.metavar and not param.is_flag else "")


def _text(param: Any) -> str:
    default = param.default
    shown = param.show_default and default not in (None, False, "") and not callable(default)
    if not shown or param.is_flag:
        return param.help or ""
    return f"{param.help} [default: {default:,}]" if isinstance(default, int) else f"{param.help} [default: {default}]"


def _write(sections: dict[str, list[tuple[str, str]]], formatter: Any) -> None:
    width = min(COLUMN, max((len(name) for rows in sections.values() for name, _ in rows), default=0))
    for title, rows in sections.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in rows], col_max=COLUMN)
