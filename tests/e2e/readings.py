"""What tests of saved readings share: a text, a policy, and how they are asked for."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.conftest import Call

TEXT = "Queequeg was a native of Kokovoko, an island far away to the West and South. " * 12
POLICY = ("--policy", "keydiff(budget=200)")


def saved(shelf: Path) -> list[Path]:
    return sorted(p for p in shelf.glob("*") if p.is_file())


def ask(call: Call, model: Path, *args: str | Path) -> dict[str, object]:
    outcome = call("ask", "-m", model, "-n", "12", "--json", *args)
    assert outcome.code == 0, outcome.err
    return {**outcome.json, "err": outcome.err}


def cache(answer: dict[str, object]) -> object:
    return answer["kv"]["cache"]  # type: ignore[index]
