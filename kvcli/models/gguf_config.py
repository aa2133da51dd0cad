"""A GGUF file's metadata as the configuration of a transformers model.

Keys are llama.cpp's (its ``conversion/*.py`` writes them). What a file does not say is what all published models of the
architecture have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvcli.errors import ModelError
from kvcli.models import gguf_rope
from kvcli.models.gguf_header import GgufHeader, Keys

Config = dict[str, Any]

_ROPE_TENSORS = {"factors": "rope_freqs", "short": "rope_factors_short", "long": "rope_factors_long"}


def config(header: GgufHeader) -> Config | None:
    """The configuration that a file describes; ``None`` if its architecture is not known here.

    Raises:
        ModelError: the file does not say something that is needed.
    """
    known = _ARCHITECTURES.get(header.architecture)
    if known is None:
        return None
    keys = Keys(header)
    heads, hidden = keys.most("attention.head_count"), int(keys.need("embedding_length"))
    ids = {
        name: header.metadata.get(f"tokenizer.ggml.{name}_token_id")
        for name in ("bos", "eos", "eot", "padding", "unknown")
    }
    ends = [i for i in dict.fromkeys((ids["eos"], ids["eot"])) if i is not None]
    found: Config = {
        "vocab_size": header.shapes["token_embd.weight"].shape[-1] if "token_embd.weight" in header.shapes else 1,
        "hidden_size": hidden,
        "num_hidden_layers": keys.layers,
        "num_attention_heads": heads,
        "max_position_embeddings": int(keys.need("context_length")),
        "rms_norm_eps": keys.get("attention.layer_norm_rms_epsilon", 1e-5),
        "tie_word_embeddings": "output.weight" not in header.shapes,
        "bos_token_id": ids["bos"],
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": ids["padding"],
        "attention_bias": keys.has("attn_q.bias"),
        "head_dim": int(keys.get("attention.key_length") or hidden // heads),
        "num_key_value_heads": keys.most("attention.head_count_kv") if keys.get("attention.head_count_kv") else heads,
    }
    more = {"_model_name_or_path": header.metadata.get("general.name"), "unk_token_id": ids["unknown"]}
    found |= {key: value for key, value in more.items() if value is not None}
    if keys.get("feed_forward_length") is not None:
        found["intermediate_size"] = keys.most("feed_forward_length")
    if keys.get("rope.freq_base") is not None or known[0] not in _NO_ROPE:
        found["rope_parameters"] = _rope(keys, found)
    return {"model_type": known[0], **found, **known[1](keys, found)}


def _rope(keys: Keys, found: Config) -> Config:
    from kvcli.models.gguf_tensors import numbers_of

    header, tensors = keys.header, {}
    for key, name in _ROPE_TENSORS.items():
        if values := numbers_of(keys.header, f"{name}.weight"):
            tensors[key] = values
    if header.architecture == "gemma4":
        tensors = {}  # they say which numbers of a head do not rotate
    theta, window = float(keys.get("rope.freq_base", 10_000.0)), found["max_position_embeddings"]
    rope = gguf_rope.parameters(header.metadata, header.architecture, theta=theta, window=window, **tensors)
    rotated = keys.get("rope.dimension_count")
    if rotated and rotated != found["head_dim"] and header.architecture in _PARTIAL:
        rope["partial_rotary_factor"] = rotated / found["head_dim"]
    elif rotated and rotated != found["head_dim"] and header.architecture not in ("deepseek2", "gemma4", "mistral4"):
        raise ModelError(f"it rotates {rotated} of {found['head_dim']} numbers of a head, and its architecture all")
    return rope


def _by_kind(keys: Keys, found: Config, sliding: Config | None = None) -> Config:
    """RoPE of layers with windows, which is not scaled, and of the others."""
    theta = float(keys.get("rope.freq_base_swa", found["rope_parameters"]["rope_theta"]))
    own = sliding or {"rope_type": "default", "rope_theta": theta}
    return {"full_attention": found["rope_parameters"], "sliding_attention": own}


def _llama(keys: Keys, _found: Config) -> Config:
    if experts := keys.get("expert_count"):
        if keys.has("ffn_gate.0.weight"):
            raise ModelError("it is a Mixtral of an old converter, with a tensor for each expert; fetch a newer file")
        used = {"num_local_experts": experts, "num_experts_per_tok": keys.need("expert_used_count")}
        return {"model_type": "mixtral", "sliding_window": None, **used}
    return {"mlp_bias": keys.has("ffn_up.bias")}


def _mistral3(keys: Keys, _found: Config) -> Config:
    if keys.get("expert_count"):
        raise ModelError("it is a mixture of experts, which is not read from a GGUF")
    beta = keys.get("attention.temperature_scale")
    if beta is None:
        return {"model_type": "mistral", "sliding_window": keys.get("attention.sliding_window")}
    return {"rope_parameters": {**_found["rope_parameters"], "llama_4_scaling_beta": beta}}


def _windowed(keys: Keys) -> Config:
    return {"sliding_window": keys.get("attention.sliding_window"), "layer_types": keys.kinds()}


def _olmo(keys: Keys, found: Config) -> Config:
    if keys.get("attention.sliding_window") is None:
        return {"model_type": "olmo2"}
    return {**_windowed(keys), "rope_parameters": _by_kind(keys, found)}


def _exaone4(keys: Keys, _found: Config) -> Config:
    if keys.get("attention.sliding_window") is None:
        return {"sliding_window": None, "layer_types": ["full_attention"] * keys.layers}
    return {**_windowed(keys), "sliding_window_pattern": "LLLG"}


def _gemma3(keys: Keys, found: Config) -> Config:
    scalar = found["hidden_size"] // found["num_attention_heads"] if keys.layers == 62 else found["head_dim"]  # 27B
    local = {"rope_type": "default", "rope_theta": float(keys.get("rope.freq_base_swa", 10_000.0))}
    return {
        "sliding_window": keys.get("attention.sliding_window", 512),
        "layer_types": keys.kinds(every=6),
        "query_pre_attn_scalar": scalar,
        "rope_parameters": _by_kind(keys, found, local),
        "final_logit_softcapping": keys.get("final_logit_softcapping"),
    }


def _gemma4(keys: Keys, found: Config) -> Config:
    from kvcli.models.gguf_tensors import numbers_of

    kinds = keys.kinds()
    kv = keys.need("attention.head_count_kv")
    by_layer = kv if isinstance(kv, list) else [kv] * keys.layers
    full = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
    ff = keys.need("feed_forward_length")
    wide = isinstance(ff, list) and len(set(ff)) > 1
    experts, dim = keys.get("expert_count"), int(keys.need("attention.key_length"))
    local = {"rope_type": "default", "rope_theta": float(keys.get("rope.freq_base_swa", 10_000.0))}
    theta = found["rope_parameters"]["rope_theta"]
    rotated = sum(f < 1e9 for f in numbers_of(keys.header, "rope_freqs.weight")) / max(1, dim // 2)
    return {
        "layer_types": kinds,
        "sliding_window": keys.get("attention.sliding_window"),
        "head_dim": int(keys.get("attention.key_length_swa", dim)),
        "global_head_dim": dim,
        "num_key_value_heads": next((n for n, k in zip(by_layer, kinds, strict=False) if k[0] == "s"), by_layer[0]),
        "num_global_key_value_heads": by_layer[full[0]] if full else None,
        "attention_k_eq_v": any(f"blk.{i}.attn_v.weight" not in keys.header.shapes for i in full[:1]),
        "num_kv_shared_layers": keys.get("attention.shared_kv_layers", 0),
        "hidden_size_per_layer_input": keys.get("embedding_length_per_layer_input", 0),
        "vocab_size_per_layer_input": found["vocab_size"],
        "intermediate_size": min(ff) if isinstance(ff, list) else ff,
        "use_double_wide_mlp": wide,
        "enable_moe_block": bool(experts),
        "num_experts": experts or None,
        "top_k_experts": keys.get("expert_used_count") if experts else None,
        "moe_intermediate_size": keys.get("expert_feed_forward_length") if experts else None,
        "final_logit_softcapping": keys.get("final_logit_softcapping"),
        "rope_parameters": {
            "sliding_attention": local,
            "full_attention": {"rope_type": "proportional", "rope_theta": theta, "partial_rotary_factor": rotated},
        },
    }


def _gpt_oss(keys: Keys, found: Config) -> Config:
    rope = {**found["rope_parameters"], "truncate": False} if "factor" in found["rope_parameters"] else {}
    return {
        "num_local_experts": keys.need("expert_count"),
        "num_experts_per_tok": keys.need("expert_used_count"),
        "intermediate_size": keys.need("expert_feed_forward_length"),
        "sliding_window": keys.need("attention.sliding_window"),
        "layer_types": [("full" if i % 2 else "sliding") + "_attention" for i in range(keys.layers)],
        **({"rope_parameters": rope} if rope else {}),
    }


def _granite(keys: Keys, _found: Config) -> Config:
    names = {
        "attention_multiplier": "attention.scale",
        "embedding_multiplier": "embedding_scale",
        "residual_multiplier": "residual_scale",
        "logits_scaling": "logit_scale",
    }
    return {"mlp_bias": keys.has("ffn_up.bias")} | {ours: keys.get(theirs, 1.0) for ours, theirs in names.items()}


def _granite_hybrid(keys: Keys, found: Config) -> Config:
    kv, wide = keys.need("attention.head_count_kv"), int(keys.need("ssm.inner_size"))
    by_layer = kv if isinstance(kv, list) else [kv] * keys.layers
    rope = any(n == 0 for n in by_layer) is False or bool(keys.get("rope.scaling.finetuned"))
    shared = keys.get("expert_shared_feed_forward_length") or keys.most("feed_forward_length")
    heads = int(keys.need("ssm.time_step_rank"))
    return {
        **_granite(keys, found),
        "layer_types": ["attention" if n else "mamba" for n in by_layer],
        "position_embedding_type": "rope" if rope else None,
        "num_local_experts": keys.get("expert_count", 0),
        "num_experts_per_tok": keys.get("expert_used_count", 0),
        "shared_intermediate_size": shared,
        "mamba_n_heads": heads,
        "mamba_d_head": wide // heads,
        "mamba_n_groups": keys.need("ssm.group_count"),
        "mamba_d_state": keys.need("ssm.state_size"),
        "mamba_d_conv": keys.need("ssm.conv_kernel"),
        "mamba_expand": wide // found["hidden_size"],
        "mamba_conv_bias": keys.has("ssm_conv1d.bias"),
        "mamba_proj_bias": keys.has("ssm_in.bias"),
    }


def _nemotron_h(keys: Keys, _found: Config) -> Config:
    kv, ff = keys.need("attention.head_count_kv"), keys.need("feed_forward_length")
    kv, ff = (list(v) if isinstance(v, list) else [v] * keys.layers for v in (kv, ff))
    moe = bool(keys.get("expert_count"))
    heads = int(keys.need("ssm.time_step_rank"))
    return {
        "layers_block_type": [
            "attention" if kv[i] else ("moe" if moe else "mlp") if ff[i] else "mamba" for i in range(keys.layers)
        ],
        "intermediate_size": max(ff) or 1,
        "layer_norm_epsilon": keys.get("attention.layer_norm_rms_epsilon", 1e-5),
        "mamba_num_heads": heads,
        "mamba_head_dim": int(keys.need("ssm.inner_size")) // heads,
        "n_groups": keys.need("ssm.group_count"),
        "ssm_state_size": keys.need("ssm.state_size"),
        "conv_kernel": keys.need("ssm.conv_kernel"),
        "use_conv_bias": keys.has("ssm_conv1d.bias"),
        "use_bias": keys.has("ssm_out.bias"),
        "mlp_bias": keys.has("ffn_up.bias"),
        "num_nextn_predict_layers": 0,
        "moe_latent_size": keys.get("moe_latent_size"),
        "moe_shared_expert_intermediate_size": keys.get("expert_shared_feed_forward_length", 1),
        **(_routed(keys) if moe else {}),
    }


def _routed(keys: Keys) -> Config:
    """Experts as DeepSeek and its successors name them."""
    return {
        "n_routed_experts": keys.need("expert_count"),
        "num_experts_per_tok": keys.need("expert_used_count"),
        "n_shared_experts": keys.get("expert_shared_count", 0),
        "moe_intermediate_size": keys.need("expert_feed_forward_length"),
        "routed_scaling_factor": keys.get("expert_weights_scale", 1.0),
        "norm_topk_prob": bool(keys.get("expert_weights_norm", False)),
        "n_group": keys.get("expert_group_count", 1),
        "topk_group": keys.get("expert_group_used_count", 1),
    }


def _deepseek2(keys: Keys, found: Config) -> Config:
    rotated, experts = int(keys.need("rope.dimension_count")), keys.get("expert_count")
    dense, sigmoid = int(keys.get("leading_dense_block_count", 0)), keys.has("exp_probs_b.bias")
    # Files of early converters keep every head's sizes under the plain keys.
    key, value = (keys.get(f"attention.{n}_length_mla") or keys.need(f"attention.{n}_length") for n in ("key", "value"))
    made = {
        **(_routed(keys) if experts else {}),
        "model_type": "deepseek_v3" if sigmoid or not experts else "deepseek_v2",
        "first_k_dense_replace": dense if experts else keys.layers,
        "num_key_value_heads": found["num_attention_heads"],
        "q_lora_rank": keys.get("attention.q_lora_rank"),
        "kv_lora_rank": keys.need("attention.kv_lora_rank"),
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": int(key) - rotated,
        "v_head_dim": int(value),
        "head_dim": rotated,
        "topk_method": "greedy",
        "attention_bias": False,
    }
    # Converters leave the scale of Mistral Small 4 out; Mistral Large 3 has it under the name of the architecture here.
    beta = keys.get("attention.temperature_scale", 0.1 if keys.header.architecture == "mistral4" else None)
    if beta is not None:
        own = {"llama_4_scaling_beta": beta, "partial_rotary_factor": rotated / int(key)}
        length = found["rope_parameters"].get("original_max_position_embeddings")
        if length is None or keys.get("attention.temperature_length", length) != length:
            raise ModelError(f"it scales queries by their position, and the original context length is {length}")
        made |= {"model_type": "mistral4", "head_dim": int(key), "rope_parameters": found["rope_parameters"] | own}
    if keys.header.metadata.get("tokenizer.ggml.pre") == "glm4":
        kinds = ["dense" if i < dense else "sparse" for i in range(keys.layers)]
        made |= {"model_type": "glm4_moe_lite", "mlp_layer_types": kinds}
    return made


def _glm4moe(keys: Keys, _found: Config) -> Config:
    return {
        **_routed(keys),
        "first_k_dense_replace": int(keys.get("leading_dense_block_count", 0)),
        "use_qk_norm": keys.has("attn_q_norm.weight"),
        "num_nextn_predict_layers": 0,
    }


def _smollm3(keys: Keys, _found: Config) -> Config:
    return {"no_rope_layers": [int((i + 1) % 4 != 0) for i in range(keys.layers)], "mlp_bias": keys.has("ffn_up.bias")}


def _lfm2(keys: Keys, found: Config) -> Config:
    kv = keys.need("attention.head_count_kv")
    return {
        "norm_eps": found["rms_norm_eps"],
        "layer_types": ["full_attention" if heads else "conv" for heads in kv],
        "conv_L_cache": keys.need("shortconv.l_cache"),
        "conv_bias": keys.has("shortconv.conv.bias"),
        "block_auto_adjust_ff_dim": False,
    }


def _lfm2moe(keys: Keys, found: Config) -> Config:
    return {
        **_lfm2(keys, found),
        "num_experts": keys.need("expert_count"),
        "num_experts_per_tok": keys.need("expert_used_count"),
        "moe_intermediate_size": keys.need("expert_feed_forward_length"),
        "num_dense_layers": keys.get("leading_dense_block_count", 0),
        "use_expert_bias": keys.has("exp_probs_b.bias"),
    }


def _qwen3moe(keys: Keys, _found: Config) -> Config:
    return {
        "num_experts": keys.need("expert_count"),
        "num_experts_per_tok": keys.need("expert_used_count"),
        "moe_intermediate_size": keys.need("expert_feed_forward_length"),
        "norm_topk_prob": True,
        "mlp_only_layers": [],
    }


def _linear(keys: Keys) -> Config:
    """Layers with a gated delta rule."""
    values = int(keys.need("ssm.time_step_rank"))
    every = int(keys.get("full_attention_interval", 4))
    return {
        "layer_types": [("linear" if (i + 1) % every else "full") + "_attention" for i in range(keys.layers)],
        "linear_conv_kernel_dim": keys.need("ssm.conv_kernel"),
        "linear_key_head_dim": keys.need("ssm.state_size"),
        "linear_num_key_heads": keys.need("ssm.group_count"),
        "linear_num_value_heads": values,
        "linear_value_head_dim": int(keys.need("ssm.inner_size")) // values,
    }


def _qwen35(keys: Keys, found: Config) -> Config:
    sections = [n for n in keys.get("rope.dimension_sections", []) if n]
    rope = {**found["rope_parameters"], "mrope_interleaved": True} | ({"mrope_section": sections} if sections else {})
    return {**_linear(keys), "rope_parameters": rope}


def _qwen35moe(keys: Keys, found: Config) -> Config:
    shared = {"shared_expert_intermediate_size": keys.need("expert_shared_feed_forward_length")}
    return {**_qwen35(keys, found), **_qwen3moe(keys, found), **shared}


def _qwen3next(keys: Keys, found: Config) -> Config:
    shared = {"shared_expert_intermediate_size": keys.need("expert_shared_feed_forward_length")}
    return {**_linear(keys), **_qwen3moe(keys, found), **shared, "decoder_sparse_step": 1}


def _plain(_keys: Keys, _found: Config) -> Config:
    return {}


_NO_ROPE = ("nemotron_h",)
_PARTIAL = {"qwen35", "qwen35moe", "qwen3next", "glm4moe", "phi3"}

_ARCHITECTURES: dict[str, tuple[str, Callable[[Keys, Config], Config]]] = {
    "llama": ("llama", _llama),
    "mistral3": ("ministral3", _mistral3),
    "qwen2": ("qwen2", _plain),
    "qwen3": ("qwen3", _plain),
    "qwen3moe": ("qwen3_moe", _qwen3moe),
    "qwen3next": ("qwen3_next", _qwen3next),
    "qwen35": ("qwen3_5_text", _qwen35),
    "qwen35moe": ("qwen3_5_moe_text", _qwen35moe),
    "gemma3": ("gemma3_text", _gemma3),
    "gemma4": ("gemma4_text", _gemma4),
    "gpt-oss": ("gpt_oss", _gpt_oss),
    "granite": ("granite", _granite),
    "granitehybrid": ("granitemoehybrid", _granite_hybrid),
    "smollm3": ("smollm3", _smollm3),
    "lfm2": ("lfm2", _lfm2),
    "lfm2moe": ("lfm2_moe", _lfm2moe),
    "nemotron_h": ("nemotron_h", _nemotron_h),
    "nemotron_h_moe": ("nemotron_h", _nemotron_h),
    "deepseek2": ("deepseek_v3", _deepseek2),
    "mistral4": ("mistral4", _deepseek2),
    "glm4moe": ("glm4_moe", _glm4moe),
    "olmo2": ("olmo3", _olmo),
    "exaone4": ("exaone4", _exaone4),
}
"""llama.cpp's name of an architecture, transformers' name of the model type, and what both have beside the usual."""
