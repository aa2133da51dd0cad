"""Commands run as a person runs them, with a random model small enough to build in a second."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

Kvcli = Callable[..., subprocess.CompletedProcess[bytes]]

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def save_tiny(path: Path, *, layers: int = 2, hidden: int = 32, window: int = 4096) -> Path:
    """A random Llama with a byte-level tokenizer and a chat template, saved as a directory."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    special = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    tokenizer.add_special_tokens({"eos_token": special[0], "additional_special_tokens": special[1:]})
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=window,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # answers are letters: no control bytes and no early end
        model.lm_head.weight.mul_(0.01)
        for letter in "abcdefgh":
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(letter)].mul_(3000)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that a signal arrives in the middle of its work."""
    return save_tiny(tmp_path_factory.mktemp("models") / "slow", layers=8, hidden=256, window=65536)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """No network, no colours forced, and no cache but a temporary one."""
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "TERM", "PYTHONPATH")}
    return {
        **kept,
        "KVCLI_CACHE_DIR": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "TERM": "xterm-256color",
        "PYTHONWARNINGS": "error::ResourceWarning",
        "OMP_NUM_THREADS": "2",
    }


PROGRAM = [sys.executable, "-m", "kvcli"]


@pytest.fixture
def kvcli(tmp_path: Path, environment: dict[str, str]) -> Kvcli:
    """Run ``kvcli ARGS`` in ``tmp_path`` with nothing on standard input unless given."""

    def run(
        *args: str | Path, stdin: bytes | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        given = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
        return subprocess.run(
            [*PROGRAM, *map(str, args)],
            cwd=tmp_path,
            env={**environment, **(env or {})},
            capture_output=True,
            timeout=120,
            check=False,
            **given,  # type: ignore[call-overload]
        )

    return run


def lines(text: bytes) -> Sequence[str]:
    return text.decode().splitlines()
