"""Benchmark results relative to the roofline of the same run: rows for a table and for JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from kvcli.bench.check import Check
from kvcli.bench.roofline import Roofline
from kvcli.bench.run import Speed

COLUMNS = ("recipe", "tokens", "prefill", "of matmul", "first token", "decode", "of memory", "peak", "planned", "kept")


@dataclass(frozen=True)
class BenchRow:
    """One recipe at one length; ``speed`` is ``None`` if it was skipped, for ``reason``.

    ``check`` is ``None`` for transformers' own attention, which is the reference.
    """

    recipe: str
    tokens: int
    check: Check | None
    speed: Speed | None
    reason: str | None = None

    def cells(self, top: Roofline) -> list[str]:
        """Format :data:`COLUMNS`; ``reason`` is shown below the table."""
        speed = self.speed
        if speed is None:
            return [self.recipe, f"{self.tokens:,}", "skipped", *[""] * (len(COLUMNS) - 3)]
        return [
            self.recipe,
            f"{self.tokens:,}",
            f"{speed.prefill_tps:,.0f} tok/s",
            f"{share_of_matmul(speed, top):.0%}",
            f"{1000 * speed.ttft_s:,.0f} ms",
            f"{speed.decode_tps:,.1f} tok/s",
            f"{share_of_memory(speed, top):.0%}",
            _mib(speed.peak),
            _mib(speed.planned),
            f"{speed.kept:,}" + ("" if speed.bits in (16, 32) else f" at {speed.bits:.4g} bits"),
        ]

    def to_json(self, top: Roofline, full: Speed | None, llamacpp: Speed | None = None) -> dict[str, Any]:
        """Return JSON. ``full`` and ``llamacpp``: the other programs at the same length, if measured."""
        speed = self.speed
        head = {
            "recipe": self.recipe,
            "tokens": self.tokens,
            "check": None if self.check is None else asdict(self.check),
            "skipped": self.reason,
        }
        if speed is None:
            return head
        return head | {
            "prefill_s": round(speed.prefill_s, 4),
            "prefill_tps": round(speed.prefill_tps, 1),
            "matmul_share": round(share_of_matmul(speed, top), 4),
            "ttft_s": round(speed.ttft_s, 4),
            "decode_tps": round(speed.decode_tps, 2),
            "bandwidth_share": round(share_of_memory(speed, top), 4),
            "decode_bytes": speed.decode_bytes,
            "peak_bytes": speed.peak,
            "planned_bytes": speed.planned,
            "kept": speed.kept,
            "kv_bytes": speed.kv_bytes,
            "bits": round(speed.bits, 3),
            "times_full": self.times(full),
            "times_llamacpp": self.times(llamacpp),
        }

    def times(self, against: Speed | None) -> dict[str, float] | None:
        """Return the speedup over ``against``; ``None`` if either was not measured, or both are the same."""
        if self.speed is None or against is None or against is self.speed:
            return None
        return {
            "prefill": round(against.prefill_s / self.speed.prefill_s, 2),
            "decode": round(against.decode_s / self.speed.decode_s, 2),
        }


def share_of_matmul(speed: Speed, top: Roofline) -> float:
    """Return the share of the prefill time that the arithmetic alone needs."""
    return speed.flop / top.matmul / speed.prefill_s


def share_of_memory(speed: Speed, top: Roofline) -> float:
    """Return the share of a token's time that reading its bytes alone needs."""
    return speed.decode_bytes / top.bandwidth / speed.decode_s


def _mib(count: int | None) -> str:
    return "?" if count is None else f"{count / 2**20:,.0f} MiB"
