"""Answers as JSON of the schema ``kvcli/1``: the part that does not depend on the run. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from kvcli.corpus.task import Question
from kvcli.errors import SCHEMA, TooLongError
from kvcli.utils.version import __version__

if TYPE_CHECKING:
    from kvcli.documents import Document
    from kvcli.events import Answer, Quotes, Reread
    from kvcli.pipeline import Citations, DocumentContext


def answer_record(
    question: Question,
    answer: Answer,
    document: Document | None,
    *,
    context: DocumentContext,
    cited: Citations,
    quotes: Quotes | None,
    kv: dict[str, Any],
    reread: Reread | None,
    sampling: dict[str, Any],
    warnings: Sequence[str],
) -> dict[str, Any]:
    """The object of one answer, without times, memory and the model.

    Args:
        question, answer, document: what was asked, and what came.
        context: what was read of the document.
        cited, quotes: where the answer is in the document.
        kv: from :func:`kv_record`.
        reread: what was read again before the answer.
        sampling, warnings: of the answer.
    """
    return {
        "schema": SCHEMA,
        **({"id": question.id} if question.id is not None else {}),
        "question": question.text,
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        **cited.to_json(),
        **quotes_json(quotes),
        "document": {
            "files": list(document.files) if document else [],
            "pages": document.pages if document else None,
            "without_text": [{"file": f, "page": page} for f, page in document.without_text] if document else [],
            "tokens": context.tokens,
            "dropped": context.dropped,
            "sha256": document.sha256 if document else None,
        },
        "kv": kv,
        "from_quotes": reread is not None and reread.alone,
        "looked_again": [{"char_start": a, "char_end": b} for a, b in (reread.passages if reread else ())],
        "usage": {
            "prompt_tokens": context.tokens + answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
        },
        "sampling": sampling,
        "versions": versions(),
        "warnings": list(warnings),
    }


def kv_record(context: DocumentContext) -> dict[str, Any]:
    """What was kept of the KV cache, and in how many bits and bytes; no recipe if the document was not read."""
    kv, recipe = context.context, context.recipe
    sizes: dict[str, Any] = {"kept": 0, "bits": 16, "bytes": 0, "host_bytes": 0}
    if kv is not None:
        sizes = {"kept": kv.kept, "bits": kv.bits, "bytes": kv.nbytes, "host_bytes": kv.host_nbytes}
    if context.unread:
        return {"recipe": None, "budget": None, **sizes}
    return {"recipe": str(recipe), "budget": recipe.policy.budget, **sizes}


def quotes_json(found: Quotes | None) -> dict[str, Any]:
    """``quotes`` and ``answer_in_text`` of an answer's object; nothing if none were looked for."""
    if found is None:
        return {}
    quotes = [{**asdict(quote), "score": round(quote.score, 4)} for quote in found.quotes]
    return {"quotes": quotes, "answer_in_text": round(found.likely, 4)}


def cut_short(answer: Answer) -> TooLongError:
    """The error of an answer that is not of the form that was asked for."""
    made = answer.completion_tokens
    why = "kept repeating itself" if answer.stopped_repeating else "was cut"
    return TooLongError(f"the answer {why} after {made:,} tokens, before it was complete", f"-n {2 * made}")


def length_remarks(answer: Answer, limit: int) -> list[str]:
    """What the user should know of an answer that did not end by itself."""
    made = answer.completion_tokens
    if answer.stopped_repeating:
        return [
            f"the answer started repeating itself and was stopped after {made:,} tokens;"
            f" try --repeat-penalty 1.1 or a larger model, or --allow-repetition"
        ]
    if answer.finish_reason != "length":
        return []
    why, hint = ("", f"; try -n {2 * made}") if made >= limit else (": the model's context is full", "")
    return [f"the answer was truncated at {made:,} tokens{why}{hint}"]


def versions() -> dict[str, str | None]:
    """Versions of the packages that an answer depends on, without importing them."""
    found: dict[str, str | None] = {"kvcli": __version__, "python": sys.version.split()[0]}
    return found | {name: installed(name) for name in ("torch", "transformers")}


def installed(name: str) -> str | None:
    """The version of a distribution, without importing it; ``None`` if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
