"""Run the server in this process until it is stopped."""

from __future__ import annotations

import asyncio
import copy
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import uvicorn

from kvcli.documents.document import Document
from kvcli.errors import ResourceError
from kvcli.pipeline import DocumentContext
from kvcli.prompt_cache.prefill import PrefillInterrupted
from kvcli.server.app import build
from kvcli.server.scheduler import JobCancelled
from kvcli.server.security import LOOPBACK
from kvcli.server.service import Service


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        ResourceError: the address is in use or is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(128)
    except OSError as error:
        bound.close()
        reason = error.strerror or str(error)
        raise ResourceError(f"cannot listen on {host}, port {port}: {reason}", "--port 0 takes a free one") from None
    return bound


class _Server(uvicorn.Server):
    """uvicorn, which tells the service of a signal at once: answers end before their connections are waited for."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.service.scheduler.drain()
        super().handle_exit(sig, frame)


def serve(
    service: Service,
    listening: socket.socket,
    *,
    host: str,
    token: str | None,
    documents: Sequence[tuple[str, Document]] = (),
    keep_alive: float | None = None,
    verbose: bool = False,
    on_prefilled: Callable[[str, DocumentContext], None] = lambda _name, _context: None,
    on_ready: Callable[[Callable[[], None]], None] = lambda _stop: None,
) -> None:
    """Serve until SIGINT, SIGTERM, or until nobody has asked for ``keep_alive`` seconds.

    Args:
        service: answers the requests.
        listening: from :func:`bind`.
        host: the address of ``listening``. On a loopback address only loopback names pass as Host.
        token: what requests must carry.
        documents: name and text of documents to prefill before the first request.
        keep_alive: idle seconds after which the server stops; ``None`` for never.
        verbose: log each request's path and status to standard error; texts are never logged.
        on_prefilled: called after each document.
        on_ready: called when requests are accepted, with a function that stops the server as a signal does.

    A signal that stops the prefill of ``documents`` is raised again at the end, after the progress was saved.
    """
    # Any name may lead to an address that others can reach; the token protects it.
    app = build(service, hosts=LOOPBACK if host.strip("[]") in LOOPBACK else None, token=token)
    logging = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    logging["handlers"]["access"]["stream"] = "ext://sys.stderr"
    config = uvicorn.Config(
        app,
        log_level="info" if verbose else "error",
        log_config=logging,
        access_log=verbose,
        lifespan="off",
        timeout_graceful_shutdown=30,
    )
    server = _Server(config, service)
    caught: list[int] = []

    async def run() -> None:
        tasks: list[asyncio.Task[None]] = []
        try:
            try:
                with _signals_drain(service, caught):
                    for name, document in documents:
                        service.uploads.add(document, name, Path(name) if name.lower().endswith(".pdf") else None)
                        on_prefilled(name, await service.prefill(document))
            except (JobCancelled, PrefillInterrupted):  # stopped; what was read is saved
                return
            on_ready(lambda: server.handle_exit(signal.SIGTERM, None))
            if keep_alive:
                tasks.append(asyncio.create_task(_stop_when_idle(server, service, keep_alive)))
            await server.serve(sockets=[listening])
        finally:
            for task in tasks:
                task.cancel()
            service.scheduler.drain()
            with suppress(TimeoutError):
                await asyncio.wait_for(service.contexts.close(), 60)

    try:
        asyncio.run(run())
    finally:  # a signal may have cut the event loop's own end short
        service.scheduler.drain()
        service.scheduler.join(60)
        service.uploads.close()
    if caught:
        signal.raise_signal(caught[0])


@contextmanager
def _signals_drain(service: Service, caught: list[int]) -> Iterator[None]:
    """SIGINT and SIGTERM stop the prefill under way and are noted; only for a loop in the main thread."""

    def stop(number: int) -> None:
        caught.append(number)
        service.scheduler.drain()

    loop, numbers = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            loop.add_signal_handler(number, stop, number)
    except (ValueError, RuntimeError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, before[number])


async def _stop_when_idle(server: uvicorn.Server, service: Service, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    last, before = loop.time(), server.server_state.total_requests
    while True:
        await asyncio.sleep(min(1.0, seconds / 4))
        now = server.server_state.total_requests
        if service.active or now != before:
            last, before = loop.time(), now
        elif loop.time() - last >= seconds:
            server.should_exit = True
            return
