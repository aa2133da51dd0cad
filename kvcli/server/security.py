"""Who may talk to the server: checked before a request is read."""

from __future__ import annotations

import hmac
from typing import Any
from urllib.parse import urlsplit

from kvcli.server.errors import ApiError

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

OPEN = frozenset({("GET", "/")})
"""What needs no token: the page, which says nothing of the documents and asks for the token itself."""


class Gate:
    """ASGI middleware: Host and Origin against DNS rebinding and foreign web pages, the token, the size of the body.

    Args:
        app: the application that it protects.
        hosts: names under which this server may be addressed, with any port; ``None`` for any name.
        token: what ``Authorization: Bearer`` must carry; ``None`` for no check.
        largest: bytes of a request's body.
    """

    def __init__(self, app: Any, *, hosts: frozenset[str] | None, token: str | None, largest: int) -> None:
        self.app, self.hosts, self.token, self.largest = app, hosts, token, largest

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self._check(scope)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        read = 0

        async def bounded() -> Any:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.largest:
                raise _too_large(self.largest)
            return message

        await self.app(scope, bounded, send)

    def _known(self, name: str | None) -> bool:
        return name is not None and (self.hosts is None or name in self.hosts)

    def _check(self, scope: Any) -> None:
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
        host = headers.get("host", [])
        if len(host) != 1 or not self._known(hostname(host[0])):
            raise ApiError(421, "this server is not known under that Host", code="wrong_host")
        origin = headers.get("origin", [])
        if origin and hostname(urlsplit(origin[0]).netloc) not in (self.hosts or {hostname(host[0])}):
            raise ApiError(403, "requests of other web pages are refused", code="wrong_origin")
        if self.token is not None and (scope["method"], scope["path"]) not in OPEN:
            kind, _, given = headers.get("authorization", [""])[0].partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(given.encode("latin-1"), self.token.encode()):
                raise ApiError(
                    401,
                    "the token is missing or wrong: Authorization: Bearer TOKEN",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        length = headers.get("content-length", ["0"])[0]
        if length.isdigit() and int(length) > self.largest:
            raise _too_large(self.largest)


def hostname(host: str) -> str | None:
    """The name in a Host header, without its port and in lower case; ``None`` if it is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        parts.port  # noqa: B018  # raises for a port that is no number
    except ValueError:
        return None
    bare = parts.hostname
    if bare is None or parts.username is not None or parts.path or parts.query or parts.fragment:
        return None
    return bare


def _too_large(largest: int) -> ApiError:
    return ApiError(413, f"the request is larger than {largest >> 20} MiB", code="request_too_large")
