"""``--cite``: lines and JSON of citations and likely sources.

``on`` looks for the answer's quotes in the document; it is the default on a terminal and with ``--json``. ``off`` is
the default in pipes and with ``-o``. ``strict`` also warns if no quote of an answer is verified.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from kvcli.cli import viewer
from kvcli.cli.views import terminal
from kvcli.documents.pages import with_label
from kvcli.errors import UsageError

if TYPE_CHECKING:
    from kvcli.documents import Document, Span
    from kvcli.documents.quotes import Citation
    from kvcli.pipeline import Citations

MODES = ("off", "on", "strict")
UNGROUNDED = 10
"""Exit code of ``--exit-status``."""

LONGEST = 240
"""Most characters of a quote on the terminal; JSON has all of it."""

_ENDS = '.!?…"”’»。！？'


def mode(cite: str | None, *, no_cite: bool, exit_status: bool, as_json: bool, output: str | None) -> str:
    """One of ``MODES`` from the options. Raises ``UsageError`` for options that contradict each other."""
    if cite is not None and cite not in MODES:
        raise UsageError(f"--cite {cite}: expected off, on or strict", "--cite strict")
    if no_cite and cite not in (None, "off"):
        raise UsageError(f"--no-cite and --cite {cite} contradict each other", "leave out one of them")
    if exit_status and (no_cite or cite == "off"):
        raise UsageError("--exit-status needs citations, and --no-cite turns them off", "--cite")
    if exit_status:
        return "strict"
    if no_cite or cite is not None:
        return "off" if no_cite or cite is None else cite
    return "on" if as_json or (output is None and terminal.is_terminal(sys.stdout)) else "off"


# --- as text ------------------------------------------------------------------------------------------


def lines(document: Document, cited: Citations, links: TextIO | None = None, question: str = "") -> list[str]:
    """One line for each citation.

    Args:
        document, cited: the text, and what is cited of it.
        links: the terminal that shows the lines; places are links if it shows links.
        question: its words are bold.
    """
    out = list[str]()
    for n, c in enumerate(cited.quotes, 1):
        if c.span is None:
            out.append(terminal.oneline(f"[{n}] not in the text: {_short(c.quote)}"))
            continue
        found = "found in text" if c.status == "verified" else f"nearly in text, {int(c.score)} % alike"
        places = f", first of {c.places:,} places" if c.places > 1 else ""
        at = where(document, c.span, c.line)
        text = terminal.oneline(f"[{n}] {at}") + f' "{bold(_excerpt(document, c), question)}"  {found}{places}'
        out.append(with_link(text, at, c.span, c.quote, links))
    return out


def likely(document: Document, cited: Citations, _links: TextIO | None = None) -> list[str]:
    """A line of the likely sources, if no quote is verified."""
    if cited.grounded or not cited.likely_sources:
        return []
    named = [where(document, s.span, s.line, s.last) for s in cited.likely_sources]
    return [terminal.oneline("likely source" + "s" * (len(named) > 1) + ": " + " · ".join(named))]


def with_link(line: str, at: str, span: Span, quote: str, links: TextIO | None) -> str:
    """``line`` with its place ``at`` as a link to the file, if the terminal ``links`` shows links."""
    place = terminal.oneline(at)
    if links is None or place not in line:
        return line
    before, after = line.split(place, 1)
    return f"{before}{viewer.linked(place, viewer.link(span.file, span.page, quote), links)}{after}"


def bold(text: str, question: str) -> str:
    """``text`` with the words of a question in bold, in any form."""
    from kvcli.retrieval.quotes import shared_words
    from kvcli.retrieval.words import language

    parts, at = list[str](), 0
    for start, end in shared_words(text, question, language(text)) if question else ():
        parts += [text[at:start], f"\x1b[1m{text[start:end]}\x1b[22m"]
        at = end
    return "".join(parts) + text[at:]


def where(document: Document, span: Span, line: int | None, last: int | None = None) -> str:
    """``p. 12``, ``p. 12 (printed iv)``, ``Chapter 3, line 40``, ``lines 40–52``; and the file of several."""
    parts = [span.file] if len(document.files) > 1 else []
    if span.page is not None:
        parts.append(f"p. {with_label(span.page, span.label)}")
    else:
        parts += [span.section] if span.section else []
        parts.append(f"line {line}" if last is None or last == line else f"lines {line}–{last}")
    return ", ".join(parts)


def _short(text: str) -> str:
    text = terminal.oneline(text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST * 2 // 3]} … {text[-LONGEST // 4 :]}"


def _excerpt(document: Document, c: Citation) -> str:
    """The source's words, with … at an end that is inside a sentence."""
    assert c.start is not None
    assert c.end is not None
    assert c.span is not None
    before, after = document.text[c.span.body : c.start], document.text[c.end : c.end + 1]
    opens = not before.strip() or before.rstrip()[-1] in _ENDS or before.endswith("\n\n")
    closes = not after or c.quote[-1] in _ENDS or after in _ENDS
    return ("" if opens else "…") + _short(c.quote) + ("" if closes else "…")
