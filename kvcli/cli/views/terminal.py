"""What a person sees. The only module that knows about terminals, colours and progress bars.

Two streams, two rules: stdout carries the answer (or JSON, or a table that was asked for) and nothing
else; notes, progress, warnings and errors go to stderr. No escape byte is written to a stream that is
not a terminal, whatever the environment says, and none that comes from a document, a model or a file name
is written anywhere.
"""

import os
import re
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO, TypeVar

from kvcli.errors import KvcliError
from kvcli.events import Convert, Download, Event, Prefill, Reused, Training
from kvcli.utils import process_memory

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from kvcli.documents import Document

T = TypeVar("T")

LABEL = 9
"""Width of the first column of a note."""

_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LINES = re.compile(r"\s*[\r\n]+\s*")


# --- text ---------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """``text`` without control characters, so that a document cannot drive the reader's terminal."""
    return _UNSAFE.sub("", text)


def oneline(text: str) -> str:
    """``text`` as one line, safe to print."""
    return plain(_LINES.sub(" ", text.strip()))


def count(n: int) -> str:
    """``128412`` as ``128,412``."""
    return f"{n:,}"


def size(n: float) -> str:
    """Bytes with a binary unit: ``9.1 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n) < 1024:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"


def duration(seconds: float) -> str:
    """``0:22``, ``1:04:05``; under ten seconds with a decimal."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{s:02}" if hours else f"{minutes}:{s:02}"


def share(part: int, whole: int) -> str:
    """``12.8 %``."""
    return f"{100 * part / whole:.1f} %" if whole else "0 %"


