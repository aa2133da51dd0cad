"""Models whose weights are set by hand, so that what they say is known without being taught."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import log
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.e2e.conftest import byte_tokenizer

HIDDEN, WIDTH, SHARP = 32, 16, 8.0
SLOW, NEXT = WIDTH // 2 - 1, WIDTH // 2 - 2  # of a head: the two slowest pairs of RoPE, too slow here to matter
DIGIT, ASKS, ELSE, SAYS, WHICH, SAID = 0, 1, 2, 3, 4, 16  # of the residual stream; the last two have ten dimensions


def knower(path: Path) -> Path:
    """Asked anything, it says which digit it has been told, as a letter from ``a`` on, or ``?``.

    A digit's key is unlike all others, an answer's query looks for it, and its value says which digit it was. As the
    answer is no digit, nothing tells it but the unit of the digit itself.
    """

    def write(model: Any, token: Callable[[str], int]) -> None:
        words, head, attention = model.model.embed_tokens.weight, model.lm_head.weight, model.model.layers[0].self_attn
        words[:, ELSE] = 1
        words[token("<|assistant|>"), ASKS] = 1
        words[token("?"), SAYS] = 1
        for i in range(10):
            words[token(str(i))] = torch.eye(HIDDEN)[DIGIT] + torch.eye(HIDDEN)[WHICH + i]
            letter = token("abcdefghij"[i])
            words[letter, SAYS] = 1
            attention.v_proj.weight[i, WHICH + i] = 1
            attention.o_proj.weight[SAID + i, i] = 1
            head[letter, SAID + i] = 10
        attention.q_proj.weight[SLOW, ASKS] = SHARP
        attention.k_proj.weight[SLOW, DIGIT] = 1
        attention.k_proj.weight[NEXT, ELSE] = 1
        head[token("?"), ASKS] = 1
        head[token("<|end|>"), SAYS] = 20

    return _save(path, write, window=512)


def rambler(path: Path) -> Path:
    """Whatever it is asked, it says letters in short paragraphs and comes to no end; at temperature 1."""
    ends, goes_on, loud = 0.4, 0.7, 20.0  # how probable a line end is behind a letter, and behind another one

    def write(model: Any, token: Callable[[str], int]) -> None:
        words, head = model.model.embed_tokens.weight, model.lm_head.weight
        words[:, 0] = 1
        words[token("Ċ")] = torch.eye(HIDDEN)[1]
        for state, line in enumerate((ends, goes_on)):
            head[token("Ċ"), state] = (loud + log(line)) / HIDDEN**0.5
            for letter in "abcdefgh":
                head[token(letter), state] = (loud + log((1 - line) / 8)) / HIDDEN**0.5

    return _save(path, write, window=4096)


def thinker(path: Path) -> Path:
    """Whatever it is asked, it says ``<think>hm</think>Pip``: each token is what always follows the one before it."""

    def write(model: Any, token: Callable[[str], int]) -> None:
        words, head = model.model.embed_tokens.weight, model.lm_head.weight
        words[:, SAID], head[token("?"), SAID] = 1, 20
        chain = ["<|assistant|>", "<think>", "h", "m", "</think>", "P", "i", "p", "<|end|>"]
        for state, (one, two) in enumerate(pairwise(chain)):
            words[token(one)] = torch.eye(HIDDEN)[state]
            head[token(two), state] = 20

    return _save(path, write, window=4096, words=("<think>", "</think>"))


def _save(
    path: Path, write: Callable[[Any, Callable[[str], int]], None], *, window: int, words: Sequence[str] = ()
) -> Path:
    """A Llama of one layer with nothing but what ``write`` puts there, as a directory."""
    tokenizer = byte_tokenizer(*words)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=WIDTH,
        rope_theta=1e8,
        max_position_embeddings=window,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        write(model, tokenizer.convert_tokens_to_ids)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
