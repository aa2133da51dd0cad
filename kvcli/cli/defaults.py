"""Defaults of options: from ``config.toml`` and from the environment.

A command line option comes first, then ``KVCLI_<OPTION>``, then the table of the command in ``config.toml``, then the
top of ``config.toml``. A name that is no option is an error.

    model = "qwen3-8b"      # every command that has --model
    [ask]
    max-tokens = 512        # kvcli ask only
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kvcli.errors import UsageError
from kvcli.utils import config_file


@dataclass(frozen=True)
class Setting:
    """One default that a user set.

    Attributes:
        key: of ``config.toml``, with its table: ``model``, ``ask.max-tokens``.
        value: as it was given.
        origin: the file, or the variable of the environment.
    """

    key: str
    value: Any
    origin: str


def options(command: Any) -> dict[str, Any]:
    """The options of one command by their key."""
    found = {}
    for param in command.params:
        long = next((name[2:] for name in param.opts if name.startswith("--")), None)
        if param.param_type_name == "option" and long not in (None, "help", "version"):
            found[long] = param
    return found


def commands(program: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that takes defaults, with its words."""
    inner = getattr(program, "commands", None)
    if inner is None:
        if getattr(program, "takes_defaults", True):
            yield words, program
        return
    for word, command in inner.items():
        yield from commands(command, (*words, word))


def defaults(program: Any, found: dict[str, Any], first: str = "") -> dict[str, Any]:
    """The default map of click for a ``program``: by command, then by parameter.

    Args:
        program: the click command of ``kvcli``.
        found: the contents of ``config.toml``.
        first: the command that runs. Others are imported only to check what names them, or what it has no option for.

    Raises:
        UsageError: a name is no option, or a value is of the wrong kind.
    """
    table: dict[str, Any] = {}
    named: set[str] = set()
    for words, command in _needed(program, found, first):
        known = options(command)
        own = _table(found, words)
        for key in own:
            if key not in known:
                raise _unknown(".".join((*words, key)), [".".join((*words, name)) for name in known])
        shared = {key: value for key, value in found.items() if key in known and not isinstance(value, dict)}
        named |= shared.keys()
        place = table
        for word in words[:-1]:
            place = place.setdefault(word, {})
        place[words[-1]] = {known[key].name: _value(known[key], key, value) for key, value in {**shared, **own}.items()}
    for key in found:
        if key not in named and key not in program.commands:
            raise _unknown(key, [*every_key(program), *program.commands])
    return table


def _needed(program: Any, found: dict[str, Any], first: str) -> list[tuple[tuple[str, ...], Any]]:
    """The commands that the file must be checked against."""
    names = {first, *(key for key, value in found.items() if isinstance(value, dict))}
    if names <= set(program.commands):
        some = [each for name in sorted(names) for each in commands(program.commands[name], (name,))]
        shared = {key for words, command in some if words[0] == first for key in options(command)}
        if all(key in shared for key, value in found.items() if not isinstance(value, dict)):
            return some
    return list(commands(program))


def every_key(program: Any) -> list[str]:
    """The keys that may be at the top of ``config.toml``, sorted."""
    return sorted({key for _, command in commands(program) for key in options(command)})


def settings(program: Any) -> list[Setting]:
    """What this user set: the file's settings, then the environment's."""
    file = str(config_file.path())
    found = [Setting(".".join(keys), value, file) for keys, value in _flat(config_file.read())]
    read = {param.envvar: key for _, command in commands(program) for key, param in options(command).items()}
    for name, key in sorted((name, key) for name, key in read.items() if isinstance(name, str)):
        if os.environ.get(name):
            found.append(Setting(key, os.environ[name], name))
    return found


def mentioned(found: dict[str, Any], message: str) -> list[str]:
    """The keys of ``config.toml`` whose options an error names."""
    keys = (".".join(keys) for keys, _ in _flat(found))
    return [key for key in keys if re.search(rf"--{re.escape(key.rpartition('.')[2])}\b", message)]


def check(program: Any, key: str) -> Any:
    """The option that a key such as ``model`` or ``ask.budget`` names. Raises ``UsageError`` for any other key."""
    *words, name = key.split(".")
    for path, command in commands(program):
        if words in ([], list(path)) and name in options(command):
            return options(command)[name]
    known = every_key(program)
    raise _unknown(key, [*known, *(f"{'.'.join(w)}.{name}" for w, c in commands(program) for name in options(c))])


def _table(found: dict[str, Any], words: tuple[str, ...]) -> dict[str, Any]:
    """The table of one command. Raises ``UsageError`` if something else has its name."""
    table = found
    for index, word in enumerate(words):
        inner = table.get(word, {})
        if not isinstance(inner, dict):
            name = ".".join(words[: index + 1])
            raise UsageError(f"{config_file.path()}: {name} is a command, so [{name}] is a table", "kvcli config edit")
        table = inner
    return table


def _flat(table: dict[str, Any], keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, (*keys, key))
        else:
            yield (*keys, key), value


def _value(param: Any, key: str, value: Any) -> Any:
    many = isinstance(value, list)
    if isinstance(value, dict) or (many and not param.multiple):
        raise UsageError(f"{config_file.path()}: {key} takes one value", "kvcli config edit")
    if param.is_flag and not isinstance(value, bool):
        raise UsageError(f"{config_file.path()}: {key} is true or false, not {value!r}", f"kvcli config set {key} true")
    return (
        value if param.is_flag else [str(v) for v in value] if many else [str(value)] if param.multiple else str(value)
    )


def _unknown(key: str, known: list[str]) -> UsageError:
    near = difflib.get_close_matches(key, known, 1, 0.6)
    hint = f"; did you mean {near[0]}?" if near else ""
    return UsageError(f"{config_file.path()}: {key} is not an option of kvcli{hint}", "kvcli config edit")
