"""The JSON of an answer (``schema.json``), and the same numbers as lines on the terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvcli.cli.resident import kept
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
    """The numbers of one answer.

    Attributes:
        run, context: what was read, and with which model.
        document: the text that the answer is about.
        cited, quotes, reread: of the answer.
        cite_s: seconds that citing took.
        peak_bytes: most memory of the process so far.
    """

    run: OpenRun
    context: DocumentContext
    document: Document | None
    cited: Citations
    quotes: Quotes | None
    reread: Reread | None
    cite_s: float
    peak_bytes: int
    kv: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kv", kv_record(self.context))

    def answer(self, question: Question, answer: Answer) -> dict[str, Any]:
        """The JSON object of one answer."""
        context, loaded = self.context, self.run.loaded
        body = answer_record(
            question,
            answer,
            self.document,
            context=context,
            cited=self.cited,
            quotes=self.quotes,
            kv={**self.kv, "cache": context.cache},
            reread=self.reread,
            sampling=self.run.options.sampling_record,
            warnings=self.run.warnings,
        )
        return {
            **body,
            "timing": {
                "extract_s": round(self.run.inputs.extract_s, 4),
                "load_s": round(loaded.load_s, 4),
                "look_s": round(self.reread.seconds if self.reread else 0.0, 4),
                "cite_s": round(self.cite_s, 4),
                "reuse_s": round(context.reuse_s, 4),
                "prefill_s": round(context.prefill_s, 4),
                "ttft_s": round(answer.first_token_s, 4),
                "decode_tps": round(answer.decode_tps, 2),
            },
            "memory": {
                "peak_bytes": self.peak_bytes,
                "planned_bytes": context.plan.total,
                "baseline_bytes": loaded.baseline_bytes,
                "plan_error_percent": self.plan_error,
            },
            "model": loaded.facts,
        }

    @property
    def plan_error(self) -> float | None:
        """Measured peak minus plan, in per cent of the plan; ``None`` if nothing was planned."""
        planned = self.context.plan.total
        if not (planned and self.peak_bytes):
            return None
        return round(100 * (self.peak_bytes - self.run.loaded.baseline_bytes - planned) / planned, 2)

    def statistics(self, answer: Answer, *, alone: bool) -> list[tuple[str, str]]:
        """The lines of ``--stats``; ``alone``: the command has one answer, and what no step takes is its start."""
        context, kv, loaded, size = self.context, self.kv, self.run.loaded, format_bytes
        rate = f" ({(context.tokens - context.reused) / context.prefill_s:,.0f} tok/s)" if context.prefill_s else ""
        decode = [f"decode {answer.decode_tps:.1f} tok/s"] if answer.decode_tps else []
        times = [
            *(self._start(answer) if alone else []),
            f"extract {self.run.inputs.extract_s:.2f} s",
            f"load {loaded.load_s:.2f} s",
            *([f"reuse {context.reuse_s:.2f} s"] if context.reused else []),
            "no prefill" if context.unread else f"prefill {context.prefill_s:.2f} s{rate}",
            f"{'first token' if decode else 'answer'} {answer.first_token_s:.2f} s",
            *decode,
        ]
        tokens = [
            f"prompt {context.tokens + answer.prompt_tokens:,}",
            f"answer {answer.completion_tokens:,}"
            + (f" in {answer.steps + 1:,} steps" if 0 < answer.steps < answer.completion_tokens - 1 else ""),
            answer.finish_reason,
        ]
        off = "" if self.plan_error is None else f", measured {self.plan_error:+.1f} %"
        memory = [
            f"peak {size(self.peak_bytes)}, {size(loaded.baseline_bytes)} of it before loading the model",
            f"planned for model and KV cache {size(context.plan.total)}{off}",
        ]
        if not context.unread:
            host = f", and {size(kv['host_bytes'])} in RAM" if kv["host_bytes"] else ""
            memory.append(f"KV cache {size(kv['bytes'])} at {kv['bits']:.4g} bits{host}")
        return [(k, " · ".join(v)) for k, v in (("time", times), ("tokens", tokens), ("memory", memory))]

    def _start(self, answer: Answer) -> list[str]:
        """The time of this process outside the timed steps; nothing in an engine, which has started before."""
        if kept.active:
            return []
        from kvcli.utils.process_memory import age

        decode = answer.completion_tokens / answer.decode_tps if answer.decode_tps else 0.0
        again = self.reread.seconds if self.reread else 0.0
        steps = self.run.inputs.extract_s + self.run.loaded.load_s + self.context.reuse_s + self.context.prefill_s
        rest = age() - steps - again - answer.first_token_s - decode - self.cite_s
        return [f"start {max(0.0, rest):.2f} s"]


def reading(context: DocumentContext) -> str:
    """Tokens read, KV pairs kept per head, and their bits if they are quantized."""
    kv = kv_record(context)
    bits = "" if kv["bits"] in (16, 32) else f" at {kv['bits']:.4g} bits"
    return (
        f"{terminal.count(context.tokens)} tokens · kept {terminal.count(kv['kept'])} KV pairs per head "
        f"({terminal.share(kv['kept'], context.tokens)}){bits} · dropped 0 tokens"
    )
