"""Libraries: documents that are kept as text with an index of their sentences, and asked about together.

A question ranks the sentences of all files. The answer is written after the reading of the best file, with the best
passages of several files read again. A directory holds, for each document by its digest, the text with its places
(``.json``) and the index (``.npz``); ``library.json`` lists the files. The prefills are saved where all are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from kvcli.documents.document import Document, document_json, join_documents
from kvcli.errors import DamagedError, ResourceError, UsageError
from kvcli.events import Quote, Quotes
from kvcli.utils import files
from kvcli.utils.from_json import from_json

if TYPE_CHECKING:
    from kvcli.documents import Options
    from kvcli.retrieval.sentences import SentenceIndex

FORMAT = 1
"""Version of ``library.json``."""

AROUND = 300
"""Characters on either side of the best sentence that a passage has at least, in whole sentences."""

FILES = 40
"""Files that are looked at closely for a question: those with the best sentence by its words."""

_NAME = re.compile(r"\w[\w.-]{0,63}")


@dataclass(frozen=True)
class Entry:
    """A file of a library.

    Attributes:
        path: absolute.
        sha256: of its bytes when it was added.
        size, modified: bytes, and the time of its last change in nanoseconds.
        pages, characters: of its text.
        reading: key of the saved prefill; ``None`` if it was not read.
    """

    path: str
    sha256: str
    size: int
    modified: int
    pages: int | None
    characters: int
    reading: str | None = None

    @property
    def changed(self) -> bool:
        """Whether the file has gone, or seems to be another one since."""
        try:
            info = Path(self.path).stat()
        except OSError:
            return True
        return (info.st_size, info.st_mtime_ns) != (self.size, self.modified)


@dataclass(frozen=True)
class Hit:
    """A passage of one file: its best sentence as a quote, and the characters around it."""

    entry: Entry
    document: Document
    quote: Quote
    start: int
    end: int


@dataclass(frozen=True)
class Search:
    """The best passages for a question, the best file first.

    Attributes:
        best: the document of the file that answers most probably.
        hits: the best passages of all files, the best first.
        likely: the probability that some file answers.
    """

    best: Document
    hits: tuple[Hit, ...]
    likely: float

    def joined(self) -> tuple[Document, Quotes]:
        """The documents of the hits as one, the best file first, and the quotes by their characters in it."""
        from kvcli.retrieval.quotes import UNLIKELY

        documents = list({d.files: d for d in (self.best, *(hit.document for hit in self.hits))}.values())
        whole, starts = documents[0], {documents[0].files: 0}
        for more in documents[1:]:
            joined = join_documents(whole, more)
            starts[more.files] = len(joined.text) - len(more.text)
            whole = joined
        quotes = []
        for hit in self.hits:
            at = starts[hit.document.files]
            quotes.append(replace(hit.quote, char_start=hit.quote.char_start + at, char_end=hit.quote.char_end + at))
        return whole, Quotes(tuple(quotes), False, 0.0, self.likely, self.likely >= UNLIKELY)

    def passages(self) -> list[str]:
        """The passages to read again, each under its file and page, the best one last."""
        out = []
        for hit in reversed(self.hits):
            page = "" if hit.quote.page is None else f", page {hit.quote.page}"
            out.append(f"[{Path(hit.entry.path).name}{page}]\n{hit.document.text[hit.start : hit.end].strip()}")
        return out


class Library:
    """A named set of documents.

    Args:
        name: letters, digits, ``.``, ``_`` and ``-``.

    Raises:
        UsageError: the name is not valid.
        DamagedError: its list of files is damaged.
    """

    def __init__(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise UsageError(f"'{name}' cannot be the name of a library", "kvcli library add papers *.pdf")
        self.name, self.folder = name, folder() / name
        self.entries: dict[str, Entry] = {}
        if (self.folder / "library.json").exists():
            self.entries = _load(self.folder / "library.json")

    @classmethod
    def find(cls, name: str) -> Library:
        """A library that exists. Raises ``UsageError``."""
        found = cls(name)
        if not found.entries:
            known = ", ".join(names()) or "none"
            raise UsageError(f"there is no library {name}; there are: {known}", f"kvcli library add {name} FILE…")
        return found

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the one process that changes the library. Raises ``ResourceError`` if another one does."""
        from filelock import FileLock, Timeout

        files.private_dir(self.folder)
        lock = FileLock(self.folder / ".lock", mode=0o600)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ResourceError(f"another kvcli changes the library {self.name}", "wait for it") from None
        try:
            if (self.folder / "library.json").exists():
                self.entries = _load(self.folder / "library.json")
            yield
        finally:
            lock.release()

    def add(self, name: str, sha256: str, options: Options) -> tuple[Entry, bool]:
        """Keep a file's text and index; returns its entry, and whether anything was done.

        Args:
            name: of the file.
            sha256: of its bytes.
            options: how it is read.

        Raises:
            InputError: it cannot be read.
        """
        from kvcli import documents

        path = Path(name).absolute()
        info, before = path.stat(), self.entries.get(str(path))
        if before is not None and before.sha256 == sha256 and self._stored(sha256):
            entry = replace(before, size=info.st_size, modified=info.st_mtime_ns)
            self.entries[str(path)] = entry
            self._save()
            return entry, False
        document = documents.read([str(path)], None, options)
        self._store(document)
        entry = Entry(str(path), document.sha256, info.st_size, info.st_mtime_ns, document.pages, len(document.text))
        self.entries[str(path)] = entry
        self._save()
        return entry, True

    def keep_reading(self, entry: Entry, key: str | None) -> None:
        """Note which saved prefill is that of a file."""
        self.entries[entry.path] = replace(entry, reading=key)
        self._save()

    def remove(self, names: Sequence[str]) -> int:
        """Remove files, or the whole library if none is named; returns how many files. Raises ``UsageError``."""
        if not names:
            count = len(self.entries)
            rmtree(self.folder, ignore_errors=True)
            self.entries = {}
            return count
        for name in names:
            if str(Path(name).absolute()) not in self.entries:
                raise UsageError(f"{name} is not in the library {self.name}", f"kvcli library ls {self.name}")
        for name in names:
            self.entries.pop(str(Path(name).absolute()), None)
        self._save()
        return len(names)

    def document(self, entry: Entry) -> Document:
        """The text of a file as it was added. Raises ``DamagedError``."""
        path = self.folder / f"{entry.sha256}.json"
        try:
            found = from_json(Document, json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise self._damaged(path, error) from None
        spans = tuple(replace(span, file=entry.path) for span in found.spans)
        return replace(found, files=(entry.path,), spans=spans)

    def search(self, question: str, top: int) -> Search:
        """The best passages of all files for a question, at most ``top``. Raises ``DamagedError``."""
        from kvcli.retrieval.quotes import answered, candidates_by_words

        rough, sentences = list[tuple[float, Entry]](), 0
        for entry in self.entries.values():
            index = self._index(entry, Document("", (entry.path,), entry.sha256, entry.size))
            query = index.query(question)
            sentences += len(index)
            scores = index.ranked(query)
            rough.append((float(scores.max(initial=0)) / max(query.total, 1e-6), entry))
        rough.sort(key=lambda pair: -pair[0])
        ranked = list[tuple[float, int, Entry]]()
        indexes: dict[str, SentenceIndex] = {}
        likely: dict[str, float] = {}
        for _, entry in rough[: max(FILES, top)]:
            index = indexes[entry.path] = self._index(entry, self.document(entry))
            candidates = candidates_by_words(index, question)
            likely[entry.path] = answered(candidates, sentences)
            ranked += [(likely[entry.path] * c.share, c.number, entry) for c in candidates]
        best = max(likely, key=lambda path: likely[path])
        hits = list[Hit]()
        for score, number, entry in sorted(ranked, key=lambda each: -each[0]):
            hit = _hit(entry, indexes[entry.path], number, score)
            overlap = any(h.entry is entry and h.start < hit.end and hit.start < h.end for h in hits)
            if not overlap:
                hits.append(hit)
            if len(hits) == top:
                break
        return Search(indexes[best].document, tuple(hits), likely[best])

    # --- within ---

    def _index(self, entry: Entry, document: Document) -> SentenceIndex:
        import numpy as np

        from kvcli.retrieval.sentences import SentenceIndex

        path = self.folder / f"{entry.sha256}.npz"
        try:
            with np.load(path, allow_pickle=False) as stored:
                return SentenceIndex.restore(document, stored)
        except (OSError, ValueError, KeyError, IndexError, BadZipFile) as error:
            raise self._damaged(path, error) from None

    def _stored(self, digest: str) -> bool:
        return all((self.folder / f"{digest}{end}").exists() for end in (".json", ".npz"))

    def _store(self, document: Document) -> None:
        import numpy as np

        from kvcli.retrieval.sentences import SentenceIndex

        with files.disk("the library was not changed"):
            with files.atomic_write(self.folder / f"{document.sha256}.npz") as temporary, temporary.open("wb") as file:
                np.savez(file, **SentenceIndex(document).arrays())  # type: ignore[arg-type]
            with files.atomic_write(self.folder / f"{document.sha256}.json") as temporary:
                body = {**document_json(document), "text": document.text}
                temporary.write_text(json.dumps(body))

    def _save(self) -> None:
        """Write the list of files, and delete what none of them uses any more."""
        body = {"format": FORMAT, "files": [asdict(entry) for entry in self.entries.values()]}
        with files.disk("the library was not changed"), files.atomic_write(self.folder / "library.json") as temporary:
            temporary.write_text(json.dumps(body))
        used = {entry.sha256 for entry in self.entries.values()}
        for path in [*self.folder.glob("*.npz"), *self.folder.glob("*.json")]:
            if path.stem not in used and path.name != "library.json":
                with suppress(OSError):
                    path.unlink()

    def _damaged(self, path: Path, error: Exception) -> DamagedError:
        why = f"{path} of the library {self.name} is damaged: {str(error)[:100]}"
        return DamagedError(why, f"kvcli library rm {self.name}, and add the files again")


def folder() -> Path:
    """Where libraries are."""
    return files.data_dir() / "libraries"


def names() -> list[str]:
    """The names of all libraries."""
    return sorted(path.parent.name for path in folder().glob("*/library.json"))


def _load(path: Path) -> dict[str, Entry]:
    try:
        found: Any = json.loads(path.read_bytes())
        if not isinstance(found, Mapping) or found.get("format") != FORMAT:
            raise ValueError("it has another format")
        entries = from_json(list[Entry], found["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: {str(error)[:100]}", f"rm -r {path.parent}") from None
    return {entry.path: entry for entry in entries}


def _hit(entry: Entry, index: SentenceIndex, number: int, score: float) -> Hit:
    """A sentence with whole sentences around it, up to the page's ends."""
    from kvcli.retrieval.quotes import quote_of

    quote, sentences = quote_of(index, number, score), index.sentences
    span = index.document.at(quote.char_start)
    first = last = number
    while first and sentences[first - 1].start >= max(span.body, quote.char_start - AROUND):
        first -= 1
    while last + 1 < len(sentences) and sentences[last + 1].end <= min(span.end, quote.char_end + AROUND):
        last += 1
    return Hit(entry, index.document, quote, sentences[first].start, sentences[last].end)
