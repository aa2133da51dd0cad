"""Models with a short name, and the sizes of those that ``kvcli models suggest`` chooses from.

Sizes are those of each model's published config. A test computes the number of parameters from them, and compares it
with the published one. Of models for images and text, these are the sizes of the part for text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvcli.models.default_model import DEFAULT, REPO
from kvcli.models.weights import ModelSource


@dataclass(frozen=True)
class Alias:
    """A short name for a hub id, with facts that are known before a download.

    Attributes:
        name: what a user types.
        repo: the hub id.
        parameters: as published, embeddings included.
        window: positions that the model was trained for, in tokens.
        licence: the hub's name of it.
        layers, hidden, intermediate, heads, kv_heads, head_dim, vocab: the architecture's sizes.
        tied: whether the output layer is the embedding.
        sliding: width of the sliding windows; 0 if there are none.
        every: of so many layers, one attends to everything.
        gated: whether the hub wants its terms accepted before a download.
        suggested: whether ``kvcli models suggest`` may take it; older models of a size are known by name only.
        linear: parameters in matrices that ``--weights`` quantises, experts included; 0 if the sizes above say it.
        experts: parameters of all experts, and ``used`` of so many experts per token.
        more: what else its config says, for models with experts, recurrent layers or heads that differ by layer.
    """

    name: str
    repo: str
    parameters: int
    window: int
    licence: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = False
    sliding: int = 0
    every: int = 1
    gated: bool = False
    suggested: bool = True
    linear: int = 0
    experts: int = 0
    used: tuple[int, int] = (1, 1)
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def active(self) -> int:
        """Parameters that one token uses."""
        return self.parameters - self.experts + self.experts * self.used[0] // self.used[1]

    @property
    def bytes(self) -> int:
        """Size of its weights in bfloat16."""
        return 2 * self.parameters

    @property
    def config(self) -> dict[str, Any]:
        """What its ``config.json`` says of sizes."""
        windows = {"sliding_window": self.sliding, "sliding_window_pattern": self.every} if self.sliding else {}
        return {
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.window,
            "tie_word_embeddings": self.tied,
            **windows,
            **self.more,
        }

    def source(self) -> ModelSource:
        """The model as far as it is known without a download: sizes, no files."""
        return _Sizes(self.name, Path(), "catalogue", licence=self.licence, complete=False)


class _Sizes(ModelSource):
    @property
    def config(self) -> dict[str, Any]:
        return ALIASES[self.name].config

    @property
    def fingerprint(self) -> str:
        return ""


def known(name: str) -> Alias | None:
    """The entry of an alias or a hub id."""
    return ALIASES.get(name) or next(
        (alias for alias in ALIASES.values() if alias.repo == name.partition("@")[0]), None
    )


def _pattern(layers: int, every: int, others: str = "sliding_attention") -> list[str]:
    """Kinds of layers, of which each ``every``-th attends to everything."""
    return ["full_attention" if (i + 1) % every == 0 else others for i in range(layers)]


def _mixed(layers: int, full: tuple[int, ...], others: str, name: str) -> list[str]:
    return [name if i in full else others for i in range(layers)]


def _qwen(values: int, **more: Any) -> dict[str, Any]:
    delta = {"linear_num_key_heads": 16, "linear_key_head_dim": 128, "linear_value_head_dim": 128}
    return {
        "full_attention_interval": 4,
        "linear_num_value_heads": values,
        "linear_conv_kernel_dim": 4,
        **delta,
        **more,
    }


def _experts(config: str, used: int, number: int, width: int, name: str = "num_experts", **more: Any) -> dict[str, Any]:
    chosen = "top_k_experts" if config == "gemma4_text" else "num_experts_per_tok"
    return {"model_type": config, name: number, chosen: used, "moe_intermediate_size": width, **more}


_MAMBA = {"mamba_d_head": 64, "mamba_d_state": 128, "mamba_d_conv": 4, "mamba_n_groups": 1, "mamba_expand": 2}
_GEMMA_4: dict[str, Any] = {
    "global_head_dim": 512,
    "sliding_window": 1_024,
    "attention_k_eq_v": True,
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
}

_ROWS = (
    Alias(DEFAULT, REPO, 134_515_008, 8_192, "apache-2.0",
          30, 576, 1_536, 9, 3, 64, 49_152, tied=True),
    Alias("smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct", 361_821_120, 8_192, "apache-2.0",
          32, 960, 2_560, 15, 5, 64, 49_152, tied=True),
    Alias("qwen3-0.6b", "Qwen/Qwen3-0.6B", 596_049_920, 40_960, "apache-2.0",
          28, 1_024, 3_072, 16, 8, 128, 151_936, tied=True),
    Alias("gemma-3-1b", "google/gemma-3-1b-it", 999_885_952, 32_768, "gemma",
          26, 1_152, 6_912, 4, 1, 256, 262_144, tied=True, sliding=512, every=6, gated=True),
    Alias("llama-3.2-1b", "meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400, 131_072, "llama3.2",
          16, 2_048, 8_192, 32, 8, 64, 128_256, tied=True, gated=True),
    Alias("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct", 1_711_376_384, 8_192, "apache-2.0",
          24, 2_048, 8_192, 32, 32, 64, 49_152, tied=True),
    Alias("qwen3-1.7b", "Qwen/Qwen3-1.7B", 1_720_574_976, 40_960, "apache-2.0",
          28, 2_048, 6_144, 16, 8, 128, 151_936, tied=True),
    Alias("smollm3-3b", "HuggingFaceTB/SmolLM3-3B", 3_075_098_624, 65_536, "apache-2.0",
          36, 2_048, 11_008, 16, 4, 128, 128_256, tied=True),
    Alias("llama-3.2-3b", "meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824, 131_072, "llama3.2",
          28, 3_072, 8_192, 24, 8, 128, 128_256, tied=True, gated=True),
    Alias("phi-3-mini-128k", "microsoft/Phi-3-mini-128k-instruct", 3_821_079_552, 131_072, "mit",
          32, 3_072, 8_192, 32, 32, 96, 32_064),
    Alias("phi-4-mini", "microsoft/Phi-4-mini-instruct", 3_836_021_760, 131_072, "mit",
          32, 3_072, 8_192, 24, 8, 128, 200_064, tied=True),
    Alias("qwen3-4b", "Qwen/Qwen3-4B-Instruct-2507", 4_022_468_096, 262_144, "apache-2.0",
          36, 2_560, 9_728, 32, 8, 128, 151_936, tied=True),
    Alias("qwen2.5-7b-1m", "Qwen/Qwen2.5-7B-Instruct-1M", 7_615_616_512, 1_010_000, "apache-2.0",
          28, 3_584, 18_944, 28, 4, 128, 152_064),
    Alias("qwen2.5-vl-7b", "Qwen/Qwen2.5-VL-7B-Instruct", 7_615_616_512, 128_000, "apache-2.0",
          28, 3_584, 18_944, 28, 4, 128, 152_064, suggested=False),
    Alias("olmo-3-7b", "allenai/Olmo-3-7B-Instruct", 7_298_011_136, 65_536, "apache-2.0",
          32, 4_096, 11_008, 32, 32, 128, 100_278, sliding=4_096, every=4),
    Alias("ministral-3-8b", "mistralai/Ministral-3-8B-Instruct-2512-BF16", 8_489_553_920, 262_144, "apache-2.0",
          34, 4_096, 14_336, 32, 8, 128, 131_072),
    Alias("llama-3.1-8b", "meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248, 131_072, "llama3.1",
          32, 4_096, 14_336, 32, 8, 128, 128_256, gated=True),
    Alias("qwen3-8b", "Qwen/Qwen3-8B", 8_190_735_360, 40_960, "apache-2.0",
          36, 4_096, 12_288, 32, 8, 128, 151_936),
    Alias("mistral-nemo", "mistralai/Mistral-Nemo-Instruct-2407", 12_247_782_400, 131_072, "apache-2.0",
          40, 5_120, 14_336, 32, 8, 128, 131_072),
    Alias("phi-4", "microsoft/phi-4", 14_659_507_200, 16_384, "mit",
          40, 5_120, 17_920, 40, 10, 128, 100_352),
    Alias("qwen3-14b", "Qwen/Qwen3-14B", 14_768_307_200, 40_960, "apache-2.0",
          40, 5_120, 17_408, 40, 8, 128, 151_936),
    Alias("qwen2.5-14b-1m", "Qwen/Qwen2.5-14B-Instruct-1M", 14_770_033_664, 1_010_000, "apache-2.0",
          48, 5_120, 13_824, 40, 8, 128, 152_064),
    Alias("mistral-small", "mistralai/Mistral-Small-3.1-24B-Instruct-2503", 23_572_403_200, 131_072, "apache-2.0",
          40, 5_120, 32_768, 32, 8, 128, 131_072),
    Alias("qwen3-32b", "Qwen/Qwen3-32B", 32_762_123_264, 40_960, "apache-2.0",
          64, 5_120, 25_600, 64, 8, 128, 151_936),
    Alias("qwen3-vl-2b", "Qwen/Qwen3-VL-2B-Instruct", 1_720_574_976, 262_144, "apache-2.0",
          28, 2_048, 6_144, 16, 8, 128, 151_936, tied=True),
    Alias("qwen3-vl-8b", "Qwen/Qwen3-VL-8B-Instruct", 8_190_735_360, 262_144, "apache-2.0",
          36, 4_096, 12_288, 32, 8, 128, 151_936),
    Alias("granite-4-h-tiny", "ibm-granite/granite-4.0-h-tiny", 6_939_037_248, 131_072, "apache-2.0",
          40, 1_536, 512, 12, 4, 128, 100_352, tied=True, linear=6_780_125_184, experts=6_039_797_760, used=(6, 64),
          more={"model_type": "granitemoehybrid", "num_local_experts": 64, "num_experts_per_tok": 6,
                "shared_intermediate_size": 1_024, "layer_types": _mixed(40, (5, 15, 25, 35), "mamba", "attention"),
                "mamba_n_heads": 48, **_MAMBA}),
    Alias("lfm2-8b-a1b", "LiquidAI/LFM2-8B-A1B", 8_339_929_856, 128_000, "other",
          24, 2_048, 7_168, 32, 8, 64, 65_536, tied=True, linear=8_204_058_624, experts=7_751_073_792, used=(4, 32),
          more=_experts("lfm2_moe", 4, 32, 1_792, num_dense_layers=2, conv_L_cache=3,
                        layer_types=_mixed(24, (2, 6, 10, 14, 18, 21), "conv", "full_attention"))),
    Alias("qwen3.5-9b", "Qwen/Qwen3.5-9B", 8_953_803_264, 262_144, "apache-2.0",
          32, 4_096, 12_288, 16, 4, 256, 248_320, linear=6_918_504_448,
          more=_qwen(32, model_type="qwen3_5_text")),
    Alias("deepseek-v2-lite", "deepseek-ai/DeepSeek-V2-Lite-Chat", 15_706_484_224, 163_840, "other",
          27, 2_048, 10_944, 16, 16, 64, 102_400, linear=15_283_519_488, experts=14_394_851_328, used=(6, 64),
          more=_experts("deepseek_v2", 6, 64, 1_408, "n_routed_experts", n_shared_experts=2, first_k_dense_replace=1,
                        kv_lora_rank=512, q_lora_rank=None, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128),
          suggested=False),
    Alias("gpt-oss-20b", "openai/gpt-oss-20b", 20_914_757_184, 131_072, "apache-2.0",
          24, 2_880, 2_880, 64, 8, 64, 201_088, linear=19_747_307_520, experts=19_110_297_600, used=(4, 32),
          more={"model_type": "gpt_oss", "num_local_experts": 32, "num_experts_per_tok": 4, "sliding_window": 128,
                "layer_types": _pattern(24, 2), "quantization_config": {"quant_method": "mxfp4"}}),
    Alias("gemma-4-26b-a4b", "google/gemma-4-26B-A4B-it", 25_233_141_760, 262_144, "apache-2.0",
          30, 2_816, 2_112, 16, 8, 256, 262_144, tied=True,
          linear=24_494_243_840, experts=22_837_985_280, used=(8, 128),
          more=_experts("gemma4_text", 8, 128, 704, enable_moe_block=True, num_global_key_value_heads=2, **_GEMMA_4,
                        layer_types=_pattern(30, 6))),
    Alias("qwen3.6-27b", "Qwen/Qwen3.6-27B", 26_895_998_464, 262_144, "apache-2.0",
          64, 5_120, 17_408, 24, 4, 256, 248_320, linear=24_350_556_160,
          more=_qwen(48, model_type="qwen3_5_text")),
    Alias("glm-4.7-flash", "zai-org/GLM-4.7-Flash", 29_943_390_976, 202_752, "mit",
          47, 2_048, 10_240, 20, 20, 64, 154_880, linear=29_302_718_464, experts=27_783_069_696, used=(4, 64),
          more=_experts("glm4_moe_lite", 4, 64, 1_536, "n_routed_experts", n_shared_experts=1, kv_lora_rank=512,
                        q_lora_rank=768, qk_nope_head_dim=192, qk_rope_head_dim=64, v_head_dim=256)),
    Alias("qwen3-30b-a3b", "Qwen/Qwen3-30B-A3B-Instruct-2507", 30_532_122_624, 262_144, "apache-2.0",
          48, 2_048, 6_144, 32, 4, 128, 151_936, linear=29_896_998_912, experts=28_991_029_248, used=(8, 128),
          more=_experts("qwen3_moe", 8, 128, 768)),
    Alias("gemma-4-31b", "google/gemma-4-31B-it", 30_697_345_280, 262_144, "apache-2.0",
          60, 5_376, 21_504, 32, 16, 256, 262_144, tied=True, linear=29_286_727_680,
          more={"model_type": "gemma4_text", "num_global_key_value_heads": 4, **_GEMMA_4,
                "layer_types": _pattern(60, 6)}),
    Alias("nemotron-3-nano", "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 31_577_937_344, 262_144, "other",
          52, 2_688, 1_856, 32, 2, 128, 131_072, linear=30_864_433_152, experts=29_374_808_064, used=(6, 128),
          more=_experts("nemotron_h", 6, 128, 1_856, "n_routed_experts", n_shared_experts=1, conv_kernel=4, n_groups=8,
                        moe_shared_expert_intermediate_size=3_712, mamba_num_heads=64, mamba_head_dim=64,
                        ssm_state_size=128,
                        hybrid_override_pattern="MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME")),
    Alias("granite-4-h-small", "ibm-granite/granite-4.0-h-small", 32_207_337_984, 131_072, "apache-2.0",
          40, 4_096, 768, 32, 8, 128, 100_352, tied=True, linear=31_782_338_560, experts=27_179_089_920, used=(10, 72),
          more={"model_type": "granitemoehybrid", "num_local_experts": 72, "num_experts_per_tok": 10,
                "shared_intermediate_size": 1_536, "layer_types": _mixed(40, (5, 15, 25, 35), "mamba", "attention"),
                "mamba_n_heads": 128, **_MAMBA}),
    Alias("laguna-xs", "poolside/Laguna-XS.2", 33_442_617_088, 131_072, "apache-2.0",
          40, 2_048, 8_192, 48, 8, 128, 100_352, linear=33_010_941_952, experts=31_406_948_352, used=(8, 256),
          more=_experts("laguna", 8, 256, 512, shared_expert_intermediate_size=512, sliding_window=512,
                        layer_types=["full_attention" if i % 4 == 0 else "sliding_attention" for i in range(40)],
                        num_attention_heads_per_layer=[64 if i % 4 else 48 for i in range(40)])),
    Alias("qwen3.6-35b-a3b", "Qwen/Qwen3.6-35B-A3B", 34_660_610_688, 262_144, "apache-2.0",
          40, 2_048, 512, 16, 2, 256, 248_320, linear=33_621_360_640, experts=32_212_254_720, used=(8, 256),
          more=_experts("qwen3_5_moe_text", 8, 256, 512, shared_expert_intermediate_size=512, **_qwen(32))),
    Alias("qwen3-next-80b-a3b", "Qwen/Qwen3-Next-80B-A3B-Instruct", 79_674_391_296, 262_144, "apache-2.0",
          48, 2_048, 5_120, 16, 2, 256, 151_936, linear=79_000_338_432, experts=77_309_411_328, used=(10, 512),
          more=_experts("qwen3_next", 10, 512, 512, shared_expert_intermediate_size=512, **_qwen(32))),
    Alias("glm-4.5-air", "zai-org/GLM-4.5-Air", 106_852_245_504, 131_072, "mit",
          46, 4_096, 10_944, 96, 8, 128, 151_552, linear=105_586_098_176, experts=99_656_663_040, used=(8, 128),
          more=_experts("glm4_moe", 8, 128, 1_408, "n_routed_experts", n_shared_experts=1, first_k_dense_replace=1,
                        attention_bias=True)),
)  # fmt: skip

ALIASES = {alias.name: alias for alias in sorted(_ROWS, key=lambda alias: alias.parameters)}
"""Every alias by its name, the smallest model first."""
