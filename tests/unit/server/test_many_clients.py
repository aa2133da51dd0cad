"""Several clients of one server, and clients that leave."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from tests.unit.server.conftest import TEXT, Running, Start
from tests.unit.server.test_openai import ASK, LONG

# The tiny model samples its end token within some hundred steps; a schema forbids it.
LONG_STRING = {"name": "long", "schema": {"type": "string", "minLength": 2900}}
ENDLESS = {
    **ASK,
    "max_tokens": 3000,
    "temperature": 1.0,
    "response_format": {"type": "json_schema", "json_schema": LONG_STRING},
}


def eventually(condition: Any, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_costs_nothing_more(start: Start, stream: bool) -> None:
    """While its answer is written; while its prompt is read; the model is free again at once."""
    writing = {**ENDLESS, "stream": stream}
    reading = {**ASK, "messages": [{"role": "user", "content": LONG * 20}], "stream": stream}
    with start(chunk=16) as running:
        for body in (writing, reading):
            with busy(running, body):
                pass
            eventually(lambda: not running.service.scheduler.jobs and not running.service.active, 10)


@contextmanager
def busy(running: Running, body: Any) -> Iterator[None]:
    """The server works on a request, whose client leaves at the end."""
    host, _, port = running.url.removeprefix("http://").partition(":")
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        eventually(lambda: running.service.scheduler.jobs)
        yield


def test_a_client_that_leaves_behind_another_ends_only_its_own_request(start: Start) -> None:
    def reading(n: int) -> dict[str, Any]:
        return {**ASK, "messages": [{"role": "user", "content": f"{n} " + LONG * 40}]}

    with start(chunk=16) as running, busy(running, reading(1)):
        with busy(running, reading(2)):
            eventually(lambda: running.service.active == 2)
        eventually(lambda: running.service.active == 1, 10)
        assert running.service.scheduler.jobs, "the first one is still read"


def test_a_prefill_goes_on_for_others_if_one_client_leaves(start: Start) -> None:
    body = {**ASK, "messages": [{"role": "user", "content": TEXT * 2}]}
    with start(chunk=16) as running, ThreadPoolExecutor(1) as pool:
        with busy(running, body):
            other = pool.submit(running.post, "/v1/chat/completions", body)
            eventually(lambda: any(len(p.listeners) == 2 for p in running.service.contexts._under_way.values()))
            (under_way,) = running.service.contexts._under_way.values()
        found = other.result().json()
        assert found["choices"][0]["finish_reason"] == "length"
        assert under_way.task.result().context.nbytes == found["kvcli"]["context"]["bytes"]
        assert not under_way.stop.is_set()


def test_many_clients_get_the_answers_of_one(server: Running) -> None:
    bodies = [{**ASK, "messages": [{"role": "user", "content": f"{TEXT if n % 2 else ''}Who {n}?"}]} for n in range(4)]
    expected = [server.post("/v1/chat/completions", body).json()["choices"] for body in bodies]
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda body: server.post("/v1/chat/completions", body).json()["choices"], bodies * 3)
        assert list(found) == expected * 3


def test_a_prefill_that_several_wait_for_happens_once(start: Start) -> None:
    body = {**ASK, "messages": [{"role": "user", "content": LONG * 4}]}
    with start() as running, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: running.post("/v1/chat/completions", body).json(), range(4)))
        assert len({json.dumps(f["choices"]) for f in found}) == 1
        assert {f["kvcli"]["context"]["cache"] for f in found} == {"off"}
        assert running.service.contexts.nbytes == found[0]["kvcli"]["context"]["bytes"]


def test_a_short_answer_does_not_wait_for_a_long_prefill(start: Start) -> None:
    long = {**ASK, "messages": [{"role": "user", "content": LONG * 40}]}
    with start(chunk=32) as running, busy(running, long):
        assert running.post("/v1/chat/completions", ASK).status_code == 200
        assert running.service.scheduler.jobs, "the long prefill is still under way"


def test_the_queue_is_bounded(start: Start) -> None:
    with start(queue=1, chunk=32) as running:
        with busy(running, {**ASK, "messages": [{"role": "user", "content": LONG * 40}]}):
            answer = running.post("/v1/chat/completions", ASK)
            assert answer.status_code == 429
            assert int(answer.headers["Retry-After"]) >= 1
        eventually(lambda: not running.service.active)
        assert running.post("/v1/chat/completions", ASK).status_code == 200


def test_contexts_beyond_the_memory_limit_are_dropped_and_come_back(start: Start, tmp_path: Any) -> None:
    bodies = [{**ASK, "messages": [{"role": "user", "content": f"{n} {LONG}"}]} for n in range(2)]
    with start(cache=tmp_path, memory=1) as running:
        first = [running.post("/v1/chat/completions", body).json() for body in bodies]
        assert running.service.contexts.nbytes == first[1]["kvcli"]["context"]["bytes"]
        again = running.post("/v1/chat/completions", bodies[0]).json()
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == first[0]["kvcli"]["context"]["tokens"]
        assert again["choices"] == first[0]["choices"]


def test_a_server_that_stops_ends_its_answers(start: Start) -> None:
    with start() as running:
        chunks = []
        for chunk in running.client().chat.completions.create(**ENDLESS, stream=True):
            chunks.append(chunk)
            if len(chunks) == 3:
                running.stop()
        assert chunks[-1].choices[0].finish_reason == "length"
        assert chunks[-1].model_extra["kvcli"]["finish_reason"] == "interrupted"
        running.thread.join(300)
        assert not running.thread.is_alive()
