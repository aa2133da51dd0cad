"""Answers in OpenAI's shape: whole, and as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from kvcli.events import Answer, Prefill, Token
from kvcli.server.errors import to_api_error
from kvcli.server.service import Answering


class ChatShape:
    """``/v1/chat/completions``."""

    prefix = "chatcmpl"
    whole, part = "chat.completion", "chat.completion.chunk"

    @staticmethod
    def message(text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    @staticmethod
    def delta(text: str | None, *, first: bool) -> dict[str, Any]:
        role = {"role": "assistant", "content": ""} if first else {}
        return {"delta": role if text is None else {**role, "content": text}}


class TextShape:
    """``/v1/completions``."""

    prefix = "cmpl"
    whole = part = "text_completion"

    @staticmethod
    def message(text: str) -> dict[str, Any]:
        return {"text": text}

    @staticmethod
    def delta(text: str | None, *, first: bool) -> dict[str, Any]:
        del first
        return {"text": text or ""}


Shape = type[ChatShape] | type[TextShape]


def completion(shape: Shape, model: str, answering: Answering) -> dict[str, Any]:
    """The body of a response that is not streamed."""
    return {
        "id": answering.id,
        "object": shape.whole,
        "created": answering.created,
        "model": model,
        "choices": [
            {
                "index": 0,
                **shape.message(answering.text),
                "logprobs": None,
                "finish_reason": answering.finish_reason,
            }
        ],
        "usage": answering.usage,
        "kvcli": answering.facts,
    }


async def stream(
    shape: Shape,
    model: str,
    answering: Answering,
    events: AsyncIterator[Prefill | Token | Answer],
    *,
    include_usage: bool,
) -> AsyncIterator[bytes]:
    """Server-sent events. Progress of a prefill is a comment, which clients skip; it keeps the connection alive."""
    base = {
        "id": answering.id,
        "object": shape.part,
        "created": answering.created,
        "model": model,
        **({"usage": None} if include_usage else {}),
    }

    def chunk(delta: dict[str, Any], reason: str | None, **more: Any) -> bytes:
        return sse({**base, "choices": [{"index": 0, **delta, "logprobs": None, "finish_reason": reason}], **more})

    first = True
    try:
        async for event in events:
            if isinstance(event, Prefill):
                yield f": prefill {event.done}/{event.total}\n\n".encode()
            elif isinstance(event, Token) and event.text:
                yield chunk(shape.delta(event.text, first=first), None)
                first = False
    except Exception as error:
        yield sse(to_api_error(error).body)
        yield b"data: [DONE]\n\n"
        return
    yield chunk(shape.delta(None, first=first), answering.finish_reason, kvcli=answering.facts)
    if include_usage:
        yield sse({**base, "choices": [], "usage": answering.usage})
    yield b"data: [DONE]\n\n"


def sse(body: dict[str, Any]) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(body, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n\n"
