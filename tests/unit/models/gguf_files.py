"""GGUF files of tiny transformers models, as llama.cpp's converter writes them (its conversion/*.py), to be read back.

Written the other way round than kvcli reads: from the model's names and values to the file's.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

_LLAMA_LIKE = {"llama", "mistral3", "smollm3", "granite", "granitehybrid", "nemotron_h", "nemotron_h_moe"}


def write(path: Path, module: Any, architecture: str, *, parts: int = 1, drop: str = "", more: str = "") -> Path:
    """Write a model as a GGUF file, or as ``parts`` files; returns the first. ``drop`` is left out, ``more`` added."""
    module = module.float()
    config = module.config.get_text_config()
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata(config, architecture).items():
        _add(writer, key if key.startswith(("tokenizer.", "general.")) else f"{architecture}.{key}", value)
    _vocabulary(writer, config)
    tensors = [t for t in _tensors(module, config, architecture) if t[0] != drop]
    if more:
        tensors.append((more, torch.zeros(4)))
    if parts > 1:
        return _split(path, writer, tensors, parts, architecture)
    for name, tensor in tensors:
        writer.add_tensor(name, np.ascontiguousarray(tensor.detach().numpy(), np.float32))
    _finish(writer)
    return path


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _split(path: Path, first: gguf.GGUFWriter, tensors: list[Any], parts: int, architecture: str) -> Path:
    paths = [path.with_name(f"{path.stem}-{i + 1:05}-of-{parts:05}.gguf") for i in range(parts)]
    for i, part in enumerate(paths):
        writer = gguf.GGUFWriter(part, architecture)
        if i == 0:
            writer.kv_data = first.kv_data
        writer.add_uint16("split.no", i)
        writer.add_uint16("split.count", parts)
        writer.add_int32("split.tensors.count", len(tensors))
        for name, tensor in tensors[i::parts]:
            writer.add_tensor(name, np.ascontiguousarray(tensor.detach().numpy(), np.float32))
        _finish(writer)
    return paths[0]


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        writer.add_string(key, value)


def _vocabulary(writer: gguf.GGUFWriter, config: Any) -> None:
    alphabet = sorted(ByteLevel.alphabet())
    tokens = ["ĠĠ", *alphabet, *(f"tok{i}" for i in range(config.vocab_size))][: config.vocab_size]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_eos_token_id(2)


def metadata(config: Any, architecture: str) -> dict[str, Any]:
    """What the converter says of a configuration."""
    get = config.to_dict().get
    rope = get("rope_parameters") or {}
    full = rope.get("full_attention", rope)
    kinds, kv = get("layer_types"), get("num_key_value_heads")
    layers, heads = get("num_hidden_layers") or config.num_hidden_layers, config.num_attention_heads
    head = get("head_dim") or config.hidden_size // heads
    found: dict[str, Any] = {
        "block_count": layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": get("intermediate_size"),
        "attention.head_count": heads,
        "attention.head_count_kv": kv,
        "attention.key_length": head,
        "attention.layer_norm_rms_epsilon": get("rms_norm_eps") or get("norm_eps") or get("layer_norm_epsilon"),
        "rope.freq_base": full.get("rope_theta"),
        "expert_count": get("num_experts") or get("num_local_experts") or get("n_routed_experts"),
        "expert_used_count": get("num_experts_per_tok") or get("top_k_experts"),
        "expert_feed_forward_length": get("moe_intermediate_size"),
        "expert_shared_count": get("n_shared_experts"),
        "expert_weights_scale": get("routed_scaling_factor"),
        "expert_group_count": get("n_group"),
        "expert_group_used_count": get("topk_group"),
        "leading_dense_block_count": get("first_k_dense_replace") or get("num_dense_layers"),
        "attention.sliding_window": get("sliding_window"),
    }
    if get("norm_topk_prob"):
        found["expert_weights_norm"] = True
    if get("linear_num_key_heads"):
        found |= {
            "ssm.conv_kernel": config.linear_conv_kernel_dim,
            "ssm.state_size": config.linear_key_head_dim,
            "ssm.group_count": config.linear_num_key_heads,
            "ssm.time_step_rank": config.linear_num_value_heads,
            "ssm.inner_size": config.linear_value_head_dim * config.linear_num_value_heads,
            "full_attention_interval": kinds.index("full_attention") + 1,
            "expert_shared_feed_forward_length": get("shared_expert_intermediate_size"),
            "rope.dimension_count": int(head * rope["partial_rotary_factor"]),
        }
        if "mrope_section" in rope:
            found["rope.dimension_sections"] = [*rope["mrope_section"], 0]
    if full.get("rope_type") == "yarn":
        found |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(full["factor"]),
            "rope.scaling.original_context_length": full["original_max_position_embeddings"],
        }
    if architecture == "mistral3" and "llama_4_scaling_beta" in rope:
        found["rope.scaling.yarn_log_multiplier"] = rope["mscale_all_dim"]
        found["attention.temperature_scale"] = rope["llama_4_scaling_beta"]
    if architecture in ("olmo2", "exaone4", "gemma4") and kinds:
        found["attention.sliding_window_pattern"] = [kind == "sliding_attention" for kind in kinds]
    if architecture == "gemma3":
        found["attention.sliding_window_pattern"] = [kind == "sliding_attention" for kind in kinds]
    if architecture.startswith("granite"):
        found |= {
            "attention.scale": config.attention_multiplier,
            "embedding_scale": config.embedding_multiplier,
            "residual_scale": config.residual_multiplier,
            "logit_scale": config.logits_scaling,
        }
    if architecture == "granitehybrid":
        found |= {
            "attention.head_count_kv": [kv if kind == "full_attention" else 0 for kind in kinds],
            "expert_shared_feed_forward_length": config.shared_intermediate_size,
            "rope.scaling.finetuned": False,
            **_mamba(config.mamba_n_heads, config.mamba_d_head, config.mamba_n_groups, config.mamba_d_state, 4),
        }
    if architecture.startswith("nemotron_h"):
        kinds = config.layers_block_type
        wide = config.moe_intermediate_size if architecture.endswith("moe") else config.intermediate_size
        found |= {
            "attention.head_count_kv": [kv if kind == "full_attention" else 0 for kind in kinds],
            "feed_forward_length": [wide if kind in ("moe", "mlp") else 0 for kind in kinds],
            "expert_shared_feed_forward_length": config.moe_shared_expert_intermediate_size,
            "rope.freq_base": None,
            **_mamba(config.mamba_num_heads, config.mamba_head_dim, config.n_groups, config.ssm_state_size, 4),
        }
        if not architecture.endswith("moe"):
            found |= {"expert_count": None, "expert_used_count": None}
    if architecture.startswith("lfm2"):
        found["attention.head_count_kv"] = [0 if kind == "conv" else kv for kind in kinds]
        found["shortconv.l_cache"] = config.conv_L_cache
    if architecture == "gpt-oss":
        found["expert_feed_forward_length"] = config.intermediate_size
    if architecture in ("deepseek2", "mistral4"):
        found |= {
            "attention.head_count_kv": 1,
            "attention.key_length": config.kv_lora_rank + config.qk_rope_head_dim,
            "attention.value_length": config.kv_lora_rank,
            "attention.key_length_mla": config.qk_nope_head_dim + config.qk_rope_head_dim,
            "attention.value_length_mla": config.v_head_dim,
            "attention.q_lora_rank": config.q_lora_rank,
            "attention.kv_lora_rank": config.kv_lora_rank,
            "rope.dimension_count": config.qk_rope_head_dim,
        }
        if "mscale_all_dim" in rope:
            found["rope.scaling.yarn_log_multiplier"] = 0.1 * rope["mscale_all_dim"]
        if get("mlp_layer_types"):
            found["leading_dense_block_count"] = config.mlp_layer_types.count("dense")
            found["tokenizer.ggml.pre"] = "glm4"
    if get("model_type") == "mistral4" and architecture == "deepseek2":  # as Mistral's own format is converted
        found["attention.temperature_scale"] = rope["llama_4_scaling_beta"]
        found["attention.temperature_length"] = rope["original_max_position_embeddings"]
    if architecture == "deepseek2" and get("first_k_dense_replace") == layers:
        found = {key: value for key, value in found.items() if not key.startswith(("expert_", "leading_"))}
    if architecture == "glm4moe":
        found["rope.dimension_count"] = int(head * rope["partial_rotary_factor"])
    if architecture == "gemma4":
        own = get("per_layer_config") or {}
        wide = next((o["head_dim"] for o in own.values()), head)
        few = next((o.get("num_key_value_heads", kv) for o in own.values()), kv)
        narrow, shared = get("intermediate_size"), layers - config.num_kv_shared_layers
        if config.use_double_wide_mlp:
            found["feed_forward_length"] = [narrow if i < shared else 2 * narrow for i in range(layers)]
        found |= {
            "attention.key_length": wide,
            "attention.key_length_swa": head,
            "attention.head_count_kv": [kv if kind == "sliding_attention" else few for kind in kinds],
            "attention.shared_kv_layers": config.num_kv_shared_layers,
            "embedding_length_per_layer_input": config.hidden_size_per_layer_input,
            "rope.dimension_count": wide,
            "rope.freq_base_swa": rope["sliding_attention"]["rope_theta"],
        }
    return {key: value for key, value in found.items() if value is not None}


def _mamba(heads: int, dim: int, groups: int, states: int, kernel: int) -> dict[str, int]:
    return {
        "ssm.conv_kernel": kernel,
        "ssm.state_size": states,
        "ssm.group_count": groups,
        "ssm.inner_size": heads * dim,
        "ssm.time_step_rank": heads,
    }


def _tensors(module: Any, config: Any, architecture: str) -> list[tuple[str, Tensor]]:
    known = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(known[architecture], config.num_hidden_layers)
    made, seen = list[tuple[str, Tensor]](), set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) in seen:  # tied
            continue
        seen.add(id(tensor))
        for original, values in _changed(name, tensor.detach().float(), config, architecture):
            if original.startswith(("blk.", "output", "token")):
                made.append((original, values))
                continue
            found = names.get_name(original, try_suffixes=(".weight", ".bias"))
            assert found is not None, original
            made.append((found, values))
    if architecture == "gemma4":
        full = config.rope_parameters["full_attention"]
        values = config.to_dict()
        dim = next((o["head_dim"] for o in (values.get("per_layer_config") or {}).values()), values["head_dim"])
        turned = int(dim * full["partial_rotary_factor"] / 2)
        made.append(("rope_freqs.weight", torch.tensor([1.0] * turned + [1e30] * (dim // 2 - turned))))
    return made


def _changed(name: str, t: Tensor, config: Any, architecture: str) -> list[tuple[str, Tensor]]:
    """A tensor as the converter's modify_tensors gives it: original names, or the file's own."""
    block = f"blk.{found[1]}." if (found := re.match(r"model\.layers\.(\d+)\.", name)) else ""
    if architecture in _LLAMA_LIKE and (which := re.search(r"\.([qk])_proj\.", name)):
        heads = config.num_attention_heads if which[1] == "q" else config.num_key_value_heads
        t = t.reshape(heads, 2, t.shape[0] // heads // 2, *t.shape[1:]).swapaxes(1, 2).reshape(t.shape)
    if name.endswith("A_log"):
        t = -torch.exp(t)
    if architecture in ("qwen35", "qwen35moe") and ".linear_attn." in name:
        t = _v_heads_tiled(name, t, config)
    if "conv1d.weight" in name or "conv.conv.weight" in name:
        t = t.squeeze(1)
    shifted = architecture in ("qwen35", "qwen35moe", "qwen3next", "gemma3")
    if shifted and name.endswith("norm.weight") and "linear_attn.norm" not in name:
        t = t + 1
    if architecture in ("granitehybrid", "nemotron_h", "nemotron_h_moe"):
        if name.endswith((".A_log", ".D")):
            t = t.reshape(-1, 1)
        if name.endswith((".mamba.norm.weight", ".mixer.norm.weight")):
            t = t.reshape(getattr(config, "mamba_n_groups", None) or config.n_groups, -1)
    if name.endswith("in_proj_qkvz.weight"):
        keys, dim, values = config.linear_num_key_heads, config.linear_key_head_dim, config.linear_value_head_dim
        ratio = config.linear_num_value_heads // keys
        by_head = t.T.reshape(-1, keys, 2 * dim + 2 * ratio * values)
        split = torch.split(by_head, [dim, dim, ratio * values, ratio * values], dim=-1)
        q, k, v, z = (part.reshape(t.shape[1], -1) for part in split)
        return [(f"{block}attn_qkv.weight", torch.cat([q, k, v], -1).T), (f"{block}attn_gate.weight", z.T)]
    if name.endswith("kv_b_proj.weight"):
        kv = t.view(config.num_attention_heads, config.v_head_dim + config.qk_nope_head_dim, t.shape[-1])
        k, v = torch.split(kv, [config.qk_nope_head_dim, config.v_head_dim], dim=1)
        return [(f"{block}attn_k_b.weight", k.transpose(1, 2)), (f"{block}attn_v_b.weight", v)]
    if "shared_mlp" in name:
        kind = "_shexp" if config.num_local_experts else ""
        if "input_linear" in name:
            gate, up = t.chunk(2)
            return [(f"{block}ffn_gate{kind}.weight", gate), (f"{block}ffn_up{kind}.weight", up)]
        return [(f"{block}ffn_down{kind}.weight", t)]
    if ".experts." in name:
        return _experts(name, t, block, architecture)
    if name.endswith("router.scale"):
        return [(f"{block}ffn_gate_inp.scale", t)]
    if name.endswith("per_expert_scale"):
        return [(f"{block}ffn_down_exps.scale", t)]
    return [(_original(name, architecture), t)]


def _experts(name: str, t: Tensor, block: str, architecture: str) -> list[tuple[str, Tensor]]:
    end = ".bias" if name.endswith("_bias") else ".weight"
    if "gate_up_proj" not in name:
        kind = "down" if "down_proj" in name else "up"
        turned = t.transpose(-1, -2) if architecture == "gpt-oss" and end == ".weight" else t
        return [(f"{block}ffn_{kind}_exps{end}", turned)]
    if architecture == "gpt-oss":
        gate, up = t[..., ::2], t[..., 1::2]
        if end == ".weight":
            gate, up = gate.transpose(-1, -2), up.transpose(-1, -2)
    else:
        gate, up = t.chunk(2, dim=1)
    return [(f"{block}ffn_gate_exps{end}", gate), (f"{block}ffn_up_exps{end}", up)]


def _v_heads_tiled(name: str, t: Tensor, config: Any) -> Tensor:
    """Value heads of one key head after the other become one of each key head after the other."""
    keys, values, dim = config.linear_num_key_heads, config.linear_num_value_heads, config.linear_value_head_dim

    def tile(x: Tensor, at: int, size: int) -> Tensor:
        shape = list(x.shape)
        parts = x.reshape(*shape[:at], keys, values // keys, size, *shape[at + 1 :])
        return parts.transpose(at, at + 1).reshape(shape)

    if name.endswith("norm.weight"):
        return t
    if name.endswith("out_proj.weight"):
        return tile(t, 1, dim)
    if name.endswith(("A_log", "dt_bias", "in_proj_a.weight", "in_proj_b.weight")):
        return tile(t, 0, 1)
    if name.endswith("in_proj_z.weight"):
        return tile(t, 0, dim)
    head = 2 * keys * config.linear_key_head_dim
    return torch.cat([t[:head], tile(t[head:], 0, dim)])


def _original(name: str, architecture: str) -> str:
    """The name in published checkpoints, which the package gguf knows."""
    if architecture.startswith("nemotron_h"):
        name = re.sub(r"^model\.layers\.(\d+)\.(mixer|norm)", r"backbone.layers.\1.\2", name)
        name = name.replace("dt_bias", "dt.bias" if architecture.endswith("moe") else "dt_proj.bias")
    name = name.replace(".dt_bias", ".dt_proj.bias").replace("e_score_correction_bias", "e_score_correction.bias")
    name = name.replace("block_sparse_moe.router.weight", "block_sparse_moe.router.layer.weight")
    name = name.replace(".expert_bias", ".expert_bias.bias").replace("layer_scalar", "layer_scalar.weight")
    return f"{name}.weight" if name.endswith("sinks") else name
