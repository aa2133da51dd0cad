"""OCR: when it is asked, what is made of its lines, and what is said where it is not installed."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvcli.documents import Options, read
from kvcli.documents.pdf import ocr
from kvcli.errors import InputError, UsageError
from tests.unit.documents.makers import Page, lines, pdf

READ = [("The old man sat by the har-", 72.0, 100.0, 250.0, 112.0, 0), ("bour.", 72.0, 114.0, 110.0, 126.0, 0)]


def png() -> bytes:
    """A grey picture of 8 by 8 dots."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"".join(b"\0" + b"\x80" * 8 for _ in range(8)))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """An engine that reads the same two lines on every page; the list has what it was asked for."""
    asked: list[tuple[str, ...]] = []

    def run(_module: str, _source: object, *args: str, silence: float) -> Iterator[dict[str, Any]]:
        assert silence > 60
        asked.append(args)
        yield from ({"page": int(n), "words": READ} for n in args or ("1",))

    monkeypatch.setattr(ocr, "run", run)
    monkeypatch.setattr(ocr, "find_spec", lambda name: name)
    return asked


def test_only_pages_without_text_are_read_by_ocr(tmp_path: Path, engine: list[tuple[str, ...]]) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf([Page(lines(["Typed."])), Page(picture=True), Page(picture=True)]))
    document = read([tmp_path / "a.pdf"], None, Options(ocr=True))
    assert engine == [("2", "3")]
    assert document.text.split("\n\n")[1] == "[page 2]\nThe old man sat by the harbour."
    assert not document.warnings
    assert "pages 2–3 read by OCR" in document.notes[-1]


def test_a_picture_needs_the_option(tmp_path: Path, engine: list[tuple[str, ...]]) -> None:
    (tmp_path / "a.png").write_bytes(png())
    with pytest.raises(InputError, match="an image without text") as caught:
        read([tmp_path / "a.png"])
    assert "--ocr" in (caught.value.hint or "")
    assert engine == []
    assert read([tmp_path / "a.png"], None, Options(ocr=True)).text == "The old man sat by the harbour.\n"


def test_a_scan_on_which_nothing_is_found(
    tmp_path: Path, engine: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ocr, "run", lambda *_args, **_options: iter([{"page": 1, "words": []}]))
    (tmp_path / "a.pdf").write_bytes(pdf([Page(picture=True)]))
    with pytest.raises(InputError, match="OCR found no text on page 1"):
        read([tmp_path / "a.pdf"], None, Options(ocr=True))
    assert engine == []


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "find_spec", lambda _name: None)
    (tmp_path / "a.pdf").write_bytes(pdf([Page(picture=True)]))
    with pytest.raises(UsageError, match="OCR is not installed") as caught:
        read([tmp_path / "a.pdf"], None, Options(ocr=True))
    assert caught.value.hint == "pip install 'kvcli[ocr]'"
