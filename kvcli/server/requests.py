"""What a client asks for: OpenAI's request bodies, checked. Fields that would change the answer are refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvcli.engine.answer_format import AnswerFormat
from kvcli.engine.sampling import Sampling
from kvcli.errors import UsageError
from kvcli.server.errors import ApiError
from kvcli.types import ANSWER_TOKENS

# Fields that change the answer and that kvcli does not implement, each with the values that change nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "n": (None, 1),
    "best_of": (None, 1),
    "tools": (None, []),
    "functions": (None, []),
    "tool_choice": (None, "none", "auto"),
    "function_call": (None, "none", "auto"),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "echo": (None, False),
    "suffix": (None, ""),
}
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "user"}


@dataclass(frozen=True)
class Message:
    """One message of a conversation; ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    text: str


@dataclass(frozen=True)
class CompletionRequest:
    """One request for one answer.

    Attributes:
        model: the name that the client uses; ``None`` if it names none.
        messages: the conversation; or one user message, for a raw prompt.
        raw: no chat template.
        documents: ids of uploaded files to put before the conversation.
        sampling, max_tokens, stop: how to answer.
        stream, include_usage: how to deliver it.
        answer_format: the form of the answer; ``None`` for any text.
    """

    model: str | None
    messages: tuple[Message, ...]
    raw: bool
    documents: tuple[str, ...]
    sampling: Sampling
    max_tokens: int
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    answer_format: AnswerFormat | None = None


def parse_chat(body: dict[str, Any]) -> CompletionRequest:
    """The body of ``/v1/chat/completions``. Raises :class:`ApiError` that names the field."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "must be a list with at least one message")
    parsed = _merged([_message(m, f"messages[{i}]") for i, m in enumerate(messages)])
    if not any(m.role == "user" and m.text for m in parsed):
        raise _wrong("messages", "must hold a user message with text")
    return _request(body, parsed, raw=False)


def parse_completion(body: dict[str, Any]) -> CompletionRequest:
    """The body of ``/v1/completions``. Raises :class:`ApiError` that names the field."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt:
        raise _wrong("prompt", "must be one text")
    return _request(body, (Message("user", prompt),), raw=True)


_SAME = (
    "model",
    "documents",
    "stream",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "tools",
    "tool_choice",
)
_STATE = {"previous_response_id": (None,), "conversation": (None,), "background": (None, False), "prompt": (None,)}


def parse_response(body: dict[str, Any]) -> CompletionRequest:
    """The body of ``/v1/responses``, as text. Raises :class:`ApiError` that names the field."""
    _refuse(body, {**_STATE, "top_logprobs": (None, 0)})
    given = body.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(items, list) or not items:
        raise _wrong("input", "must be a text or a list with at least one message")
    for i, item in enumerate(items):
        if isinstance(item, dict) and item.get("type", "message") != "message":
            raise ApiError(400, f"'input[{i}]' is not a message", code="unsupported_content", param=f"input[{i}]")
    instructions = _typed(body, "instructions", str, None)
    system = [{"role": "system", "content": instructions}] if instructions else []
    form = (_typed(body, "text", dict, None) or {}).get("format") or {"type": "text"}
    chat = {name: body[name] for name in _SAME if name in body}
    chat |= {"messages": [*system, *items], "max_completion_tokens": body.get("max_output_tokens")}
    chat["response_format"] = {**form, "json_schema": form} if isinstance(form, dict) else form
    try:
        return parse_chat(chat)
    except ApiError as error:
        names = {"messages": "input", "max_completion_tokens": "max_output_tokens", "response_format": "text.format"}
        first = (error.param or "").partition("[")[0]
        if first in names:
            error.param = (error.param or "").replace(first, names[first], 1)
            error.message = error.message.replace(first, names[first], 1)
        raise


def _refuse(body: dict[str, Any], fields: dict[str, tuple[Any, ...]]) -> None:
    for name, harmless in fields.items():
        if name in body and body[name] not in harmless:
            raise ApiError(400, f"'{name}' is not supported", code="unsupported_parameter", param=name)


