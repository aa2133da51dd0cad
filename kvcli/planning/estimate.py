"""Estimates of a run's resources under one or several recipes, for ``kvcli plan``. Imports no torch."""

from dataclasses import dataclass
from typing import Any

from kvcli.errors import TooLongError
from kvcli.planning import gpus, memory, speed_history
from kvcli.planning.disk import disk_bytes
from kvcli.planning.positions import kept_units
from kvcli.recipe import Recipe
from kvcli.types import ModelSpec
from kvcli.utils.process_memory import available, host_available
from kvcli.utils.sizes import format_bytes

FALLBACK = "keydiff"
"""The policy whose largest budget is reported if the recipe keeps everything."""

PROGRAM = 600 * 2**20
"""Main memory of Python, torch and the tokenizer, beside model and cache."""


@dataclass(frozen=True)
class Target:
    """A machine: its name, and the bytes available to model and cache together."""

    name: str
    usable: int
    here: bool = True

    @classmethod
    def gpu(cls, text: str) -> "Target":
        """Return a GPU of :mod:`kvcli.planning.gpus`. Raises ``UsageError``."""
        gpu = gpus.find(text)
        return cls(f"{gpu.name} ({format_bytes(gpu.total)})", gpu.usable, here=False)

    @classmethod
    def this(cls, device: str) -> "Target":
        """Return this machine with its free memory."""
        if device == "cpu":
            return cls("this machine", max(0, available(device) - PROGRAM))
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(int(device.partition(":")[2]))
        return cls(device, max(0, int(pynvml.nvmlDeviceGetMemoryInfo(handle).free) - gpus.RESERVE))


@dataclass(frozen=True)
class Workload:
    """The lengths of document, question and answer in tokens, and the bytes of the text with its metadata.

    ``passages``: number of passages to re-read; ``None`` for the default of ``ask``.
    """

    tokens: int
    text: int
    chunk: int
    question: int
    answer: int
    passages: int | None = None


@dataclass(frozen=True)
class Forecast:
    """The estimate of one recipe on one machine.

    Attributes:
        recipe: the recipe.
        kept: units per KV head of the layer that keeps most.
        plan: bytes at the peak; ``None`` if the model has too few positions.
        longest: maximum answer length in tokens.
        disk: bytes of the saved prefill.
        rates: measured on this machine; empty for another GPU.
        fits: whether the plan fits the available memory.
        budget: the largest budget that fits with an answer as long as this one; ``None`` if none does.
        searched: the policy of that budget: the recipe's, or another if it keeps everything.
        problem: the reason if there is no plan.
        numbers: keys and values of all kept units.
    """

    recipe: Recipe
    kept: int
    plan: memory.Plan | None
    longest: int
    disk: int
    rates: speed_history.Rates
    fits: bool
    budget: int | None
    searched: str
    problem: TooLongError | None = None
    numbers: int = 0

    @property
    def bits(self) -> float | None:
        """Effective bits of a stored number, scales and indices included."""
        return None if self.plan is None or not self.numbers else round(8 * self.plan.context / self.numbers, 4)

    def read_s(self, tokens: int) -> float | None:
        """Return the seconds of prefill at the measured rate."""
        return tokens / self.rates.prefill if self.rates.prefill else None

    def to_json(self, tokens: int) -> dict[str, Any]:
        plan, seconds = self.plan, self.read_s(tokens)
        named = {"prefill": "fill", "answer": "tail"}  # the names of these parts in the JSON
        parts = ("weights", "prefill", "workspace", "answer", "activations", "runtime", "text", "host", "total")
        return {
            "recipe": str(self.recipe),
            "budget": self.recipe.policy.budget,
            "kept": self.kept,
            "memory": None if plan is None else {f"{named.get(p, p)}_bytes": getattr(plan, p) for p in parts},
            "held_bytes": None if plan is None else plan.context,
            "bits": self.bits,
            "disk_bytes": self.disk,
            "answer_tokens": self.longest,
            "prefill_tps": self.rates.prefill,
            "decode_tps": self.rates.decode,
            "measured_runs": self.rates.prefill_runs,
            "prefill_s": None if seconds is None else round(seconds, 1),
            "fits": self.fits,
            "largest_budget": self.budget,
            "largest_budget_of": self.searched,
            "problem": None if self.problem is None else self.problem.message,
        }


def _exceeds_host(plan: memory.Plan, target: Target) -> bool:
    """Whether host memory is too small; unknown for other machines."""
    return target.here and plan.host > host_available()


def forecast(spec: ModelSpec, recipe: Recipe, workload: Workload, target: Target) -> Forecast:
    """Estimate one recipe, with the same arithmetic as ``kvcli ask`` (:mod:`kvcli.planning.memory`)."""
    from kvcli.recipe import parse

    run = {"tokens": workload.tokens, "chunk": workload.chunk, "question": workload.question}
    planned, longest, problem = None, 0, None
    try:
        planned, longest = memory.plan_run(spec, recipe, **run, answer=workload.answer, passages=workload.passages)
    except TooLongError as error:
        problem = error
    bounded = recipe if recipe.policy.budget is not None else parse(FALLBACK)
    budget = None
    if workload.tokens:
        longest_answer = longest or workload.answer
        budget = largest_budget(spec, bounded, target.usable, **run, answer=longest_answer, passages=workload.passages)
    units = [kept_units(spec, recipe, workload.tokens, i) for i in range(spec.layers)]
    return Forecast(
        recipe=recipe,
        kept=max(units, default=0),
        plan=planned,
        longest=longest,
        disk=disk_bytes(spec, recipe, tokens=workload.tokens, chunk=workload.chunk, text=workload.text),
        rates=speed_history.measured(spec, recipe) if target.here else speed_history.Rates(),
        fits=planned is not None and planned.total <= target.usable and not _exceeds_host(planned, target),
        budget=budget,
        searched=bounded.policy.name,
        problem=problem,
        numbers=sum(2 * s.kv_heads * s.head_dim * n for s, n in ((spec.of_layer(i), n) for i, n in enumerate(units))),
    )


def largest_budget(
    spec: ModelSpec,
    recipe: Recipe,
    usable: int,
    *,
    tokens: int,
    chunk: int,
    question: int,
    answer: int,
    passages: int | None = None,
) -> int | None:
    """Find the largest budget that fits ``usable`` bytes and the model's positions; ``None`` if none does.

    At most ``tokens``, which evicts nothing. Arguments as for :func:`plan_run`; the whole ``answer`` must fit.
    """

    def fits(budget: int) -> bool:
        try:
            planned, longest = memory.plan_run(
                spec,
                recipe.with_budget(budget),
                tokens=tokens,
                chunk=chunk,
                question=question,
                answer=answer,
                passages=passages,
            )
        except TooLongError:
            return False
        return planned.total <= usable and longest == answer

    least = max(1, recipe.policy.sinks + (recipe.policy.stabilizers or 0))
    if tokens < least or not fits(least):
        return None
    if fits(tokens):
        return tokens
    low, high = least, tokens  # bisection: a plan grows with its budget
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
