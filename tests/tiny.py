"""Tiny random-weight models of many families: the laws hold for any weights, so these are enough for the laws.

Weights are drawn wide (standard deviation 0.3 where the library would take 0.02), so that attention is sharp and a
mistake in rotation, window or grouping shows in the logits.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from kvcli.models.load import wrap
from kvcli.models.model import Model
from kvcli.retaining_heads.module import RetainingHeads

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LONG = {
    "factor": 4.0,
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": 128,
}

FAMILIES: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "llama-tied": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama-mha": lambda: LlamaConfig(**{**SIZES, "num_key_value_heads": 4}),
    "llama3-rope": lambda: LlamaConfig(
        **SIZES,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=16),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=None),
    "mistral-window": lambda: MistralConfig(**SIZES, sliding_window=24),
    "phi3-longrope": lambda: Phi3Config(**SIZES, rope_parameters=_LONG, original_max_position_embeddings=128),
    "gemma3": lambda: Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=16, layer_types=_GEMMA_LAYERS),
    "smollm3": lambda: SmolLM3Config(**SIZES, no_rope_layers=[1, 0, 1]),
}
_GEMMA_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]


def build(family: str, *, seed: int = 0) -> PreTrainedModel:
    """A random float32 model, as transformers makes it."""
    torch.manual_seed(seed)
    return randomise(AutoModelForCausalLM.from_config(FAMILIES[family](), dtype=torch.float32), seed)


def capped(seed: int = 0) -> PreTrainedModel:
    """Gemma 2, which caps its attention logits, here so low that it shows."""
    torch.manual_seed(seed)
    own = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16, "attn_logit_softcapping": 2.0}
    config = Gemma2Config(**SIZES, **own)
    return randomise(AutoModelForCausalLM.from_config(config, dtype=torch.float32), seed)


def randomise(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Wide weights everywhere but in norms."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def load(family: str, *, seed: int = 0) -> Model:
    """A random model with random retaining heads, ready for the engine; passing the probe is part of it."""
    built = capped(seed) if family == "capped" else build(family, seed=seed)
    model = wrap(built, None, name=family, fingerprint=None)
    model.heads = RetainingHeads.like(model.spec, width=16, seed=seed).requires_grad_(False)
    return model


def document(length: int, *, seed: int = 0) -> list[int]:
    """Random token ids without special ones."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randint(3, SIZES["vocab_size"], (length,), generator=generator).tolist()
