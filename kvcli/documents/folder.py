"""Directories: which of their files are read, in the order of their names; .gitignore, hidden files and binaries."""

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kvcli.errors import InputError

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

FILES = 20_000
"""Files of one directory that are looked at."""

HEAD = 8192
"""Bytes in which a NUL means binary."""

PACKED = frozenset(
    re.findall(
        r"\S+",
        ".7z .a .avi .bin .bz2 .class .db .dll .dylib .eot .exe .flac .gguf .gif .gz .ico .jar .jpeg .jpg .lock .mkv "
        ".mo .mov .mp3 .mp4 .npy .npz .o .ogg .onnx .otf .parquet .pkl .png .pt .pth .pyc .pyd .rar .safetensors "
        ".so .sqlite .svgz .tar .tgz .tif .tiff .ttf .wasm .wav .webm .webp .whl .woff .woff2 .xz .zip .zst .map",
    )
)
"""Endings of files that hold nothing to read; ``--include`` brings them back."""


@dataclass
class Found:
    """Files of a directory; how many files, links and whole folders were left out for each reason, with an example."""

    files: list[Path] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)
    example: dict[str, str] = field(default_factory=dict)

    def leave(self, why: str, path: Path) -> None:
        self.left[why] += 1
        self.example.setdefault(why, f"{path.name}/" if path.is_dir() and not path.is_symlink() else path.name)

    def note(self, name: str) -> str | None:
        """One line about what was left out."""
        if not self.left:
            return None
        kinds = ", ".join(f"{n:,} {why} ({self.example[why]}{', …' if n > 1 else ''})" for why, n in self.left.items())
        return f"{name}: left out {kinds}"


def walk(root: Path, include: Sequence[str], exclude: Sequence[str]) -> Found:
    """The files below ``root`` to read. Links are not followed, so that no cycle and no other place is entered.

    ``include`` and ``exclude`` are patterns as in .gitignore. ``include`` narrows what would be read, and brings
    in files whose ending says that they are packed. Raises ``InputError`` if nothing is left or too much.
    """
    from pathspec import GitIgnoreSpec

    wanted, unwanted = GitIgnoreSpec.from_lines(include), GitIgnoreSpec.from_lines(exclude)
    found, seen = Found(), 0
    for path, ignored in _files(root):
        if (seen := seen + 1) > FILES:
            raise InputError(
                f"{root} has more than {FILES:,} files", "name fewer: --include '*.py', or a directory inside"
            )
        relative = path.relative_to(root).as_posix()
        if unwanted.match_file(relative):
            found.leave("excluded", path)
        elif include and not wanted.match_file(relative):
            found.leave("not included", path)
        elif os.path.islink(path):  # noqa: PTH114  # False of a file in a closed folder, where Path raises
            found.leave("linked", path)
        elif ignored:
            found.leave("ignored by git", path)
        elif any(part.startswith(".") for part in path.relative_to(root).parts):
            found.leave("hidden", path)
        elif (why := _unreadable(path, include=bool(include))) is not None:
            found.leave(why, path)
        else:
            found.files.append(path)
    if not found.files:
        why = found.note(str(root)) or f"{root} is empty"
        raise InputError(f"{root} has no text to read; {why.partition(': ')[2] or 'it is empty'}", "--include '*.txt'")
    return found


def _files(given: Path) -> Iterator[tuple[Path, bool]]:
    """Each file below ``given`` in order, and whether git ignores it; also folders that are not entered."""
    rules: dict[Path, GitIgnoreSpec] = {}
    root = Path(os.path.abspath(given))  # noqa: PTH100  # resolve() would follow links
    top = next((p for p in (root, *root.parents) if os.path.exists(p / ".git")), root)  # noqa: PTH110
    for above in root.parents:
        if above.is_relative_to(top) and (spec := _rules(above)) is not None:
            rules[above] = spec
    closed_folders: list[Path] = []

    def refused(error: OSError) -> None:
        if error.filename == str(root):
            raise InputError(
                f"{given} may not be read: {error.strerror}", f"chmod u+rx {shlex.quote(str(given))}"
            ) from None
        closed_folders.append(Path(error.filename))

    for folder, folders, names in os.walk(root, onerror=refused, followlinks=False):
        here = Path(folder)
        if (spec := _rules(here)) is not None:
            rules[here] = spec
        closed = {n: _ignored(here / n, top, rules, folder=True) for n in folders if n != ".git"}
        folders[:] = sorted(n for n in closed if not (closed[n] or n.startswith(".") or os.path.islink(here / n)))  # noqa: PTH114
        for name in sorted(closed.keys() - set(folders)):
            yield Path(given, *(here / name).relative_to(root).parts), closed[name]
        for name in sorted(names):
            path = here / name
            yield Path(given, *path.relative_to(root).parts), _ignored(path, top, rules, folder=False)
    for path in closed_folders:
        yield Path(given, *path.relative_to(root).parts), False


def _rules(folder: Path) -> "GitIgnoreSpec | None":
    from pathspec import GitIgnoreSpec

    try:
        text = (folder / ".gitignore").read_text("utf-8", "replace")
    except OSError:
        return None
    lines = []
    for line in text.splitlines()[:10_000]:
        try:
            GitIgnoreSpec.from_lines([line])
        except ValueError:
            continue  # git skips what it cannot parse
        lines.append(line)
    return GitIgnoreSpec.from_lines(lines)


def _ignored(path: Path, top: Path, rules: "dict[Path, GitIgnoreSpec]", *, folder: bool) -> bool:
    """Whether git ignores ``path``: the innermost .gitignore that says anything decides."""
    for parent in path.parents:
        if (spec := rules.get(parent)) is not None:
            result = spec.check_file(path.relative_to(parent).as_posix() + ("/" if folder else ""))
            if result.include is not None:
                return result.include
        if parent == top:
            break
    return False


def _unreadable(path: Path, *, include: bool) -> str | None:
    """Why a file has nothing to read."""
    try:
        if path.is_dir():
            return "unreadable"
        if not path.is_file():
            return "no regular files"
        if path.stat().st_size == 0:
            return "empty"
        name = path.name.lower()
        if not include and (path.suffix.lower() in PACKED or name.endswith((".min.js", ".min.css"))):
            return "binary or packed"
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:
        return "unreadable"
    if head.startswith((b"%PDF-", b"PK\x03\x04")):
        return None
    marked = head.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff"))
    return "binary or packed" if b"\0" in head and not marked else None
