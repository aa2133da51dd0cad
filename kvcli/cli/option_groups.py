"""Options of several commands are written once: a frozen dataclass holds a group, and a command takes it whole.

    @dataclass(frozen=True)
    class PromptOptions(OptionGroup):
        PANEL = "Prompt"
        system: str | None = option("-s, --system TEXT", "System prompt.")

    @takes_groups
    def command(files: FILES = None, *, prompt: PromptOptions) -> None: …

Typer sees one parameter per field; the command gets one object per group. A field of a group may be a group too.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, get_type_hints

import typer

PREFIX = "KVCLI_"
"""Of environment variables."""

MAIN = "Main options"
"""Panel of the options that people use most; always the first one."""


def variable(names: str) -> str | None:
    """The environment variable of an option: ``KVCLI_MAX_TOKENS`` of ``-n, --max-tokens N``."""
    long = next((name for name in names.split(", ") if name.startswith("--")), None)
    return None if long is None else PREFIX + re.split("[ /]", long[2:])[0].replace("-", "_").upper()


def annotation(names: str, help: str, panel: str | None = None, **settings: Any) -> Any:
    """An option for ``Annotated``.

    Args:
        names: as the help shows them, with the name of the value: ``-m, --model NAME``.
        help: what the option does.
        panel: section of the help; by default that of the group.
        settings: of ``typer.Option``. The environment variable is ``KVCLI_`` and the first long name.
    """
    settings = {"envvar": variable(names), "show_envvar": False, **settings}
    *flags, last = names.split(", ")
    last, _, metavar = last.partition(" ")
    return typer.Option(*flags, last, help=help, metavar=metavar or None, rich_help_panel=panel, **settings)


def option(names: str, help: str, default: Any = None, panel: str | None = None, **settings: Any) -> Any:
    """A field of a group; arguments as for :func:`annotation`."""
    return dataclasses.field(default=default, metadata={"option": annotation(names, help, panel, **settings)})


@dataclass(frozen=True)
class OptionGroup:
    """Base of all groups. A subclass checks its values in ``__post_init__``."""

    PANEL: ClassVar[str] = MAIN

    def settings(self) -> dict[str, Any]:
        """The fields of :class:`~kvcli.cli.options.RunOptions` that this group sets; by default those of its names."""
        found = dict[str, Any]()
        for field in fields(self):
            value = getattr(self, field.name)
            found |= value.settings() if isinstance(value, OptionGroup) else {field.name: value}
        return found


def takes_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter of ``command`` that is a group by the fields of the group, for typer."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if _is_group(kind)}
    parameters = list[inspect.Parameter]()
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name in groups:
            parameters += _expanded(groups[parameter.name])
        else:
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(annotation=hints[parameter.name], kind=kind))

    @functools.wraps(command)
    def call(**values: Any) -> None:
        built = {name: _built(group, values) for name, group in groups.items()}
        command(**values, **built)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _is_group(kind: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, OptionGroup)


def _built(group: type[OptionGroup], values: dict[str, Any]) -> OptionGroup:
    """A group from the values of its options, which are taken out of ``values``."""
    kinds = get_type_hints(group)
    given = {
        field.name: _built(kinds[field.name], values) if _is_group(kinds[field.name]) else values.pop(field.name)
        for field in fields(group)
    }
    return group(**given)


def _expanded(group: type[OptionGroup]) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group)
    for field in fields(group):
        if _is_group(hints[field.name]):
            yield from _expanded(hints[field.name])
            continue
        info = field.metadata["option"]
        info.rich_help_panel = info.rich_help_panel or group.PANEL
        kind = hints[field.name]
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=Annotated[kind, info]
        )
