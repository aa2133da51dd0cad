"""``kvcli models suggest`` and ``use``: from a machine to a default model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.e2e.conftest import Call

DOCUMENTED = Path(__file__).parents[3] / "docs" / "models.md"


def test_what_is_suggested_can_be_planned_and_used(call: Call, environment: dict[str, str]) -> None:
    """The suggestion fits by ``kvcli plan`` too, which reads the default that ``use`` has set."""
    found = call("models", "suggest", "--gpu", "8GB", "--tokens", "50000", "--json")
    assert found.code == 0, found.err
    row = next(row for row in found.json["models"] if row["name"] == found.json["suggested"])
    assert row["fits"]
    args = ["--weights", row["weights"], "--budget", str(row["plan"]["budget"])]
    assert call("models", "use", row["name"], *args).code == 0
    planned = call(
        "plan", "--gpu", "8GB", "--tokens", "50000", "--policy", row["plan"]["recipe"].partition("(")[0], "--json"
    )
    assert planned.code == 0, planned.err
    assert planned.json["plan"]["model"]["name"] == row["name"]
    assert planned.json["plan"]["budget"] == row["plan"]["budget"]
    assert call("models", "use", "smollm2-135m").code == 0
    assert (
        Path(environment["KVCLI_CONFIG"]).read_text() == 'model = "smollm2-135m"\n'
    )  # what belonged to the other is gone


def test_the_table_names_one_command(call: Call) -> None:
    made = call("models", "suggest", "--gpu", "4090")
    assert made.code == 0
    assert made.out.splitlines()[-1].count("kvcli models use ") == 1


def test_nothing_fits(call: Call) -> None:
    made = call("models", "suggest", "--gpu", "0.1GB", "--json")
    assert made.code == 5
    assert call("models", "suggest", "--gpu", "nonsense").code == 2
    assert call("models", "suggest", "--gpu", "8GB", "--json").json["tokens"] == 100_000
    assert call("models", "suggest", "--gpu", "8GB", "--tokens", "50K", "--json").json["tokens"] == 51_200
    assert call("models", "suggest", "--tokens", "0").code == 2


@pytest.mark.parametrize("name", ["qwen38b", "./nowhere", "a/b/c", "nowhere.gguf", "notes.txt"])
def test_a_model_that_cannot_be_is_not_used(call: Call, folder: Path, environment: dict[str, str], name: str) -> None:
    (folder / "notes.txt").write_text("text")
    assert call("models", "use", name).code == 4
    assert call("models", "use", "smollm2-135m", "--weights", "int9").code == 2
    assert call("models", "use", "smollm2-135m", "--budget", "many").code == 2
    assert not Path(environment["KVCLI_CONFIG"]).exists()


def test_a_folder_is_used_from_anywhere(
    call: Call, folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (folder / "mine").symlink_to(tiny_model)
    assert call("models", "use", "mine").code == 0
    monkeypatch.chdir(tmp_path)
    assert call("ask", "--raw", "-n", "2", "Who?", stdin=b"A text.").code == 0


def test_the_documented_suggestions_are_what_is_suggested(call: Call) -> None:
    rows = re.findall(r"^\| (\d+ GB) \| `kvcli (models use .*)` \|$", DOCUMENTED.read_text("utf-8"), re.MULTILINE)
    assert len(rows) == 6
    for memory, command in rows:
        made = call("models", "suggest", "--gpu", memory.replace(" ", ""))
        assert made.out.splitlines()[-1].partition("kvcli ")[2] == command
