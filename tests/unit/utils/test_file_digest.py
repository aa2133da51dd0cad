"""A file's digest is that of all its bytes, and is remembered only while the file stays as it is."""

import hashlib
import os
from pathlib import Path

import pytest

from kvcli.utils import files


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVCLI_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "_SETTLED_S", -1.0)
    return tmp_path / "cache" / "digests"


def test_any_byte_counts_and_nothing_stale_is_said(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "w"
    data = bytearray(os.urandom(1 << 16))
    for at in range(0, len(data), 9973):
        data[at] ^= 1
        times = file.stat() if file.exists() else None
        file.write_bytes(data)
        if times is not None:  # a tool that keeps the times
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert files.sha256(file) == hashlib.sha256(data).hexdigest()
    assert list(cache.iterdir())


def test_who_watches_is_told_how_much_is_read(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr(files, "watch", lambda *what: told.append(what))
    monkeypatch.setattr(files, "_BLOCK", 4)
    (tmp_path / "w").write_bytes(b"0123456789")
    for _ in range(2):
        files.sha256(tmp_path / "w")
    assert told == [("w", 4, 10), ("w", 8, 10), ("w", 10, 10)]
    assert cache.is_dir()


def test_it_is_read_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "w"
    file.write_bytes(b"weights")
    first = files.sha256(file)
    (known,) = cache.iterdir()
    assert known.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(Path, "open", lambda *_a, **_k: pytest.fail("read again"))
    monkeypatch.setattr(Path, "read_text", lambda *_a, **_k: first)
    assert files.sha256(file) == first


def test_a_damaged_memory_is_not_believed(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "w"
    file.write_bytes(b"weights")
    first = files.sha256(file)
    (known,) = cache.iterdir()
    for text in ("", "x" * 64, first + "\n" + first):
        known.write_text(text)
        assert files.sha256(file) == first


def test_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("KVCLI_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert files.sha256(tmp_path / "file") == hashlib.sha256().hexdigest()
