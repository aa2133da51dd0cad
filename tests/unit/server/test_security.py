"""Who may talk to the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from kvcli.errors import ResourceError
from kvcli.server.app import build
from kvcli.server.errors import ApiError
from kvcli.server.run import bind
from kvcli.server.security import LOOPBACK, hostname
from kvcli.server.uploads import Uploads
from tests.unit.server.conftest import Running, Start, raw_request


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:1", "[::1]", "[::1]:8421", "127.0.0.1:8421"])
def test_loopback_names_pass(server: Running, host: str) -> None:
    assert raw_request(server.url, f"GET /health HTTP/1.1\nHost: {host}").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("origin", ["", "\nOrigin: null", "\nOrigin: http://localhost"])
@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost:x", "user@localhost", "", "localhost/..", "0"]
)
def test_any_other_host_is_misdirected(server: Running, host: str, origin: str) -> None:
    answer = raw_request(server.url, f"GET /health HTTP/1.1\nHost: {host}{origin}")
    assert answer.startswith((b"HTTP/1.1 421", b"HTTP/1.1 400"))


@pytest.mark.parametrize("head", ["HTTP/1.0", "HTTP/1.1\nHost: localhost\nHost: evil.example"])
def test_no_host_and_two_hosts_are_refused(server: Running, head: str) -> None:
    assert raw_request(server.url, f"GET /health {head}").startswith((b"HTTP/1.1 421", b"HTTP/1.1 400"))


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://localhost.evil.example"])
def test_foreign_pages_are_refused(server: Running, origin: str) -> None:
    assert httpx.get(f"{server.url}/health", headers={"Origin": origin}).status_code == 403
    answer = httpx.options(f"{server.url}/v1/models", headers={"Origin": origin})
    assert "access-control-allow-origin" not in answer.headers


def test_a_form_of_a_web_page_is_no_request(server: Running) -> None:
    headers = {"Content-Type": "text/plain"}
    assert httpx.post(f"{server.url}/v1/chat/completions", content=b"{}", headers=headers).status_code == 415


def test_the_token_is_needed_everywhere(start: Start) -> None:
    with start(token="s3cret") as running:
        for path in ("/health", "/v1/models", "/v1/files", "/nowhere"):
            assert httpx.get(running.url + path).status_code == 401
            assert httpx.get(running.url + path, headers={"Authorization": "Bearer s3cre"}).status_code == 401
            assert httpx.get(running.url + path, headers={"Authorization": "Bearer s3cret"}).status_code != 401
        assert [m.id for m in running.client(api_key="s3cret").models.list()]


def test_any_name_leads_to_an_address_that_others_can_reach(start: Start) -> None:
    with start(token="gehéim", host="0.0.0.0") as running:
        head = "GET /health HTTP/1.1\nHost: box.lan:8421\nAuthorization: Bearer "
        assert raw_request(running.url, head + "gehéim".encode().decode("latin-1")).startswith(b"HTTP/1.1 200")
        assert raw_request(running.url, head + "wrong").startswith(b"HTTP/1.1 401")


def test_large_bodies_are_refused_before_they_are_read(server: Running) -> None:
    answer = raw_request(
        server.url, "POST /v1/files HTTP/1.1\nHost: localhost\nContent-Type: a/b\nContent-Length: 99999999999"
    )
    assert answer.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(("kind", "path"), [("application/json", "chat/completions"), ("multipart/form-data", "files")])
def test_a_body_of_unknown_length_is_bounded_while_it_is_read(server: Running, kind: str, path: str) -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 100
            yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'.ljust(100, b"a")

    async def post() -> httpx.Response:
        gate = build(server.service, hosts=LOOPBACK, token=None, largest=1000)
        headers = {"Content-Type": f"{kind}; boundary=x"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://localhost") as client:
            return await client.post(f"/v1/{path}", content=endless(), headers=headers)

    assert asyncio.run(post()).status_code == 413
    assert read <= 1100


@pytest.mark.parametrize("path", ["/v1/files/..%2f..%2fetc%2fpasswd", "/v1/files/%2e%2e", "/../../etc/passwd"])
def test_no_path_leads_to_a_file(server: Running, path: str) -> None:
    assert raw_request(server.url, f"GET {path} HTTP/1.1\nHost: localhost").startswith(b"HTTP/1.1 404")


@pytest.mark.parametrize("name", ["/etc/passwd", "../../etc/passwd", "http://localhost/a.txt", "file:///etc/passwd"])
def test_no_name_of_a_document_leads_to_a_file_or_an_address(server: Running, name: str) -> None:
    body = {"messages": [{"role": "user", "content": "Who?"}], "documents": [name]}
    answer = server.post("/v1/chat/completions", body)
    assert answer.status_code == 404
    assert name in answer.json()["error"]["message"]


def test_an_address_in_use_is_said() -> None:
    with bind("127.0.0.1", 0) as listening, pytest.raises(ResourceError, match="cannot listen"):
        bind("127.0.0.1", listening.getsockname()[1])


def test_names_of_hosts() -> None:
    assert [hostname(h) for h in ("A:1", "[::1]:2", "a:b", "a@b", "")] == ["a", "::1", None, None, None]


OUTSIDE = ["secret.txt", "../secret.txt", "/etc/passwd", "link.txt", "sub/../../secret.txt", "sub", ".", "", "a\x00b"]


def test_only_files_below_the_root_are_read(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("secret")
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    (root / "sub" / "inside.txt").write_text("House 1 is blue.")
    for uploads in (Uploads(root), Uploads()):
        for path in [*OUTSIDE, str(tmp_path / "secret.txt")]:
            with pytest.raises(ApiError) as caught:
                uploads.find(path)
            assert caught.value.status == 404
    for path in ("sub/inside.txt", "sub/../sub/inside.txt"):
        assert Uploads(root).find(path).document.text == "House 1 is blue."
    with pytest.raises(ApiError):
        Uploads().find(str(root / "sub" / "inside.txt"))
