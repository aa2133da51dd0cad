"""The web page and its routes: what a browser is allowed, and what it is shown of documents."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from kvcli.documents.pdf.picture import marked
from kvcli.documents.pdf.words import Word
from tests.unit.documents import makers
from tests.unit.server.conftest import TEXT, Running, Start

HOSTILE = f"<script>alert(1)</script> \x1b[31mred\x1b[0m & <b>bold</b>. {TEXT}"


def paper(*texts: str) -> bytes:
    return makers.pdf([makers.Page([(72, 100, 12, text)]) for text in texts])


def upload(running: Running, name: str, data: bytes) -> Any:
    answer = httpx.post(f"{running.url}/v1/files", files={"file": (name, data)}, timeout=300)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_page_may_run_itself_and_nothing_else(server: Running) -> None:
    answer = httpx.get(server.url + "/")
    assert answer.headers["content-type"].startswith("text/html")
    rules = dict(rule.strip().split(" ", 1) for rule in answer.headers["content-security-policy"].split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == rules["frame-ancestors"] == "'none'"
    assert rules["connect-src"] == "'self'"
    for tag in ("script", "style"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_the_page_fetches_nothing_and_parses_no_text_as_markup(server: Running) -> None:
    text = httpx.get(server.url + "/").text
    for word in ("http:", "https:", "//cdn", "innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("):
        assert word not in text
    assert not re.search(r"<[^>]*\s(on\w+|style)\s*=", text)
    assert not re.search(r"(localStorage|sessionStorage|document\.cookie)", text)


def test_the_page_needs_no_token_and_all_else_does(start: Start) -> None:
    with start(token="s3cret") as running:
        assert httpx.get(running.url + "/").status_code == 200
        assert httpx.get(running.url + "/", headers={"Host": "evil.example"}).status_code == 421
        for path in ("/v1/files/a/passage?start=0&end=1", "/v1/files/a/pages/1", "//", "/?token=s3cret&x=1", "/page"):
            assert httpx.get(running.url + path).status_code == (200 if path.startswith("/?") else 401)
        assert httpx.post(running.url + "/v1/files/a/prefill").status_code == 401
        assert httpx.post(running.url + "/").status_code == 401


def test_a_passage_is_data_and_no_markup(server: Running) -> None:
    file = upload(server, "<img src=x>.txt", HOSTILE.encode())
    start = HOSTILE.index("House 20 ")
    passage = f"{server.url}/v1/files/{file['id']}/passage"
    answer = httpx.get(f"{passage}?start={start}&end={start + 8}")
    assert answer.headers["content-type"] == "application/json"
    found = answer.json()
    assert found["text"] == "House 20"
    assert HOSTILE.endswith(found["text"] + found["after"] + HOSTILE[start + 8 + len(found["after"]) :])
    assert (found["source"], found["page"], found["line"]) == ("<img src=x>.txt", None, 1)
    whole = httpx.get(f"{passage}?start=0&end=20").json()
    assert whole["text"] == HOSTILE[:20]
    for query in ("", "?start=a&end=2", "?start=-1&end=2", "?start=5&end=5", f"?start=0&end={10**9}", "?start=²&end=3"):
        assert httpx.get(passage + query).status_code == 400
    assert httpx.get(f"{server.url}/v1/files/none/passage?start=0&end=1").status_code == 404


def pixels(data: bytes) -> Any:
    """The RGB values of a PNG as this server writes them."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    at, body = 8, b""
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        body += data[at + 8 : at + 8 + length] if data[at + 4 : at + 8] == b"IDAT" else b""
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(
            data[at + 4 : at + 8 + length]
        )
        at += 12 + length
    return (
        np.frombuffer(zlib.decompress(body), np.uint8).reshape(height, 1 + 3 * width)[:, 1:].reshape(height, width, 3)
    )


