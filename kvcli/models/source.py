"""A model on this disk. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvcli.models import weights

PACKED = "decode-packed.safetensors"
"""In the directory of a converted model: the weights of 4 and 8 bits that a CPU decodes with."""


@dataclass(frozen=True)
class ModelSource:
    """A model on this disk.

    ``path`` is a directory for ``from_pretrained(path, local_files_only=True)``: config, safetensors,
    tokenizer. ``complete`` is False only after ``only_config`` if the weights are not on this disk.
    """

    name: str
    path: Path
    origin: str  # directory | hub | gguf | wheel
    revision: str | None = None  # the hub's commit, or the key of the GGUF it was made from
    licence: str | None = None
    notes: tuple[str, ...] = ()  # warnings about this copy of the model
    complete: bool = True
    bits: int = 0  # per weight in the quantised file that it was made from; 0 if there was none

    @property
    def few_bits(self) -> bool:
        """Whether 4 or 8 bits a weight lose nothing beside what its file has lost: a CPU decodes with as many."""
        return 0 < self.bits <= 8

    @property
    def fingerprint(self) -> str:
        """16 hex digits that stay when the directory moves and change when the config or the weights do."""
        return weights.fingerprint(self.path)

    @property
    def bytes(self) -> int:
        """Size of the weights on disk; 0 if there are none."""
        return sum(shard.stat().st_size for shard in weights.shards(self.path)) if self.complete else 0

    @property
    def config(self) -> dict[str, Any]:
        return weights.read_json(self.path / "config.json")
