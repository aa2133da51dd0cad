"""Named files and standard input to one :class:`Document`."""

import difflib
import hashlib
import shlex
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvcli.documents.kinds import refused
from kvcli.documents.text import decode
from kvcli.errors import InputError

STDIN = "-"
"""The name of standard input on a command line."""

READS = "this version reads text, Markdown and source files"


@dataclass(frozen=True)
class Document:
    """One text made of one or more files.

    ``files`` are the names as given (``stdin`` for standard input), ``bytes`` their size together and
    ``sha256`` the digest of their bytes one after the other: ``cat FILES | sha256sum`` prints the same.
    """

    text: str
    files: tuple[str, ...]
    sha256: str
    bytes: int
    warnings: tuple[str, ...] = ()


def read(paths: Sequence[str | Path], stdin: bytes | None = None) -> Document:
    """Read ``paths`` in order; ``-`` (or, where no path is given, ``stdin`` alone) is standard input.

    Several files are joined with a line ``=== name ===`` above each. Raises ``InputError``.
    """
    names = [str(p) for p in paths] or ([STDIN] if stdin is not None else [])
    if not names:
        raise InputError("no document was given", 'kvcli ask FILE "…"')
    if names.count(STDIN) > 1:
        raise InputError("standard input is named twice", "name - once")
    parts: list[tuple[str, str]] = []
    warnings: list[str] = []
    digest, total = hashlib.sha256(), 0
    for name in names:
        data = (stdin or b"") if name == STDIN else _load(name)
        shown, quoted = ("stdin", "FILE") if name == STDIN else (name, shlex.quote(name))
        if not data:
            check = "check the command before the pipe" if name == STDIN else f"see its size: ls -l {quoted}"
            raise InputError(f"{shown} is empty: 0 bytes", check)
        text, said = _text(data, shown, quoted)
        parts.append((shown, text))
        warnings += said
        digest.update(data)
        total += len(data)
    text = parts[0][1] if len(parts) == 1 else "\n\n".join(f"=== {n} ===\n\n{t.strip(chr(10))}" for n, t in parts)
    return Document(text, tuple(n for n, _ in parts), digest.hexdigest(), total, tuple(warnings))


def _text(data: bytes, name: str, quoted: str) -> tuple[str, list[str]]:
    if kind := refused(data, Path(name).suffix):
        raise InputError(f"{name} is {kind.name}, which is not supported yet: {READS}", kind.hint.format(quoted))
    text, warnings = decode(data, name, quoted)
    if not text.strip():
        raise InputError(
            f"{name} has no text: its {len(data):,} bytes are white space",
            "a scanned document needs OCR first: ocrmypdf scan.pdf book.pdf",
        )
    return text, warnings


def _load(name: str) -> bytes:
    path = Path(name)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            inside = shlex.quote(name.rstrip("/") or "/")
            raise InputError(f"{name} is a directory, not a file", f'name the files: kvcli ask {inside}/*.txt "…"')
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            raise InputError(f"{name} is a device, not a file", "give a file, or - for standard input")
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{name} does not exist", _nearest(path)) from None
    except PermissionError:
        raise InputError(f"{name} may not be read: permission denied", f"chmod u+r {shlex.quote(name)}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{name[:200]} cannot be read: {reason}", "check the name") from None


def _nearest(path: Path) -> str:
    """What the name may have been meant to be, or where to look."""
    folder = path.parent
    try:
        names = [p.name for p in folder.iterdir()]
    except OSError:
        return f"that folder is not there either: {folder}"
    lower = {n.lower(): n for n in names}
    close = difflib.get_close_matches(path.name.lower(), list(lower), n=1, cutoff=0.6)
    if close:
        return shlex.quote(str(path.with_name(lower[close[0]])))
    return f"see what there is: ls {shlex.quote(str(folder))}"
