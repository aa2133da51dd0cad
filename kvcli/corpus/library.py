"""Libraries: documents that are kept as text with an index of their sentences, and asked about together.

A question ranks the sentences of all files. The answer is written after the reading of the best file, with the best
passages of several files read again. With an embedding model, each sentence has a vector as well, and its cosine with
the question counts beside the words (``kvcli.retrieval.quotes.fused``). A directory holds, for each document by its
digest, the text with its places (``.json``), the index (``.npz``) and the vectors (``.npy``); ``library.json`` lists
the files. The prefills are saved with all others.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from math import exp
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from kvcli.corpus.search_results import Entry, Hit, Search, hit_of
from kvcli.documents.document import Document, document_json
from kvcli.errors import DamagedError, ModelError, ResourceError, UsageError
from kvcli.utils import files
from kvcli.utils.from_json import from_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kvcli.documents import Options
    from kvcli.models.encoder import Encoder
    from kvcli.retrieval.sentences import SentenceIndex

FORMAT = 1
"""Version of ``library.json``."""

FILES = 40
"""Files that are looked at closely for a question: those with the best sentence by its words."""

_NAME = re.compile(r"\w[\w.-]{0,63}")


@dataclass(frozen=True)
class Embedder:
    """The embedding model of a library: a directory or a hub id, and the fingerprint of its weights."""

    name: str
    fingerprint: str


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
        self.embedder: Embedder | None = None
        self._load()

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
            self._load()
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

    def encoder(self, name: str | None = None) -> Encoder | None:
        """The embedding model of the library, loaded; ``None`` if it has none.

        Args:
            name: another one for all files from now on; they are embedded again by :meth:`embed`.

        Raises:
            ModelError: it is not on this machine, is not the one of before, or is no embedding model.
        """
        from kvcli.models.encoder import load_encoder
        from kvcli.models.resolve import here

        wanted = name or (None if self.embedder is None else self.embedder.name)
        if wanted is None:
            return None
        again = f"kvcli library add {self.name} --embed MODEL FILE…"
        try:
            source = here(wanted, "encoder")
        except ModelError as error:
            raise ModelError(error.message, error.hint if name else again) from None
        if name is None and self.embedder is not None and source.fingerprint != self.embedder.fingerprint:
            why = f"{self.embedder.name} is another model than the one that embedded the library {self.name}"
            raise ModelError(why, f"kvcli library add {self.name} --embed {self.embedder.name} FILE…")
        encoder = load_encoder(wanted)
        if encoder.cross:
            raise ModelError(f"{encoder.name} is a cross-encoder, which makes no embeddings", again)
        if name is not None:
            kept = str(Path(name).expanduser().absolute()) if Path(name).expanduser().is_dir() else name
            self.embedder = Embedder(kept, source.fingerprint)
        return encoder

    def embed(self, encoder: Encoder) -> int:
        """Embed the sentences of all files that this encoder has not embedded; returns how many files."""
        import numpy as np

        from kvcli.retrieval.quotes import with_previous

        assert self.embedder is not None
        count = 0
        for entry in list(self.entries.values()):
            path = self.folder / f"{entry.sha256}.npy"
            if entry.vectors == self.embedder.fingerprint and path.exists():
                continue
            index = self._index(entry, self.document(entry))
            texts = ["".join(with_previous(index, n)) for n in range(len(index))]
            vectors = encoder.embed(texts).numpy() if texts else np.zeros((0, 1))
            with (
                files.disk("the library was not changed"),
                files.atomic_write(path) as temporary,
                temporary.open("wb") as file,
            ):
                np.save(file, vectors.astype(np.float16))
            self.entries[entry.path] = replace(entry, vectors=self.embedder.fingerprint)
            self._save()
            count += 1
        return count

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
        from kvcli.retrieval.quotes import answered, by_vectors, candidates_by_words, fused

        encoder = self.encoder()
        asked = None if encoder is None else encoder.embed([" ".join(question.split())], question=True)[0].numpy()
        rough, sentences = list[tuple[float, Entry]](), 0
        for entry in self.entries.values():
            index = self._index(entry, Document("", (entry.path,), entry.sha256, entry.size))
            query = index.query(question)
            sentences += len(index)
            if asked is None:
                score = float(index.ranked(query).max(initial=0)) / max(query.total, 1e-6)
            else:
                score = float(fused(index, query, self._cosines(entry, index, asked)).max(initial=0))
            rough.append((score, entry))
        rough.sort(key=lambda pair: -pair[0])
        ranked = list[tuple[float, int, Entry]]()
        indexes: dict[str, SentenceIndex] = {}
        likely: dict[str, float] = {}
        for _, entry in rough[: max(FILES, top)]:
            index = indexes[entry.path] = self._index(entry, self.document(entry))
            cosines = None if asked is None else self._cosines(entry, index, asked)
            candidates = candidates_by_words(index, question, cosines=cosines)
            likely[entry.path] = answered(candidates, sentences)
            if cosines is None:
                ranked += [(likely[entry.path] * c.share, c.number, entry) for c in candidates]
            else:
                ranked += [(by_vectors(c.strength, float(cosines[c.number])), c.number, entry) for c in candidates]
        best = max(likely, key=lambda path: likely[path])
        if asked is not None and ranked:
            strongest = max(ranked, key=lambda each: each[0])
            best, total = strongest[2].path, sum(exp(each[0] - strongest[0]) for each in ranked)
            ranked = [(exp(score - strongest[0]) / total, number, entry) for score, number, entry in ranked]
        hits = list[Hit]()
        for score, number, entry in sorted(ranked, key=lambda each: -each[0]):
            hit = hit_of(entry, indexes[entry.path], number, score)
            overlap = any(h.entry is entry and h.start < hit.end and hit.start < h.end for h in hits)
            if not overlap:
                hits.append(hit)
            if len(hits) == top:
                break
        return Search(indexes[best].document, tuple(hits), likely[best])

    # --- within ---

    def _load(self) -> None:
        path = self.folder / "library.json"
        if not path.exists():
            return
        try:
            found: Any = json.loads(path.read_bytes())
            if not isinstance(found, Mapping) or found.get("format") != FORMAT:
                raise ValueError("it has another format")
            self.entries = {entry.path: entry for entry in from_json(list[Entry], found["files"])}
            self.embedder = from_json(Embedder, found["embedder"]) if "embedder" in found else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedError(f"{path} is damaged: {str(error)[:100]}", f"rm -r {path.parent}") from None

    def _index(self, entry: Entry, document: Document) -> SentenceIndex:
        import numpy as np

        from kvcli.retrieval.sentences import SentenceIndex

        path = self.folder / f"{entry.sha256}.npz"
        try:
            with np.load(path, allow_pickle=False) as stored:
                return SentenceIndex.restore(document, stored)
        except (OSError, ValueError, KeyError, IndexError, BadZipFile) as error:
            raise self._damaged(path, error) from None

    def _cosines(self, entry: Entry, index: SentenceIndex, asked: NDArray[np.float32]) -> NDArray[np.float32]:
        """The cosine of each sentence with the question: float32 ``[s]``. Raises ``DamagedError``, ``UsageError``."""
        import numpy as np

        path = self.folder / f"{entry.sha256}.npy"
        if self.embedder is None or entry.vectors != self.embedder.fingerprint or not path.exists():
            hint = f"kvcli library add {self.name} {shlex.quote(entry.path)}"
            raise UsageError(f"{entry.path} has no embeddings in the library {self.name}", hint)
        try:
            vectors = np.load(path, allow_pickle=False)
            if not len(index):
                return np.zeros(0, dtype=np.float32)
            if vectors.shape != (len(index), len(asked)):
                raise ValueError("its shape is another one")
        except (OSError, ValueError, EOFError) as error:
            raise self._damaged(path, error) from None
        found: NDArray[np.float32] = vectors.astype(np.float32) @ asked
        return found

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
        body: dict[str, Any] = {"format": FORMAT, "files": [asdict(entry) for entry in self.entries.values()]}
        body |= {} if self.embedder is None else {"embedder": asdict(self.embedder)}
        with files.disk("the library was not changed"), files.atomic_write(self.folder / "library.json") as temporary:
            temporary.write_text(json.dumps(body))
        used = {entry.sha256 for entry in self.entries.values()}
        for path in [*self.folder.glob("*.np[yz]"), *self.folder.glob("*.json")]:
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
