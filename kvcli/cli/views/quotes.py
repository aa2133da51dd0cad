"""Quotes, the sentences of the document that may answer: lines for a terminal or a file, and their JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from kvcli.cli.views import citations, terminal, wrap
from kvcli.cli.views.activity import row
from kvcli.cli.views.citations import where, with_link

if TYPE_CHECKING:
    from kvcli.documents import Document
    from kvcli.events import Quote, Quotes
    from kvcli.pipeline import Citations

LONGEST = 400
"""Characters of a quote on the screen; JSON has all of it."""

NOTHING = "no sentence of the text seems to answer"


def lines(
    document: Document, quotes: Sequence[Quote], question: str, *, bold: bool, links: TextIO | None = None
) -> list[str]:
    """One line for each quote, after its page or line.

    Args:
        document, quotes: what was asked, and what was found.
        question: its words are bold in the quotes.
        bold: whether the stream shows it.
        links: the terminal that shows the lines; places are links if it shows links.
    """
    found = []
    for quote in quotes:
        at, span = _where(document, quote), document.at(quote.char_start)
        text = citations.bold(_text(quote), question if bold else "")
        found.append(with_link(f"{at} \u201c{text}\u201d", at, span, quote.text, links))
    return found


def around(
    document: Document, found: Quotes, question: str, cited: Citations, *, held: bool, **shown: Any
) -> tuple[list[str], list[str]]:
    """Lines above and below an answer: its quotes under a heading, above it if they do not cover it.

    Args:
        document, found, question: as for :func:`lines`, and ``shown`` too.
        cited: what the answer cites; these quotes are not shown again.
        held: whether the answer is still to be printed.
    """
    above = held and not covered(found, cited)
    left_out = uncited(found, cited)
    if not left_out:
        return [], []
    text = [heading(found, cited, above=above), *lines(document, left_out, question, **shown)]
    return (text, []) if above else ([], text)


def keep_above(document: Document, found: Quotes, question: str) -> None:
    """Show quotes by words above the row on stderr, until there is an answer."""
    title = "Likeliest sentences so far:" if found.found else f"{NOTHING.capitalize()}. The nearest:"
    texts = lines(document, found.quotes, question, bold=True)

    def fitting(columns: int, rows: int) -> list[str]:
        """At most two rows for each quote, and half of the screen for all."""
        shown = [f"\x1b[2m{title}\x1b[22m"]
        for text in texts:
            first, *more = wrap.wrapped(text, columns - 2, indent=2).split("\n")
            quote = [first, *more[:1]]
            if len(more) > 1:
                quote[-1] += "\x1b[22m…"
            if len(shown) + len(quote) > rows // 2:
                break
            shown += quote
        return shown if len(shown) > 1 and len(title) < columns else []

    row.keep_above(fitting if texts else None)


def heading(found: Quotes, cited: Citations, *, above: bool = False) -> str:
    """The heading of quotes below an answer, or ``above`` it."""
    if not found.found:
        return f"{NOTHING.capitalize()}. The nearest:"
    if covered(found, cited):
        return "From the text:"
    return f"The answer {'below ' if above else ''}is not covered by these sentences of the text:"


def covered(found: Quotes, cited: Citations) -> bool:
    """Whether a citation or a quote has the words of the answer; true if the answer was not compared with them."""
    return bool(cited.grounded) or any(quote.supports is not False for quote in found.quotes)


def uncited(found: Quotes, cited: Citations) -> list[Quote]:
    """The quotes of which no verified citation shows half already: a citation may be two words of a sentence."""
    shown = [(c.start, c.end) for c in cited.quotes if c.start is not None and c.end is not None]

    def seen(quote: Quote) -> bool:
        half = (quote.char_end - quote.char_start) / 2
        return any(min(end, quote.char_end) - max(start, quote.char_start) >= half for start, end in shown)

    return [quote for quote in found.quotes if not seen(quote)]


def _where(document: Document, quote: Quote) -> str:
    return where(document, document.at(quote.char_start), quote.line)


def _text(quote: Quote) -> str:
    text = terminal.oneline(" ".join(quote.text.split()))
    return text if len(text) <= LONGEST else f"{text[: LONGEST * 2 // 3]} … {text[-LONGEST // 4 :]}"
