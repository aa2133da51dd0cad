"""What an engine keeps between two commands: the model, and the tokens of the last document.

In a process that ends with its command nothing is kept, and :func:`keep` only calls ``make``.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")

active = False
"""Whether this process is an engine."""

facts: dict[str, Any] = {}
"""Of the model that is kept, for ``kvcli ps``: name, device, dtype, weights."""

chat: Any = None
"""The :class:`kvcli.cli.chat.loop.Chat` that an engine's command has opened. Its client sends the lines, and other
commands run between them."""


doubtful = False
"""Whether an error of the command may have left the model in disorder: a fault of kvcli, or too little memory."""


class RunAlone(SystemExit):
    """The command is to run in the client's own process."""


_kept: dict[str, tuple[Hashable, Any]] = {}


def keep(kind: str, key: Hashable, make: Callable[[], T]) -> T:
    """Return the last result of ``make`` if it had the same ``key``, else call ``make``.

    One thing of each kind is kept. It is dropped before another is made, so that both need not fit the memory.
    """
    if not active:
        return make()
    if kind in _kept and _kept[kind][0] == key:
        found: T = _kept[kind][1]
        return found
    if _kept.pop(kind, None) is not None:
        _collect()
    made = make()
    _kept[kind] = key, made
    return made


def refuse(no_server: bool) -> None:
    """Raise :class:`RunAlone` in an engine if the user wants none; a client does not read ``config.toml``."""
    if no_server and active:
        raise RunAlone


def forget() -> None:
    """Drop everything."""
    global doubtful
    doubtful = False
    _kept.clear()
    facts.clear()
    _collect()


def _collect() -> None:
    gc.unfreeze()
    gc.collect()
