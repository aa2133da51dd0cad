"""Names and directories: what is found, what is refused, and which file is blamed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvcli.errors import ModelError
from kvcli.models import resolve, weights
from kvcli.models.default_model import DEFAULT

from .conftest import make_model, run


def test_a_directory_is_used_as_it_lies(model: Path) -> None:
    source, events = run(resolve.resolve(str(model), offline=True))
    assert events == []
    assert (source.name, source.path, source.origin, source.complete) == (
        str(model),
        model,
        "directory",
        True,
    )
    assert source.bytes == (model / "model.safetensors").stat().st_size


def test_the_default_can_be_set(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve.default_name() == DEFAULT
    monkeypatch.setenv("KVCLI_MODEL", str(model))
    assert run(resolve.resolve())[0].path == model


def test_resolving_imports_no_torch(model: Path) -> None:
    code = f"""
import sys
from kvcli.models import resolve
try:
    next(resolve.resolve({str(model)!r}))
except StopIteration as end:
    end.value.fingerprint
assert not {{"torch", "transformers", "gguf"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_fingerprint_names_the_model_not_the_place(model: Path, tmp_path: Path) -> None:
    before = run(resolve.resolve(str(model)))[0].fingerprint
    moved = Path(shutil.copytree(model, tmp_path / "deeper" / "copy"))
    assert weights.fingerprint(moved) == before
    (moved / "README.md").write_text("no part of the model")
    assert weights.fingerprint(moved) == before
    config = moved / "config.json"
    config.write_text(config.read_text().replace("512", "513"))
    assert weights.fingerprint(moved) != before


def test_a_fine_tune_has_another_fingerprint(model: Path, tmp_path: Path) -> None:
    """Same config, same shapes, same headers: only the numbers differ."""
    other = make_model(tmp_path / "other", seed=1)
    assert weights.header(model / weights.SINGLE) == weights.header(other / weights.SINGLE)
    assert weights.fingerprint(model) != weights.fingerprint(other)


def refused(model: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        run(resolve.resolve(str(model)))
    return caught.value


@pytest.mark.parametrize("cut", [0, 5, 100, -1])
def test_truncated_safetensors(model: Path, cut: int) -> None:
    shard = model / weights.SINGLE
    shard.write_bytes(shard.read_bytes()[:cut])
    assert f"damaged file: {shard}" in refused(model).message


def test_truncation_is_told_in_bytes(model: Path) -> None:
    shard = model / weights.SINGLE
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-10])
    assert f"expected {size:,} bytes, it has {size - 10:,}" in refused(model).message


def test_a_header_that_is_none(model: Path) -> None:
    (model / weights.SINGLE).write_bytes((8).to_bytes(8, "little") + b"no json!")
    assert "not that of a safetensors file" in refused(model).message


def test_a_missing_shard(tmp_path: Path) -> None:
    path = make_model(tmp_path / "sharded", shards=True)
    gone = sorted(path.glob("*.safetensors"))[1]
    gone.unlink()
    assert f"lacks {gone.name} of" in refused(path).message


def test_a_damaged_index(tmp_path: Path) -> None:
    path = make_model(tmp_path / "sharded", shards=True)
    (path / weights.INDEX).write_text("{")
    assert str(path / weights.INDEX) in refused(path).message


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_damaged_config(model: Path, content: str) -> None:
    (model / "config.json").write_text(content)
    assert f"damaged file: {model / 'config.json'}" in refused(model).message


def test_directories_that_are_no_models(model: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no config.json" in refused(empty).message
    (empty / "a.gguf").write_bytes(b"")
    assert refused(empty).hint == f"-m {empty / 'a.gguf'}"
    (empty / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    assert "adapter (LoRA) for owner/base" in refused(empty).message
    (model / weights.SINGLE).rename(model / "pytorch_model.bin")
    assert "only as pickle (pytorch_model.bin)" in refused(model).message
    (model / "pytorch_model.bin").unlink()
    assert "no weights" in refused(model).message
    assert not run(resolve.resolve(str(model), only_config=True))[0].complete
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink()
    assert "no tokenizer" in refused(model).message


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"unknown model.*did you mean smollm2-135m\?") as caught:
        run(resolve.resolve("smolm2-135"))
    assert caught.value.hint == "kvcli models ls"
    with pytest.raises(ModelError, match="unknown model"):
        run(resolve.resolve("zzz"))
    with pytest.raises(ModelError, match="no such directory or file"):
        run(resolve.resolve("./zzz"))
    with pytest.raises(ModelError, match="not a hub id"):
        run(resolve.resolve("owner/na me"))
    (tmp_path / "book.txt").write_text("")
    with pytest.raises(ModelError, match="not a GGUF"):
        run(resolve.resolve(str(tmp_path / "book.txt")))
