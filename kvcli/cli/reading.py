"""Get a context: from a saved reading, from a checkpoint, or by prefill; saved when it is stopped."""

import time
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kvcli.cli.report import Report
from kvcli.cli.signals import INTERRUPTS, DeferredSignals, Interrupted
from kvcli.cli.views import terminal
from kvcli.cli.views.progress import run_with_progress
from kvcli.events import CacheHit, Event, Notice, Prefill
from kvcli.planning import speed_history

if TYPE_CHECKING:
    from kvcli.cache.context import Context
    from kvcli.cache.prefill_cache import PrefillCache
    from kvcli.models.model import Model
    from kvcli.prompt_cache.directory import CacheDirectory
    from kvcli.prompt_cache.key import CacheKey
    from kvcli.prompt_cache.prefill import PrefillRequest, PrefillResult

T = TypeVar("T")


class Reader:
    """Where a run's contexts come from.

    Args:
        model: a loaded model.
        report: learns what was read, reused and kept.
        warn: says a warning and remembers it.
        quiet: no notes and no progress.
        library: where readings are saved by themselves; ``None`` saves none.
        rebuild: take none up.
        base: a saved reading to be used, whatever lies in the library.
    """

    def __init__(
        self,
        model: "Model",
        report: Report,
        warn: Callable[[str], None],
        *,
        quiet: bool,
        library: "CacheDirectory | None",
        rebuild: bool = False,
        base: Path | None = None,
    ) -> None:
        self.model, self.report, self.warn, self.quiet = model, report, warn, quiet
        self.library, self.rebuild, self.base = library, rebuild, base
        self.context: Context | None = None
        self.work: PrefillCache | None = None
        self.path: Path | None = None
        self.place: Path | None = None
        self._has: CacheKey | None = None
        self._done = 0

    def has(self, job: "PrefillRequest") -> bool:
        """Whether the context at hand is that of ``job``."""
        from kvcli.prompt_cache.prefill import request_key

        return self._has == request_key(self.model, job)

    def drop(self) -> None:
        """Give up the context at hand, so that another one has room."""
        self.context = self.work = self._has = None

    def was_asked_for(self, job: "PrefillRequest") -> bool:
        """Whether a person has had this very reading made, by ``kvcli prefill``."""
        from kvcli.errors import DamagedError
        from kvcli.prompt_cache.file_format import header
        from kvcli.prompt_cache.prefill import request_key

        if self.library is None or self.rebuild or self.base is not None:
            return False
        with suppress(DamagedError, OSError):
            meta = header(self.library.place(request_key(self.model, job))).meta
            return meta.complete and meta.origin == "prefill"
        return False

    def read(self, job: "PrefillRequest", out: Path | None = None) -> None:
        """Make the context of ``job`` the one at hand. Raises ``Interrupted`` where it was stopped.

        Args:
            job: what to read.
            out: its file, where it shall have one outside the library.
        """
        from kvcli.prompt_cache.prefill import PrefillInterrupted, cached_prefill, request_key

        own = request_key(self.model, job)
        place = self.place = out if self.library is None else self.library.place(own)
        patience, self._done, start = DeferredSignals(), 0, time.perf_counter()
        warnings: list[str] = []
        events = cached_prefill(
            self.model,
            job,
            place=place,
            library=self.library,
            base=self.base,
            rebuild=self.rebuild,
            stop=lambda: patience.cause is not None,
        )
        try:
            with patience:
                reading = run_with_progress(
                    self._told(events, warnings), quiet=self.quiet, device=self.model.spec.device
                )
        except PrefillInterrupted as paused:
            raise _interrupted(paused.done, paused.total, paused.saved, patience.cause) from None
        except INTERRUPTS as stop:
            saved = _saved(place)
            raise _interrupted(self._done, len(job.ids), saved, stop) from None
        finally:
            for text in warnings:
                self.warn(text)
        self.context, self.work, self.path, self._has = reading.context, reading.work, reading.path, own
        self._learn(reading, time.perf_counter() - start)
        new, seconds = len(job.ids) - self.report.reused, self.report.prefill_s
        speed_history.record(self.model.spec, job.recipe, read=new, read_s=seconds)

    def _told(self, events: Generator[Event, None, T], warnings: list[str]) -> Generator[Event, None, T]:
        """``events``, what is reused said at once and what went wrong at the end: a progress bar stands between."""
        while True:
            try:
                event = next(events)
            except StopIteration as end:
                value: T = end.value
                return value
            if isinstance(event, CacheHit):
                whole = event.tokens == event.total
                tokens = terminal.count(event.tokens) + ("" if whole else f" of {terminal.count(event.total)}")
                what = f"{tokens} tokens ({event.seconds:.1f} s)"
                terminal.note("reading reused: " if whole else "reading resumed: ", what, quiet=self.quiet)
            elif isinstance(event, Notice):
                warnings.append(event.text)
            elif isinstance(event, Prefill):
                self._done = event.done
            yield event

    def _learn(self, reading: "PrefillResult", seconds: float) -> None:
        report, context = self.report, reading.context
        report.cache, report.reused = reading.cache, reading.reused
        report.reuse_s = reading.seconds if reading.reused else 0.0
        report.prefill_s = 0.0 if reading.cache == "hit" else seconds - report.reuse_s
        report.kept, report.kv_bytes, report.bits = context.kept, context.nbytes, context.bits
        report.host_bytes = context.host_nbytes


def _saved(place: Path | None) -> int:
    """Tokens that a reading's file holds."""
    from kvcli.errors import DamagedError
    from kvcli.prompt_cache.file_format import header

    with suppress(DamagedError, OSError):
        return 0 if place is None else header(place).meta.seen
    return 0


def _interrupted(done: int, total: int, saved: int, cause: BaseException | None) -> Interrupted:
    kept = f"{saved:,} are saved" if saved else "nothing of it is saved"
    hint = "it reads on from there" if saved else "it reads from the start"
    return Interrupted(
        f"interrupted while reading, at {done:,} of {total:,} tokens; {kept}",
        f"the same command again; {hint}",
        cause=cause or KeyboardInterrupt(),
    )
