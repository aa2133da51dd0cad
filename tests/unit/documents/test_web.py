"""Documents from the web: a server of the test's own, and addresses that are never connected to."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpcore2
import pytest

from kvcli.documents import read, web
from kvcli.documents.kept import DocumentCache
from kvcli.documents.web import Web, is_public
from kvcli.errors import InputError, UsageError
from tests.unit.documents.makers import Page, lines, pdf

Answer = tuple[int, dict[str, str], bytes]


class Site:
    """Answers by path; ``asked`` are the paths of requests."""

    def __init__(self, port: int) -> None:
        self.at = f"http://127.0.0.1:{port}"
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []

    def page(self, path: str, body: bytes, kind: str = "text/plain", **heads: str) -> str:
        given = {name.replace("_", "-"): value for name, value in heads.items()}
        self.answers[path] = (200, {"Content-Type": kind, **given}, body)
        return self.at + path

    def redirect(self, path: str, to: str) -> str:
        self.answers[path] = (302, {"Location": to}, b"")
        return self.at + path


@pytest.fixture
def site() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append(self.path)
            code, heads, body = found.answers.get(self.path, (404, {}, b""))
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), **heads}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Site(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


HERE = Web(allow_private=True)


def test_the_content_type_decides_the_reader(site: Site) -> None:
    book = pdf([Page(lines(["A leaf of the harbour book."]))])
    html = b"<!doctype html><p>Words <b>of</b> a page.</p>"
    for url, expected in (
        (site.page("/a", html, "text/html; charset=utf-8"), "Words of a page."),
        (site.page("/b.html", html, "text/plain"), html.decode()),
        (site.page("/c.txt", book, "application/pdf"), "A leaf of the harbour book."),
        (site.page("/d?x=1&y=ü", b"# Title\n\nWords.", "text/markdown"), "# Title\n\nWords."),
        (site.page("/e", "Grüße".encode("latin-1"), "text/plain; charset=iso-8859-1"), "Grüße"),
        (site.page("/f", gzip.compress(b"packed"), "text/plain", Content_Encoding="gzip"), "packed"),
    ):
        site.answers = {k.replace("ü", "%C3%BC"): v for k, v in site.answers.items()}
        document = read([url], web=HERE)
        assert expected in document.text
        assert document.files == (url,)
    assert document.spans[0].file == url


def test_a_copy_is_kept_for_a_day_and_is_all_there_is_offline(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, said = DocumentCache(tmp_path), list[str]()
    url = site.page("/a", b"first")
    mine = Web(allow_private=True, kept=kept, say=said.append)
    assert read([url], web=mine).text == read([url], web=mine).text == "first"
    assert len(site.asked) == 1
    assert "text/plain" in said[0]
    assert "copy" in said[1]
    site.page("/a", b"second")
    assert read([url], web=Web(allow_private=True, kept=DocumentCache(tmp_path, reuse=False))).text == "second"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + web.FRESH + 60)
    assert read([url], web=Web(offline=True, kept=kept)).text == "second"
    site.page("/a", b"third")
    assert read([url], web=mine).text == "third"
    with pytest.raises(InputError, match="--offline"):
        read([site.page("/b", b"never")], web=Web(offline=True, kept=kept))
    assert [e.name for e in kept.entries()] == [url]
    assert site.asked == ["/a"] * 3


def test_redirects_are_followed_and_checked_again(site: Site) -> None:
    site.page("/end", b"the end")
    assert read([site.redirect("/start", "/end")], web=HERE).text == "the end"
    with pytest.raises(InputError, match="redirects"):
        read([site.redirect("/loop", "/loop")], web=HERE)
    for to in ("file:///etc/passwd", "ftp://example.com/a", "http://user:secret@example.com/"):
        with pytest.raises(UsageError) as caught:
            read([site.redirect("/off", to)], web=HERE)
        assert "secret" not in caught.value.message
    with pytest.raises(InputError, match="without encryption"):
        web._redirected("https://example.com/a", "http://example.com/a")


def test_limits(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "LARGEST", 1000)
    for url in (
        site.page("/long", b"x" * 1001),
        site.page("/bomb", gzip.compress(b"x" * 5000), Content_Encoding="gzip"),
    ):
        with pytest.raises(InputError, match="more than 1000 B"):
            read([url], web=HERE)
    cut = gzip.compress(bytes(range(256)) * 3)
    for heads, body in (
        ({"Content_Encoding": "gzip"}, cut[:-5]),
        ({"Content_Encoding": "gzip"}, b"no gzip"),
        ({"Content_Encoding": "br"}, b"br"),
    ):
        with pytest.raises(InputError, match="cannot be fetched"):
            read([site.page("/packed", body, **heads)], web=HERE)
    with pytest.raises(InputError, match="404 Not Found"):
        read([f"{site.at}/nothing"], web=HERE)
    monkeypatch.setattr(web, "SECONDS", -1.0)
    with pytest.raises(InputError, match="no end within"):
        read([site.page("/slow", b"words")], web=HERE)


def test_a_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "SILENCE", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(InputError, match="said nothing"):
            read([f"http://127.0.0.1:{silent.getsockname()[1]}/"], web=HERE)
        port = silent.getsockname()[1]
    with pytest.raises(InputError, match="cannot be fetched"):
        read([f"http://127.0.0.1:{port}/"], web=HERE)


PRIVATE = [
    "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.5.4", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1", "fe80::1%eth0",
    "fc00::1", "fd12:3456::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.1.2.3", "2002:7f00:1::", "64:ff9b::a00:1",
    "64:ff9b::169.254.169.254", "2001:db8::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "1.1.1.1", "2606:4700::1111", "64:ff9b::1.1.1.1"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses that were connected to; each connection fails."""
    made = list[str]()

    def connect(_self: Any, host: str, *_more: Any) -> Any:
        made.append(host)
        raise httpcore2.ConnectError("refused by the test")

    monkeypatch.setattr(httpcore2.SyncBackend, "connect_tcp", connect)
    return made


