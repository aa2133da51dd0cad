"""A plan as lines, as a table of recipes, as JSON, and as an exit code."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from kvcli.cli.views import terminal
from kvcli.errors import ResourceError
from kvcli.planning.estimate import Forecast, Target, Workload
from kvcli.types import ModelSpec
from kvcli.utils.sizes import format_bytes

if TYPE_CHECKING:
    from kvcli.documents import Document

LABEL = 12
"""Width of the first column."""

NO_PREFILL = "answered without this prefill if a sentence of the text seems to answer"


@dataclass(frozen=True)
class PlanReport:
    """A plan; the first forecast was asked for, the others are compared; ``skipped``: questions need no prefill."""

    spec: ModelSpec
    work: Workload
    target: Target
    found: Sequence[Forecast]
    document: "Document | None"
    weights: str
    kv_bits: int
    skipped: bool


def show(report: PlanReport) -> None:
    """Print the plan, and a table if there are recipes to compare."""
    spec, work, target, first = report.spec, report.work, report.target, report.found[0]
    tokens = f"{work.tokens:,} tokens"
    title = terminal.title(report.document) if report.document else None
    stored = spec.dtype if report.weights == "bf16" else report.weights
    rows = [
        ("document", f"{title} · {tokens}" if title else f"a document of {tokens}"),
        ("model", f"{spec.name} {stored} · {spec.device if target.here else target.name}"),
        ("recipe", f"{first.recipe} · keeping {first.kept:,} of {work.tokens:,} tokens"),
    ]
    if first.plan is not None:
        plan = first.plan
        kept = (
            f", then {format_bytes(plan.context)} at {first.bits:.2f} bits"
            if first.recipe.storage.name != "dense"
            else ""
        )
        rows += [
            ("weights", format_bytes(plan.weights)),
            ("KV cache", f"{format_bytes(plan.prefill)} during prefill{kept}"),
            ("workspace", f"{format_bytes(plan.workspace)} for chunks of {work.chunk:,} tokens"),
            (
                "answer",
                f"{format_bytes(plan.answer)} for a question of {work.question:,}"
                f" and an answer of {first.longest:,} tokens",
            ),
            ("activations", format_bytes(plan.activations)),
            *([("allocator", format_bytes(plan.runtime))] if plan.runtime else []),
            *([("token ids", format_bytes(plan.text))] if plan.text else []),
            *([("RAM", f"{format_bytes(plan.host)} of the KV cache")] if plan.host else []),
            (
                "memory",
                f"{format_bytes(plan.total)} at the peak; {target.name} has {format_bytes(target.usable)}",
            ),
        ]
    rows += [("disk", f"at most {format_bytes(first.disk)} for the saved prefill"), ("time", _time(first, report))]
    if report.skipped:
        rows.append(("questions", NO_PREFILL))
    rows.append(("fits", _verdict(first, work)))
    terminal.facts(rows, LABEL)
    if len(report.found) > 1:
        print()
        _compare(report)


def _time(found: Forecast, report: PlanReport) -> str:
    if not report.target.here:
        return "unknown: only runs on this machine are measured"
    rates, seconds = found.rates, found.read_s(report.work.tokens)
    parts = []
    if seconds is not None:
        runs = terminal.plural(rates.prefill_runs, "run")
        parts.append(f"{terminal.duration(seconds)} of prefill at {rates.prefill:,.0f} tok/s (median of {runs})")
    if rates.decode is not None:
        parts.append(f"answers at {rates.decode:,.1f} tok/s")
    name = found.recipe.policy.name
    return " · ".join(parts) or f"unknown: no earlier run with this model and {name}"


def _verdict(found: Forecast, work: Workload) -> str:
    problem = f": {found.problem.message}" if found.problem else ""
    return f"{'yes' if found.fits else 'no'}{problem} · {_largest(found, work)}"


def _largest(found: Forecast, work: Workload) -> str:
    other = "" if found.searched == found.recipe.policy.name else f" with {found.searched}"
    if found.budget is None:
        return f"no budget fits{other}"
    if found.budget >= work.tokens:
        return f"even with a budget of the whole document ({work.tokens:,} tokens){other}"
    return f"largest budget{other}: {found.budget:,}"


def _compare(report: PlanReport) -> None:
    columns = ("recipe", "kept", "memory", "disk", "prefill", "fits", "largest budget")
    rows = []
    for each in report.found:
        seconds = each.read_s(report.work.tokens)
        rows.append(
            (
                terminal.short_recipe(each.recipe),
                f"{each.kept:,}",
                format_bytes(each.plan.total) if each.plan else "too long",
                format_bytes(each.disk),
                "?" if seconds is None else terminal.duration(seconds),
                "yes" if each.fits else "no",
                "" if each.recipe.policy.budget is None else "none" if each.budget is None else f"{each.budget:,}",
            )
        )
    shown = len(columns) - (len({row[-1] for row in rows} - {""}) < 2)  # one largest budget stands above the table
    terminal.table(columns[:shown], [row[:shown] for row in rows], optional=("largest budget", "disk"))


def to_json(report: PlanReport) -> None:
    """Print the plan as JSON."""
    spec, work, document = report.spec, report.work, report.document
    first, *others = [each.to_json(work.tokens) for each in report.found]
    terminal.print_json(
        plan={
            "document": {"files": list(document.files) if document else [], "tokens": work.tokens},
            "model": {"name": spec.name, "fingerprint": spec.fingerprint, "dtype": spec.dtype, "device": spec.device},
            "weights": report.weights,
            "kv_bits": report.kv_bits,
            "chunk": work.chunk,
            "question_tokens": work.question,
            "questions_need_prefill": not report.skipped,
            "place": {"name": report.target.name, "usable_bytes": report.target.usable},
            **first,
            "what_if": others,
            "notes": list(document.warnings) if document else [],
        }
    )


def exit_if_too_big(report: PlanReport) -> None:
    """Print an error if the plan does not fit.

    Raises:
        typer.Exit: 5 if the memory is too small, 6 if the context length is.
    """
    first, target = report.found[0], report.target
    if first.fits:
        return
    if first.problem is not None:
        terminal.error(first.problem)
        raise typer.Exit(first.problem.exit)
    assert first.plan is not None
    plan = first.plan
    hint = "use a smaller model (-m), or --weights nf4"
    if first.budget is not None:
        swap = "" if first.searched == first.recipe.policy.name else f"--policy {first.searched} "
        hint = f"{swap}--budget {first.budget}"
    elif plan.weights <= target.usable:
        hint = "use a smaller --chunk-size, or a shorter answer (-n)"
    terminal.error(
        ResourceError(
            f"this needs {format_bytes(plan.total)}"
            f" (weights {format_bytes(plan.weights)}, KV cache {format_bytes(plan.prefill)})"
            f" and {target.name} has {format_bytes(target.usable)}",
            hint,
        )
    )
    raise typer.Exit(ResourceError.exit)
