"""Models with a short name, and the sizes of those that ``kvcli models suggest`` chooses from.

Sizes are those of each model's published config. A test computes the number of parameters from them, and compares it
with the published one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvcli.models.source import ModelSource

DEFAULT = "smollm2-135m"


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


_ROWS = (
    Alias(DEFAULT, "HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008, 8_192, "apache-2.0",
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
    Alias("qwen3-32b", "Qwen/Qwen3-32B", 32_762_123_264, 40_960, "apache-2.0",
          64, 5_120, 25_600, 64, 8, 128, 151_936),
)  # fmt: skip

ALIASES = {alias.name: alias for alias in _ROWS}
"""Every alias by its name, the smallest model first."""
