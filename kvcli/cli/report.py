"""The JSON of an answer (``schema.json``), and the same numbers as lines on the terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvcli.cli.views import terminal
from kvcli.corpus.record import answer_record, kv_record
from kvcli.corpus.task import Question
from kvcli.documents import Document
from kvcli.events import Answer, Quotes, Reread
from kvcli.utils.sizes import format_bytes

if TYPE_CHECKING:
    from kvcli.cli.setup import OpenRun
    from kvcli.pipeline import Citations, DocumentContext


@dataclass(frozen=True)
class Report:
    """The numbers of one answer. Times are in seconds, sizes in bytes.

    ``cache`` is ``hit``, ``miss``, ``resumed`` or ``off``; ``reused`` tokens came from a saved prefill.
    ``planned_bytes`` is for the model and the KV cache; ``baseline_bytes`` is the process before both.
    """

    document: Document | None = None
    tokens: int = 0
    kv: dict[str, Any] = field(default_factory=lambda: kv_record(None))
    cache: str = "off"
    reused: int = 0
    extract_s: float = 0.0
    load_s: float = 0.0
    reuse_s: float = 0.0
    prefill_s: float = 0.0
    planned_bytes: int = 0
    baseline_bytes: int = 0
    peak_bytes: int = 0
    reread: tuple[tuple[int, int], ...] = ()
    reread_s: float = 0.0
    from_quotes: bool = False
    cited: Any = None
    quotes: Quotes | None = None
    cite_s: float = 0.0
    model: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        run: OpenRun,
        context: DocumentContext,
        *,
        document: Document | None = None,
        reread: Reread | None = None,
        cited: Citations | None = None,
        quotes: Quotes | None = None,
        cite_s: float = 0.0,
        sampling: dict[str, Any] | None = None,
        peak_bytes: int = 0,
    ) -> Report:
        """The report after an answer, or after prefill alone."""
        from kvcli.pipeline import Citations

        return cls(
            document=document or run.document,
            tokens=context.tokens,
            kv=kv_record(context),
            cache=context.cache,
            reused=context.reused,
            extract_s=run.inputs.extract_s,
            load_s=run.loaded.load_s,
            reuse_s=context.reuse_s,
            prefill_s=context.prefill_s,
            planned_bytes=context.plan.total,
            baseline_bytes=run.loaded.baseline_bytes,
            peak_bytes=peak_bytes,
            reread=() if reread is None else reread.passages,
            reread_s=0.0 if reread is None else reread.seconds,
            from_quotes=reread is not None and reread.alone,
            cited=cited or Citations(),
            quotes=quotes,
            cite_s=cite_s,
            model=run.loaded.facts,
            sampling=sampling or {},
            warnings=tuple(run.warnings),
        )

    def answer(self, question: Question, answer: Answer) -> dict[str, Any]:
        """The JSON object of one answer."""
        body = answer_record(
            question,
            answer,
            self.document,
            tokens=self.tokens,
            cited=self.cited,
            quotes=self.quotes,
            kv={**self.kv, "cache": self.cache},
            reread=self.reread,
            alone=self.from_quotes,
            sampling=self.sampling,
            warnings=self.warnings,
        )
        return {
            **body,
            "timing": {
                "extract_s": round(self.extract_s, 4),
                "load_s": round(self.load_s, 4),
                "look_s": round(self.reread_s, 4),
                "cite_s": round(self.cite_s, 4),
                "reuse_s": round(self.reuse_s, 4),
                "prefill_s": round(self.prefill_s, 4),
                "ttft_s": round(answer.first_token_s, 4),
                "decode_tps": round(answer.decode_tps, 2),
            },
            "memory": {
                "peak_bytes": self.peak_bytes,
                "planned_bytes": self.planned_bytes,
                "baseline_bytes": self.baseline_bytes,
                "plan_error_percent": self.plan_error,
            },
            "model": self.model,
        }

    @property
    def plan_error(self) -> float | None:
        """Measured peak minus plan, in per cent of the plan; ``None`` if nothing was planned."""
        if not (self.planned_bytes and self.peak_bytes):
            return None
        return round(100 * (self.peak_bytes - self.baseline_bytes - self.planned_bytes) / self.planned_bytes, 2)

    def _off(self) -> str:
        return "" if self.plan_error is None else f", measured {self.plan_error:+.1f} %"

    def reading(self) -> str:
        """Tokens read, KV pairs kept per head, and their bits if they are quantized."""
        bits, kept = self.kv["bits"], self.kv["kept"]
        bits = "" if bits in (16, 32) else f" at {bits:.4g} bits"
        return (
            f"{terminal.count(self.tokens)} tokens · kept {terminal.count(kept)} KV pairs per head "
            f"({terminal.share(kept, self.tokens)}){bits} · dropped 0 tokens"
        )

    def statistics(self, answer: Answer) -> list[tuple[str, str]]:
        """The lines of ``--stats``."""
        rate = f" ({(self.tokens - self.reused) / self.prefill_s:,.0f} tok/s)" if self.prefill_s else ""
        size = format_bytes
        times = [
            f"extract {self.extract_s:.2f} s",
            f"load {self.load_s:.2f} s",
            *([f"reuse {self.reuse_s:.2f} s"] if self.reused else []),
            f"prefill {self.prefill_s:.2f} s{rate}",
            f"first token {answer.first_token_s:.2f} s",
            f"decode {answer.decode_tps:.1f} tok/s",
        ]
        tokens = [
            f"prompt {self.tokens + answer.prompt_tokens:,}",
            f"answer {answer.completion_tokens:,}"
            + (f" in {answer.steps + 1:,} steps" if 0 < answer.steps < answer.completion_tokens - 1 else ""),
            answer.finish_reason,
        ]
        memory = [
            f"peak {size(self.peak_bytes)}, {size(self.baseline_bytes)} of it before loading the model",
            f"planned for model and KV cache {size(self.planned_bytes)}{self._off()}",
            f"KV cache {size(self.kv['bytes'])} at {self.kv['bits']:.4g} bits"
            + (f", and {size(self.kv['host_bytes'])} in RAM" if self.kv["host_bytes"] else ""),
        ]
        return [(k, " · ".join(v)) for k, v in (("time", times), ("tokens", tokens), ("memory", memory))]
