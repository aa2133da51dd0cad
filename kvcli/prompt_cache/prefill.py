"""From a document to a context by the shortest way: a saved reading, a checkpoint, a reading of its beginning, prefill.

A generator of events, like the engine's: what it takes up is said with :class:`~kvcli.events.CacheHit`, what it cannot
do with :class:`~kvcli.events.Notice`. A reading that cannot be saved goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch

from kvcli.cache.context import Context, freeze
from kvcli.cache.prefill_cache import PrefillCache
from kvcli.engine.prefill import freeze_and_keep, last_chunk_boundary, new_prefill_cache, prefill_steps
from kvcli.errors import DamagedError, KvcliError, ResourceError
from kvcli.events import CacheHit, Checkpoint, Notice, Prefill
from kvcli.models.model import Model
from kvcli.prompt_cache import file_format, serialize
from kvcli.prompt_cache.directory import CacheDirectory
from kvcli.prompt_cache.file_format import CacheHeader, LazyTensor, Meta
from kvcli.prompt_cache.key import FORMAT, CacheKey, digest, pack
from kvcli.recipe import Recipe
from kvcli.utils.version import __version__

EVERY_SECONDS = 30.0
EVERY_TOKENS = 16384
"""A checkpoint is written after so much, whichever comes first."""

_SHARE = 10.0  # ... but a checkpoint takes no more than a tenth of the time


@dataclass(frozen=True)
class PrefillRequest:
    """What is to be read, and how.

    Attributes:
        ids: the text, template head included.
        recipe: which units survive.
        chunk: tokens per forward pass.
        horizon: RoPE positions that the reading and its answers will use (see
        :func:`kvcli.engine.prefill.prefill_steps`). head: the template's ids in front of any text.
        text: the document.
        document: what else is known of it, as JSON.
        probe: the question's ids, for policies that read for one.
        origin: the command that reads.
        system, raw: how the prompt was made.
        ids_digest: of ``ids``, if the caller knows it; hashing a long text takes a while.
        keep_cache: whether the prefill cache is kept beside the context, so that turns can be evicted into it later
            (:func:`kvcli.engine.prefill.evict_turns`).
    """

    ids: Sequence[int]
    recipe: Recipe
    chunk: int
    horizon: int
    head: Sequence[int] = ()
    text: str = ""
    document: Any = None
    probe: Sequence[int] = ()
    origin: str = "ask"
    system: str | None = None
    raw: bool = False
    keep_cache: bool = False
    ids_digest: str = ""

    @property
    def edge(self) -> int:
        """Tokens before the last chunk, whose eviction differs: how far a longer text could go along."""
        return last_chunk_boundary(len(self.ids), self.chunk, self.recipe.policy.tail)


@dataclass(frozen=True)
class PrefillResult:
    """A context and where it came from.

    Attributes:
        context: ready to be asked.
        cache: ``hit`` without any prefill, ``resumed`` after a part of it, ``miss`` after all of it, ``off`` where
            nothing was to be saved.
        reused: tokens that were not read again.
        seconds: what taking them up took.
        path: the reading's file, where it has one.
        work: the fill, where the job was to keep it.
    """

    context: Context
    cache: Literal["hit", "resumed", "miss", "off"]
    reused: int
    seconds: float
    path: Path | None
    work: PrefillCache | None = None


class PrefillInterrupted(Exception):
    """The reading was asked to stop: ``done`` of ``total`` tokens were read, and ``saved`` need not be read again."""

    def __init__(self, done: int, total: int, saved: int) -> None:
        super().__init__(f"stopped at {done} of {total} tokens, {saved} saved")
        self.done, self.total, self.saved = done, total, saved


def request_key(model: Model, job: PrefillRequest) -> CacheKey:
    """What a reading of this job by this model is called."""
    keep = job.recipe.policy
    return CacheKey(
        version=FORMAT,
        model=model.spec.fingerprint,
        dtype=model.spec.dtype,
        template=digest(job.head),
        recipe=job.recipe.reading,
        heads=_heads(model) if keep.needs_heads else "",
        chunk=job.chunk,
        question=digest(job.probe) if keep.query_aware else "",
        horizon=job.horizon if model.rotary.length_dependent else 0,
        text=job.ids_digest or digest(job.ids),
    )


def is_prefilled(path: Path) -> bool:
    """Whether ``kvcli prefill`` has saved a complete prefill in this file."""
    with suppress(DamagedError, OSError):
        meta = file_format.header(path).meta
        return meta.complete and meta.origin == "prefill"
    return False


def cached_prefill(
    model: Model,
    job: PrefillRequest,
    *,
    key: CacheKey | None = None,
    place: Path | None = None,
    library: CacheDirectory | None = None,
    base: Path | None = None,
    rebuild: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Generator[Prefill | CacheHit | Checkpoint | Notice, None, PrefillResult]:
    """A context of a job.

    Args:
        model: a loaded model.
        job: what to read.
        key: :func:`request_key` of the job, if the caller has it.
        place: the file of this reading, which is taken up where it is there and written where it is not.
        library: bounds what is written, and is searched for readings of the text's beginning.
        base: a saved reading that must fit: of this text, or of its beginning.
        rebuild: take nothing up.
        stop: asked after each chunk; once it says yes, the reading is saved as it is.

    Raises:
        DamagedError: ``base`` is damaged or of something else; names the field.
        Paused: ``stop`` said yes.
        KvcliError: as for :func:`kvcli.engine.prefill.prefill_steps`.
    """
    job = replace(job, probe=job.probe if job.recipe.policy.query_aware else ())
    own, total = key or request_key(model, job), len(job.ids)
    sources = (place, library, base, rebuild)
    work, found, seconds = yield from _take_up(model, job, own, *sources)
    reused = work.seen

    with ExitStack() as stack:
        keeper = _Checkpointer(model, job, own, place if reused < total else None, library)
        if keeper.place is not None and library is not None:
            mine, waited = yield from _lock(stack, keeper.place, library, total, stop)
            if not mine:
                keeper.place = None
            elif waited and not rebuild:  # what the other process has read is there now
                work, found, seconds = yield from _take_up(model, job, own, *sources)
                reused = work.seen
                if reused == total:
                    keeper.place = None
        if found is not None:
            if library is not None and found.path.parent == library.folder:
                library.touch(found.path)
            yield CacheHit(reused, total, seconds)
        if found is not None and found.path == place:
            keeper.saved = reused
        elif reused and reused == job.edge:
            yield from keeper.save(work)
        for event in prefill_steps(
            model, job.ids, job.recipe, chunk=job.chunk, probe=job.probe, horizon=job.horizon, resume=work
        ):
            yield event
            stopped = stop()
            if not work.step.last and (stopped or work.seen == job.edge or keeper.due(work)):
                yield from keeper.save(work)
            if stopped and work.seen < total:
                raise PrefillInterrupted(work.seen, total, keeper.saved)
        if reused < total:
            yield from keeper.finish(work)
        if stop():
            raise PrefillInterrupted(total, total, keeper.saved)
    with torch.inference_mode(), model.lock:
        context = freeze_and_keep(work, job.recipe) if job.keep_cache else freeze(work, job.recipe.storage)
    path = found.path if found is not None and reused == total else keeper.place
    cache: Literal["hit", "resumed", "miss", "off"] = "off" if place is None else "miss"
    if found is not None:
        cache = "hit" if reused == total else "resumed"
    return PrefillResult(context, cache, reused, seconds, path, work if job.keep_cache else None)


def _take_up(
    model: Model,
    job: PrefillRequest,
    own: CacheKey,
    place: Path | None,
    library: CacheDirectory | None,
    base: Path | None,
    rebuild: bool,
) -> Generator[Notice, None, tuple[PrefillCache, CacheHeader | None, float]]:
    """The best saved reading of a job, where it comes from and the seconds that it took; an empty one if none fits."""
    began, work = perf_counter(), _start(model, job)
    for header, demanded in _sources(model, own, job, place, library, base, rebuild):
        try:
            if isinstance(header, KvcliError):
                raise header
            if not demanded:
                file_format.verify(header)
            _restore(work, header, own)
            return work, header, perf_counter() - began
        except (KvcliError, OSError) as error:
            if demanded:
                raise
            yield Notice(f"{error}; it is read again")
            work = _start(model, job)
    return work, None, perf_counter() - began


def _lock(
    stack: ExitStack, place: Path, library: CacheDirectory, total: int, stop: Callable[[], bool]
) -> Generator[Notice, None, tuple[bool, bool]]:
    """Be the writer of a reading, after another process if there is one: whether this one is, and whether it waited.

    Raises:
        PrefillInterrupted: ``stop`` said yes.
    """
    try:
        if stack.enter_context(library.lock(place)):
            return True, False
        if library.locked_here(place):
            yield Notice("another kvcli process is saving the prefill of this text; this run saves nothing")
            return False, False
        yield Notice("another kvcli is reading this text; this one waits for it")
        while not stack.enter_context(library.lock(place, timeout=0.5)):
            if stop():
                raise PrefillInterrupted(0, total, 0)
    except (OSError, ResourceError) as error:
        reason = getattr(error, "strerror", None) or error
        yield Notice(f"this reading is not saved: {reason} ({place.parent})")
        return False, False
    return True, True


def _start(model: Model, job: PrefillRequest) -> PrefillCache:
    return new_prefill_cache(model, job.recipe, len(job.ids), chunk=job.chunk, probe=len(job.probe))


def _sources(
    model: Model,
    own: CacheKey,
    job: PrefillRequest,
    place: Path | None,
    library: CacheDirectory | None,
    base: Path | None,
    rebuild: bool,
) -> Generator[tuple[CacheHeader | KvcliError, bool], None, None]:
    """Files that may be taken up, best first, each with whether it must; an error stands for a file that cannot be."""
    if base is not None:
        header = _of_today(file_format.header(base), model)
        check_key(header, own)
        file_format.verify(header)
        if header.meta.identity.text == own.text or _begins(header, job):
            yield header, True
            return
        if header.meta.edge:
            raise _mismatch(base, "text", "another one", "not how this one begins")
    if rebuild:
        return
    if place is not None and place.exists():
        try:
            header = file_format.header(place)
            if header.meta.identity == own:
                yield header, False
            elif library is not None:
                yield DamagedError(f"{place} is the saved prefill of another document"), False
        except DamagedError as error:
            if library is not None:
                yield error, False
    if library is not None:
        for header in library.resumable(own):
            if header.path != place and _begins(header, job):
                yield header, False


def _of_today(header: CacheHeader, model: Model) -> CacheHeader:
    """The header of a file that kvcli 0.1.0 saved, with the model's fingerprint of today."""
    identity, spec = header.meta.identity, model.spec
    if not spec.former_fingerprint or identity.model != spec.former_fingerprint:
        return header
    return replace(header, meta=replace(header.meta, identity=replace(identity, model=spec.fingerprint)))


