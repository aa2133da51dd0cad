"""The file of ``kvcli map -o``: one line per answer or failure. A later run of the same command continues it."""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from kvcli.errors import DamagedError, InputError, ResourceError, UsageError
from kvcli.utils import files

_BEGINNING = b'{"schema"'


class AnswersFile:
    """Lines by key, on disk; in memory are only their places.

    Args:
        path: the file; created at the first line.

    Attributes:
        repaired: whether the last line was incomplete and was removed.

    Raises:
        UsageError: the path cannot be written.
        DamagedError: it is not a file of answers.
        ResourceError: another process writes it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.repaired = path, False
        self._places: dict[str, tuple[int, int]] = {}
        self._failed: dict[str, str] = {}  # key → file
        self._file: BinaryIO | None = None
        if path.is_dir():
            raise UsageError(f"{path} is a directory", f"-o {path / 'answers.jsonl'}")
        if not path.parent.is_dir():
            raise UsageError(f"cannot write {path}: there is no directory {path.parent}", f"mkdir -p {path.parent}")
        if path.exists():
            try:
                self._load()
            except BaseException:
                self.close()
                raise

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    @property
    def failed(self) -> Mapping[str, str]:
        """The keys of failures, each with the name of its file."""
        return self._failed

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a line; it is on disk when this returns."""
        file = self._opened()
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        place = file.seek(0, os.SEEK_END), len(line)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
        self._note(record, place)

    def records(self, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The lines of these keys, in this order; those that are not here are left out."""
        if self._places:
            with self.path.open("rb") as file:
                for key in keys:
                    if key in self._places:
                        yield json.loads(self._line(file, key))

    def drop(self, keys: Container[str]) -> None:
        """Remove lines."""
        if any(key in keys for key in self._places):
            self._rewrite([key for key in self._places if key not in keys])

    def sort(self, keys: Sequence[str]) -> None:
        """Put the lines of ``keys`` into this order, after all others."""
        now, mine = sorted(self._places, key=lambda key: self._places[key]), set(keys)
        wanted = [*(key for key in now if key not in mine), *(key for key in keys if key in self._places)]
        if wanted != now:
            self._rewrite(wanted)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> BinaryIO:
        if self._file is None:
            try:
                self._file = self.path.open("r+b" if self.path.exists() else "x+b")
            except OSError as error:
                raise InputError(f"cannot write {self.path}: {error.strerror}", "another FILE for -o") from None
            with suppress(ImportError):  # no such lock on Windows
                import fcntl

                try:
                    fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    raise ResourceError(f"another kvcli writes {self.path}", "wait, or another FILE for -o") from None
        return self._file

    def _load(self) -> None:
        file, at = self._opened(), 0
        hint = "another FILE for -o"
        for number, line in enumerate(file, 1):
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("the line has no end")
                record = json.loads(line)
                if not isinstance(record, dict) or not isinstance(record.get("key"), str):
                    raise ValueError("it has no key")
            except ValueError as error:
                rest = file.read(1)
                if rest or (number == 1 and line[: len(_BEGINNING)] != _BEGINNING[: len(line)]):
                    raise DamagedError(
                        f"line {number:,} of {self.path} is not an answer of kvcli map: {error}", hint
                    ) from None
                file.truncate(at)
                self.repaired = True
                return
            self._note(record, (at, len(line)))
            at += len(line)

    def _note(self, record: Mapping[str, Any], place: tuple[int, int]) -> None:
        key = str(record["key"])
        self._places[key] = place
        self._failed.pop(key, None)
        if "error" in record:
            self._failed[key] = str(record.get("file", ""))

    def _line(self, file: BinaryIO, key: str) -> bytes:
        start, length = self._places[key]
        file.seek(start)
        return file.read(length)

    def _rewrite(self, keys: Sequence[str]) -> None:
        places, at = dict[str, tuple[int, int]](), 0
        mode = self.path.stat().st_mode & 0o777
        with self.path.open("rb") as old, files.atomic_write(self.path) as temporary, temporary.open("wb") as new:
            for key in keys:
                line = self._line(old, key)
                new.write(line)
                places[key], at = (at, len(line)), at + len(line)
            temporary.chmod(mode)
        self.close()
        self._places = places
        self._failed = {key: name for key, name in self._failed.items() if key in places}
        self._opened()
