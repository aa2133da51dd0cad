"""Checkpoints of a prefill, and its complete file."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import torch

from kvcli.cache.prefill_cache import PrefillCache
from kvcli.errors import DamagedError
from kvcli.events import Checkpoint, Notice
from kvcli.models.model import Model
from kvcli.prompt_cache import file_format, serialize
from kvcli.prompt_cache.directory import CacheDirectory
from kvcli.prompt_cache.file_format import LazyTensor, Meta
from kvcli.prompt_cache.key import CacheKey, digest, pack
from kvcli.prompt_cache.request import PrefillRequest
from kvcli.utils.version import __version__

EVERY_SECONDS = 30.0
EVERY_TOKENS = 16384
"""A checkpoint is written after so much, whichever comes first."""

_SHARE = 10.0  # ... but a checkpoint takes no more than a tenth of the time


class Checkpointer:
    """Writes the checkpoints of a prefill and its end to one file; after the first failure it writes no more."""

    def __init__(
        self, model: Model, job: PrefillRequest, own: CacheKey, place: Path | None, library: CacheDirectory | None
    ) -> None:
        self.model, self.job, self.own, self.place, self.library = model, job, own, place, library
        self.saved = 0
        self.tokens, self.cost, self.last = 0, 0.0, perf_counter()

    def due(self, work: PrefillCache) -> bool:
        """Whether it is time for a checkpoint."""
        self.tokens = self.tokens or self.saved  # it was continued from there
        waited = perf_counter() - self.last
        return (waited >= EVERY_SECONDS or work.seen - self.tokens >= EVERY_TOKENS) and waited >= _SHARE * self.cost

    def save(self, work: PrefillCache) -> Generator[Checkpoint | Notice, None, None]:
        """Write a checkpoint between two chunks."""
        if self.place is None or self.saved == work.seen:
            return
        began = perf_counter()
        with torch.inference_mode():
            failed = self._write(work, work.seen, serialize.blobs(work))
        self.last, self.tokens = perf_counter(), work.seen
        self.cost = self.last - began
        yield failed or Checkpoint(work.seen)

    def finish(self, work: PrefillCache) -> Generator[Notice, None, None]:
        """Write the complete prefill with its resume point, which is the checkpoint that was written there."""
        if self.place is None:
            return
        before = None
        with ExitStack() as stack, torch.inference_mode():
            if self.saved == self.job.resume_point > 0:
                with suppress(OSError, DamagedError):  # another process has deleted it
                    before = stack.enter_context(serialize.opened(file_format.header(self.place)))
            failed = self._write(work, self.job.resume_point if before else 0, serialize.blobs(work, before))
        if failed:
            yield failed

    def _write(self, work: PrefillCache, resume_point: int, blobs: list[LazyTensor]) -> Notice | None:
        assert self.place is not None
        job = self.job
        about = json.dumps(job.document).encode()
        for name, data in (("text", job.text.encode("utf-8", "surrogatepass")), ("document", about)):
            blobs.append(LazyTensor(name, "U8", (len(data),), lambda data=data: data))  # type: ignore[misc]
        blobs.append(LazyTensor("ids", "I32", (len(job.ids),), lambda: pack(job.ids)))
        size = sum(b.nbytes for b in blobs)
        try:
            if self.library is not None:
                if size > self.library.limit:
                    limit = f"{self.library.limit / 2**20:,.0f} MiB (KVCLI_CACHE_LIMIT)"
                    raise OSError(None, f"it takes {size / 2**20:,.0f} MiB, and the limit of the cache is {limit}")
                self.library.prune(self.library.limit - size, exclude=self.own.key)
            file_format.write(self.place, self._meta(work, resume_point), blobs)
            self.saved = work.seen
        except OSError as error:
            where, self.place = self.place, None
            return Notice(f"the prefill cannot be saved: {error.strerror or error} ({where.parent})")
        return None

    def _meta(self, work: PrefillCache, resume_point: int) -> Meta:
        job, spec = self.job, self.model.spec
        files = job.document.get("files", ()) if isinstance(job.document, dict) else ()
        return Meta(
            identity=self.own,
            seen=work.seen,
            tokens=len(job.ids),
            edge=resume_point,
            prefix=digest(job.ids[:resume_point]),
            kept=work.kept,
            model=spec.name,
            files=tuple(str(name) for name in files),
            origin=job.origin,
            made=datetime.now(UTC).isoformat(timespec="seconds"),
            program=f"kvcli {__version__}, torch {torch.__version__}",
            device=spec.device,
            system=job.system,
            raw=job.raw,
            recipe=str(job.recipe),
        )
