"""``kvcli models``: tables for people, one JSON object for programs."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kvcli.cli.commands.models import app
from kvcli.errors import ModelError
from kvcli.models.catalogue import ALIASES
from kvcli.models.default_model import DEFAULT

from .conftest import Hub, make_model, write_gguf


def call(*arguments: str) -> Any:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def call_json(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(call(*arguments, "--json"))
    assert found.pop("schema") == "kvcli/1"
    return found


def test_ls_with_nothing_here() -> None:
    rows = call_json("ls")["models"]
    assert [row["name"] for row in rows] == list(ALIASES)
    assert {row["where"] for row in rows} == {"-"}
    assert [row["name"] for row in rows if row["default"]] == [DEFAULT]
    assert "llama3.1" in call("ls")


def test_ls_finds_what_is_in_the_hubs_cache(hub: Hub, tmp_path: Path) -> None:
    hub.repos["owner/tiny"] = make_model(tmp_path / "served")
    (hub.repos["owner/tiny"] / "README.md").write_text("---\nlicense: other\nlicense_name: tiny-1.0\n---\n")
    path = call("pull", "owner/tiny", "--quiet").strip()
    row = call_json("ls")["models"][-1]
    assert (row["name"], row["where"], row["licence"], row["window"]) == (
        "owner/tiny",
        "hub",
        "tiny-1.0",
        512,
    )
    assert row["path"] == path
    assert row["bytes"] == (Path(path) / "model.safetensors").stat().st_size


def test_show(model: Path) -> None:
    facts = call_json("show", str(model))["model"]
    expected = {
        "architecture": "LlamaForCausalLM",
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "window": 512,
        "dtype": "bfloat16",
        "kv_bytes_per_token": 2 * 2 * 2 * 8 * 2,
        "local": True,
        "path": str(model),
    }
    assert expected.items() <= facts.items()
    assert len(facts["fingerprint"]) == 16
    assert "KV heads      2" in call("show", str(model))


def test_show_fetches_no_weights(hub: Hub, tmp_path: Path) -> None:
    hub.repos["owner/tiny"] = make_model(tmp_path / "served")
    facts = call_json("show", "owner/tiny")["model"]
    assert (facts["layers"], facts["local"], facts["fingerprint"]) == (2, False, None)
    assert "not downloaded: kvcli models pull owner/tiny" in call("show", "owner/tiny", "--offline")
    assert not [request for request in hub.requests if request.endswith(".safetensors")]


def test_show_of_an_alias_that_is_not_here() -> None:
    facts = call_json("show", "--offline")["model"]
    assert (facts["name"], facts["local"], facts["window"]) == (DEFAULT, False, 8192)
    facts = call_json("show", "llama-3.1-8b")["model"]
    assert facts["licence"] == "llama3.1"
    assert "cannot be reached" in facts["notes"][0]


def test_show_of_a_gguf_reads_its_header(tmp_path: Path) -> None:
    facts = call_json("show", str(write_gguf(tmp_path / "Tiny.gguf")))["model"]
    assert (facts["layers"], facts["heads"], facts["kv_heads"], facts["head_dim"]) == (1, 2, 1, 32)
    assert (facts["licence"], facts["window"], facts["model"]) == ("mit", 256, "Tiny")


def test_errors_are_left_to_main() -> None:
    with pytest.raises(ModelError, match="unknown model"):
        call("show", "nonsense")
