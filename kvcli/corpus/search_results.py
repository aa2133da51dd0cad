"""The files of a library, and what a search in it found: passages of its files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvcli.documents.document import Document, join_documents
from kvcli.events import Quote, Quotes

if TYPE_CHECKING:
    from kvcli.retrieval.sentences import SentenceIndex

AROUND = 300
"""Characters on either side of the best sentence that a passage has at least, in whole sentences."""


@dataclass(frozen=True)
class Entry:
    """A file of a library.

    Attributes:
        path: absolute.
        sha256: of its bytes when it was added.
        size, modified: bytes, and the time of its last change in nanoseconds.
        pages, characters: of its text.
        reading: key of the saved prefill; ``None`` if it was not read.
        vectors: fingerprint of the encoder that made its vectors; ``None`` without them.
    """

    path: str
    sha256: str
    size: int
    modified: int
    pages: int | None
    characters: int
    reading: str | None = None
    vectors: str | None = None

    @property
    def changed(self) -> bool:
        """Whether the file has gone, or seems to be another one since."""
        try:
            info = Path(self.path).stat()
        except OSError:
            return True
        return (info.st_size, info.st_mtime_ns) != (self.size, self.modified)


@dataclass(frozen=True)
class Hit:
    """A passage of one file: its best sentence as a quote, and the characters around it."""

    entry: Entry
    document: Document
    quote: Quote
    start: int
    end: int


@dataclass(frozen=True)
class Search:
    """The best passages for a question, the best file first.

    Attributes:
        best: the document of the file that answers most probably.
        hits: the best passages of all files, the best first.
        likely: the probability that some file answers.
    """

    best: Document
    hits: tuple[Hit, ...]
    likely: float

    def joined(self) -> tuple[Document, Quotes]:
        """The documents of the hits as one, the best file first, and the quotes by their characters in it."""
        from kvcli.retrieval.quotes import UNLIKELY

        documents = list({d.files: d for d in (self.best, *(hit.document for hit in self.hits))}.values())
        whole, starts = documents[0], {documents[0].files: 0}
        for more in documents[1:]:
            joined = join_documents(whole, more)
            starts[more.files] = len(joined.text) - len(more.text)
            whole = joined
        quotes = []
        for hit in self.hits:
            at = starts[hit.document.files]
            quotes.append(replace(hit.quote, char_start=hit.quote.char_start + at, char_end=hit.quote.char_end + at))
        return whole, Quotes(tuple(quotes), False, 0.0, self.likely, self.likely >= UNLIKELY)

    def passages(self) -> list[str]:
        """The passages to read again, each under its file and page, the best one last."""
        out = []
        for hit in reversed(self.hits):
            page = "" if hit.quote.page is None else f", page {hit.quote.page}"
            out.append(f"[{Path(hit.entry.path).name}{page}]\n{hit.document.text[hit.start : hit.end].strip()}")
        return out


def hit_of(entry: Entry, index: SentenceIndex, number: int, score: float) -> Hit:
    """A sentence with whole sentences around it, up to the page's ends."""
    from kvcli.retrieval.quotes import quote_of

    quote, sentences = quote_of(index, [number], score), index.sentences
    span = index.document.at(quote.char_start)
    first = last = number
    while first and sentences[first - 1].start >= max(span.body, quote.char_start - AROUND):
        first -= 1
    while last + 1 < len(sentences) and sentences[last + 1].end <= min(span.end, quote.char_end + AROUND):
        last += 1
    return Hit(entry, index.document, quote, sentences[first].start, sentences[last].end)
