"""The tree of commands, whose modules are imported when they are needed."""

from __future__ import annotations

import subprocess
import sys

from kvcli.cli.defaults import defaults
from kvcli.cli.program import PANELS, command


def test_the_list_says_what_each_command_says() -> None:
    """The list imports no command, so the first line of each help is written twice."""
    program = command()
    for commands in PANELS.values():
        for name, summary in commands.items():
            assert program.commands[name].name == name
            assert (program.commands[name].help or "").partition("\n")[0] == summary


def test_the_list_imports_no_command() -> None:
    code = (
        "import sys; from kvcli.cli.app import run; run(['--help']);"
        "sys.exit(any(m.startswith('kvcli.cli.commands.') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_settings_import_no_command_but_the_one_that_runs() -> None:
    """Others only if the file names them, or has an option that this command lacks."""
    program = command()
    for found, expected in (
        ({"model": "x"}, {"plan"}),
        ({"model": "x", "chat": {"temp": 0.5}}, {"plan", "chat"}),
        ({"temp": 0.5}, set(program.commands)),
    ):
        assert set(defaults(program, found, "plan")) == expected
