"""``/v1/responses`` and ``/v1/completions`` with OpenAI's own client."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import pydantic
import pytest

from tests.unit.server.conftest import NAME, TEXT, Running

ASK: dict[str, Any] = {"model": NAME, "input": "Who?", "max_output_tokens": 8}


class House(pydantic.BaseModel):
    colour: Literal["red", "green"]


def chat(server: Running, *messages: tuple[str, str]) -> Any:
    spoken = [{"role": role, "content": text} for role, text in messages]
    return server.post("/v1/chat/completions", {"messages": spoken, "max_tokens": 8}).json()


def test_a_response_is_the_answer_of_a_chat(server: Running) -> None:
    found = server.client().responses.create(**ASK)
    same = chat(server, ("user", "Who?"))
    assert found.output_text == same["choices"][0]["message"]["content"]
    assert (found.status, found.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert found.usage.input_tokens == same["usage"]["prompt_tokens"]
    assert found.usage.output_tokens == 8
    assert found.usage.total_tokens == found.usage.input_tokens + 8


def test_instructions_and_messages(server: Running) -> None:
    part = {"type": "input_text", "text": "Who?"}
    said = {"type": "output_text", "text": "Me."}
    items = [
        {"role": "user", "content": [part]},
        {"type": "message", "role": "assistant", "content": [said]},
        {"role": "user", "content": "Why?"},
    ]
    found = server.client().responses.create(**{**ASK, "input": items}, instructions="Be brief.")
    same = chat(server, ("system", "Be brief."), ("user", "Who?"), ("assistant", "Me."), ("user", "Why?"))
    assert found.output_text == same["choices"][0]["message"]["content"]


def test_events_of_a_stream(server: Running) -> None:
    events = list(server.client().responses.create(**ASK, stream=True))
    kinds = [event.type for event in events]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert [k for k in dict.fromkeys(kinds) if "delta" not in k] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    whole = server.client().responses.create(**ASK)
    assert "".join(deltas) == events[-1].response.output_text == whole.output_text
    with server.client().responses.stream(**{**ASK, "max_output_tokens": 100}, text_format=House) as stream:
        assert isinstance(stream.get_final_response().output_parsed, House)


def test_a_text_format_is_kept(server: Running) -> None:
    found = server.client().responses.parse(**{**ASK, "max_output_tokens": 100}, text_format=House)
    assert isinstance(found.output_parsed, House)
    assert found.status == "completed"


def test_a_document_comes_first(server: Running) -> None:
    file = server.client().files.create(file=("a.txt", TEXT.encode()), purpose="user_data")
    found = server.client().responses.create(**ASK, extra_body={"documents": [file.id]})
    assert found.usage.input_tokens > len(TEXT)
    assert found.model_extra["kvcli"]["context"]["evicted"] > 0


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"previous_response_id": "resp-1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"input": []}, "input"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "schema": {"not": {}}}}}, "text.format"),
    ],
)
def test_what_would_change_the_response_is_refused_by_name(server: Running, change: Any, field: str) -> None:
    for stream in (False, True):
        answer = server.post("/v1/responses", {**ASK, **change, "stream": stream})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


def test_a_text_is_continued_without_a_template(server: Running) -> None:
    ask: dict[str, Any] = {"model": NAME, "prompt": "House 1 is", "max_tokens": 6}
    client = server.client()
    whole = client.completions.create(**ask)
    chunks = list(client.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert whole.usage.prompt_tokens == len(ask["prompt"])  # a token is a byte here
    assert chunks[-1].usage.completion_tokens == 6
    with pytest.raises(openai.BadRequestError):
        client.completions.create(**{**ask, "prompt": ["a", "b"]})
    assert json.loads(server.post("/v1/completions", {**ask, "logprobs": 3}).text)["error"]["param"] == "logprobs"