def test_a_page_is_a_picture_with_the_quote_marked(server: Running) -> None:
    data = paper("The meeting begins at noon.", "Tea is served in the town hall.")
    file = upload(server, "meeting.pdf", data)
    assert file["kvcli"]["pictures"]
    where = f"{server.url}/v1/files/{file['id']}"
    plain = pixels(httpx.get(f"{where}/pages/2", timeout=300).content)
    (uploaded,) = [f for f in server.service.uploads if f.id == file["id"]]
    start = uploaded.document.text.index("town hall")
    answer = httpx.get(f"{where}/pages/2?start={start}&end={start + 9}", timeout=300)
    assert (answer.headers["content-type"], answer.headers["x-content-type-options"]) == ("image/png", "nosniff")
    shown = pixels(answer.content)
    changed = (shown != plain).any(axis=2)
    assert 0.0005 < changed.mean() < 0.05
    assert (shown[changed][:, 2] <= 90).all()
    for path in ("3", "0", "2?start=a", "x"):
        assert httpx.get(f"{where}/pages/{path}").status_code in (400, 404)
    text = upload(server, "a.txt", b"No pages here.")
    assert not text["kvcli"]["pictures"]
    assert httpx.get(f"{server.url}/v1/files/{text['id']}/pages/1").status_code == 404


def test_line_ends_and_hyphens_do_not_hide_a_quote() -> None:
    words = [Word(text, 0, 0, 1, 1) for text in ("The", "whale", "was", "beau-", "tiful,", "indeed.", "—", "The")]
    assert [w.text for w in marked(words, "was beautiful, indeed")] == ["was", "beau-", "tiful,", "indeed."]
    assert [w.text for w in marked(words, "THE WHALE")] == ["The", "whale"]
    assert marked(words, "a ship") == marked(words, " — ") == marked([], "whale") == []


def read(running: Running, file_id: str) -> Iterator[Any]:
    answer = httpx.post(f"{running.url}/v1/files/{file_id}/prefill", timeout=300)
    assert answer.headers["content-type"].startswith("text/event-stream")
    for part in answer.text.split("\n\n"):
        if part:
            yield json.loads(part.removeprefix("data: "))


def test_a_document_is_read_with_progress_and_then_known(server: Running) -> None:
    file = upload(server, "long.txt", TEXT.encode())
    events = list(read(server, file["id"]))
    done = [e["done"] for e in events]
    assert done == sorted(done)
    assert len(done) > 10
    assert events[-1]["ready"]
    assert done[-1] == events[-1]["total"] > len(TEXT)
    assert events[-2]["bytes"] < events[-2]["full_bytes"] / 5, "most was evicted"
    assert max(e["bytes"] for e in events[20:]) == min(e["bytes"] for e in events[20:-1]), "the memory is flat"
    again = list(read(server, file["id"]))
    assert again[-1]["cached"] == done[-1]
    assert len(again[-1]["kept"]) == 60
    assert sum(again[-1]["kept"]) / 60 == pytest.approx(128 / done[-1], rel=0.05), "what is kept, of 60 equal parts"
    assert httpx.post(f"{server.url}/v1/files/none/prefill").status_code == 404


def test_no_picture_is_left_of_a_removed_file_or_a_server_that_stopped(start: Start) -> None:
    with start() as running:
        gone = upload(running, "tea.pdf", paper("Tea is served."))
        path = running.service.uploads.get(gone["id"]).path
        httpx.delete(f"{running.url}/v1/files/{gone['id']}")
        assert not path.exists()
        upload(running, "meeting.pdf", paper("The meeting begins at noon."))
        (file,) = running.service.uploads
        assert file.path.is_file()
    assert not file.path.exists()


def test_places_in_several_documents_are_told_by_file(server: Running) -> None:
    texts = ("The meeting begins at noon. " * 9, "Nobody came. Tea is served in the town hall. The end.")
    ids = [upload(server, f"{i}.txt", text.encode())["id"] for i, text in enumerate(texts)]
    ask = {"messages": [{"role": "user", "content": "Where is tea served?"}], "max_tokens": 8, "documents": ids}
    facts = httpx.post(f"{server.url}/v1/chat/completions", json=ask, timeout=300).json()["kvcli"]
    assert facts["quotes"][0]["file"] == ids[1]
    for quote in facts["quotes"]:
        assert texts[ids.index(quote["file"])][quote["file_start"] : quote["file_end"]] == quote["text"]
    assert {place["file"] for place in facts["likely_sources"]} <= {*ids}
