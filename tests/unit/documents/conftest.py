"""One process of readers for all tests here: the product starts one for each document."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from kvcli.documents import reader, worker


@pytest.fixture(scope="session")
def readers() -> Iterator[worker.ReaderProcess]:
    with worker.ReaderProcess() as readers:
        yield readers


@pytest.fixture(autouse=True)
def _one_process(readers: worker.ReaderProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "ReaderProcess", lambda: nullcontext(readers))
