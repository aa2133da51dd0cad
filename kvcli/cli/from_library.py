"""What a library adds to a question."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvcli.documents import Document
    from kvcli.events import Quotes


@dataclass(frozen=True)
class FromLibrary:
    """Passages to read again, the documents that they are from, and quotes."""

    passages: list[str]
    document: Document
    quotes: Quotes

    def quotes_for(self, question: str, answer: str) -> Quotes:
        """The quotes, those that have the words of the answer first."""
        from kvcli.retrieval.quotes import supports
        from kvcli.retrieval.words import language

        found = [replace(q, supports=supports(q.text, question, answer, language(q.text))) for q in self.quotes.quotes]
        return replace(self.quotes, quotes=tuple(sorted(found, key=lambda quote: not quote.supports)))
