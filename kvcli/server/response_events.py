"""``/v1/responses``: its object and its events, for an answer as text."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from kvcli.events import Answer, Prefill, Token
from kvcli.server.errors import to_api_error
from kvcli.server.service import Answering

PREFIX = "resp"


def response(model: str, answering: Answering) -> dict[str, Any]:
    """The body of a response that is not streamed."""
    complete = answering.finish_reason == "stop"
    return _response(model, answering, "completed" if complete else "incomplete")


async def stream(
    model: str,
    answering: Answering,
    events: AsyncIterator[Prefill | Token | Answer],
    *,
    include_usage: bool,
) -> AsyncIterator[bytes]:
    """Server-sent events. Progress of a prefill is a comment, which clients skip; it keeps the connection alive."""
    del include_usage  # the last event always has it
    sent = 0

    def event(kind: str, **body: Any) -> bytes:
        nonlocal sent
        data = {"type": kind, "sequence_number": sent, **body}
        sent += 1
        text = json.dumps(data, ensure_ascii=False).encode("utf-8", "backslashreplace")
        return f"event: {kind}\ndata: ".encode() + text + b"\n\n"

    part = {"item_id": f"msg-{answering.id}", "output_index": 0, "content_index": 0}
    yield event("response.created", response=_response(model, answering, "in_progress"))
    yield event("response.in_progress", response=_response(model, answering, "in_progress"))
    yield event("response.output_item.added", output_index=0, item=_message(answering, "in_progress", whole=False))
    yield event("response.content_part.added", **part, part=_text(""))
    try:
        async for found in events:
            if isinstance(found, Prefill):
                yield f": prefill {found.done}/{found.total}\n\n".encode()
            elif isinstance(found, Token) and found.text:
                yield event("response.output_text.delta", **part, delta=found.text, logprobs=[])
    except Exception as failure:
        error = to_api_error(failure)
        failed = {**_response(model, answering, "failed"), "error": {"code": error.code, "message": error.message}}
        yield event("response.failed", response=failed)
        return
    end = response(model, answering)
    yield event("response.output_text.done", **part, text=answering.text, logprobs=[])
    yield event("response.content_part.done", **part, part=_text(answering.text))
    yield event("response.output_item.done", output_index=0, item=end["output"][0])
    yield event(f"response.{end['status']}", response=end)


def _response(model: str, answering: Answering, status: str) -> dict[str, Any]:
    ended, usage = status in ("completed", "incomplete"), answering.usage
    return {
        "id": answering.id,
        "object": "response",
        "created_at": answering.created,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "model": model,
        "output": [_message(answering, status, whole=True)] if ended else [],
        "parallel_tool_calls": False,
        "tool_choice": "none",
        "tools": [],
        "store": False,
        "metadata": {},
        "usage": {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }
        if ended
        else None,
        **({"kvcli": answering.facts} if ended else {}),
    }


def _message(answering: Answering, status: str, *, whole: bool) -> dict[str, Any]:
    content = [_text(answering.text)] if whole else []
    return {
        "id": f"msg-{answering.id}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content,
    }


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
