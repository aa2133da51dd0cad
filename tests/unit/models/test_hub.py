"""A hub on localhost: what is fetched, what is not fetched twice, and what is said when it fails."""

import json
import shutil
from pathlib import Path

import pytest

from kvcli.errors import ModelError
from kvcli.events import Download
from kvcli.models import catalogue, resolve
from kvcli.models.default_model import DEFAULT

from .conftest import Hub, make_model, run


@pytest.fixture
def repo(hub: Hub, tmp_path: Path) -> Path:
    path = make_model(tmp_path / "served", shards=True)
    (path / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# Tiny\n")
    (path / "pytorch_model.bin").write_bytes(b"pickle")
    (path / "modeling_tiny.py").write_text("raise SystemExit")
    (path / "onnx").mkdir()
    (path / "onnx" / "config.json").write_text("{}")
    hub.repos["owner/tiny"] = path
    return path


def test_fetches_config_tokenizer_and_safetensors_only(repo: Path) -> None:
    source, events = run(resolve.resolve("owner/tiny"))
    assert (source.origin, source.licence, source.revision) == ("hub", "apache-2.0", "c" * 40)
    assert source.fingerprint == run(resolve.resolve(str(repo)))[0].fingerprint
    names = {event.name for event in events if isinstance(event, Download)}
    assert {"tiny/config.json", "tiny/tokenizer.json"} < names
    assert len([name for name in names if name.endswith(".safetensors")]) > 1
    assert not [name for name in names if name.endswith((".bin", ".py")) or "onnx" in name]
    last = {event.name: event for event in events if isinstance(event, Download)}
    assert all(event.done == event.total for event in last.values())


@pytest.mark.usefixtures("repo")
def test_the_second_time_asks_nobody(hub: Hub) -> None:
    first, _ = run(resolve.resolve("owner/tiny"))
    hub.requests.clear()
    assert run(resolve.resolve("owner/tiny")) == (first, [])
    assert run(resolve.resolve("owner/tiny", offline=True)) == (first, [])
    assert hub.requests == []


@pytest.mark.usefixtures("repo")
def test_only_config_fetches_no_weights(hub: Hub) -> None:
    source, _ = run(resolve.resolve("owner/tiny", only_config=True))
    assert not source.complete
    assert source.config["num_hidden_layers"] == 2
    assert not [request for request in hub.requests if "safetensors" in request and "index" not in request]
    with pytest.raises(ModelError, match="offline"):
        run(resolve.resolve("owner/tiny", offline=True))
    assert run(resolve.resolve("owner/tiny"))[0].complete  # and can be completed


@pytest.mark.usefixtures("repo")
def test_a_revision(hub: Hub) -> None:
    assert run(resolve.resolve("owner/tiny@v2"))[0].revision == "c" * 40
    assert any("/revision/v2" in request for request in hub.requests)


@pytest.mark.usefixtures("repo")
def test_a_damaged_file_in_the_cache_is_named_and_pulled_again() -> None:
    source, _ = run(resolve.resolve("owner/tiny"))
    shard = sorted(source.path.glob("*.safetensors"))[0]
    blob = shard.resolve()
    blob.write_bytes(blob.read_bytes()[:-7])
    with pytest.raises(ModelError, match="damaged file") as caught:
        run(resolve.resolve("owner/tiny"))
    assert shard.name in caught.value.message
    assert caught.value.hint == "kvcli models pull owner/tiny"
    assert run(resolve.resolve("owner/tiny", refresh=True))[0].fingerprint == source.fingerprint


@pytest.mark.usefixtures("hub")
def test_unknown_id() -> None:
    with pytest.raises(ModelError, match="unknown model: the hub has no owner/nothing"):
        run(resolve.resolve("owner/nothing"))


@pytest.mark.usefixtures("repo")
@pytest.mark.parametrize(("token", "message"), [(None, "not logged in"), ("hf_xyz", "has not accepted its licence")])
def test_gated(hub: Hub, monkeypatch: pytest.MonkeyPatch, token: str | None, message: str) -> None:
    hub.gated.add("owner/tiny")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    else:
        monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ModelError, match=message) as caught:
        run(resolve.resolve("owner/tiny"))
    assert "/owner/tiny" in str(caught.value.hint)


def test_no_hub() -> None:
    with pytest.raises(ModelError, match="offline: owner/tiny is not here and the hub cannot be reached"):
        run(resolve.resolve("owner/tiny"))


@pytest.mark.parametrize("name", ["owner/tiny", DEFAULT, "llama-3.1-8b"])
@pytest.mark.parametrize("by", ["option", "environment"])
def test_offline_with_nothing_here_asks_nobody(hub: Hub, monkeypatch: pytest.MonkeyPatch, name: str, by: str) -> None:
    if by == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="offline") as caught:
        run(resolve.resolve(name, offline=by == "option"))
    assert f"kvcli models pull {name}" in str(caught.value.hint)
    assert hub.requests == []


@pytest.mark.usefixtures("hub")
def test_pickle_only(repo: Path) -> None:
    for path in repo.glob("*.safetensors*"):
        path.unlink()
    with pytest.raises(ModelError, match="only as pickle"):
        run(resolve.resolve("owner/tiny"))


def test_gguf_only(hub: Hub, tmp_path: Path) -> None:
    hub.repos["owner/gguf"] = tmp_path / "gguf"
    hub.repos["owner/gguf"].mkdir()
    (tmp_path / "gguf" / "a.Q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="only GGUF") as caught:
        run(resolve.resolve("owner/gguf"))
    assert caught.value.hint == "hf download owner/gguf a.Q4.gguf, then -m with the file"


@pytest.mark.usefixtures("hub")
def test_an_index_that_names_a_file_the_repository_lacks(repo: Path) -> None:
    sorted(repo.glob("*.safetensors"))[-1].unlink()
    with pytest.raises(ModelError, match="incomplete model"):
        run(resolve.resolve("owner/tiny"))


def test_the_default_model_comes_from_the_hub_where_there_is_one(hub: Hub, repo: Path) -> None:
    hub.repos[catalogue.ALIASES[DEFAULT].repo] = repo
    source, _ = run(resolve.resolve())
    assert (source.name, source.origin) == (DEFAULT, "hub")
    index = json.loads((source.path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {p.name for p in source.path.glob("*.safetensors")}
    shutil.rmtree(repo)
    assert run(resolve.resolve())[0] == source
