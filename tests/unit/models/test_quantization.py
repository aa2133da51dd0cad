"""Weights in few bits, ours and theirs: what is loaded is as planned, passes the probe, and is not mistaken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kvcli.bench import check
from kvcli.errors import ModelError, UnsupportedModel, UsageError
from kvcli.models import local_models, quantization, self_test
from kvcli.models import spec as model_spec
from kvcli.models.load import load
from kvcli.models.model import weight_bytes
from kvcli.models.random_weights import build
from kvcli.models.weights import ModelSource
from kvcli.recipe import parse
from tests.e2e.conftest import save_tiny
from tests.laws.helpers import drain
from tests.unit.models import packed


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return ModelSource("tiny", save_tiny(tmp_path_factory.mktemp("tiny"), hidden=64), "directory")


@pytest.mark.parametrize("held", ["int8", "nf4"])
def test_it_is_what_was_planned_and_near_the_original(source: ModelSource, held: str) -> None:
    model = load(source, device="cpu", dtype="bfloat16", weights=held)
    planned = model_spec.spec(source, device="cpu", dtype="bfloat16", stored=held)
    assert model.spec == planned
    whole = load(source, device="cpu", dtype="bfloat16")
    assert model.spec.weight_bytes < whole.spec.weight_bytes
    assert model.spec.fingerprint != whole.spec.fingerprint
    ids = torch.arange(40)[None]
    with model.reference() as few, whole.reference() as all_bits, torch.inference_mode():
        a, b = few(ids).logits.float(), all_bits(ids).logits.float()
    assert 0 < float((a - b).norm() / b.norm()) < (0.05 if held == "int8" else 0.3)
    check.check(model, parse("keydiff(budget=64)"))


def test_float32_with_matrices_of_int8_passes_and_a_wrong_rotation_does_not(
    wide: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bitsandbytes rounds what is multiplied by int8, and a rounding of another attention differs."""
    model = load(wide, device="cpu", dtype="float32", weights="int8")
    check.check(model, parse("keydiff(budget=64)"))
    monkeypatch.setattr(model.rotary, "rotate", lambda _layer, x, _positions: x)
    with pytest.raises(UnsupportedModel):
        self_test.check(model, remember=False)


