"""The lines of a chat: typed, or piped. Imports no torch: a client of an engine reads them too."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence


def lines(names: Sequence[str], status: Callable[[], str]) -> Iterator[str]:
    """Each line; a byte that is not UTF-8 as a surrogate.

    Args:
        names: commands, for Tab.
        status: the line below the prompt.
    """
    if sys.stdin.isatty():
        from kvcli.cli.chat.input import InputLine
        from kvcli.cli.views import terminal

        reader = InputLine(status, names)
        while (typed := reader.read()) is not None:
            with terminal.unechoed(sys.stdin):
                yield typed
    else:
        for line in sys.stdin.buffer:
            yield line.decode("utf-8", "surrogateescape")
