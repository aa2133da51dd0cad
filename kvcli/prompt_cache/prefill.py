"""Prefill with saved prefills: loads the finished one, else resumes the one that read most of the text, else starts.

A generator of events, as the engine's. It yields :class:`~kvcli.events.CacheHit` if a saved prefill is used, and
:class:`~kvcli.events.Notice` if one cannot be used or saved. A prefill that cannot be saved goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Literal

import torch

from kvcli.cache.context import Context, freeze
from kvcli.cache.prefill_cache import PrefillCache
from kvcli.engine.prefill import freeze_and_keep, new_prefill_cache, prefill_steps
from kvcli.errors import DamagedError, KvcliError, ResourceError
from kvcli.events import CacheHit, Checkpoint, Notice, Prefill
from kvcli.models.model import Model
from kvcli.prompt_cache import file_format, serialize
from kvcli.prompt_cache.checkpoint import Checkpointer
from kvcli.prompt_cache.directory import CacheDirectory
from kvcli.prompt_cache.file_format import CacheHeader
from kvcli.prompt_cache.key import CacheKey, digest
from kvcli.prompt_cache.request import PrefillRequest, request_key


@dataclass(frozen=True)
class PrefillResult:
    """A context and where it came from.

    Attributes:
        context: ready to be asked.
        cache: ``hit`` if nothing was computed, ``resumed`` if a part was, ``miss`` if all was, ``off`` if nothing is
            saved.
        reused: tokens that were taken from a saved prefill.
        seconds: that loading them took.
        path: the file of the saved prefill, if there is one.
        work: the prefill cache, if the request keeps it.
    """

    context: Context
    cache: Literal["hit", "resumed", "miss", "off"]
    reused: int
    seconds: float
    path: Path | None
    work: PrefillCache | None = None


class PrefillInterrupted(Exception):
    """``stop`` returned true: ``done`` of ``total`` tokens were read, and ``saved`` of them are saved."""

    def __init__(self, done: int, total: int, saved: int) -> None:
        super().__init__(f"stopped at {done} of {total} tokens, {saved} saved")
        self.done, self.total, self.saved = done, total, saved


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
    """Compute the context of a request, from saved prefills as far as they go.

    Args:
        model: a loaded model.
        job: what to read.
        key: :func:`~kvcli.prompt_cache.request.request_key` of the request, if the caller has it.
        place: the file of this prefill: used if it exists, else written.
        library: bounds what is written, and is searched for prefills of the text's beginning.
        base: a saved prefill that must fit: of this text, or of its beginning.
        rebuild: use no saved prefill.
        stop: asked after each chunk; if true, progress is saved.

    Raises:
        DamagedError: ``base`` is damaged or of another text, model or recipe; names the field.
        PrefillInterrupted: ``stop`` returned true.
        KvcliError: as for :func:`kvcli.engine.prefill.prefill_steps`.
    """
    job = replace(job, probe=job.probe if job.recipe.policy.query_aware else ())
    own, total = key or request_key(model, job), len(job.ids)
    sources = (place, library, base, rebuild)
    work, found, seconds = yield from _continued(model, job, own, *sources)
    reused = work.seen

    with ExitStack() as stack:
        checkpointer = Checkpointer(model, job, own, place if reused < total else None, library)
        if checkpointer.place is not None and library is not None:
            mine, waited = yield from _lock(stack, checkpointer.place, library, total, stop)
            if not mine:
                checkpointer.place = None
            elif waited and not rebuild:  # the other process has saved it
                work, found, seconds = yield from _continued(model, job, own, *sources)
                reused = work.seen
                if reused == total:
                    checkpointer.place = None
        if found is not None:
            if library is not None and found.path.parent == library.folder:
                library.touch(found.path)
            yield CacheHit(reused, total, seconds)
        if found is not None and found.path == place:
            checkpointer.saved = reused
        elif reused and reused == job.resume_point:
            yield from checkpointer.save(work)
        for event in prefill_steps(
            model,
            job.ids,
            job.recipe,
            chunk=job.chunk,
            probe=job.probe,
            horizon=job.horizon,
            resume=work,
            pictures=job.pictures,
        ):
            yield event
            stopped = stop()
            if not work.step.last and (stopped or work.seen == job.resume_point or checkpointer.due(work)):
                yield from checkpointer.save(work)
            if stopped and work.seen < total:
                raise PrefillInterrupted(work.seen, total, checkpointer.saved)
        if reused < total:
            yield from checkpointer.finish(work)
        if stop():
            raise PrefillInterrupted(total, total, checkpointer.saved)
    with torch.inference_mode(), model.lock:
        context = freeze_and_keep(work, job.recipe) if job.keep_cache else freeze(work, job.recipe.storage)
    path = found.path if found is not None and reused == total else checkpointer.place
    cache: Literal["hit", "resumed", "miss", "off"] = "off" if place is None else "miss"
    if found is not None:
        cache = "hit" if reused == total else "resumed"
    return PrefillResult(context, cache, reused, seconds, path, work if job.keep_cache else None)


def _continued(
    model: Model,
    job: PrefillRequest,
    own: CacheKey,
    place: Path | None,
    library: CacheDirectory | None,
    base: Path | None,
    rebuild: bool,
) -> Generator[Notice, None, tuple[PrefillCache, CacheHeader | None, float]]:
    """The prefill cache to continue, its file, and the seconds of loading; a new cache if none fits."""
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
    """Become the writer of a file, if need be after another process. Whether this process is, and whether it waited.

    Raises:
        PrefillInterrupted: ``stop`` returned true.
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
        yield Notice(f"the prefill will not be saved: {reason} ({place.parent})")
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
    """Files that can be continued, best first, each with whether it must be; an error if one cannot be used."""
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
    """Whether a job's text begins with what was read before the resume point of a saved one."""
    edge = header.meta.edge
    return 0 < edge <= job.resume_point and edge % job.chunk == 0 and header.meta.prefix == digest(job.ids[:edge])


def check_key(header: CacheHeader, own: CacheKey) -> None:
    """Refuse a saved prefill whose key differs from ``own`` in more than the text; names the first field.

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
        "template": "the same --system, --raw and pictures as when it was read, or read the document again",
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
        serialize.restore(work, stored, "end" if same else "resume point")
