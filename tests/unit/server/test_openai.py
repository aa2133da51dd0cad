"""The OpenAI interface with OpenAI's own client, and what people report of other local servers."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any, Literal, cast

import httpx
import openai
import pydantic
import pytest

import kvcli
from kvcli.server.mcp_tools import DocumentTools
from kvcli.server.service import SHORT
from tests.unit.server.conftest import NAME, TEXT, Running, Start

LONG = TEXT * 3
ASK = {"model": NAME, "messages": [{"role": "user", "content": "Who?"}], "max_tokens": 8}


def test_models_are_listed(server: Running) -> None:
    assert [m.id for m in server.client().models.list()] == [NAME]
    assert server.client().models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError):
        server.client().models.retrieve("gpt-4")


def test_streamed_and_whole_are_the_same_and_are_the_pipelines_answer(server: Running, model: Any) -> None:
    client = server.client()
    whole = client.chat.completions.create(**ASK)
    chunks = list(client.chat.completions.create(**ASK, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert len({(c.id, c.model, c.created) for c in chunks}) == 1
    assert [c.choices[0].finish_reason for c in chunks][-1] == whole.choices[0].finish_reason == "length"
    assert chunks[0].choices[0].delta.role == "assistant"
    pipeline = kvcli.Pipeline(model, "keydiff(budget=128)", chunk_size=64)
    assert text == pipeline.answer(pipeline.prefill(None), "Who?", max_tokens=8).text


def test_usage_comes_in_one_last_chunk_and_only_if_it_is_asked_for(server: Running) -> None:
    client = server.client()
    client.chat.completions.create(**ASK)  # what is read is kept for the next one, whichever test is the first
    usage = client.chat.completions.create(**ASK).usage
    chunks = list(client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))
    assert all(c.usage is None and len(c.choices) == 1 for c in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage == usage
    assert usage.completion_tokens == 8
    assert usage.total_tokens == usage.prompt_tokens + 8
    assert all(c.choices for c in client.chat.completions.create(**ASK, stream=True))


def test_a_stop_text_is_never_sent_not_even_its_beginning(server: Running) -> None:
    client = server.client()
    text = client.chat.completions.create(**{**ASK, "max_tokens": 24}).choices[0].message.content
    stop = text[5:9]
    cut = text[: text.index(stop)]
    options = {**ASK, "max_tokens": 24, "stop": [stop]}
    answer = client.chat.completions.create(**options)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (cut, "stop")
    assert answer.usage.completion_tokens == len(cut) + len(stop)  # a token is a byte here
    streamed = ""
    for chunk in client.chat.completions.create(**options, stream=True):
        streamed += chunk.choices[0].delta.content or ""
        assert cut.startswith(streamed)
    assert streamed == cut


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": [{"type": "text", "text": "Who?"}]}],
        [{"role": "system", "content": ""}, {"role": "user", "content": "Who?"}],
        [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": None, "tool_calls": []}],
    ],
)
def test_messages_that_mean_the_same_are_answered_the_same(server: Running, messages: Any) -> None:
    plain = server.post("/v1/chat/completions", ASK).json()
    other = server.post("/v1/chat/completions", {**ASK, "messages": messages, "an_unknown_field": 1}).json()
    assert other["choices"] == plain["choices"]


def test_every_role_is_understood(server: Running) -> None:
    roles = ["developer", "system", "user", "assistant", "tool", "user"]
    messages = [{"role": role, "content": f"I am {role}"} for role in roles]
    assert server.post("/v1/chat/completions", {**ASK, "messages": messages}).status_code == 200


def test_a_last_assistant_message_is_continued(server: Running) -> None:
    whole = server.post("/v1/chat/completions", ASK).json()["choices"][0]["message"]["content"]
    begun = [*ASK["messages"], {"role": "assistant", "content": whole[:3]}]  # type: ignore[misc]
    body = {**ASK, "messages": begun, "max_tokens": 5}
    assert server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"] == whole[3:8]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"logprobs": True}, "logprobs"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://localhost:1/a"}}}},
            "response_format",
        ),
        ({"response_format": {"type": "json_object"}, "stop": "}"}, "stop"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": 7}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"documents": "file-1"}, "documents"),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(server: Running, change: Any, field: str) -> None:
    answer = server.post("/v1/chat/completions", {**ASK, **change})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field


class House(pydantic.BaseModel):
    blue: bool
    colour: Literal["red", "green"]


def test_a_response_format_is_kept(server: Running) -> None:
    client = server.client()
    ask = {**ASK, "max_tokens": 100}
    found = client.chat.completions.parse(**ask, response_format=House)
    assert isinstance(found.choices[0].message.parsed, House)
    assert found.choices[0].finish_reason == "stop"
    streamed = client.chat.completions.create(
        **ask,
        stream=True,
        response_format={"type": "json_schema", "json_schema": {"name": "h", "schema": House.model_json_schema()}},
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert House.model_validate_json(text)
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**{**ASK, "max_tokens": 3}, response_format=House)
    anything = client.chat.completions.create(**{**ask, "temperature": 1.0}, response_format={"type": "json_object"})
    choice = anything.choices[0]
    assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict)


def test_images_are_refused(server: Running) -> None:
    part = {"type": "image_url", "image_url": {"url": "http://example.org/a.png"}}
    answer = server.post("/v1/chat/completions", {**ASK, "messages": [{"role": "user", "content": [part]}]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_content")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_bodies_that_are_no_request(server: Running, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{server.url}/v1/chat/completions", content=body, headers=headers, timeout=300)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_another_model_is_not_loaded(server: Running) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        server.client().chat.completions.create(**{**ASK, "model": "/etc/passwd"})
    assert NAME in str(caught.value)


def test_a_long_prompt_is_read_with_eviction_and_its_beginning_is_reused(server: Running) -> None:
    messages = [{"role": "user", "content": LONG + "Who?"}]
    first = server.post("/v1/chat/completions", {**ASK, "messages": messages}).json()
    context = first["kvcli"]["context"]
    assert first["usage"]["prompt_tokens"] > SHORT
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert context["kept"] < context["tokens"] == context["kept"] + context["evicted"]
    again = server.post("/v1/chat/completions", {**ASK, "messages": messages}).json()
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == first["usage"]["prompt_tokens"] - 1
    assert again["choices"] == first["choices"]
    reply = first["choices"][0]["message"]["content"]
    more = [*messages, {"role": "assistant", "content": reply}, {"role": "user", "content": "And then?"}]
    third = server.post("/v1/chat/completions", {**ASK, "messages": more}).json()
    assert third["usage"]["prompt_tokens_details"]["cached_tokens"] >= context["tokens"]


@pytest.mark.parametrize("text", ["", TEXT])
def test_a_conversation_reads_only_what_is_new_and_is_answered_the_same(start: Start, text: str) -> None:
    """In memory, and by a server that has read nothing before; whichever turn comes first."""
    asked = ["Who?", "Where is it?", "And when?", "Is the sky blue above it?"]
    turns: list[list[dict[str, str]]] = []
    with start() as running:
        said, found = list[dict[str, str]](), []
        for question in asked:
            said = [*said, {"role": "user", "content": f"{text}{question}" if not said else question}]
            turns.append(said)
            found.append(running.post("/v1/chat/completions", {**ASK, "messages": said}).json())
            said = [*said, {"role": "assistant", "content": found[-1]["choices"][0]["message"]["content"]}]
    usage = [f["usage"] for f in found]
    cached = [u["prompt_tokens_details"]["cached_tokens"] for u in usage]
    assert cached[0] == 0
    if not text:  # all but the end of the answer, its end mark and the new message
        assert all(now >= before["prompt_tokens"] for now, before in zip(cached[1:], usage[:-1], strict=True))
    assert all(c < u["prompt_tokens"] for c, u in zip(cached, usage, strict=True))
    with start() as running:
        for n in (3, 1):
            again = running.post("/v1/chat/completions", {**ASK, "messages": turns[n]}).json()
            assert again["choices"] == found[n]["choices"]
            assert again["usage"]["prompt_tokens"] == usage[n]["prompt_tokens"]


def test_conversations_leave_with_their_context_and_keep_the_limit(start: Start) -> None:
    with start(memory=1) as running:
        running.post("/v1/chat/completions", ASK)
        assert running.service.conversations.nbytes == 0
    with start(memory=1 << 30) as running:
        running.post("/v1/chat/completions", {**ASK, "messages": [{"role": "user", "content": TEXT}]})
        running.post("/v1/chat/completions", ASK)
        service = running.service
        both = service.conversations.nbytes
        service.conversations.forget(next(iter(service.contexts._ready.values())).context)
        assert 0 < service.conversations.nbytes < both


def test_what_was_saved_is_used_after_a_restart(start: Start, tmp_path: Any) -> None:
    body = {**ASK, "messages": [{"role": "user", "content": LONG}]}
    with start(cache=tmp_path) as running:
        first = running.post("/v1/chat/completions", body).json()
    with start(cache=tmp_path) as running:
        second = running.post("/v1/chat/completions", body).json()
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == first["kvcli"]["context"]["tokens"]
    assert second["choices"] == first["choices"]


def test_a_prompt_beyond_the_window_is_an_error_only_if_nothing_is_evicted(start: Start) -> None:
    body = {**ASK, "messages": [{"role": "user", "content": LONG}]}
    with start("full") as running:
        with pytest.raises(openai.BadRequestError) as caught:
            running.client().chat.completions.create(**body)
        assert caught.value.code == "context_length_exceeded"
        assert "4,096" in str(caught.value)
        tokens = re.search(r"([\d,]+) tokens", str(caught.value))
        assert int(tokens[1].replace(",", "")) > 4096
        stream = running.post("/v1/chat/completions", {**body, "stream": True})
        assert stream.status_code == 400


def test_uploaded_documents_are_put_before_the_conversation(server: Running, model: Any) -> None:
    client = server.client()
    file = client.files.create(file=("../../house.txt", TEXT.encode()), purpose="user_data")
    assert file.filename == "house.txt"
    assert [f.id for f in client.files.list()] == [file.id]
    answer = client.chat.completions.create(**ASK, extra_body={"documents": [file.id]})
    pipeline = kvcli.Pipeline(model, "keydiff(budget=128)", chunk_size=64)
    context = pipeline.prefill(TEXT)
    expected = pipeline.answer(context, "Who?", max_tokens=8)
    assert answer.choices[0].message.content == expected.text
    facts = answer.model_extra["kvcli"]
    assert facts["context"]["tokens"] == context.tokens
    assert facts["grounded"] == expected.citations.grounded
    assert {s["source"] for s in facts["likely_sources"]} <= {"house.txt"}
    found = pipeline.find_quotes(TEXT, "Who?", answer=expected.text)
    assert [q["text"] for q in facts["quotes"]] == [q.text for q in found.quotes]
    assert facts["answer_in_text"] == pytest.approx(found.likely, abs=1e-4)
    turns = [*ASK["messages"], {"role": "assistant", "content": "a"}, {"role": "user", "content": "Where?"}]  # type: ignore[misc]
    later = client.chat.completions.create(**{**ASK, "messages": turns}, extra_body={"documents": [file.id]})
    *_, end = pipeline.ask(context, "Where?", history=[("Who?", "a")], max_tokens=8)
    assert later.choices[0].message.content == end.text
    client.files.delete(file.id)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**ASK, extra_body={"documents": [file.id]})


@pytest.mark.parametrize("interface", ["chat", "responses", "mcp"])
def test_a_question_of_a_document_is_answered_as_by_ask(
    start: Start, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interface: str
) -> None:
    """From its likeliest sentences, if the model is one that answers so and nobody says otherwise."""
    monkeypatch.setattr("kvcli.models.defaults.ASKED_BY_EXAMPLES", (model.name,))
    pipeline, question = kvcli.Pipeline(model, chunk_size=64), "Which house is number 7?"
    unread = pipeline.unread(TEXT, question, default=True)
    assert unread is not None
    expected = pipeline.answer(unread, question, max_tokens=8, from_quotes=None)
    assert expected.text in " ".join(TEXT.split())
    if interface == "mcp":
        (tmp_path / "house.txt").write_text(TEXT)
        tools = DocumentTools(tmp_path, lambda: pipeline)
        asked = tools.ask_document("house.txt", question, cast("Any", None), max_tokens=8)
        assert asyncio.run(asked)["answer"] == expected.text
        return

    def ask(running: Running, *messages: str, **more: Any) -> tuple[str, Any]:
        client = running.client()
        file = client.files.create(file=("house.txt", TEXT.encode()), purpose="user_data")
        spoken: Any = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(messages)]
        extra = {"documents": [file.id], **more}
        if interface == "responses":
            got = client.responses.create(model=NAME, input=spoken, max_output_tokens=8, extra_body=extra)
            return got.output_text, (got.model_extra or {})["kvcli"]
        made = client.chat.completions.create(model=NAME, messages=spoken, max_tokens=8, extra_body=extra)
        return made.choices[0].message.content or "", (made.model_extra or {})["kvcli"]

    with start(None) as running:
        text, facts = ask(running, question)
        assert text == expected.text
        assert (facts["from_quotes"], facts["passages"]) == (True, [list(span) for span in expected.passages])
        assert "context" not in facts, "it was not read"
        assert {quote["file_start"] for quote in facts["quotes"]} == {quote["char_start"] for quote in facts["quotes"]}
        for messages in (("Name house 7.",), ("Hello.", "Hello.", question), ("Who won the regatta of Cork?",)):
            facts = ask(running, *messages)[1]
            assert facts["from_quotes"] is False, messages
            assert facts["context"]["tokens"] > len(TEXT)
    with start("full") as running:
        assert ask(running, question)[1]["from_quotes"] is False, "a recipe was named"


@pytest.mark.parametrize("data", [b"", b"\x7fELF\x02\x01\x01" + bytes(64)])
def test_files_without_text_are_refused(server: Running, data: bytes) -> None:
    with pytest.raises(openai.BadRequestError):
        server.client().files.create(file=("a.bin", data), purpose="user_data")


def test_a_character_of_several_tokens_arrives_whole(server: Running) -> None:
    """A token is a byte here, and the schema makes the model write long characters."""
    schema = {"type": "object", "properties": {"x": {"enum": ["ü☃𝄞é"]}}, "required": ["x"]}
    form = {"type": "json_schema", "json_schema": {"schema": {**schema, "additionalProperties": False}}}
    chunks = list(
        server.client().chat.completions.create(**{**ASK, "max_tokens": 60}, stream=True, response_format=form)
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert json.loads("".join(pieces)) == {"x": "ü☃𝄞é"}
    assert [p for p in pieces if p in "ü☃𝄞é" and p] == ["ü", "☃", "𝄞", "é"]


def test_the_newer_limit_counts(server: Running) -> None:
    for limits in ({"max_completion_tokens": 3}, {"max_tokens": 3}, {"max_completion_tokens": 3, "max_tokens": 9}):
        body = {"messages": ASK["messages"], **limits}
        assert server.post("/v1/chat/completions", body).json()["usage"]["completion_tokens"] == 3
