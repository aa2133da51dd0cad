"""What a run would take, under one recipe or several: the numbers behind ``kvcli plan``. Imports no torch."""

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
"""The policy whose largest budget is told where the recipe keeps everything."""

PROGRAM = 600 * 2**20
"""Main memory that Python, torch and the tokenizer take beside model and cache."""


@dataclass(frozen=True)
class Target:
    """Where it would run: a name, and the bytes there that model and cache may have together."""

    name: str
    usable: int
    here: bool = True

    @classmethod
    def gpu(cls, text: str) -> "Target":
        """A GPU of :mod:`kvcli.planning.gpus`. Raises ``UsageError``."""
        found = gpus.find(text)
        return cls(f"{found.name} ({format_bytes(found.total)})", found.usable, here=False)

    @classmethod
    def this(cls, device: str) -> "Target":
        """This machine, with what is free now."""
        if device == "cpu":
            return cls("this machine", max(0, available(device) - PROGRAM))
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(int(device.partition(":")[2]))
        return cls(device, max(0, int(pynvml.nvmlDeviceGetMemoryInfo(handle).free) - gpus.RESERVE))


@dataclass(frozen=True)
class Workload:
    """What is to be read and asked: tokens, and bytes of the text with what is known of it.

    ``passages`` are those of a second look; ``None`` for as many as ``ask`` takes unasked.
    """

    tokens: int
    text: int
    chunk: int
    question: int
    answer: int
    passages: int | None = None


@dataclass(frozen=True)
class Forecast:
    """One recipe on one place.

    Attributes:
        recipe: what it is about.
        kept: units per KV head of the layer that keeps most.
        plan: bytes at the peak; ``None`` where the model's positions do not suffice.
        longest: tokens that the answer may have.
        disk: bytes of the saved reading.
        rates: measured on this machine; empty for another one's card.
        fits: the plan is no larger than what is usable.
        budget: the largest one that fits and leaves an answer as long as this one, ``None`` where none does.
        searched: the policy of that budget: the recipe's own, or another where it keeps everything.
        problem: why there is no plan.
        numbers: keys and values of all units that are kept.
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
        """Effective bits of a kept number once it is read, scales and indices included."""
        return None if self.plan is None or not self.numbers else round(8 * self.plan.held / self.numbers, 4)

    def read_s(self, tokens: int) -> float | None:
        """Seconds of prefill at the measured rate."""
        return tokens / self.rates.prefill if self.rates.prefill else None

    def to_json(self, tokens: int) -> dict[str, Any]:
        plan, seconds = self.plan, self.read_s(tokens)
        parts = ("weights", "fill", "workspace", "tail", "activations", "runtime", "text", "host", "total")
        return {
            "recipe": str(self.recipe),
            "budget": self.recipe.policy.budget,
            "kept": self.kept,
            "memory": None if plan is None else {f"{name}_bytes": getattr(plan, name) for name in parts},
            "held_bytes": None if plan is None else plan.held,
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


def _beyond_host(plan: memory.Plan, place: Target) -> bool:
    """Whether this machine's own memory is too small beside its card; of another machine only the card is known."""
    return place.here and plan.host > host_available()


def forecast(spec: ModelSpec, recipe: Recipe, work: Workload, place: Target) -> Forecast:
    """Everything about one recipe. Arithmetic is :mod:`kvcli.planning.memory`'s, the same that ``kvcli ask`` runs
    with."""
    from kvcli.recipe import parse

    run = {"tokens": work.tokens, "chunk": work.chunk, "question": work.question}
    made, longest, problem = None, 0, None
    try:
        made, longest = memory.plan_run(spec, recipe, **run, answer=work.answer, passages=work.passages)
    except TooLongError as error:
        problem = error
    bounded = recipe if recipe.policy.budget is not None else parse(FALLBACK)
    budget = None
    if work.tokens:
        wanted = longest or work.answer
        budget = memory.largest_budget(spec, bounded, place.usable, **run, answer=wanted, passages=work.passages)
    units = [kept_units(spec, recipe, work.tokens, i) for i in range(spec.layers)]
    return Forecast(
        recipe=recipe,
        kept=max(units, default=0),
        plan=made,
        longest=longest,
        disk=disk_bytes(spec, recipe, tokens=work.tokens, chunk=work.chunk, text=work.text),
        rates=speed_history.measured(spec, recipe) if place.here else speed_history.Rates(),
        fits=made is not None and made.total <= place.usable and not _beyond_host(made, place),
        budget=budget,
        searched=bounded.policy.name,
        problem=problem,
        numbers=2 * spec.kv_heads * spec.head_dim * sum(units),
    )
