"""A server on a real connection, with the tiny random model."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import kvcli
from kvcli.server.run import bind, serve
from kvcli.server.service import Service, ServiceOptions
from tests.e2e.conftest import save_tiny

NAME = "tiny"
TEXT = "".join(f"House {n} is blue and the sky above it is number {n}. " for n in range(60))


@dataclass
class Running:
    """A server in a thread of its own, and the clients to close with it."""

    url: str
    service: Service
    stop: Callable[[], None]
    thread: threading.Thread
    clients: ExitStack = field(default_factory=ExitStack)

    def client(self, **options: Any) -> openai.OpenAI:
        key = options.pop("api_key", "none")
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **options)
        return self.clients.enter_context(client)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=300, **options)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = save_tiny(tmp_path_factory.mktemp("server") / NAME, wide=True)
    return kvcli.load_model(str(path), find_heads=False)


Start = Callable[..., Any]


@pytest.fixture(scope="session")
def start(model: Any) -> Start:
    """Starts a server; a context manager."""

    @contextmanager
    def started(
        recipe: str | None = "keydiff(budget=128)",
        *,
        cache: Path | None = None,
        token: str | None = None,
        host: str = "127.0.0.1",
        queue: int = 16,
        chunk: int = 64,
        memory: int = 1 << 30,
    ) -> Iterator[Running]:
        listening = bind("127.0.0.1", 0)
        directory = None if cache is None else kvcli.CacheDirectory(cache)
        service = Service(
            model, [NAME], ServiceOptions(recipe, chunk_size=chunk), cache=directory, memory=memory, queue=queue
        )
        ready, stops = threading.Event(), list[Callable[[], None]]()

        def on_ready(stop: Callable[[], None]) -> None:
            stops.append(stop)
            ready.set()

        thread = threading.Thread(
            target=serve,
            args=(service, listening),
            kwargs={"host": host, "token": token, "on_ready": on_ready},
            daemon=True,
        )
        thread.start()
        assert ready.wait(300)
        host, port = listening.getsockname()[:2]
        try:
            with ExitStack() as clients:
                yield Running(f"http://{host}:{port}", service, stops[0], thread, clients)
        finally:
            stops[0]()
            thread.join(300)
            assert not thread.is_alive()

    return started


@pytest.fixture(scope="module")
def server(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with start(cache=tmp_path_factory.mktemp("readings")) as running:
        yield running


def raw_request(url: str, head: str, body: bytes = b"") -> bytes:
    """Send a request byte for byte and return what comes back first."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=300) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body)
        return connection.recv(4096)
