"""The tree of commands. A command's module is imported when the command runs or shows its help, not before."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Annotated, Any

import typer

from kvcli.cli.help import Command, Group
from kvcli.utils.version import __version__

PANELS = {
    "Ask": {
        "ask": "Ask a question about documents.",
        "map": "Ask the same questions about each of many documents.",
        "summarise": "Summarise a document: each part, then the whole.",
        "chat": "Chat with a model, with or without documents.",
        "open": "Open a place that the last answer of kvcli ask cites, at its page.",
        "logs": "Show the last questions and answers of kvcli ask.",
        "serve": "Answer over HTTP with one loaded model, as the OpenAI API does.",
        "mcp": "Offer documents to other programs as tools, over the Model Context Protocol.",
        "ps": "List the engines that keep a model for the next kvcli ask.",
        "stop": "End the engines that keep a model, each after its command.",
    },
    "Prepare": {
        "plan": "Estimate memory, disk space and time of a run. Loads no model.",
        "extract": "Show the text that is extracted from documents.",
        "prefill": "Process documents now, so that later questions start at once.",
        "library": "Keep documents together, to ask about all of them: kvcli ask @NAME.",
        "cache": "List, check and delete saved prefills.",
    },
    "Models and settings": {
        "recipes": "List what --policy takes: eviction policies, KV storages and further terms.",
        "train": "Train retaining heads for a model.",
        "calibrate": "Calibrate a model for the recipe full+infinigen, or with --share for kvsharer.",
        "models": "Choose, list, download and describe models.",
        "templates": "List, show and edit tasks for kvcli ask --template.",
        "config": "Show and change defaults of options.",
    },
    "Measure and check": {
        "kv": "Show which parts of a document stayed in the KV cache.",
        "eval": "Evaluate answer quality on tasks with known answers.",
        "bench": "Benchmark prefill and decoding speed on this machine.",
        "doctor": "Check the installation: versions, devices, memory, default model.",
    },
}
"""The commands by section of the help, each with the first line of its help."""

_PANEL = {name: panel for panel, commands in PANELS.items() for name in commands}


class LazyCommands(Mapping[str, Any]):
    """Command by name, imported when it is asked for."""

    def __getitem__(self, name: str) -> Any:
        if name not in _PANEL:
            raise KeyError(name)
        return _command(name)

    def __iter__(self) -> Iterator[str]:
        return iter(_PANEL)

    def __len__(self) -> int:
        return len(_PANEL)


@cache
def _command(name: str) -> Any:
    module = import_module(f"kvcli.cli.commands.{name}")
    alone = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    if hasattr(module, "app"):
        alone.add_typer(module.app, name=name, rich_help_panel=_PANEL[name])
    else:
        cls = getattr(module, name.title(), Command)
        alone.command(name, cls=cls, rich_help_panel=_PANEL[name])(module.command)
    return typer.main.get_group(alone).commands[name]


class Program(Group):
    """``kvcli`` itself; its list of commands imports none of them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "commands": LazyCommands()})

    def summaries(self, _ctx: Any) -> dict[str, list[tuple[str, str]]]:
        return {panel: list(commands.items()) for panel, commands in PANELS.items()}


app = typer.Typer(
    name="kvcli",
    cls=Program,
    help="Ask questions about whole books, manuals and code bases, on one consumer GPU or on a CPU.",
    epilog='Example: kvcli ask book.txt "Who tells the story?"',
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"kvcli {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _top(
    ctx: typer.Context,
    version: Annotated[  # noqa: ARG001  # eager: its callback answers
        bool, typer.Option("-V", "--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if ctx.invoked_subcommand is None:
        print(ctx.get_help(), file=sys.stderr)
        raise typer.Exit(2)


@cache
def command() -> Any:
    """The program as one command with subcommands."""
    return typer.main.get_command(app)
