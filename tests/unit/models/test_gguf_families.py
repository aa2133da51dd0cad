"""GGUF files of many architectures give the logits of the model that they were written from."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig

from benchmarks import small_models
from kvcli.errors import ModelError
from kvcli.models import gguf_config, gguf_conversion
from kvcli.models.auto_class import auto_class
from kvcli.models.gguf import content_key
from kvcli.models.gguf_header import read_header
from kvcli.models.gguf_tensors import TensorReader

from . import gguf_files

_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 64}
_EXPERTS = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 48}
_LATENT = {**_YARN, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "llama", {"rope_parameters": _YARN}),
    ("mistral", "llama", {"sliding_window": None}),
    ("mixtral", "llama", {"sliding_window": None}),
    ("ministral3", "mistral3", {}),
    ("qwen2", "qwen2", {}),
    ("qwen3", "qwen3", {}),
    ("qwen3_moe", "qwen3moe", {"norm_topk_prob": True}),
    ("qwen3_next", "qwen3next", {}),
    ("qwen3_5_text", "qwen35", {}),
    ("qwen3_5_moe_text", "qwen35moe", {}),
    ("gemma3_text", "gemma3", {"query_pre_attn_scalar": 16}),
    ("gemma4_text", "gemma4", {}),
    ("gemma4_text", "gemma4", {**_EXPERTS, "hidden_size_per_layer_input": 0}),
    ("gemma4_text", "gemma4", {"num_kv_shared_layers": 2, "use_double_wide_mlp": True, "attention_k_eq_v": False}),
    ("gpt_oss", "gpt-oss", {}),
    ("granite", "granite", {"attention_multiplier": 0.2, "embedding_multiplier": 3.0, "logits_scaling": 2.0}),
    ("granitemoehybrid", "granitehybrid", {"residual_multiplier": 0.5}),
    ("granitemoehybrid", "granitehybrid", {"num_local_experts": 0, "num_experts_per_tok": 0}),
    ("smollm3", "smollm3", {"no_rope_layers": [1, 1, 1, 0]}),
    ("lfm2", "lfm2", {"block_auto_adjust_ff_dim": False}),
    ("lfm2_moe", "lfm2moe", {}),
    ("nemotron_h", "nemotron_h_moe", {"layers_block_type": ["mamba", "moe", "attention", "moe"]}),
    ("nemotron_h", "nemotron_h", {"layers_block_type": ["mamba", "mlp", "attention", "mlp"]}),
    ("glm4_moe_lite", "deepseek2", {}),
    ("deepseek_v2", "deepseek2", {}),
    ("deepseek_v3", "deepseek2", {"rope_parameters": _LATENT}),
    ("deepseek_v3", "deepseek2", {"first_k_dense_replace": 4}),
    ("mistral4", "mistral4", {}),
    ("mistral4", "deepseek2", {}),
    ("glm4_moe", "glm4moe", {"use_qk_norm": True}),
    ("olmo3", "olmo2", {}),
    ("exaone4", "exaone4", {}),
]


def small(kind: str, **changes: Any) -> Any:
    """A model with wide random weights, all of them numbers of bfloat16."""
    torch.manual_seed(0)
    config = small_models.small_config(kind, **changes)
    module = auto_class(config).from_config(config, dtype=torch.float32)
    learned = ("correction_bias", "expert_bias", "layer_scalar")
    with torch.no_grad():
        for tensor in [*module.parameters(), *(b for n, b in module.named_buffers() if n.endswith(learned))]:
            tensor.copy_((tensor + torch.randn(tensor.shape) * 0.15).bfloat16().float())
    return module.eval()


def converted(file: Path, target: Path) -> Any:
    """The model in a GGUF file, read as kvcli's child process does it."""
    header = read_header(file)
    settings = gguf_config.config(header)
    assert settings is not None
    target.mkdir()
    gguf_conversion._by_tensor(settings, file, target, header)
    own = auto_class(AutoConfig.from_pretrained(target))
    module, found = own.from_pretrained(target, dtype=torch.float32, output_loading_info=True)
    assert not any(found.values())
    return module.eval()


