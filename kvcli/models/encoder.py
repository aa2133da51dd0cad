"""Small encoders that compare a question with texts: embedding models and cross-encoders, from a local directory.

An embedding model computes a vector of each text (Reimers and Gurevych 2019, arXiv:1908.10084); the score is the
cosine of two vectors. A cross-encoder reads question and text together and gives one number. Which of them a
directory holds, and how vectors are pooled, its files say as sentence-transformers writes them.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from kvcli.errors import KvcliError, ModelError
from kvcli.models import foreign_code, resolve, weights
from kvcli.models.load import placed
from kvcli.utils import files

BATCH = 16
"""Texts in one forward pass, sorted by length."""

POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
}


class Encoder:
    """An embedding model or a cross-encoder.

    Args:
        name: for messages and tables.
        path: a directory with config, safetensors and tokenizer.
        device, dtype: as for :func:`kvcli.models.load.load`.

    Attributes:
        cross: whether it reads question and text together.

    Raises:
        ModelError: files that are missing or that transformers cannot read, a classifier with several classes, or
            layers after pooling.
    """

    def __init__(self, name: str, path: Path, *, device: str | None = None, dtype: str | None = None) -> None:
        weights.check(path)
        device, dtype = placed(device, dtype)
        self.name, self.device = name, device
        try:
            with foreign_code.no_questions():
                self._tokenizer: Any = AutoTokenizer.from_pretrained(
                    path, local_files_only=True, trust_remote_code=False
                )
                config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
                self.cross = any("SequenceClassification" in a for a in config.architectures or ())
                if self.cross and config.num_labels != 1:
                    raise ModelError(f"{name} is a classifier with {config.num_labels} classes, and a ranking needs 1")
                self._pooling = "" if self.cross else _pooling(name, path)
                cls = AutoModelForSequenceClassification if self.cross else AutoModel
                module: Any = cls.from_pretrained(
                    path, local_files_only=True, trust_remote_code=False, dtype=getattr(torch, dtype)
                )
        except KvcliError:
            raise
        except Exception as error:  # transformers raises what it likes
            raise ModelError(f"{name} cannot be loaded as an encoder: {str(error).splitlines()[0][:200]}") from error
        self._module = module.to(device).eval()
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._longest = _longest(path, config, self._tokenizer)
        self._prompts = _prompts(path)

    def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        """How well each text fits a question: cosines of an embedding model, or the numbers of a cross-encoder."""
        if not texts:
            return []
        if self.cross:
            return [float(row[0]) for row in self._run([(question, text) for text in texts])]
        asked = self.embed([question], question=True)[0]
        return (self.embed(texts) @ asked).tolist()

    def embed(self, texts: Sequence[str], *, question: bool = False) -> Tensor:
        """Unit vectors of texts: float32 ``[n, d]`` on the CPU.

        Args:
            texts: at least one.
            question: whether they are questions; some models put other words before these.
        """
        prompt = self._prompts[question]
        found = torch.stack(self._run([(f"{prompt}{text}",) for text in texts]))
        return torch.nn.functional.normalize(found, dim=1)

    @torch.inference_mode()
    def _run(self, inputs: Sequence[tuple[str, ...]]) -> list[Tensor]:
        """Return the logits or the pooled vector of each input, float32 on the CPU."""
        order = sorted(range(len(inputs)), key=lambda i: sum(map(len, inputs[i])))
        found: list[Tensor] = [torch.empty(0)] * len(inputs)
        for first in range(0, len(order), BATCH):
            part = order[first : first + BATCH]
            columns = [list(column) for column in zip(*(inputs[i] for i in part), strict=True)]
            batch = self._tokenizer(
                *columns, padding=True, truncation=True, max_length=self._longest, return_tensors="pt"
            ).to(self.device)
            output = self._module(**batch)
            rows = output.logits if self.cross else self._pool(output.last_hidden_state, batch["attention_mask"])
            for i, row in zip(part, rows.float().cpu(), strict=True):
                found[i] = row
        return found

    def _pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """One vector of each text ``[n, d]`` from its tokens' ``[n, t, d]``; padded ones have a mask of 0."""
        hidden, seen = hidden.float(), mask[..., None].float()
        if self._pooling == "mean":
            return (hidden * seen).sum(1) / seen.sum(1)
        if self._pooling == "max":
            return hidden.masked_fill(seen == 0, float("-inf")).amax(1)
        places = torch.arange(mask.shape[1], device=mask.device).masked_fill(mask == 0, -1)
        at = places.amax(1) if self._pooling == "last" else mask.argmax(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), at]


def load_encoder(name: str, *, device: str | None = None, dtype: str | None = None) -> Encoder:
    """The encoder in a directory or in the hub's cache; nothing is fetched.

    Args:
        name: a directory, or a hub id (owner/name) that is in the hub's cache.
        device, dtype: as for :class:`Encoder`.

    Raises:
        ModelError: it is not on this machine, or :class:`Encoder` refuses it.
    """
    source = resolve.here(name, "encoder")
    return _loaded(source.path, files.directory_key(source.path), Path(name).name, device, dtype)


@lru_cache(maxsize=2)
def _loaded(path: Path, _files: Hashable, name: str, device: str | None, dtype: str | None) -> Encoder:
    return Encoder(name, path, device=device, dtype=dtype)


def _pooling(name: str, path: Path) -> str:
    """How an embedding model makes one vector of many; the mean if its files do not say."""
    stages = _json(path / "modules.json")
    kinds = [str(stage.get("type", "")).rpartition(".")[2] for stage in stages if isinstance(stage, dict)]
    if unknown := sorted({*kinds} - {"Transformer", "Pooling", "Normalize"}):
        raise ModelError(f"{name} has layers after pooling that kvcli does not know: {', '.join(unknown)}")
    folder = next((s.get("path", "") for s, kind in zip(stages, kinds, strict=True) if kind == "Pooling"), None)
    if folder is None:
        return "mean"
    config = weights.read_json(path / folder / "config.json")
    chosen = [key for key, value in config.items() if key.startswith("pooling_mode") and value is True]
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        raise ModelError(f"{name} pools its vectors in a way that kvcli does not know: {', '.join(chosen) or 'none'}")
    return POOLINGS[chosen[0]]


def _longest(path: Path, config: Any, tokenizer: Any) -> int:
    """Tokens of an input at most."""
    told = _json(path / "sentence_bert_config.json", {}).get("max_seq_length")
    limits = (told, getattr(config, "max_position_embeddings", None), tokenizer.model_max_length, 8192)
    return min(limit for limit in limits if isinstance(limit, int) and limit > 0)


def _prompts(path: Path) -> tuple[str, str]:
    """What the model wants before a text and before a question."""
    told = _json(path / "config_sentence_transformers.json", {}).get("prompts") or {}
    text = next((told[key] for key in ("document", "passage") if key in told), "")
    return text, str(told.get("query", ""))


def _json(path: Path, absent: Any = ()) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return absent
