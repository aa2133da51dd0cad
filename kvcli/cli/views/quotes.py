"""Quotes, the sentences of the document that may answer: lines for a terminal or a file, and their JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from kvcli.cli.views import terminal
from kvcli.cli.views.citations import where, with_link

if TYPE_CHECKING:
    from kvcli.documents import Document
    from kvcli.events import Quote, Quotes
    from kvcli.pipeline import Citations

LONGEST = 400
"""Characters of a quote on the screen; JSON has all of it."""

NOTHING = "no sentence of the text"
UNSUPPORTED = "The answer is not covered by these sentences of the text:"
SUPPORTED = "From the text:"


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
        found.append(with_link(f"{at} {_text(quote, question, bold=bold)}", at, span, quote.text, links))
    return found


def heading(found: Quotes, *, grounded: bool = False) -> str:
    """What the quotes are, after an answer; ``grounded``: a citation has shown where its words are."""
    if not found.found:
        return f"{NOTHING.capitalize()} seems to answer. The nearest:"
    return SUPPORTED if grounded or any(quote.supports for quote in found.quotes) else UNSUPPORTED


def uncited(found: Quotes, cited: Citations) -> list[Quote]:
    """The quotes of which no verified citation has shown a part already."""
    shown = [(c.start, c.end) for c in cited.quotes if c.start is not None and c.end is not None]
    return [q for q in found.quotes if not any(a < q.char_end and q.char_start < b for a, b in shown)]


def _where(document: Document, quote: Quote) -> str:
    return where(document, document.at(quote.char_start), quote.line)


def _text(quote: Quote, question: str, *, bold: bool) -> str:
    text = terminal.oneline(" ".join(quote.text.split()))
    if len(text) > LONGEST:
        text = f"{text[: LONGEST * 2 // 3]} … {text[-LONGEST // 4 :]}"
    if not bold:
        return f"\u201c{text}\u201d"
    from kvcli.retrieval.quotes import shared_words
    from kvcli.retrieval.words import language

    parts, at = list[str](), 0
    for start, end in shared_words(text, question, language(quote.text)):
        parts += [text[at:start], f"\x1b[1m{text[start:end]}\x1b[22m"]
        at = end
    return f"\u201c{''.join(parts)}{text[at:]}\u201d"