def _begins(header: CacheHeader, job: PrefillRequest) -> bool:
    """Whether a job's text begins with what was read before the edge of a saved one."""
    edge = header.meta.edge
    return 0 < edge <= job.edge and edge % job.chunk == 0 and header.meta.prefix == digest(job.ids[:edge])


def check_key(header: CacheHeader, own: CacheKey) -> None:
    """Refuse a reading that was made otherwise than ``own`` would be, whatever its text; names the first field.

    Raises:
        DamagedError: with both values.
    """
    different = header.meta.identity.family.difference(own.family)
    if different is not None:
        field, theirs, mine = different
        raise _mismatch(header.path, field, theirs or "none", mine or "none")


def _mismatch(path: Path, field: str, theirs: object, mine: object) -> DamagedError:
    hints = {
        "model": "-m with the model that read it: kvcli cache show FILE",
        "dtype": f"--dtype {theirs}",
        "recipe": "leave out --policy and --budget",
        "chunk": f"--chunk-size {theirs}",
        "template": "the same --system and --raw as when it was read, or read the document again",
    }
    what = {"model": "model (by fingerprint)", "question": "question (by digest)"}.get(field, field)
    return DamagedError(
        f"{path} does not fit: its {what} is {theirs}, and here it is {mine}",
        hints.get(field, "read the document again"),
    )


