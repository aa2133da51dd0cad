"""Inputs and results of a pipeline: immutable, so that threads may share them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kvcli.documents.document import Document, document_json
from kvcli.documents.quotes import Citation
from kvcli.engine.drafts import Ids, as_ids
from kvcli.prompt_cache.key import CacheKey, digest
from kvcli.retrieval.attribution import LikelySource

if TYPE_CHECKING:
    from kvcli.cache.context import Context
    from kvcli.cache.prefill_cache import PrefillCache
    from kvcli.models.pictures import Pictures
    from kvcli.planning.memory import Plan
    from kvcli.recipe import Recipe


@dataclass(frozen=True)
class TokenizedDocument:
    """A document as the model reads it.

    Attributes:
        document: the text and where it comes from.
        ids: token ids of the chat template's beginning, of pictures and of the text.
        pictures: what the ids have of pictures; ``None`` without any.
    """

    document: Document
    ids: list[int]
    pictures: Pictures | None = None

    @cached_property
    def digest(self) -> str:
        """Digest of the ids; part of the cache key."""
        return digest(self.ids)

    @cached_property
    def draft_ids(self) -> Ids:
        """The ids in which drafts of answers are looked up (:mod:`kvcli.engine.drafts`)."""
        return as_ids(self.ids)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Files, pages and warnings of the document, as a saved prefill stores them."""
        return document_json(self.document)


@dataclass(frozen=True)
class DocumentContext:
    """A document that was read, or no document; immutable, and shared by any number of questions.

    Attributes:
        source: the document and its token ids; ``None`` if there is none.
        recipe: the eviction policy and storage that were used, or would be.
        context: the frozen KV cache; ``None`` without a document, and if it was not read (:meth:`Pipeline.unread`).
        plan: memory that was planned for prefill and answer.
        key: names the saved prefill; ``None`` without a document.
        cache: ``hit`` (nothing computed), ``resumed`` (a part), ``miss`` (everything) or ``off`` (nothing is saved).
        reused: tokens that were taken from a saved prefill.
        reuse_s, prefill_s: seconds of loading and of computing.
        path: the file of the saved prefill, if there is one.
        prefill_cache: kept only for chats, which evict turns into it.
    """

    source: TokenizedDocument | None
    recipe: Recipe
    context: Context | None
    plan: Plan
    key: CacheKey | None = None
    cache: Literal["hit", "resumed", "miss", "off"] = "off"
    reused: int = 0
    reuse_s: float = 0.0
    prefill_s: float = 0.0
    path: Path | None = None
    prefill_cache: PrefillCache | None = None

    @property
    def document(self) -> Document | None:
        return None if self.source is None else self.source.document

    @property
    def tokens(self) -> int:
        """Tokens that were read, template included."""
        return 0 if self.source is None or self.context is None else len(self.source.ids)

    @property
    def unread(self) -> bool:
        """Whether there is a document that was not read."""
        return self.source is not None and self.context is None

    @property
    def dropped(self) -> int:
        """Tokens of the document that were not read: none, or all of them."""
        return 0 if self.source is None else len(self.source.ids) - self.tokens


@dataclass(frozen=True)
class RecipeChoice:
    """A recipe for a document, and what the user should know about it."""

    recipe: Recipe
    heads_missing: bool = False
    calibration: str | None = None


@dataclass(frozen=True)
class Citations:
    """Where an answer's words are in the document.

    Attributes:
        quotes: passages that the answer quotes, verified against the text.
        likely_sources: pages that the answer attends to most.
        grounded: whether any quote is verified; ``None`` if nothing was looked up.
        text: the answer with ``[n]`` after each of the ``quotes`` that the document has.
    """

    quotes: tuple[Citation, ...] = ()
    likely_sources: tuple[LikelySource, ...] = ()
    grounded: bool | None = None
    text: str = ""

    def covered(self, answer: str) -> float:
        """The share of an answer's characters, blanks not counted, that verified quotes cover: 0 to 1."""
        at = {i for i, c in enumerate(answer) if not c.isspace()}
        found = {i for q in self.quotes if q.status == "verified" for i in range(q.answer_start, q.answer_end)}
        return len(at & found) / len(at) if at else 0.0

    def to_json(self) -> dict[str, Any]:
        """``citations``, ``likely_sources`` and ``grounded`` of an answer in JSON."""
        return {
            "citations": [quote.to_json(n) for n, quote in enumerate(self.quotes, 1)],
            "likely_sources": [source.to_json() for source in self.likely_sources],
            "grounded": self.grounded,
        }


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer: document and question, and the answer itself."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class AnswerResult:
    """One complete answer.

    Attributes:
        text: the answer.
        finish_reason: ``stop``, ``length`` or ``interrupted``.
        usage: tokens.
        citations: where its words are in the document.
        passages: character ranges of the document that were read again before it.
        first_token_s, decode_tps: latency in seconds, and tokens per second after the first one.
    """

    text: str
    finish_reason: str
    usage: Usage
    citations: Citations
    passages: tuple[tuple[int, int], ...]
    first_token_s: float
    decode_tps: float
