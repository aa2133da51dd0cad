"""The notes, tables and summaries of ordinary runs, as golden/messages.txt has them, numbers aside."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.e2e import golden
from tests.e2e.conftest import Call

TEXT = "Queequeg was a native of Kokovoko, an island far away to the West and South. "
LONG = ("Who? " * 900).strip()


@pytest.fixture(autouse=True)
def book(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "book.txt").write_text(TEXT * 20)
    (folder / "more.txt").write_text(TEXT)
    monkeypatch.setenv("KVCLI_DATA_DIR", str(tmp_path / "data"))


def hide(model: Path, folder: Path) -> dict[str, str]:
    """Names of this machine, and the words for them."""
    return {LONG: "Who?", str(model): "MODEL", str(folder): "HERE", str(folder.parent): "TMP", model.name: "NAME"}


def test_runs(call: Call, folder: Path, tiny_model: Path) -> None:
    """One text is asked about, cut short, saved, exported and deleted."""
    model = ("-m", str(tiny_model))
    budget = ("--policy", "keydiff(budget=200)", "--chunk-size", "256")
    kept = (*model, *budget, "book.txt")
    runs: dict[str, tuple[str, ...]] = {
        "plan": ("plan", *kept),
        "ask, first time": ("ask", "--stats", "--cite", "strict", "-n", "8", *kept, "Who?"),
        "ask, second time": ("ask", "-n", "8", "-o", "answer.txt", *kept, "Who?"),
        "ask, one of a batch fails": ("ask", "-n", "8", *kept, "-e", "Who?", "-e", LONG),
        "ask, without a document": ("ask", "-n", "8", *model, "Who?"),
        "prefill": ("prefill", *kept, "-o", "book.kv"),
        "extract": ("extract", "--report", "book.txt"),
        "kv": ("kv", *kept),
        "cache ls": ("cache", "ls"),
        "cache show": ("cache", "show", "book.kv"),
        "cache verify": ("cache", "verify"),
        "cache rm": ("cache", "rm", "--all"),
        "cache import": ("cache", "import", "book.kv"),
        "cache prune": ("cache", "prune"),
        "models show": ("models", "show", str(tiny_model)),
        "eval": ("eval", "passkey", *model, *budget, "--lengths", "512", "--cases", "1", "--seed", "3"),
        "bench": ("bench", *model, *budget, "-p", "300", "-g", "2"),
    }
    for name, args in runs.items():
        outcome = call(*args)
        assert outcome.code == (8 if "fails" in name else 0), outcome.err
        lines = [line for line in outcome.out.splitlines() if not line.startswith("{")]
        text = "\n".join([outcome.err.strip(), *(lines if args[0] not in ("ask", "kv") else [])])
        golden.check(f"run: {name}", text, hide=hide(tiny_model, folder), numbers=False)


def test_chat(call: Call, folder: Path, tiny_model: Path) -> None:
    lines = ["/help", "Who?", "/files", "/add more.txt", "/find South. =", "/page 3", "/undo", "/undo", "/clear"]
    lines += ["/system", "/system Be brief.", "/set", "/set temp warm", "/save talk", "/export a.txt", "/stats"]
    lines += ["/memory", "/kv"]
    args = ("chat", "-m", tiny_model, "--policy", "keydiff(budget=200)", "-n", "8", "--temp", "0", "book.txt")
    outcome = call(*args, stdin="\n".join(lines).encode())
    printed = re.sub(r"^[a-h]+$", "ANSWER", outcome.out, flags=re.MULTILINE)
    golden.check("chat: stdout", printed, hide=hide(tiny_model, folder), numbers=False)
    golden.check("chat: stderr", outcome.err, hide=hide(tiny_model, folder), numbers=False)
