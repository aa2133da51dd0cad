"""Progress bars on stderr, drawn from events."""

import sys
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Self, TypeVar

from kvcli.events import CacheHit, Convert, Download, Event, Mapped, Prefill, Training, drain
from kvcli.utils import process_memory
from kvcli.utils.sizes import format_bytes

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

from kvcli.cli.views.activity import MARGIN, row, size
from kvcli.cli.views.terminal import console, count, duration, is_terminal, note, oneline, plural

T = TypeVar("T")

NOTE_S = 30.0
"""Seconds between two lines about many documents if stderr is not a terminal."""


class Meter:
    """Progress of one job: amount done, recent rate, time left."""

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
        """Seconds left; ``None`` if unknown."""
        return (self.total - self.done) / self.rate if self.rate and self.total > self.done else None

    def detail(self) -> str:
        if self.unit == "B":
            parts = [f"{format_bytes(self.done)}/{format_bytes(self.total)}" if self.total else format_bytes(self.done)]
            parts += [f"{format_bytes(self.rate)}/s"] if self.rate else []
        else:
            parts = [f"{count(self.done)}/{count(self.total)}"]
            rate = f"{self.rate:,.0f}" if self.rate >= 10 else f"{self.rate:.2g}"
            parts += [f"{rate} {self.unit}/s"] if self.rate else []
        parts += [f"{duration(self.left)} left"] if self.left is not None else []
        return " · ".join(parts)


class ProgressDisplay:
    """Shows events on stderr: bars on a terminal, else one line at the end."""

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
        self.said = 0.0

    def see(self, event: Event) -> None:
        """Show one event; events without progress are ignored."""
        now = time.monotonic() - self.began
        if isinstance(event, Prefill):
            self._update("prefill", "tok", event, event.done, event.total, event.seconds)
        elif isinstance(event, Download):
            self._update(f"download {event.name}", "B", event, event.done, event.total or 0, now)
        elif isinstance(event, CacheHit):
            self.base = event.tokens
        elif isinstance(event, Training):
            self._train(event)
        elif isinstance(event, Mapped):
            self._map(event)
        elif isinstance(event, Convert):
            self._update(f"convert {event.name}", "tensor", event, event.done, event.total, now)

    def _train(self, event: Training) -> None:
        if event.answers is not None and not self.quiet:
            note("check", f"step {count(event.step)} · {event.answers:.0%} of held-out questions answered correctly")
        self.remark = f"loss {event.loss:.3f} · overlap {event.overlap:.2f}"
        start = event.step - event.run_steps
        self.meters.setdefault("train", Meter("step")).recent[0] = (0.0, start)
        self._update("train", "step", event, event.step, event.total, event.seconds)
        if not self.live and not self.quiet and (event.step % 50 == 0 or event.step == event.total):
            note("train", f"{self.meters['train'].detail()} · {self.remark}")

    def _map(self, event: Mapped) -> None:
        rate = event.tokens / event.seconds if event.seconds else 0.0
        parts = [f"{count(event.done)}/{count(event.total)} documents"]
        parts += [f"{count(event.tokens)} tokens"] if event.tokens else []
        parts += [f"{rate:,.0f} tok/s"] if rate else []
        parts += [f"{count(event.failed)} failed"] if event.failed else []
        left = event.seconds / event.share - event.seconds if event.share else None
        if event.done < event.total and left is not None:
            parts.append(f"{duration(left)} left")
        self.remark = " · ".join(parts)
        self._update("map", "document", event, event.done, event.total, event.seconds)
        now = time.monotonic() - self.began
        if not self.live and not self.quiet and (now - self.said > NOTE_S or event.done == event.total):
            self.said = now
            note("map", self.remark)

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
            from rich.console import RenderableType
            from rich.constrain import Constrain
            from rich.progress import BarColumn, Progress, TextColumn
            from rich.text import Text

            class Bars(Progress):
                """The bars below what the row has above it."""

                def get_renderables(self) -> Iterator[RenderableType]:
                    if lines := row.above():
                        yield Text.from_ansi("\n".join(lines), no_wrap=True)
                    yield Constrain(self.make_tasks_table(self.tasks), size()[0] - MARGIN)

            self.progress = Bars(
                TextColumn("{task.description}", style="cyan"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[percent]}"),
                TextColumn("{task.fields[detail]}"),
                console=console(sys.stderr),
                auto_refresh=False,  # a thread would redraw the same bar
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
        elif meter.unit == "document":
            detail = self.remark
        self.progress.update(
            self.bars[key],
            completed=meter.done,
            total=meter.total or None,
            percent=f"{100 * meter.done / meter.total:3.0f} %" if meter.total else "",
            detail=detail,
            refresh=True,
        )

    def close(self) -> None:
        """Remove the bars; the next event draws them again."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
            self.bars.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: type[BaseException] | None, _error: object, _trace: object) -> None:
        self.close()
        if failed is None:
            self.summary()

    def summary(self) -> None:
        """Print one line for prefill, downloads and conversions."""
        reading = self.meters.get("prefill")
        if reading is not None:
            new = reading.done - reading.base
            rate = new / reading.seconds if reading.seconds else 0.0
            note("prefill", f"{count(new)} tokens in {duration(reading.seconds)} · {rate:,.0f} tok/s")
        files = [m for k, m in self.meters.items() if k.startswith("download ")]
        if files:
            seconds = time.monotonic() - self.began
            total = format_bytes(sum(m.done for m in files))
            note("download", f"{plural(len(files), 'file')}, {total} in {duration(seconds)}")
        for key, meter in self.meters.items():
            if key.startswith("convert "):
                note("convert", f"{key.removeprefix('convert ')} · {plural(meter.done, 'tensor')}")


def run_with_progress(events: Generator[Event, None, T], *, quiet: bool = False, device: str = "cpu") -> T:
    """Run ``events`` to its end with progress on stderr; returns the generator's return value.

    The bar shows the memory of ``device``.
    """
    with closing(events), ProgressDisplay(quiet=quiet, device=device) as display:
        return drain(events, display.see)
