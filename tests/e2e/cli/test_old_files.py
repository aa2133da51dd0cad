"""Files that kvcli 0.1.0 wrote before its packages were renamed still load: a saved prefill, a chat and a training.

They were made at commit 9bfd80a with the tiny model beside them: a prefill with ``keydiff(budget=32)``, one answer
from it as JSON, a chat of two turns, and the checkpoint of a training that was killed after 50 of 60 steps.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.e2e.conftest import Call

FILES = Path(__file__).parents[2] / "fixtures" / "before_redesign"
MODEL = ["-m", str(FILES / "model"), "--dtype", "float32"]


def test_a_saved_prefill(call: Call) -> None:
    outcome = call("ask", *MODEL, "-n", "12", "--json", FILES / "book.kv", "Who?")
    assert outcome.code == 0, outcome.err
    old = json.loads((FILES / "answer.json").read_text())
    assert outcome.json["kv"]["cache"] == "hit"
    for key in ("answer", "finish_reason", "kv"):
        assert outcome.json[key] == old[key]
    assert set(outcome.json) >= set(old)


def test_a_chat(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder in it is where it was begun, so that is replaced; turns go on."""
    monkeypatch.setenv("KVCLI_DATA_DIR", str(tmp_path))
    (tmp_path / "chats").mkdir()
    shutil.copy(FILES / "book.txt", tmp_path)
    saved = json.loads((FILES / "chat.json").read_text())
    saved["folder"], saved["model"] = str(tmp_path), str(FILES / "model")
    path = tmp_path / "chats" / "old.json"
    path.write_text(json.dumps(saved))
    outcome = call("chat", "--session", "old", "-n", "8", stdin=b"And who then?\n")
    assert outcome.code == 0, outcome.err
    turns = json.loads(path.read_text())["turns"]
    assert turns[:2] == saved["turns"]
    assert len(turns) == 3


def test_a_training(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quiet = "It was a quiet day in {}. Nobody came up the hill, and nobody asked why. "
    Path("prose.txt").write_text("".join(map(quiet.format, ["Whitby", "Crieff", "Wooler"] * 30)))
    shutil.copy(FILES / "heads.safetensors.training", tmp_path)
    few = ("--steps", "60", "--width", "2", "--tokens", "64-96", "--budget", "32", "--check-every", "0")
    outcome = call("train", *MODEL, "prose.txt", "-o", "heads.safetensors", *few)
    assert outcome.code == 0, outcome.err
    assert "resumed after 50" in outcome.err
    assert Path("heads.safetensors").is_file()