def logits(module: Any) -> torch.Tensor:
    ids = torch.randint(3, 250, (1, 60), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found: torch.Tensor = module(ids).logits
    return found


@pytest.mark.parametrize(("kind", "architecture", "changes"), CASES)
def test_logits_are_those_of_the_model(tmp_path: Path, kind: str, architecture: str, changes: dict[str, Any]) -> None:
    module = small(kind, **changes)
    expected = logits(module)
    file = gguf_files.write(tmp_path / "m.gguf", module, architecture)
    torch.testing.assert_close(logits(converted(file, tmp_path / "out")), expected, rtol=1e-4, atol=1e-4)


def test_a_copy_that_an_older_conversion_made_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = gguf_files.write(tmp_path / "m.gguf", small("mistral4"), "deepseek2")
    other = gguf_files.write(tmp_path / "o.gguf", small("llama"), "llama")
    now, same = content_key(changed), content_key(other)
    monkeypatch.setattr("kvcli.models.gguf.REVISIONS", {})
    assert now != content_key(changed)
    assert same == content_key(other)


@pytest.mark.parametrize("opened", [0, 2])
def test_a_split_model_is_read_whole_from_any_part(tmp_path: Path, opened: int) -> None:
    module = small("llama")
    expected = logits(module)
    first = gguf_files.write(tmp_path / "m.gguf", module, "llama", parts=3)
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert parts[0] == first
    header = read_header(parts[opened])
    assert (header.files, header.tensors) == (tuple(parts), 39)
    assert content_key(parts[opened]) == content_key(first)
    torch.testing.assert_close(logits(converted(parts[opened], tmp_path / "out")), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_missing_part_is_named(tmp_path: Path, lost: int) -> None:
    gguf_files.write(tmp_path / "m.gguf", small("llama"), "llama", parts=3)
    parts = sorted(tmp_path.glob("m-*.gguf"))
    parts[lost].unlink()
    for part in parts[:lost] + parts[lost + 1 :]:
        with pytest.raises(ModelError, match=parts[lost].name):
            read_header(part)
    other = parts[lost - 1].rename(tmp_path / "renamed.gguf")
    with pytest.raises(ModelError, match=r"of 3 of a model that was split"):
        read_header(other)


def test_a_part_of_another_model_is_refused(tmp_path: Path) -> None:
    gguf_files.write(tmp_path / "m.gguf", small("llama"), "llama", parts=3)
    parts = sorted(tmp_path.glob("m-*.gguf"))
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(ModelError, match="is not part 2 of 3"):
        read_header(parts[0])


@pytest.mark.parametrize(
    ("kind", "architecture", "drop", "name"),
    [
        ("qwen3_5_text", "qwen35", "blk.0.ssm_a", "A_log"),
        ("gpt_oss", "gpt-oss", "blk.1.ffn_up_exps.weight", "experts.gate_up_proj"),
        ("deepseek_v3", "deepseek2", "blk.2.attn_v_b.weight", "kv_b_proj"),
    ],
)
def test_a_missing_tensor_is_named_as_the_model_calls_it(
    tmp_path: Path, kind: str, architecture: str, drop: str, name: str
) -> None:
    file = gguf_files.write(tmp_path / "m.gguf", small(kind), architecture, drop=drop)
    with pytest.raises(ModelError, match=rf"missing: model\.layers\.\d\..*{name}"):
        converted(file, tmp_path / "out")


def test_a_tensor_that_the_model_has_not_is_refused(tmp_path: Path) -> None:
    file = gguf_files.write(tmp_path / "m.gguf", small("llama"), "llama", more="blk.0.attn_q_norm.weight")
    with pytest.raises(ModelError, match=r"not in this architecture: blk\.0\.attn_q_norm\.weight"):
        converted(file, tmp_path / "out")


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0"])
def test_blocks_are_dequantised_as_the_library_does(tmp_path: Path, kind: str) -> None:
    known = gguf.GGMLQuantizationType[kind]
    values = np.random.default_rng(0).normal(size=(3, 5, 256)).astype(np.float32)
    packed = gguf.quantize(values, known)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("t.weight", packed, raw_dtype=known)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = TensorReader(read_header(tmp_path / "x.gguf")).read("t.weight", exact=True)
    assert np.array_equal(read.numpy(), gguf.dequantize(packed, known))


def test_every_block_format_that_the_library_reads_is_read(tmp_path: Path) -> None:
    formats = [k for k in gguf.quants._type_traits if k in gguf.GGML_QUANT_SIZES]
    assert {"Q4_K", "Q6_K", "IQ2_XXS", "IQ4_NL", "MXFP4"} <= {k.name for k in formats}
    raw = np.random.default_rng(0).integers(0, 60, 1 << 12, dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    packed = {k: raw[: 2 * gguf.GGML_QUANT_SIZES[k][1]].reshape(2, -1) for k in formats}
    for k, data in packed.items():
        writer.add_tensor(k.name, data, raw_dtype=k)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reader = TensorReader(read_header(tmp_path / "x.gguf"))
    for k, data in packed.items():
        expected = gguf.dequantize(data, k).astype(np.float32)
        assert np.array_equal(reader.read(k.name, exact=True).numpy(), expected, equal_nan=True), k.name
