"""Every language model type of transformers with four layers of 64 numbers and wide random weights.

Norms, biases and sinks are drawn wide too, so that a missed rotation, norm or factor shows in the logits.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from kvcli.models.auto_class import auto_class

VOCAB, _STD = 256, 0.15
_SIZES: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "out_hidden_size", "lm_hidden_size"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "mlp_dim", "decoder_ffn_dim"), 96),
    **dict.fromkeys(("encoder_ffn_dim", "dense_intermediate_size", "intermediate_size_mlp"), 96),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 48),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "expert_ffn_hidden_size", "ffn_hidden_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers"), 4),
    **dict.fromkeys(("encoder_layers", "depth"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "num_query_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_kv_heads", "num_global_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "attention_head_dim", "kv_channels", "v_head_dim", "qk_nope_head_dim"), 16),
    **dict.fromkeys(("qk_rope_head_dim",), 8),
    **dict.fromkeys(("global_head_dim", "q_lora_rank", "kv_lora_rank"), 32),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "text_vocab_size"), VOCAB),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts", "experts_per_token"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "n_group", "topk_group"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers"), 1),
    **dict.fromkeys(("linear_num_key_heads",), 2),
    **dict.fromkeys(("linear_num_value_heads",), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 16),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_d_state", "ssm_state_size", "mamba_state_dim"), 16),
    **dict.fromkeys(("mamba_d_ssm",), 128),
    **dict.fromkeys(("mamba_n_groups", "n_groups"), 2),
    **dict.fromkeys(("hidden_size_per_layer_input", "laurel_rank"), 8),
    **dict.fromkeys(("image_size",), 32),
    **dict.fromkeys(("patch_size",), 8),
}
_SPECIAL = re.compile(r"(_token_id|_token_index|_token_ids|_id)$")


def small_config(kind: str, window: int = 24, **changes: Any) -> PretrainedConfig:
    """The configuration of a model type with four layers of 64 numbers, and windows of ``window`` tokens."""
    cls = CONFIG_MAPPING[kind]
    return cls(**_shrunk(cls().to_dict(), window, kind) | _OWN.get(kind, {}) | changes)  # type: ignore[no-any-return]


def _shrunk(values: dict[str, Any], window: int, kind: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    layers = 2 if "vision" in kind or "audio" in kind else 4
    for name, value in values.items():
        if isinstance(value, dict) and "model_type" in value:
            text = not any(word in name for word in ("vision", "audio", "image", "vq", "code"))
            inner = value["model_type"] if text else f"vision {value['model_type']}"
            made[name] = {"model_type": value["model_type"], **_shrunk(value, window, inner)}
            made[name] |= _OWN.get(value["model_type"], {})
        elif name in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
            made[name] = _rope(value)
        elif name in ("layer_types", "mlp_layer_types", "layers_block_type") and isinstance(value, list):
            made[name] = _pattern(value, 4)
        elif "window" in name and isinstance(value, int) and not isinstance(value, bool):
            made[name] = window
        elif isinstance(value, bool) or value is None:
            continue
        elif name == "num_hidden_layers" and layers == 2:
            made[name] = 2
        elif name in _SIZES and isinstance(value, int):
            made[name] = _SIZES[name]
        elif name == "max_position_embeddings":
            made[name] = 1024
        elif name == "intermediate_size" and isinstance(value, list):
            made[name] = [96] * 4
        elif _SPECIAL.search(name) and isinstance(value, int) and value >= VOCAB - 1:
            made[name] = VOCAB - 2 - len(made) % 40
        elif _SPECIAL.search(name) and isinstance(value, list):
            made[name] = [VOCAB - 1]
    return made


def _pattern(values: list[Any], count: int) -> list[Any]:
    """``count`` layers with every kind of the list, in its order."""
    kinds = list(dict.fromkeys(values))
    found = values[:count]
    if missing := [k for k in kinds if k not in found]:
        found[-len(missing) :] = missing
    return found


def _rope(value: dict[str, Any]) -> dict[str, Any]:
    made = {k: _rope(v) if isinstance(v, dict) else v for k, v in value.items()}
    if "mrope_section" in made:
        made["mrope_section"] = [4, 2, 2]
    return made


_LINEAR = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
_CONVOLUTION = ["conv", "full_attention", "conv", "full_attention"]
_TURNED = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
_LATENT = {"num_key_value_heads": 4, "num_experts_per_tok": 2}
_MAMBA = {"mamba_n_groups": 2, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 32}
_PROPORTIONAL = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
_OWN: dict[str, dict[str, Any]] = {
    "qwen3_5_text": {"layer_types": _LINEAR, "rope_parameters": _TURNED},
    "qwen3_5_moe_text": {"layer_types": _LINEAR, "rope_parameters": _TURNED},
    "qwen3_next": {"layer_types": _LINEAR},
    "lfm2": {"layer_types": _CONVOLUTION},
    "lfm2_moe": {"layer_types": _CONVOLUTION},
    "granitemoehybrid": {"layer_types": _LINEAR, **_MAMBA},
    "falcon_h1": {"mamba_d_ssm": 128, **_MAMBA},
    "nemotron_h": {"layer_types": _LINEAR, "chunk_size": 32},
    "gemma4_text": {
        "layer_types": _MIXED, "global_head_dim": 32, "num_global_key_value_heads": 1, "head_dim": 16,
        "rope_parameters": _PROPORTIONAL, "attention_k_eq_v": True,
    },
    "gemma3n_text": {
        "layer_types": _MIXED, "num_kv_shared_layers": 1, "intermediate_size": 96, "activation_sparsity_pattern": None,
    },
    "deepseek_v2": {**_LATENT, "head_dim": 8},
    "deepseek_v3": {**_LATENT, "head_dim": 8, "n_group": 1, "topk_group": 1},
    "glm4_moe_lite": _LATENT,
    "mistral4": {
        **_LATENT,
        "head_dim": 24,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 32,
            "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1, "partial_rotary_factor": 1 / 3,
        },
    },
    **{kind: {**_LATENT, "head_dim": 8} for kind in ("minicpm3", "youtu", "axk1")},
    "qwen2_5_vl_text": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}},
    "smollm3": {"no_rope_layers": [1, 0, 1, 1]},
    "mistral": {"sliding_window": 24},
}  # fmt: skip


def build(kind: str, window: int = 24, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A small float32 model of a type, with wide random weights."""
    config = small_config(kind, window, **changes)
    torch.manual_seed(seed)
    module = auto_class(config).from_config(config, dtype=torch.float32, trust_remote_code=False)
    return widen(module, seed)


def widen(module: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Draw all matrices anew and disturb everything else: norms, biases, sinks, decays."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * _STD
            parameter.copy_(noise if parameter.dim() > 1 else parameter.nan_to_num() + noise)
    return module.eval()
