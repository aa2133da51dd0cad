"""The program ``kvcli``: its commands, and one run of it. Imports no torch."""

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer

from kvcli.cli import defaults, exit_codes
from kvcli.cli.commands import (
    ask,
    bench,
    cache,
    calibrate,
    chat,
    config,
    doctor,
    eval,
    extract,
    kv,
    models,
    plan,
    prefill,
    recipes,
    serve,
    train,
)
from kvcli.cli.help import Command, Group
from kvcli.cli.signals import install_sigterm
from kvcli.cli.views import terminal
from kvcli.errors import UsageError
from kvcli.utils import config_file
from kvcli.utils.version import __version__

app = typer.Typer(
    name="kvcli",
    cls=Group,
    help="Ask questions about whole books, manuals and code bases, on one consumer GPU or on a CPU.",
    epilog='Example: kvcli ask book.txt "Who tells the story?"',
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for panel, modules in {
    "Ask": (ask, chat, serve),
    "Prepare": (plan, extract, prefill, cache),
    "Models and settings": (models, config, recipes, train, calibrate),
    "Measure and check": (kv, eval, bench, doctor),
}.items():
    for module in modules:
        name = module.__name__.rpartition(".")[2]
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name, rich_help_panel=panel)
        else:
            app.command(name, cls=getattr(module, name.title(), Command), rich_help_panel=panel)(module.command)


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


def run(args: Sequence[str]) -> int:
    """One run of the program on ``args``; returns its exit code."""
    own = list(args)[: list(args).index("--")] if "--" in args else list(args)
    found: dict[str, Any] = {}
    _environment()
    install_sigterm()
    try:
        command = typer.main.get_command(app)
        found = {} if own[:1] == ["config"] else config_file.read()
        with command.make_context("kvcli", list(args), default_map=defaults.defaults(command, found)) as context:
            command.invoke(context)
        sys.stdout.flush()
    except BaseException as problem:
        if isinstance(problem, SystemExit):
            raise
        code = exit_codes.finish(problem, as_json="--json" in own, debug="--debug" in own)
        if code == UsageError.exit and found:
            terminal.note("note", f"{config_file.path()} sets options too: kvcli config show")
        return code
    return 0


def _environment() -> None:
    """Quiet libraries, and streams that lose no character whatever the locale."""
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "true",
        # OpenMP's threads spin while they wait, and on a busy machine they spin against what they wait for.
        # Two cores with other work on them: 2,000 tokens read in 4.6 s with this, in 15 to 60 s without.
        **({} if "OMP_WAIT_POLICY" in os.environ else {"GOMP_SPINCOUNT": "1000"}),
    }.items():
        os.environ.setdefault(name, value)
    for name in ("torchao", "torch.utils._pytree"):  # what torchao, where it is installed, says of each start
        logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.ERROR)
    if os.path.expanduser("~") == "~" and os.environ.get("KVCLI_CACHE_DIR"):  # noqa: PTH111  # Path raises instead
        os.environ.setdefault("HF_HOME", os.path.join(os.environ["KVCLI_CACHE_DIR"], "huggingface"))  # noqa: PTH118
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _open_streams() -> None:
    """Give streams that were closed (``<&-``) the null device: the next file that is opened would take their place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115


def main() -> NoReturn:
    """The console script."""
    sys.exit(run(sys.argv[1:]))
