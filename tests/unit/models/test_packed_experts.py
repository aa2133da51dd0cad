"""Experts in few bits: as planned, close to the others, and each one as it was packed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from benchmarks import small_models
from kvcli.bench import check
from kvcli.errors import UsageError
from kvcli.models import load as loading
from kvcli.models import random_weights
from kvcli.models import spec as model_spec
from kvcli.models.packed_experts import Matrix, PackedExperts, StoredExperts
from kvcli.models.weights import ModelSource
from kvcli.recipe import parse
from tests.e2e.conftest import byte_tokenizer


@pytest.mark.parametrize("held", ["int8", "nf4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4, 96, 64), (2, 24, 32)])
def test_each_expert_is_unpacked_alone(shape: tuple[int, int, int], dtype: torch.dtype, held: str) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    packed = PackedExperts(matrices, held)
    for i, matrix in enumerate(matrices):
        found = packed[torch.tensor(i)]
        assert (found.shape, found.dtype) == (matrix.shape, dtype)
        alone = PackedExperts(matrix[None], held)
        assert torch.equal(found, alone[0])
        distance = (found.float() - matrix.float()).norm() / matrix.float().norm()
        assert distance < (0.02 if held == "int8" else 0.2)
    assert packed.packed.nbytes == matrices.numel() // (1 if held == "int8" else 2)


@pytest.mark.parametrize("rows", [1, 4, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("held", ["int8", "int8 turned", "nf4", "mxfp4"])
def test_rows_times_an_expert_are_those_of_the_unpacked_matrix(held: str, dtype: torch.dtype, rows: int) -> None:
    draw = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 64, generator=draw).to(dtype)
    parts: torch.nn.Module
    if held == "mxfp4":
        blocks = torch.randint(0, 256, (2, 40, 2, 16), generator=draw).to(torch.uint8)
        parts = StoredExperts(blocks, torch.randint(115, 135, (2, 40, 2), generator=draw).to(torch.uint8), dtype)
        whole = convert_moe_packed_tensors(blocks, parts.scale, dtype=torch.float32)[1].T
        assert torch.equal(parts[1].T.float(), whole)
    elif held == "int8 turned":
        parts = PackedExperts(torch.randn(2, 64, 43, generator=draw).to(dtype), "int8", True)
        whole = (parts.packed[1] * parts.scale[1]).T
    else:
        parts = PackedExperts(torch.randn(2, 40, 64, generator=draw).to(dtype), held)
        whole = parts[1].float()
    with torch.inference_mode():
        turned = held in ("int8 turned", "mxfp4")
        got = x @ parts[1] if turned else torch.nn.functional.linear(x, parts[1])
        expected = x.float() @ whole.T
    assert got.dtype == dtype
    assert (got.float() - expected).norm() / expected.norm() < (1e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("turned", [False, True])
def test_a_packed_matrix_is_unpacked_for_any_other_use(turned: bool) -> None:
    plain = torch.randn(6, 4)
    seen = plain.T if turned else plain
    matrix = Matrix(lambda: plain, lambda _: pytest.fail("a product that was not asked for"), turned)
    many = torch.ones(9, 4)
    assert torch.equal(torch.stack([matrix, matrix]), torch.stack([seen, seen]))
    assert torch.equal(
        torch.nn.functional.linear(torch.ones(9, seen.shape[1]), matrix), torch.ones(9, seen.shape[1]) @ seen.T
    )
    assert torch.equal(matrix.T + 1, seen.T + 1)
    assert torch.equal(
        many @ matrix if turned else torch.ones(1, 6) @ matrix, many @ seen if turned else torch.ones(1, 6) @ seen
    )
    assert matrix.shape == seen.shape


@pytest.mark.parametrize(
    ("kind", "held"),
    [
        *((kind, "nf4") for kind in ("qwen3_5_moe", "qwen3_moe", "gpt_oss", "mixtral", "lfm2_moe", "granitemoehybrid")),
        *((kind, "int8") for kind in ("qwen3_moe", "gpt_oss", "glm4_moe_lite", "deepseek_v2")),
        *((kind, "nf4") for kind in ("glm4_moe_lite", "laguna", "glm4_moe")),
    ],
)
def test_what_is_loaded_is_as_planned(kind: str, held: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts of one checkpoint tensor each, of one tensor a layer, transposed ones with biases; latent attention."""
    monkeypatch.setattr(loading.self_test, "check", lambda *_, **__: None)
    small_models.build(kind).to(torch.bfloat16).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    source = ModelSource(kind, tmp_path, "directory")
    model = loading.load(source, device="cpu", dtype="bfloat16", weights=held)
    planned = model_spec.spec(source, device="cpu", dtype="bfloat16", stored=held)
    whole = model_spec.spec(source, device="cpu", dtype="bfloat16")
    assert model.spec.weight_bytes == pytest.approx(planned.weight_bytes, rel=2e-3)
    assert model.spec.weight_bytes < (0.75 if held == "int8" else 0.5) * whole.weight_bytes
    experts = [part for part in model.module.modules() if isinstance(part, PackedExperts)]
    assert experts
    built = random_weights.build(tmp_path, device="cpu", dtype="bfloat16", weights=held)
    assert built.spec.weight_bytes == pytest.approx(model.spec.weight_bytes, rel=1e-3)