def plural(n: int, word: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"


def title(document: "Document") -> str:
    """The files of a document, how many pages they have, and how many of those have no text."""
    named, pages = document.files, document.pages
    files = " ".join(named) if len(named) <= 3 else f"{named[0]} and {len(named) - 1:,} more"
    empty = f", {len(document.without_text):,} without text" if document.without_text else ""
    return files + (f" · {plural(pages, 'page')}{empty}" if pages else "")


# --- streams ------------------------------------------------------------------------------------------


def is_terminal(stream: TextIO) -> bool:
    """Whether ``stream`` is a terminal that understands cursor movement."""
    with suppress(ValueError, AttributeError):
        return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
    return False


def console(stream: TextIO) -> "Console":
    """A rich console that emits escapes on a terminal and nowhere else (``FORCE_COLOR`` included)."""
    from rich.console import Console

    tty = is_terminal(stream)
    return Console(
        file=stream,
        force_terminal=tty,
        force_jupyter=False,
        force_interactive=tty,
        color_system="auto" if tty else None,
        no_color=bool(os.environ.get("NO_COLOR")) or None,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
    )


def write(stream: TextIO, text: str, style: str | None = None) -> None:
    """One safe line, styled where the stream is a terminal."""
    if style and is_terminal(stream):
        from rich.text import Text

        console(stream).print(Text(text, style=style))
    else:
        stream.write(text + "\n")
        stream.flush()


def note(label: str, text: str, *, quiet: bool = False) -> None:
    """``label    text`` on stderr."""
    if quiet:
        return
    text = oneline(text)
    if is_terminal(sys.stderr):
        from rich.text import Text

        console(sys.stderr).print(Text.assemble((f"{label:<{LABEL}}", "cyan"), text))
    else:
        write(sys.stderr, f"{label:<{LABEL}}{text}")


def warn(text: str, *, quiet: bool = False) -> None:
    """A warning on stderr."""
    if not quiet:
        write(sys.stderr, f"kvcli: warning: {oneline(text)}", "yellow")


def error(problem: KvcliError) -> None:
    """What happened, and the one command that fixes it."""
    kind = "" if problem.code == "interrupted" else "error: "
    write(sys.stderr, f"kvcli: {kind}{oneline(problem.message)}", "red")
    if problem.hint:
        write(sys.stderr, f"  try: {oneline(problem.hint)}")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout: aligned text, a bold heading on a terminal; nothing is cut or wrapped."""
    body = [[oneline(cell) for cell in row] for row in rows]
    widths = [max(len(c) for c in column) for column in zip(columns, *body, strict=True)]
    for i, row in enumerate([list(columns), *body]):
        text = "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        write(sys.stdout, text, None if i else "bold")


# --- progress -----------------------------------------------------------------------------------------


class Meter:
    """Progress of one job: what has been done, how fast lately, how long still."""

    def __init__(self, unit: str, start: float = 0.0, base: int = 0) -> None:
        self.unit = unit
        self.base = base
        self.recent: deque[tuple[float, int]] = deque([(start, base)], maxlen=12)
        self.done, self.total, self.seconds = 0, 0, 0.0

    def update(self, done: int, total: int, seconds: float) -> None:
        self.done, self.total, self.seconds = done, total, seconds
        self.recent.append((seconds, done))

    @property
    def rate(self) -> float:
        """Units per second over the last few updates."""
        (t0, n0), (t1, n1) = self.recent[0], self.recent[-1]
        return (n1 - n0) / (t1 - t0) if t1 > t0 else 0.0

    @property
    def left(self) -> float | None:
        """Seconds still to go, where that can be told."""
        return (self.total - self.done) / self.rate if self.rate and self.total > self.done else None

    def detail(self) -> str:
        if self.unit == "B":
            parts = [f"{size(self.done)}/{size(self.total)}" if self.total else size(self.done)]
            parts += [f"{size(self.rate)}/s"] if self.rate else []
        else:
            parts = [f"{count(self.done)}/{count(self.total)}"]
            rate = f"{self.rate:,.0f}" if self.rate >= 10 else f"{self.rate:.2g}"
            parts += [f"{rate} {self.unit}/s"] if self.rate else []
        parts += [f"{duration(self.left)} left"] if self.left is not None else []
        return " · ".join(parts)


class Watcher:
    """Draws events on stderr while they come: bars on a terminal, one line at the end elsewhere."""

    def __init__(self, *, quiet: bool = False, device: str = "cpu") -> None:
        self.quiet = quiet
        self.device = device
        self.live = not quiet and is_terminal(sys.stderr)
        self.meters: dict[str, Meter] = {}
        self.last: dict[str, Event] = {}
        self.bars: dict[str, TaskID] = {}
        self.progress: Progress | None = None
        self.began = time.monotonic()
        self.drawn = 0.0
        self.remark = ""
        self.base = 0

    def see(self, event: Event) -> None:
        """Take one event; those that are no progress are none of its business."""
        now = time.monotonic() - self.began
        if isinstance(event, Prefill):
            self._update("prefill", "tok", event, event.done, event.total, event.seconds)
        elif isinstance(event, Download):
            self._update(f"download {event.name}", "B", event, event.done, event.total or 0, now)
        elif isinstance(event, Reused):
            self.base = event.tokens
        elif isinstance(event, Training):
            self._train(event)
        elif isinstance(event, Convert):
            self._update(f"convert {event.name}", "tensor", event, event.done, event.total, now)

    def _train(self, event: Training) -> None:
        if event.answers is not None and not self.quiet:
            note("check", f"step {count(event.step)} · {event.answers:.0%} of held-out questions answered right")
        self.remark = f"loss {event.loss:.3f} · overlap {event.overlap:.2f}"
        start = event.step - event.made
        self.meters.setdefault("train", Meter("step")).recent[0] = (0.0, start)
        self._update("train", "step", event, event.step, event.total, event.seconds)
        if not self.live and not self.quiet and (event.step % 50 == 0 or event.step == event.total):
            note("train", f"{self.meters['train'].detail()} · {self.remark}")

    def _update(self, key: str, unit: str, event: Event, done: int, total: int, seconds: float) -> None:
        if self.quiet:
            return
        meter = self.meters.setdefault(key, Meter(unit, *((0.0, self.base) if unit == "tok" else (seconds,))))
        meter.update(done, total, seconds)
        self.last[key] = event
        if self.live:
            self._draw(key, meter)

    def _draw(self, key: str, meter: Meter) -> None:
        if self.progress is None:
            from rich.progress import BarColumn, Progress, TextColumn

            self.progress = Progress(
                TextColumn("{task.description}", style="cyan"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[percent]}"),
                TextColumn("{task.fields[detail]}"),
                console=console(sys.stderr),
                auto_refresh=False,  # a thread would only redraw what has not changed
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self.progress.start()
        if key not in self.bars:
            label = oneline(key if len(key) <= 40 else key[:18] + "…" + key[-21:])
            self.bars[key] = self.progress.add_task(label, total=meter.total or None, percent="", detail="")
            self.drawn = 0.0
        now = time.monotonic()
        if now - self.drawn < 0.1 and meter.done != meter.total:
            return
        self.drawn = now
        detail = meter.detail()
        if meter.unit == "tok":
            used, total = process_memory.used_and_total(self.device)
            detail += f" · {used / 2**30:.1f}/{total / 2**30:.1f} GiB"
        elif meter.unit == "step":
            detail += f" · {self.remark}"
        self.progress.update(
            self.bars[key],
            completed=meter.done,
            total=meter.total or None,
            percent=f"{100 * meter.done / meter.total:3.0f} %" if meter.total else "",
            detail=detail,
            refresh=True,
        )

    def close(self) -> None:
        """Take the bars away."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def summary(self) -> None:
        """One line for all that was read, fetched or converted."""
        reading = self.meters.get("prefill")
        if reading is not None:
            new = reading.done - reading.base
            rate = new / reading.seconds if reading.seconds else 0.0
            note("prefill", f"{count(new)} tokens in {duration(reading.seconds)} · {rate:,.0f} tok/s")
        files = [m for k, m in self.meters.items() if k.startswith("download ")]
        if files:
            seconds = time.monotonic() - self.began
            total = size(sum(m.done for m in files))
            note("download", f"{plural(len(files), 'file')}, {total} in {duration(seconds)}")
        for key, meter in self.meters.items():
            if key.startswith("convert "):
                note("convert", f"{key.removeprefix('convert ')} · {plural(meter.done, 'tensor')}")


def follow(events: Generator[Event, None, T], *, quiet: bool = False, device: str = "cpu") -> T:
    """Run ``events`` to its end, showing progress on stderr; returns what the generator returns.

    ``device`` is whose memory is shown while reading.
    """
    watcher = Watcher(quiet=quiet, device=device)
    try:
        while True:
            try:
                watcher.see(next(events))
            except StopIteration as end:
                value: T = end.value
                break
    finally:
        watcher.close()
        events.close()
    watcher.summary()
    return value
