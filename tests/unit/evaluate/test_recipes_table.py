"""The table of recipes: every term has a row, a run goes on where it stopped, and only whole texts count."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import recipes_table as table
from benchmarks.peers import recipes_table as peers
from kvcli import registry
from kvcli.evaluate.case import PassagePool, PoolPassage
from kvcli.evaluate.haystack import Haystack
from kvcli.evaluate.token_counter import TokenCounter
from kvcli.pipeline import Pipeline

EVICTING = ["keydiff(sinks=8, stabilizers=8)", "snapkv(sinks=8, stabilizers=8)", "sirllm(sinks=8)"]
WHOLE = ["full", "full+int8", "full+think", "full+minicache(start=0)"]
SECONDS = ("read_s", "step_s")


def test_every_term_has_a_row() -> None:
    named = {
        name
        for recipe in (*table.EVICTING, *table.WHOLE)
        for name in re.findall(r"(\w+)(?:\([^)]*\))?(?:\+|$)", recipe)
    }
    for axis in registry.KINDS:
        assert set(registry.names(axis)) - {"dense", "none"} <= named


@pytest.fixture
def texts(model: Any, book: str, monkeypatch: pytest.MonkeyPatch) -> list[table.Text]:
    monkeypatch.setattr(table, "LENGTHS", {"2K": 700, "4K": 1500, "16K": 2000})
    monkeypatch.setattr(table, "BUDGETS", {"2K": (128,), "4K": (256, 64), "16K": (256,)})
    monkeypatch.setattr(table, "TOKENS", 3)
    counter = TokenCounter(Pipeline(model).prompt)
    haystack = Haystack(counter, book, "book")
    pool = PassagePool(
        tuple(PoolPassage("", f"Stone {n} is {n}.", ((f"What is stone {n}?", (f"{n}",)),)) for n in range(9))
    )
    return [
        table.hidden("4K", 0, counter, haystack),
        table.squad(0, counter, pool),
        table.hidden("16K", 0, counter, haystack),
        table.hidden("4K", 1, counter, haystack),
    ]


def test_a_run_that_was_stopped_goes_on_and_whole_texts_count(
    model: Any, texts: list[table.Text], tmp_path: Path
) -> None:
    pipeline = Pipeline(model, chunk_size=128)
    once = table.measure(pipeline, texts[:3], tmp_path / "once.jsonl", evicting=EVICTING, whole=WHOLE)
    whole = (tmp_path / "once.jsonl").read_text().splitlines(keepends=True)
    assert len(whole) == len(once) == (4 + 6) + (4 + 3) + 3
    (tmp_path / "again.jsonl").write_text("".join(whole[:7]))
    again = table.measure(pipeline, texts[:3], tmp_path / "again.jsonl", evicting=EVICTING, whole=WHOLE)
    assert [{k: v for k, v in row.items() if k not in SECONDS} for row in again] == [
        {k: v for k, v in row.items() if k not in SECONDS} for row in once
    ]
    by = {(row["length"], row["name"], row["budget"]): row for row in once}
    assert set(by["4K", "full", None]["kl"]) == {0.0}
    assert min(by["4K", EVICTING[0], 64]["kl"]) > 0
    assert by["4K", EVICTING[0], 64]["scores"] == []
    assert by["4K", EVICTING[1], 256]["kinds"] == ["needle", "passkey"]
    assert len(by["16K", EVICTING[0], 256]["scores"]) == 8
    assert by["4K", "full+int8", None]["loaded"]
    assert not by["4K", "full+think", None]["loaded"]
    assert by["4K", "full+int8", None]["device_bytes"] < by["4K", "full", None]["device_bytes"]

    made = table.summarize([*once, {**by["4K", "full", None], "number": 1}], "command")
    assert {row["n"] for row in made} == {1}
    assert [row["kl"] for row in made] == sorted(row["kl"] for row in made)
    rows = {row["recipe"]: row for row in made}
    assert rows["full"]["prefill"] == rows["full"]["decode"] == 1
    assert rows["full"]["asked"] == "4 · – · 8"
    assert "passkey_16K" not in rows["full"]
    assert rows[EVICTING[1]]["asked"] == "1 · 1 · 2"
    assert rows[EVICTING[0]]["kl_256"] > 0
    assert rows["full+int8"].get("prefill") is None


def test_a_recipe_without_its_calibration_is_left_out(
    model: Any, texts: list[table.Text], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = table.measure(
        Pipeline(model), texts[1:2], tmp_path / "a.jsonl", evicting=[], whole=["full", "full+kvsharer"]
    )
    assert [row["name"] for row in rows] == ["full"]
    assert "left out: full+kvsharer: kvsharer needs a calibration" in capsys.readouterr().err


def test_nothing_is_begun_after_the_given_minutes(model: Any, texts: list[table.Text], tmp_path: Path) -> None:
    assert table.measure(Pipeline(model), texts, tmp_path / "a.jsonl", evicting=[], whole=["full"], minutes=-1) == []


class Parrot:
    """Stands for kvpress: gives each question's right answer, or none."""

    def answers(self, _prompt: Any, case: Any, press: str, _keep: int) -> tuple[list[str], float]:
        right = press == "KeyDiff"
        return [question.gold[0] if right else "?" for question in case.questions], 1.0


def test_presses_stand_beside_the_same_system_on_the_same_texts(texts: list[table.Text], tmp_path: Path) -> None:
    presses, out = ["KeyDiff", "SnapKV+question", "TOVA"], tmp_path / "peers.jsonl"
    rows = peers.measure(Parrot(), None, texts[:2], presses, out, 2)  # type: ignore[arg-type]
    assert peers.measure(None, None, texts[:2], presses, out, 2) == rows  # type: ignore[arg-type]
    assert [len(row["scores"]) for row in rows] == [8, 2, 8, 8, 2, 8]
    ours = [
        {"name": "keydiff(sinks=48, stabilizers=64)", "length": "4K", "number": n, "scores": [n], "kinds": ["needle"]}
        for n in (0, 1)
    ]
    made = {row["press"]: row for row in peers.summarize(rows, ours, "command")}
    assert made["KeyDiff"]["needle"] == 100
    assert made["KeyDiff"]["needle_ours"] == 0, "the other text does not count"
    assert "squad" not in made["KeyDiff"]
    assert made["TOVA"]["squad"] == made["TOVA"]["passkey"] == 0
    assert made["TOVA"]["passkey_n"] == 4
    assert "squad_ours" not in made["TOVA"]
    assert "needle_ours" not in made["SnapKV+question"], "the same system was not measured"
