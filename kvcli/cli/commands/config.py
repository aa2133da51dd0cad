"""``kvcli config``: the user's own defaults of options, in ``config.toml``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from kvcli.cli import defaults
from kvcli.cli.help import Command, Group
from kvcli.cli.option_groups import annotation, variable
from kvcli.cli.options import DEBUG, JSON
from kvcli.cli.views import terminal
from kvcli.errors import UsageError
from kvcli.utils import child_process, config_file

app = typer.Typer(cls=Group, no_args_is_help=True, help="Show and change defaults of options.")

Key = Annotated[
    str, typer.Argument(metavar="KEY", help="An option, e.g. budget, or that of one command, e.g. ask.budget.")
]
Value = Annotated[list[str], typer.Argument(metavar="VALUE", help="Its default; several for a repeatable option.")]


@app.command("show", cls=Command)
def show(
    ctx: typer.Context,
    origin: Annotated[bool, annotation("--origin", "Also print where each setting is from.")] = False,
    as_json: JSON = False,
    _debug: DEBUG = False,
) -> None:
    """List the settings of config.toml and of the environment."""
    program = ctx.find_root().command
    defaults.defaults(program, config_file.read())
    found = defaults.settings(program)
    if as_json:
        rows = [{"key": s.key, "value": s.value, "origin": s.origin} for s in found]
        terminal.print_json(path=str(config_file.path()), settings=rows)
        return
    columns = ("option", "value", "origin")[: 3 if origin else 2]
    terminal.table(columns, [(s.key, _text(s.value), s.origin)[: len(columns)] for s in found])
    if not found:
        terminal.note("config", f"{config_file.path()} sets nothing; to change that: kvcli config set KEY VALUE")


@app.command("path", cls=Command)
def path(_debug: DEBUG = False) -> None:
    """Print where config.toml is."""
    terminal.write(sys.stdout, str(config_file.path()))


@app.command("get", cls=Command)
def get(ctx: typer.Context, key: Key, as_json: JSON = False, _debug: DEBUG = False) -> None:
    """Print one setting. Exits with 2 if it is not set."""
    defaults.check(ctx.find_root().command, key)
    found = {setting.key: setting for setting in defaults.settings(ctx.find_root().command)}.get(key)
    if found is None:
        raise UsageError(f"{key} is not set", f"kvcli config set {key} VALUE")
    if as_json:
        terminal.print_json(key=key, value=found.value, origin=found.origin)
    else:
        terminal.write(sys.stdout, _text(found.value))


@app.command("set", cls=Command)
def set_(ctx: typer.Context, key: Key, value: Value, _debug: DEBUG = False) -> None:
    """Change the default of an option."""
    _change(ctx.find_root().command, key, _parsed(ctx, key, value))


@app.command("unset", cls=Command)
def unset(key: Key, _debug: DEBUG = False) -> None:
    """Remove a setting from config.toml."""
    try:
        config_file.change(key.split("."), None)
    except KeyError:
        raise UsageError(f"{config_file.path()} does not set {key}", "kvcli config show") from None
    terminal.note("config", f"{key} removed from {config_file.path()}")


@app.command("edit", cls=Command)
def edit(ctx: typer.Context, _debug: DEBUG = False) -> None:
    """Open config.toml in $EDITOR, and check it afterwards."""
    file = config_file.path()
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        file.write_text(f"# Defaults of options; kvcli ask --help lists them.\n{_examples()}", "utf-8")
    try:
        child_process.edit(file)
    except OSError as error:
        raise UsageError(f"the editor cannot be started: {error}", "export EDITOR=nano") from None
    defaults.defaults(ctx.find_root().command, config_file.read())


def _examples() -> str:
    return '# model = "qwen3-8b"\n#\n# [ask]\n# max-tokens = 512\n'


def _parsed(context: typer.Context, key: str, values: list[str]) -> Any:
    """The value as TOML would hold it. Raises ``UsageError`` if the option does not take it."""
    param = defaults.check(context.find_root().command, key)
    if len(values) > 1 and not param.multiple:
        raise UsageError(f"{key} takes one value", f"kvcli config set {key} {values[0]}")
    if param.is_flag and values[0] not in ("true", "false"):
        raise UsageError(f"{key} is true or false, not {values[0]}", f"kvcli config set {key} true")
    found = param.process_value(context, values if param.multiple else values[0])
    for value in values:
        _check(key.rpartition(".")[2], value)
    return found


def _check(option: str, value: str) -> None:
    """Refuse what a command would refuse later. Raises ``UsageError``."""
    from kvcli import recipe
    from kvcli.models.defaults import check_placement
    from kvcli.planning.budget import Budget

    checks: dict[str, Callable[[str], object]] = {
        "budget": Budget.parse,
        "policy": recipe.parse,
        "device": lambda name: check_placement(name, None),
        "dtype": lambda name: check_placement(None, name),
    }
    if option in checks:
        checks[option](value)


def _change(program: Any, key: str, value: Any) -> None:
    """Write a setting, and take it back if the file is then not valid."""
    file = config_file.path()
    before = file.read_bytes() if file.exists() else None
    config_file.change(key.split("."), value)
    try:
        defaults.defaults(program, config_file.read())
    except UsageError:
        if before is None:
            file.unlink()
        else:
            file.write_bytes(before)
        raise
    terminal.note("config", f"{key} = {_text(value)} in {file}")
    name = variable(f"--{key}")
    if name and name in os.environ:
        terminal.warn(f"{name} in the environment comes before it: {os.environ[name]}")


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
