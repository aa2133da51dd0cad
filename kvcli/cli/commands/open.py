"""``kvcli open``: a place that the last answer cites, in a viewer. Imports no torch."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from kvcli.cli import question_log, viewer
from kvcli.cli.option_groups import MAIN, annotation
from kvcli.cli.options import DEBUG, JSON
from kvcli.cli.question_log import Logged, QuotePlace
from kvcli.cli.views import terminal
from kvcli.documents.pages import with_label
from kvcli.errors import InputError


def command(
    number: Annotated[
        int | None, typer.Argument(metavar="N", help="Number of the place. Without it, all are listed.", min=1)
    ] = None,
    link: Annotated[bool, annotation("--link", "Print the link and open nothing.", MAIN)] = False,
    as_json: JSON = False,
    _debug: DEBUG = False,
) -> None:
    """Open a place that the last answer of kvcli ask cites, at its page.

    A PDF opens in evince, okular, zathura or the browser, a web page in the browser at the quote. Without a screen the
    link and the text are printed. The places are those of the log (kvcli logs).
    """
    last = question_log.latest()
    if not last.places:
        raise InputError("the last answer cites nothing of a document", 'kvcli ask FILE --cite on "…"')
    if number is not None and number > len(last.places):
        raise InputError(f"there is no place {number}: the last answer has {len(last.places)}", "kvcli open")
    chosen = last.places if number is None else last.places[number - 1 : number]
    if as_json:
        found = [{"file": last.path(p.file), **_facts(last, p)} for p in chosen]
        terminal.print_json(places=found)
    elif number is None:
        for n, place in enumerate(chosen, 1):
            terminal.paragraph(sys.stdout, terminal.oneline(f"{n}  {_where(place)}  “{place.quote}”"), indent=3)
    else:
        _open(last, chosen[0], only_link=link)


def _open(last: Logged, place: QuotePlace, *, only_link: bool) -> None:
    name = last.path(place.file)
    address = viewer.link(name, place.page, place.quote)
    if address is None:
        raise InputError(f"{name} is not a file any more", "kvcli open")
    program = None if only_link else viewer.show(name, place.page, place.quote)
    if program is None:
        terminal.write(sys.stdout, terminal.oneline(address))
    if not only_link:
        terminal.note("place", f"{_where(place)}: “{place.quote}”" + (f" · {program}" if program else ""))


def _where(place: QuotePlace) -> str:
    return f"{place.file}, " + (
        f"line {place.line}" if place.page is None else f"p. {with_label(place.page, place.label)}"
    )


def _facts(last: Logged, place: QuotePlace) -> dict[str, object]:
    address = viewer.link(last.path(place.file), place.page, place.quote)
    return {"page": place.page, "label": place.label, "line": place.line, "quote": place.quote, "link": address}
