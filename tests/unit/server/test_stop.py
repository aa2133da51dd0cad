"""A signal before the first request: what was prefilled so far is saved."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from kvcli.documents import Document
from kvcli.prompt_cache.directory import CacheDirectory
from kvcli.server.run import bind, serve
from kvcli.server.service import Service, ServiceOptions
from tests.unit.server.conftest import NAME, TEXT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_documents_are_prefilled_saves_the_progress(model: Any, tmp_path: Path, number: int) -> None:
    cache, received, ready = CacheDirectory(tmp_path), list[int](), list[Any]()
    options = ServiceOptions("keydiff(budget=128)", chunk_size=64)
    service = Service(model, [NAME], options, cache=cache, memory=1 << 30, queue=4)

    def interrupt() -> None:
        while not service.scheduler.jobs:
            time.sleep(0.01)
        time.sleep(0.3)
        os.kill(os.getpid(), number)

    before = signal.signal(number, lambda caught, _frame: received.append(caught))
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        with bind("127.0.0.1", 0) as listening:
            documents = [("long.txt", Document.of_text(TEXT * 40))]
            serve(service, listening, host="127.0.0.1", token=None, documents=documents, on_ready=ready.append)
    finally:
        signal.signal(number, before)
    assert received == [number]
    assert not ready
    (saved,) = cache.entries()
    assert saved.header is not None
    assert 0 < saved.header.meta.seen < saved.header.meta.tokens
