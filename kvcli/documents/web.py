"""Documents at ``https://…``: fetched with limits, never from a private address, and kept in the cache for a day.

kvcli connects to the address that it has checked. It looks a name up once for each connection, also after a redirect.
So the address cannot be public when it is checked and private afterwards.
"""

from __future__ import annotations

import hashlib
import ipaddress
import socket
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import httpcore2

from kvcli.documents.kept import DocumentCache
from kvcli.errors import InputError, UsageError
from kvcli.utils.sizes import format_bytes
from kvcli.utils.version import __version__

LARGEST = 256 << 20
"""Bytes of one document, unpacked."""

SECONDS, SILENCE = 300.0, 20.0
"""Seconds that a document may take in all, and that a server may say nothing."""

REDIRECTS = 5
FRESH = 24 * 3600
"""Seconds for which a kept copy is used without asking the server."""

SUFFIXES = {
    "text/html": ".html",
    "application/xhtml+xml": ".xhtml",
    "text/plain": ".txt",
    "text/markdown": ".md",
    "application/pdf": ".pdf",
    "application/epub+zip": ".epub",
    "application/x-ipynb+json": ".ipynb",
    "message/rfc822": ".eml",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": ".pptx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": ".xlsx",
}
"""The ending that a file of this content type has; the address tells it for others."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class Fetched:
    """A document from the web: its bytes, and the ending that a file of its type has."""

    data: bytes
    suffix: str


@dataclass(frozen=True)
class Web:
    """How addresses are fetched.

    Attributes:
        offline: use kept copies only, however old.
        allow_private: also fetch from this computer and from private networks.
        kept: where copies are kept; ``None`` keeps none.
        say: receives one line: what was fetched, or which copy is used.
    """

    offline: bool = False
    allow_private: bool = False
    kept: DocumentCache | None = None
    say: Callable[[str], None] | None = None

    def fetch(self, url: str) -> Fetched:
        """The document at an address. Raises ``InputError`` with the reason if it cannot be fetched."""
        _check(url)
        place = None if self.kept is None else self.kept.folder / f"{hashlib.sha256(url.encode()).hexdigest()}.text"
        about, data = ({}, b"") if self.kept is None or place is None else self.kept.load(place)
        age = time.time() - about["fetched"] if about else 0.0
        if about and (self.offline or 0 <= age < FRESH):
            self._say(f"{url} · {format_bytes(len(data))} · copy of {_ago(age)}; --rebuild fetches it again")
            return Fetched(data, about["suffix"])
        if self.offline:
            raise InputError(f"{url} cannot be fetched: --offline, and there is no copy", "leave out --offline")
        began = time.monotonic()
        found, kind = self._get(url)
        took = time.monotonic() - began
        self._say(f"{url} · {kind or 'unknown type'} · {format_bytes(len(found.data))} ({took:.1f} s)")
        if self.kept is not None and place is not None:
            self.kept.save(place, {"name": url, "suffix": found.suffix, "fetched": time.time()}, found.data)
        return found

    def _say(self, text: str) -> None:
        if self.say is not None:
            self.say(text)

    def _get(self, url: str) -> tuple[Fetched, str]:
        """The document and its content type, after redirects."""
        at = url
        with httpcore2.ConnectionPool(network_backend=_Backend(self.allow_private, url)) as pool:
            for _ in range(REDIRECTS + 1):
                try:
                    with pool.stream("GET", _request(at), headers=_headers(at), extensions=_timeouts()) as answer:
                        heads = Message()
                        for name, value in answer.headers:
                            heads[name.decode("ascii", "replace")] = value.decode("latin-1")
                        if answer.status in (301, 302, 303, 307, 308) and heads["location"]:
                            at = _redirected(at, urljoin(at, heads["location"]))
                            continue
                        if answer.status != 200:
                            raise InputError(f"{url} cannot be fetched: {_status(answer.status)}", "check the address")
                        data = _body(answer, heads, url)
                except (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError) as error:
                    raise InputError(f"{url} cannot be fetched: {_why(error)}", "check the address") from None
                return Fetched(_unicode(data, heads), _suffix(heads.get_content_type(), at)), heads.get_content_type()
        raise InputError(f"{url} cannot be fetched: more than {REDIRECTS} redirects", "give the final address")


def _check(url: str) -> None:
    """Raises ``UsageError`` for an address that cannot be fetched at all."""
    try:
        parts = urlsplit(url)
        fits = bool(parts.hostname) and parts.scheme in ("http", "https") and url.isprintable() and " " not in url
        _ = parts.port
    except ValueError:
        fits = False
    if not fits:
        raise UsageError(f"{url[:200]} is not a valid web address", "https://example.com/page.html")
    if parts.username is not None:
        raise UsageError(f"the address of {parts.hostname} has a user name in it, which kvcli does not send", "curl -u")


def _request(url: str) -> httpcore2.URL:
    """The address as HTTP has it: ASCII, without the part after #."""
    parts = urlsplit(url)
    try:
        host = (parts.hostname or "").encode("ascii" if ":" in (parts.hostname or "") else "idna")
    except UnicodeError:
        raise UsageError(f"{parts.hostname} is not the name of a computer", "https://example.com") from None
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    target += f"?{quote(parts.query, safe='/%:@!$&()*+,;=?~-._[]')}" if parts.query else ""
    return httpcore2.URL(scheme=parts.scheme.encode(), host=host, port=parts.port, target=target.encode("ascii"))