@pytest.mark.parametrize("held", ["int8", "nf4"])
def test_random_weights_too(source: ModelSource, held: str) -> None:
    model = build(source.path, device="cpu", dtype="bfloat16", weights=held)
    assert model.spec.weight_bytes == model_spec.spec(source, device="cpu", dtype="bfloat16", stored=held).weight_bytes
    check.check(model, parse("full"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return ModelSource("wide", save_tiny(tmp_path_factory.mktemp("wide"), hidden=64, wide=True), "directory")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", packed.FORMATS)
def test_a_quantised_checkpoint_says_what_its_numbers_mean(
    wide: ModelSource, name: str, dtype: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Against the same numbers in a plain checkpoint; in bfloat16, and in kernels that use it, but for rounding."""
    if missing := quantization._missing(packed.FORMATS[name][0]["quant_method"], "cpu"):
        pytest.skip(f"{name} is read by {' and '.join(missing)}, which is not installed")
    theirs, plain = packed.pack(wide, name, tmp_path)
    capfd.readouterr()
    said: list[str] = []
    model = load(theirs, device="cpu", dtype=dtype, announce=said.append)
    assert capfd.readouterr().out == ""
    whole = load(plain, device="cpu", dtype=dtype)
    ids = torch.arange(40)[None]
    with model.reference() as few, whole.reference() as all_bits, torch.inference_mode():
        a, b = few(ids).logits.float(), all_bits(ids).logits.float()
    kernel = theirs.quantized in ("gptq", "awq")
    assert float((a - b).norm() / b.norm()) < (0.05 if kernel or dtype == "bfloat16" else 5e-3)
    assert len(said) == 1
    assert f"comes quantised ({theirs.quantized})" in said[0]
    planned = model_spec.spec(theirs, device="cpu", dtype=dtype)
    assert model.spec.weight_bytes == pytest.approx(planned.weight_bytes, rel=0.05)
    assert weight_bytes(model.module) == pytest.approx(planned.weight_bytes, rel=0.06)
    assert (planned.weight_bytes < whole.spec.weight_bytes) == kernel  # the others are unpacked
    assert model.spec.fingerprint != whole.spec.fingerprint
    check.check(model, parse("keydiff(budget=64)"))


@pytest.mark.parametrize("name", packed.FORMATS)
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_the_plan_of_a_quantised_checkpoint(
    wide: ModelSource, name: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few bits stay few where they are multiplied as they are; from the config alone nearly the same."""
    monkeypatch.setattr(model_spec, "device_name", lambda _: device)
    theirs, plain = packed.pack(wide, name, tmp_path)
    planned, dense = (model_spec.spec(s, dtype="bfloat16").weight_bytes for s in (theirs, plain))
    if name.startswith("compressed") or (name == "fp8" and device == "cpu"):
        assert planned == dense
    else:
        assert planned < 0.75 * dense
    early = model_spec.spec(replace(theirs, complete=False), dtype="bfloat16").weight_bytes
    assert early == pytest.approx(planned, rel=0.06)


@pytest.mark.parametrize("name", ["awq", "gptq", "compressed int4"])
def test_what_is_missing_is_named_before_anything_is_loaded(
    source: ModelSource, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, _ = packed.pack(source, name, tmp_path)
    monkeypatch.setattr(quantization, "_installed", lambda _: False)
    with pytest.raises(ModelError, match=f"quantised with {theirs.quantized}, which needs ") as found:
        load(theirs, device="cpu")
    assert "\n" not in found.value.message
    for package in quantization.NEEDS[str(theirs.quantized)]:
        assert package in found.value.message
        assert package in str(found.value.hint)
    assert f'"torch=={torch.__version__.split("+")[0]}"' in str(found.value.hint)


def test_only_a_gpu_needs_kernels_for_fp8(source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, _ = packed.pack(source, "fp8", tmp_path)
    monkeypatch.setattr(quantization, "_installed", lambda _: False)
    assert quantization.reading(theirs, "cpu") == {}
    with pytest.raises(ModelError, match="needs kernels"):
        quantization.reading(theirs, "cuda:0")


@pytest.mark.parametrize(
    ("said", "hint"), [("a GPU is needed for this", "CUDA GPU"), ("no such\ntensor", "kvcli models show")]
)
def test_what_transformers_cannot_read_is_said_in_one_line(
    source: ModelSource, said: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, _ = packed.pack(source, "fp8", tmp_path)

    def refuse(*_args: object, **_options: object) -> None:
        print("a banner")
        raise RuntimeError(said)

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", refuse)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="is quantised with fp8 and cannot be loaded: ") as found:
        load(theirs, device="cpu", announce=lambda _: None)
    assert "\n" not in found.value.message
    assert hint in str(found.value.hint)


def test_models_show_says_it(source: ModelSource, tmp_path: Path) -> None:
    theirs, plain = packed.pack(source, "awq", tmp_path)
    told = [drain(local_models.show(str(s.path), offline=True)).notes for s in (theirs, plain)]
    assert told == [("comes quantised: awq",), ()]


def test_what_is_quantised_is_not_quantised_again(source: ModelSource, tmp_path: Path) -> None:
    theirs, _ = packed.pack(source, "awq", tmp_path)
    with pytest.raises(UsageError, match="quantised already"):
        load(theirs, device="cpu", weights="nf4")


def test_a_checkpoint_of_four_bits_is_loaded_as_it_lies(source: ModelSource, tmp_path: Path) -> None:
    model = load(source, device="cpu", dtype="bfloat16", weights="nf4")
    model.module.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((source.path / name).read_bytes())
    again = load(ModelSource("again", tmp_path, "directory"), device="cpu", dtype="bfloat16")
    assert again.spec.weight_bytes == pytest.approx(model.spec.weight_bytes, rel=0.05)
    planned = model_spec.spec(ModelSource("again", tmp_path, "directory"), device="cpu", dtype="bfloat16").weight_bytes
    assert planned == pytest.approx(model.spec.weight_bytes, rel=0.05)


def test_without_bitsandbytes_it_is_named(source: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match="--weights nf4 needs bitsandbytes"):
        load(source, device="cpu", weights="nf4")
