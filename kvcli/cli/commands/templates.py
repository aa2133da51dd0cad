"""``kvcli templates``: the tasks of ``kvcli ask -t``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from kvcli.cli import templates
from kvcli.cli.help import Command, Group
from kvcli.cli.options import DEBUG, JSON
from kvcli.cli.views import terminal
from kvcli.cli.views.activity import row
from kvcli.errors import UsageError
from kvcli.utils import child_process

app = typer.Typer(cls=Group, no_args_is_help=True, help="List, show and edit tasks for kvcli ask --template.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Template, e.g. summary.")]


@app.command("ls", cls=Command)
def ls(as_json: JSON = False, _debug: DEBUG = False) -> None:
    """List templates; a user's own come before shipped ones."""
    found = {name: (path, templates.read(path)) for name, path in templates.names().items()}
    if as_json:
        rows = [{"name": name, "path": str(path), **asdict(t)} for name, (path, t) in found.items()]
        terminal.print_json(templates=rows)
        return
    rows_ = [
        (name, "shipped" if path.parent == templates.SHIPPED else "own", t.about) for name, (path, t) in found.items()
    ]
    terminal.table(("template", "from", "about"), rows_)


@app.command("show", cls=Command)
def show(name: Name, _debug: DEBUG = False) -> None:
    """Print the file of a template."""
    path = templates.path(name)
    terminal.note("template", str(path))
    terminal.write(sys.stdout, terminal.strip_control(path.read_text("utf-8-sig")).rstrip("\n"))


@app.command("edit", cls=Command)
def edit(name: Name, _debug: DEBUG = False) -> None:
    """Open a template in $EDITOR, and check it afterwards. A shipped one is copied first."""
    file, known = templates.own_path(name), templates.names()
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        begin = known[name].read_text("utf-8") if name in known else f'about = "{name}"\nbefore = ""\nafter = ""\n'
        file.write_text(begin, "utf-8")
    row.clear()
    try:
        child_process.edit(file)
    except OSError as error:
        raise UsageError(f"the editor cannot be started: {error}", "export EDITOR=nano") from None
    templates.read(file)
    terminal.note("template", f'{file}: kvcli ask -t {name} FILE "…"')