def _headers(url: str) -> list[tuple[str, str]]:
    parts = urlsplit(url)
    host = _request(url).host.decode()
    named = f"[{host}]" if ":" in host else host
    return [
        ("Host", named if parts.port is None else f"{named}:{parts.port}"),
        ("User-Agent", f"kvcli/{__version__}"),
        ("Accept", "text/html, application/pdf, text/*, */*;q=0.5"),
        ("Accept-Encoding", "gzip"),
    ]


def _timeouts() -> dict[str, Any]:
    return {"timeout": {"connect": SILENCE, "read": SILENCE, "write": SILENCE, "pool": SILENCE}}


def _redirected(before: str, to: str) -> str:
    _check(to)
    if urlsplit(before).scheme == "https" and urlsplit(to).scheme != "https":
        raise InputError(f"{before} cannot be fetched: it redirects to {to}, without encryption", f"name {to} itself")
    return to


def _body(answer: httpcore2.Response, heads: Message, url: str) -> bytes:
    """What the server sends, unpacked. Raises ``InputError`` if it is too much or is packed otherwise."""
    packing = (heads["content-encoding"] or "identity").strip().lower()
    if packing not in ("identity", "gzip", "x-gzip"):
        raise InputError(f"{url} cannot be fetched: it comes packed as {packing}", "curl --compressed -O URL")
    unpack = zlib.decompressobj(31) if packing != "identity" else None
    announced = heads["content-length"] or ""
    if announced.isdecimal() and int(announced) > LARGEST:
        raise _too_large(url)
    parts, size = list[bytes](), 0
    try:
        for piece in answer.iter_stream():
            data = piece if unpack is None else unpack.decompress(piece, LARGEST + 1 - size)
            size += len(data)
            if size > LARGEST or (unpack is not None and unpack.unconsumed_tail):
                raise _too_large(url)
            parts.append(data)
    except zlib.error:
        raise InputError(f"{url} cannot be fetched: what the server sends is damaged", "try again") from None
    if unpack is not None and not unpack.eof:
        raise InputError(f"{url} cannot be fetched: what the server sends breaks off", "try again")
    return b"".join(parts)


def _too_large(url: str) -> InputError:
    return InputError(f"{url} has more than {format_bytes(LARGEST)}, the most that kvcli fetches", "curl -O URL")


def _unicode(data: bytes, heads: Message) -> bytes:
    """A text as UTF-8 with its mark if the server names another encoding: what the server says is what counts."""
    charset = heads.get_content_charset()
    if charset and heads.get_content_maintype() == "text" and charset not in ("utf-8", "us-ascii"):
        try:
            return b"\xef\xbb\xbf" + data.decode(charset).encode()
        except (LookupError, UnicodeError):
            pass
    return data


def _suffix(kind: str, url: str) -> str:
    return SUFFIXES.get(kind) or Path(urlsplit(url).path).suffix[:16]


def _status(code: int) -> str:
    try:
        return f"the server answers {code} {HTTPStatus(code).phrase}"
    except ValueError:
        return f"the server answers {code}"


def _why(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    if isinstance(error, httpcore2.TimeoutException):
        return f"the server said nothing for {SILENCE:.0f} s"
    return text or type(error).__name__


def _ago(seconds: float) -> str:
    hours = int(seconds / 3600)
    return f"{hours} hours ago" if hours >= 2 else f"{max(0, int(seconds / 60))} minutes ago"


# --- addresses ----------------------------------------------------------------------------------------


class _Stream(httpcore2.NetworkStream):
    """A connection that ends at a deadline, however slowly bytes come."""

    def __init__(self, inner: httpcore2.NetworkStream, url: str, deadline: float) -> None:
        self.inner, self.url, self.deadline = inner, url, deadline

    def _left(self, timeout: float | None) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise InputError(f"{self.url} cannot be fetched: no end within {SECONDS:.0f} s", "fetch it: curl -O URL")
        return left if timeout is None else min(timeout, left)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.inner.read(max_bytes, self._left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.inner.write(buffer, self._left(timeout))

    def close(self) -> None:
        self.inner.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        inner = self.inner.start_tls(ssl_context, server_hostname, self._left(timeout))
        return _Stream(inner, self.url, self.deadline)

    def get_extra_info(self, info: str) -> Any:
        return self.inner.get_extra_info(info)


class _Backend(httpcore2.NetworkBackend):
    """TCP connections to addresses that were checked; TLS still checks the name."""

    def __init__(self, allow_private: bool, url: str) -> None:
        self.allow_private, self.url = allow_private, url
        self.deadline = time.monotonic() + SECONDS
        self.tcp = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        refused, failed = "", None
        for address in _resolve(host, port):
            if not (self.allow_private or is_public(address)):
                refused = refused or address
                continue
            try:
                stream = self.tcp.connect_tcp(address, port, timeout, local_address, socket_options)
                return _Stream(stream, self.url, self.deadline)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failed = error
        if failed is not None:
            raise failed
        raise InputError(
            f"{host} is {refused}, an address of this computer or a private network, and is not fetched from",
            "if you trust it: the same command with --allow-private",
        )


def _resolve(host: str, port: int) -> Iterator[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise httpcore2.ConnectError(f"{host} is not found ({reason})") from None
    yield from dict.fromkeys(str(info[4][0]) for info in found)


def is_public(text: str) -> bool:
    """Whether an IP address is one of the public internet, also if it has an IPv4 address inside."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return address.is_global and not (address.is_multicast or address.is_reserved)