def _restore(work: PrefillCache, header: CacheHeader, own: CacheKey) -> None:
    same = header.meta.identity == own
    if same and not header.meta.complete and header.meta.seen % own.chunk:
        raise file_format.damaged(header.path, f"its checkpoint of {header.meta.seen} tokens is not between two chunks")
    with torch.inference_mode(), serialize.opened(header) as stored:
        serialize.restore(work, stored, "end" if same else "edge")


class _Checkpointer:
    """Writes a reading's checkpoints and its end to one file; gives up, once, when that cannot be."""

    def __init__(
        self, model: Model, job: PrefillRequest, own: CacheKey, place: Path | None, library: CacheDirectory | None
    ) -> None:
        self.model, self.job, self.own, self.place, self.library = model, job, own, place, library
        self.saved = 0
        self.tokens, self.cost, self.last = 0, 0.0, perf_counter()

    def due(self, work: PrefillCache) -> bool:
        """Whether it is time for a checkpoint."""
        self.tokens = self.tokens or self.saved  # taken up from there
        waited = perf_counter() - self.last
        return (waited >= EVERY_SECONDS or work.seen - self.tokens >= EVERY_TOKENS) and waited >= _SHARE * self.cost

    def save(self, work: PrefillCache) -> Generator[Checkpoint | Notice, None, None]:
        """A checkpoint between two chunks."""
        if self.place is None or self.saved == work.seen:
            return
        began = perf_counter()
        with torch.inference_mode():
            failed = self._write(work, work.seen, serialize.blobs(work))
        self.last, self.tokens = perf_counter(), work.seen
        self.cost = self.last - began
        yield failed or Checkpoint(work.seen)

    def finish(self, work: PrefillCache) -> Generator[Notice, None, None]:
        """The end, and in the same file the edge, from the checkpoint that was written there."""
        if self.place is None:
            return
        before = None
        with ExitStack() as stack, torch.inference_mode():
            if self.saved == self.job.edge > 0:
                with suppress(OSError, DamagedError):  # somebody has pruned it
                    before = stack.enter_context(serialize.opened(file_format.header(self.place)))
            failed = self._write(work, self.job.edge if before else 0, serialize.blobs(work, before))
        if failed:
            yield failed

    def _write(self, work: PrefillCache, edge: int, blobs: list[LazyTensor]) -> Notice | None:
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
            file_format.write(self.place, self._meta(work, edge), blobs)
            self.saved = work.seen
        except OSError as error:
            where, self.place = self.place, None
            return Notice(f"the prefill cannot be saved: {error.strerror or error} ({where.parent})")
        return None

    def _meta(self, work: PrefillCache, edge: int) -> Meta:
        job, spec = self.job, self.model.spec
        files = job.document.get("files", ()) if isinstance(job.document, dict) else ()
        return Meta(
            identity=self.own,
            seen=work.seen,
            tokens=len(job.ids),
            edge=edge,
            prefix=digest(job.ids[:edge]),
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


_HEADS_DIGESTS: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()


def _heads(model: Model) -> str:
    """Digest of a model's retaining heads: every weight, and how they are applied. Computed once per module."""
    heads: Any = model.heads
    if not isinstance(heads, torch.nn.Module):
        return hashlib.sha256(str(getattr(heads, "activation", "")).encode()).hexdigest()[:32]
    if heads not in _HEADS_DIGESTS:
        total = hashlib.sha256(str(getattr(heads, "activation", "")).encode())
        for name, tensor in sorted(heads.state_dict().items()):
            total.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        _HEADS_DIGESTS[heads] = total.hexdigest()[:32]
    return _HEADS_DIGESTS[heads]