@pytest.mark.parametrize(("kind", "held"), [("qwen3_moe", "int8"), ("qwen3_moe", "nf4"), ("gpt_oss", "int8")])
def test_it_reads_and_answers(kind: str, held: str, tmp_path: Path) -> None:
    small_models.build(kind).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    source = ModelSource("moe", tmp_path, "directory")
    model = loading.load(source, device="cpu", dtype="float32", weights=held)
    check.check(model, parse("keydiff(budget=64)"))
    few = model.module
    with model.reference(), torch.inference_mode():
        ids = torch.arange(40)[None]
        got = few(ids).logits.float()
        for name, part in list(few.named_modules()):
            if isinstance(part, PackedExperts):
                owner, _, last = name.rpartition(".")
                delattr(few.get_submodule(owner), last)
                setattr(few.get_submodule(owner), last, torch.stack([part[i] for i in range(len(part.packed))]))
        assert torch.equal(got, few(ids).logits.float())


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss", "glm4_moe_lite", "lfm2_moe", "llama", "gemma4"])
def test_a_token_is_multiplied_with_the_matrices_that_it_uses(kind: str) -> None:
    """Counted at run time: the products of one token's forward pass, in the layers."""
    model = loading.wrap(small_models.build(kind), None, name=kind, fingerprint=None)
    model.module.config._experts_implementation = "eager"  # others are not counted
    with torch.inference_mode(), model.reference() as module, FlopCounterMode(display=False) as counter:
        module.base_model(input_ids=torch.tensor([[5]]), use_cache=False)
    counted = counter.get_total_flops() / 2
    assert model.spec.multiplied == pytest.approx(counted, rel=0.12)
    assert model.read_bytes <= model.spec.weight_bytes
    if "moe" in kind or kind == "gpt_oss":
        assert model.read_bytes < 0.9 * model.spec.weight_bytes


def test_mxfp4_stays_as_it_comes(tmp_path: Path) -> None:
    """gpt-oss as published: experts in MXFP4 take no more memory than their file, and give the same logits unpacked."""
    from safetensors.torch import save_file

    plain, stored = tmp_path / "plain", tmp_path / "stored"
    module = small_models.build("gpt_oss").to(torch.bfloat16)
    draw = torch.Generator().manual_seed(3)
    tensors = {}
    for name, value in module.state_dict().items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            tensors[name] = value
            continue
        experts, k, n = value.shape
        blocks = torch.randint(256, (experts, n, k // 32, 16), generator=draw, dtype=torch.uint8)
        scales = torch.randint(120, 126, (experts, n, k // 32), generator=draw, dtype=torch.uint8)
        module.get_parameter(name).data = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    module.save_pretrained(plain)
    module.config.save_pretrained(stored)
    config = json.loads((stored / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (stored / "config.json").write_text(json.dumps(config))
    save_file(tensors, stored / "model.safetensors", metadata={"format": "pt"})
    for place in (plain, stored):
        byte_tokenizer().save_pretrained(place)
    whole = loading.load(ModelSource("plain", plain, "directory"), device="cpu", dtype="bfloat16")
    source = ModelSource("stored", stored, "directory")
    model = loading.load(source, device="cpu", dtype="bfloat16")
    assert model.spec.weight_bytes == model_spec.spec(source, device="cpu", dtype="bfloat16").weight_bytes
    assert model.spec.weight_bytes < 0.6 * whole.spec.weight_bytes
    ids = torch.arange(40)[None]
    with model.reference() as few, whole.reference() as all_bits, torch.inference_mode():
        whole.module.config._experts_implementation = "eager"
        assert torch.equal(few(ids).logits, all_bits(ids).logits)
    with pytest.raises(UsageError, match="quantised already"):
        loading.load(source, device="cpu", dtype="bfloat16", weights="nf4")
