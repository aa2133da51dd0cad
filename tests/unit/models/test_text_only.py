"""Models for images and text, used for text alone: only the language model is loaded and planned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from benchmarks import small_models
from kvcli.models import load as loading
from kvcli.models import spec as model_spec
from kvcli.models.weights import ModelSource
from tests.e2e.conftest import byte_tokenizer


@pytest.mark.parametrize("held", ["bf16", "nf4"])
@pytest.mark.parametrize(
    "kind", ["qwen3_vl", "qwen3_vl_moe", "qwen2_5_vl", "mistral3", "gemma3", "qwen3_5", "smolvlm", "lfm2_vl"]
)
def test_parts_for_images_take_no_memory(kind: str, held: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading.self_test, "check", lambda *_, **__: None)
    torch.manual_seed(0)
    whole = AutoModelForImageTextToText.from_config(small_models.small_config(kind), dtype=torch.bfloat16).eval()
    whole.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    source = ModelSource(kind, tmp_path, "directory")
    planned = model_spec.spec(source, device="cpu", dtype="bfloat16", stored=held)
    model = loading.load(source, device="cpu", dtype="bfloat16", weights=held)
    assert model.spec.weight_bytes == pytest.approx(planned.weight_bytes, rel=1e-4)
    assert model.spec.weight_bytes < 0.8 * sum(p.nbytes for p in whole.parameters())
    if held == "bf16":
        ids = torch.arange(5, 30)[None]
        with model.reference() as text, torch.inference_mode():
            assert torch.equal(text(ids).logits, whole(ids).logits)


def test_a_missing_tensor_of_the_text_is_still_found(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    whole = AutoModelForImageTextToText.from_config(small_models.small_config("qwen3_vl"), dtype=torch.bfloat16)
    whole.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.weight"))
    save_file({n: t for n, t in tensors.items() if n != name}, file, metadata={"format": "pt"})
    with pytest.raises(loading.ModelError, match="1 tensor missing"):
        loading.load(ModelSource("x", tmp_path, "directory"), device="cpu", dtype="bfloat16")