def _request(body: dict[str, Any], messages: tuple[Message, ...], *, raw: bool) -> CompletionRequest:
    _refuse(body, _REFUSED)
    options = _typed(body, "stream_options", dict, {}) or {}
    documents = _typed(body, "documents", list, []) or []
    if not all(isinstance(name, str) for name in documents):
        raise _wrong("documents", "must be a list of file ids")
    if documents and raw:
        raise _wrong("documents", "needs a chat: use /v1/chat/completions")
    return CompletionRequest(
        model=_typed(body, "model", str, None),
        messages=messages,
        raw=raw,
        documents=tuple(documents),
        sampling=_sampling(body),
        max_tokens=_max_tokens(body),
        stop=_stop(body),
        stream=bool(_typed(body, "stream", bool, False)),
        include_usage=bool(options.get("include_usage")),
        answer_format=_answer_format(body, messages),
    )


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise _wrong(where, "must be an object")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise _wrong(f"{where}.role", f"must be one of {', '.join(_ROLES)}")
    return Message(_ROLES[role], _text(message.get("content"), f"{where}.content"))


def _text(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _wrong(where, "must be a text or a list of text parts")
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "input_text", "output_text") or not isinstance(part.get("text"), str):
            raise ApiError(400, f"{where}[{i}]: only text parts are supported", code="unsupported_content", param=where)
        texts.append(part["text"])
    return "\n".join(texts)


def _merged(messages: list[Message]) -> tuple[Message, ...]:
    """System texts first, as one; neighbours of one role as one message; empty ones dropped.

    Chat templates refuse two user messages in a row and a system message that is not the first.
    """
    system = "\n\n".join(m.text for m in messages if m.role == "system" and m.text)
    found = [Message("system", system)] if system else []
    for message in messages:
        if message.role == "system" or not message.text:
            continue
        if found and found[-1].role == message.role:
            found[-1] = Message(message.role, f"{found[-1].text}\n\n{message.text}")
        else:
            found.append(message)
    return tuple(found)


def _sampling(body: dict[str, Any]) -> Sampling:
    numbers: dict[str, Any] = {}
    for name in ("temperature", "top_p", "min_p"):
        value = _typed(body, name, (int, float), None)
        if value is not None:
            numbers[name] = float(value)
    for name in ("top_k", "seed"):
        value = _typed(body, name, int, None)
        if value is not None:
            numbers[name] = value
    try:
        return Sampling(**numbers)
    except UsageError as error:
        raise ApiError(400, error.message, code="invalid_value") from None


def _answer_format(body: dict[str, Any], messages: tuple[Message, ...]) -> AnswerFormat | None:
    wanted = _typed(body, "response_format", dict, None) or {"type": "text"}
    kind, described = wanted.get("type"), wanted.get("json_schema")
    if kind == "text":
        return None
    if _stop(body):
        raise _wrong("stop", "would cut an answer of a 'response_format'")
    if messages[-1].role == "assistant":
        raise _wrong("response_format", "needs a user message as the last one")
    if kind == "json_object":
        return AnswerFormat.json_object()
    schema = described.get("schema", {}) if kind == "json_schema" and isinstance(described, dict) else None
    if not isinstance(schema, dict):
        raise _wrong("response_format", "must be of type text, json_object, or json_schema with a schema")
    try:
        return AnswerFormat.json_schema(schema)
    except UsageError as error:
        raise _wrong("response_format", error.message) from None


def _max_tokens(body: dict[str, Any]) -> int:
    for name in ("max_completion_tokens", "max_tokens"):
        value = _typed(body, name, int, None)
        if value is not None:
            if value < 1:
                raise _wrong(name, "must be at least 1")
            return int(value)
    return ANSWER_TOKENS


def _stop(body: dict[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop")
    texts = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts) or len(texts) > 4:
        raise _wrong("stop", "must be a text or a list of at most four")
    return tuple(t for t in texts if t)


def _typed(body: dict[str, Any], name: str, kind: Any, default: Any) -> Any:
    value = body.get(name, default)
    if value is None or (isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)):
        return value
    raise _wrong(name, f"has the wrong type ({type(value).__name__})")


def _wrong(name: str, problem: str) -> ApiError:
    return ApiError(400, f"'{name}' {problem}", code="invalid_value", param=name)
