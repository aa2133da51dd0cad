"""Defaults of options: which one counts, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Call


@pytest.fixture
def file(environment: dict[str, str]) -> Path:
    return Path(environment["KVCLI_CONFIG"])


def budget(call: Call, model: Path, *args: str) -> int:
    made = call("plan", "--tokens", "3000", "-m", model, "--json", *args)
    assert made.code == 0, made.err
    return int(made.json["plan"]["budget"])


def test_the_nearest_default_counts(call: Call, tiny_model: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Option, then environment, then the command's table, then the top of the file."""
    file.write_text('policy = "keydiff"\nbudget = 64\n')
    assert budget(call, tiny_model) == 64
    file.write_text('policy = "keydiff"\nbudget = 64\n[plan]\nbudget = 80\n[ask]\nbudget = 96\n')
    assert budget(call, tiny_model) == 80
    monkeypatch.setenv("KVCLI_BUDGET", "112")
    assert budget(call, tiny_model) == 112
    assert budget(call, tiny_model, "--budget", "128") == 128


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("buget = 3\n", "buget is not an option of kvcli; did you mean budget?"),
        ("[ask]\nbuget = 3\n", "ask.buget is not an option"),
        ("[aks]\nbudget = 3\n", "aks is not an option of kvcli; did you mean ask?"),
        ("[plan]\nsystem = ['a', 'b']\n", "system takes one value"),
        ("quiet = 'yes'\n", "quiet is true or false"),
        ("ask = 3\n", "ask is a command"),
        ("budget = \n", "not valid TOML"),
        ("[plan]\ntokens = 'many'\n", "--tokens"),
        (b"\xff\xfe", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_one_line(call: Call, file: Path, text: str | bytes, words: str) -> None:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    made = call("plan")
    assert made.code == 2
    assert words in made.err.splitlines()[0]
    assert "Traceback" not in made.err


def test_set_get_and_unset(call: Call, file: Path, tiny_model: Path) -> None:
    """A comment stays; what was set is used; what is not valid is not written."""
    file.write_text("# mine\nseed = 3  # lucky\n")
    assert call("config", "set", "model", tiny_model).code == 0
    assert call("config", "set", "ask.stop", "one", "two").code == 0
    assert call("config", "set", "ask.max-tokens", "7").code == 0
    assert call("config", "get", "ask.max-tokens").out == "7\n"
    rows = call("config", "show", "--json").json["settings"]
    assert {row["key"]: row["value"] for row in rows} == {
        "seed": 3,
        "model": str(tiny_model),
        "ask.stop": ["one", "two"],
        "ask.max-tokens": 7,
    }
    made = call("ask", "--json", "Who?", stdin=b"Some text.")
    assert made.code == 0, made.err
    assert made.json["usage"]["completion_tokens"] <= 7
    text = file.read_text()
    assert text.startswith("# mine\nseed = 3  # lucky\n")
    for key, *value in (("ask.max-tokens", "many"), ("quiet", "yes"), ("buget", "3"), ("model", "a", "b")):
        assert call("config", "set", key, *value).code == 2
        assert file.read_text() == text
    assert call("config", "unset", "seed").code == 0
    assert call("config", "unset", "seed").code == 2
    assert call("config", "get", "seed").code == 2
    assert "# mine" in file.read_text()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("budget", "lots"),
        ("ask.budget", "-3"),
        ("policy", "nosuch"),
        ("device", "abacus"),
        ("dtype", "float7"),
    ],
)
def test_a_value_that_a_command_would_refuse_is_not_written(call: Call, file: Path, key: str, value: str) -> None:
    outcome = call("config", "set", key, "--", value)
    assert outcome.code == 2
    assert value in outcome.err
    assert not file.exists()


def test_the_file_is_created_where_it_is_said_to_be(call: Call, file: Path) -> None:
    assert call("config", "path").out == f"{file}\n"
    assert not file.exists()
    assert call("config", "set", "temp", "0.5").code == 0
    assert file.exists()
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_broken_file_can_be_edited(call: Call, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("budget = \n")
    monkeypatch.setenv("EDITOR", "sed -i s/.*/budget=5/")
    monkeypatch.delenv("VISUAL", raising=False)
    assert call("config", "edit").code == 0
    assert call("config", "get", "budget").out == "5\n"
    monkeypatch.setenv("EDITOR", "no-such-editor")
    assert call("config", "edit").code == 2


def test_settings_name_their_origin(call: Call, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("[ask]\ntemp = 0.5\n")
    monkeypatch.setenv("KVCLI_CHUNK_SIZE", "64")
    rows = json.loads(call("config", "show", "--json").out)["settings"]
    assert [(row["key"], row["origin"]) for row in rows] == [
        ("ask.temp", str(file)),
        ("chunk-size", "KVCLI_CHUNK_SIZE"),
    ]


def test_a_switch_with_an_opposite_has_one_variable(
    monkeypatch: pytest.MonkeyPatch, call: Call, tiny_model: Path
) -> None:
    monkeypatch.setenv("KVCLI_QUERY_AWARE", "1")
    made = call("config", "show", "--json")
    assert {"key": "query-aware", "value": "1", "origin": "KVCLI_QUERY_AWARE"} in made.json["settings"]
    assert call("ask", "-m", tiny_model, "Who?", "--no-query-aware", "-n", "1", "-q").code == 0
