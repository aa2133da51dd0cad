"""``--weights``: what is loaded agrees with what is planned, passes the probe, and is never taken for another model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kvcli.bench import check
from kvcli.errors import ModelError, UsageError
from kvcli.hf import outline, quantised
from kvcli.hf.load import load
from kvcli.hf.models import Source
from kvcli.hf.random import build
from kvcli.recipe import parse
from tests.cli.conftest import save_tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source("tiny", save_tiny(tmp_path_factory.mktemp("tiny"), hidden=64), "directory")


@pytest.mark.parametrize("held", ["int8", "nf4"])
def test_it_is_what_was_planned_and_near_the_original(source: Source, held: str) -> None:
    model = load(source, device="cpu", dtype="bfloat16", weights=held)
    planned = outline.spec(source, device="cpu", dtype="bfloat16", held=held)
    assert model.spec == planned
    whole = load(source, device="cpu", dtype="bfloat16")
    assert model.spec.weight_bytes < whole.spec.weight_bytes
    assert model.spec.fingerprint != whole.spec.fingerprint
    ids = torch.arange(40)[None]
    with model.reference() as few, whole.reference() as all_bits, torch.inference_mode():
        a, b = few(ids).logits.float(), all_bits(ids).logits.float()
    assert 0 < float((a - b).norm() / b.norm()) < (0.05 if held == "int8" else 0.3)
    check.check(model, parse("keydiff(budget=64)"))


@pytest.mark.parametrize("held", ["int8", "nf4"])
def test_random_weights_too(source: Source, held: str) -> None:
    model = build(source.path, device="cpu", dtype="bfloat16", weights=held)
    assert model.spec.weight_bytes == outline.spec(source, device="cpu", dtype="bfloat16", held=held).weight_bytes
    check.check(model, parse("full"))


def quantised_checkpoint(source: Source, path: Path, method: dict[str, object]) -> Source:
    for file in source.path.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    config = json.loads((path / "config.json").read_text()) | {"quantization_config": method}
    (path / "config.json").write_text(json.dumps(config))
    return Source("theirs", path, "directory")


METHODS = [
    {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True},
    {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False},
    {"quant_method": "hqq"},
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: str(m["quant_method"]))
def test_a_quantised_checkpoint_that_cannot_be_read_says_what_it_needs(
    source: Source, method: dict[str, object], tmp_path: Path
) -> None:
    name = str(method["quant_method"])
    theirs = quantised_checkpoint(source, tmp_path, method)
    with pytest.raises(ModelError, match=f"is quantised with {name}") as found:
        load(theirs, device="cpu")
    assert "\n" not in found.value.message
    if name in quantised.NEEDS:
        assert found.value.hint == f"pip install {quantised.NEEDS[name]}"


def test_what_is_quantised_is_not_quantised_again(source: Source, tmp_path: Path) -> None:
    theirs = quantised_checkpoint(source, tmp_path, METHODS[0])
    with pytest.raises(UsageError, match="quantised already"):
        load(theirs, device="cpu", weights="nf4")


def test_a_checkpoint_of_four_bits_is_loaded_as_it_lies(source: Source, tmp_path: Path) -> None:
    model = load(source, device="cpu", dtype="bfloat16", weights="nf4")
    model.module.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((source.path / name).read_bytes())
    again = load(Source("again", tmp_path, "directory"), device="cpu", dtype="bfloat16")
    assert again.spec.weight_bytes == pytest.approx(model.spec.weight_bytes, rel=0.05)
    planned = outline.spec(Source("again", tmp_path, "directory"), device="cpu", dtype="bfloat16").weight_bytes
    assert planned == pytest.approx(model.spec.weight_bytes, rel=0.05)


def test_without_bitsandbytes_it_is_named(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match="--weights nf4 needs bitsandbytes"):
        load(source, device="cpu", weights="nf4")