def resolver(*answers: list[str]) -> Callable[..., Any]:
    """A name server that gives the next of ``answers`` each time, and the last one for ever."""
    left = list(answers)

    def resolve(_host: str, port: int, **_more: Any) -> Any:
        found = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    return resolve


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "0x7f.1", "2130706433", "localhost"])
def test_names_of_this_computer_are_refused(host: str, connections: list[str]) -> None:
    with pytest.raises(InputError, match=r"private network|not found"):
        read([f"http://{host}:1/"], web=Web())
    assert not connections


def test_the_checked_address_is_the_one_that_is_connected_to(
    connections: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for answers, connected in (
        ([["93.184.216.34"], ["127.0.0.1"]], ["93.184.216.34"]),  # a name that changes after the check
        ([["10.0.0.1", "93.184.216.34"]], ["93.184.216.34"]),
        ([["10.0.0.1"]], []),
    ):
        connections.clear()
        monkeypatch.setattr(web.socket, "getaddrinfo", resolver(*answers))
        with pytest.raises(InputError, match=r"private network" if not connected else r"cannot be fetched"):
            read(["https://rebinding.example/"], web=Web())
        assert connections == connected


def test_a_redirect_to_a_private_address_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first address counts as public, the one that it redirects to does not."""
    monkeypatch.setattr(web, "is_public", lambda address: address == "127.0.0.1")
    for to in ("http://127.0.0.2:1/", "http://169.254.169.254/latest/meta-data/"):
        with pytest.raises(InputError, match="private network"):
            read([site.redirect("/to", to)], web=Web())
    assert site.asked == ["/to", "/to"]


@pytest.mark.parametrize(
    "url", ["http://", "https:///a", "http://a b/", "http://[::1", "http://a:99999/", "http://a\x00/"]
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UsageError):
        read([url], web=Web())


def test_nothing_is_fetched_unless_asked_for() -> None:
    with pytest.raises(InputError, match="not fetched here"):
        read(["https://example.com/"])
