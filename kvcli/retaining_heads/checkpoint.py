"""Heads files: safetensors with a card in the header, and the published Locret checkpoints."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kvcli.errors import DamagedError, ModelError, ResourceError
from kvcli.retaining_heads.module import ACTIVATIONS, RetainingHeads, shapes
from kvcli.utils import files

if TYPE_CHECKING:
    from kvcli.models.model import Model

FORMAT = 1
_KEY = re.compile(r"(?:^|\.)layers\.(\d+)\.(?:self_attn\.)?(fc[12])\.weight$")


@dataclass(frozen=True)
class HeadsCard:
    """Origin and model of heads, stored in their file.

    Attributes:
        model: the model's name at training.
        identity: :func:`identity` of their model; empty for published checkpoints, which do not contain it.
        activation: activation of the hidden units.
        labels, loss: the training target.
        steps, seed: of the training.
        data: per source, its name, sha256 and licence.
        licence: of the heads.
        metrics: validation results.
        command: the training command.
        made: date and version of kvcli, or the repository of published heads.
        recipe: with which their authors use published heads; empty for all others.
        chunk: tokens per prefill step of that recipe; 0 for all others.
    """

    model: str = ""
    identity: str = ""
    activation: str = "silu"
    labels: str = ""
    loss: str = ""
    steps: int = 0
    seed: int = 0
    data: list[dict[str, str]] = field(default_factory=list)
    licence: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    command: str = ""
    made: str = ""
    recipe: str = ""
    chunk: int = 0


def identity(model: Model) -> str:
    """Hash the model's sizes and its last norm's weights; heads belong to models with the same hash.

    Quantization does not change norms, so a GGUF, an nf4 copy and the original agree; a fine-tune does not.
    """
    spec = model.spec
    sizes = [spec.layers, spec.heads, spec.kv_heads, spec.head_dim, spec.hidden, spec.intermediate, spec.vocab]
    norms = [p for p in model.module.base_model.parameters() if p.dim() == 1]  # none if norms have no weights
    weights = norms[-1].detach().to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes() if norms else b""
    return hashlib.sha256(json.dumps(sizes).encode() + weights).hexdigest()[:12]


def save(path: Path, heads: RetainingHeads, card: HeadsCard, *, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write heads and their card atomically.

    Raises:
        ResourceError: the file cannot be written.
    """
    tensors = {
        f"layers.{i}.{name}.weight": weight.detach().to("cpu", dtype).contiguous()
        for name, weights in (("fc1", heads.fc1), ("fc2", heads.fc2))
        for i, weight in enumerate(weights)
    }
    write(path, tensors, {"kvcli_heads": str(FORMAT), "card": json.dumps(asdict(card))})


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write safetensors atomically. Raises ``ResourceError``."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_write(path) as part:
            save_file(tensors, part, metadata)
    except (OSError, SafetensorError) as error:
        raise ResourceError(f"{path} cannot be written: {error}", "-o another place") from error


def read_card(path: Path) -> HeadsCard:
    """Read the card of a heads file without its weights; an empty card for a published checkpoint.

    Raises:
        ModelError: no such file.
        DamagedError: not a heads file, or of another format.
    """
    if path.is_dir():
        path = next(iter(sorted(path.glob("*.safetensors"))), path)
    if path.suffix != ".safetensors":
        return HeadsCard()
    metadata = _metadata(path)
    if "kvcli_heads" not in metadata:
        return HeadsCard()
    if metadata["kvcli_heads"] != str(FORMAT):
        raise DamagedError(
            f"{path}: heads of format {metadata['kvcli_heads']}; this kvcli reads format {FORMAT}",
            "pip install -U kvcli",
        )
    try:
        known = {f.name for f in fields(HeadsCard)}
        return HeadsCard(**{k: v for k, v in json.loads(metadata["card"]).items() if k in known})
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{path}: the card cannot be read: {error}", "kvcli train") from error


def load(path: Path, *, activation: str | None = None) -> tuple[RetainingHeads, HeadsCard]:
    """Read heads: a file of :func:`save`, or a published Locret checkpoint (``.bin`` or ``.safetensors``).

    Args:
        path: the file.
        activation: the backbone's, for files that do not name one.

    Raises:
        ModelError: no such file.
        DamagedError: the file contains no heads, or not all of them.
    """
    found = read_card(path)
    if found.identity == "" and activation is not None:
        found = HeadsCard(activation=activation)
    if found.activation not in ACTIVATIONS:
        raise DamagedError(f"{path}: unknown activation '{found.activation}'; there are: {', '.join(ACTIVATIONS)}")
    weights: dict[tuple[str, int], Tensor] = {}
    for key, tensor in _tensors(path).items():
        if match := _KEY.search(key):
            weights[match[2], int(match[1])] = tensor
    layers = 1 + max((i for _, i in weights), default=-1)
    missing = [f"layers.{i}.{n}" for i in range(layers) for n in ("fc1", "fc2") if (n, i) not in weights]
    if not layers or missing:
        what = f"without {', '.join(missing[:3])}" if missing else "no weights called layers.N.fc1 and layers.N.fc2"
        raise DamagedError(f"{path}: not a heads file: {what}", "kvcli train makes one")
    width = weights["fc1", 0].shape[0]
    sizes = [(weights["fc1", i].shape[-1], weights["fc2", i].shape[0]) for i in range(layers)]
    heads = RetainingHeads(sizes, width=width, activation=found.activation)
    for (name, i), tensor in weights.items():
        target = getattr(heads, name)[i]
        if tensor.shape != target.shape:
            raise DamagedError(
                f"{path}: layers.{i}.{name} is {tuple(tensor.shape)} where {tuple(target.shape)} was expected"
            )
        target.data = tensor
    return heads.requires_grad_(False), found


def check(heads: RetainingHeads, found: HeadsCard, model: Model, path: Path) -> None:
    """Refuse heads that belong to another model.

    Raises:
        ModelError: names what differs.
    """
    spec = model.spec
    wanted, have = shapes(spec), heads.shapes
    pairs = [("layers", len(have), len(wanted))]
    for mine, theirs in zip(have, wanted, strict=False):
        pairs += [("features per token", mine[0], theirs[0]), ("KV heads", mine[1], theirs[1])]
    differ = [f"{a:,} {what} where the model has {b:,}" for what, a, b in dict.fromkeys(pairs) if a != b]
    if not differ and found.identity and found.identity != identity(model):
        differ = [f"trained for {found.model} ({found.identity}), and this is {spec.name} ({identity(model)})"]
    if differ:
        raise ModelError(
            f"the heads in {path} do not fit {spec.name}: {'; '.join(differ)}", f"kvcli train -m {spec.name} FILE…"
        )


def backbone_activation(spec_module: Any) -> str:
    """Return the activation of a transformers model's feed-forward layers, which published heads share."""
    config = spec_module.config.get_text_config()
    return str(getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None) or "silu")


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except FileNotFoundError as error:
        raise ModelError(f"there is no heads file {path}", f"ls {path.parent}") from error
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"{path}: not a safetensors file: {error}", "kvcli train makes one") from error


def _tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors by name; for a directory, those of all its shards."""
    if path.is_dir():
        shards = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
        return {name: tensor for shard in shards for name, tensor in _tensors(shard).items()}
    if path.suffix == ".safetensors":
        _metadata(path)
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys() if _KEY.search(key)}  # noqa: SIM118
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise ModelError(f"there is no heads file {path}", f"ls {path.parent}") from error
    except Exception as error:  # torch.load raises any exception on damaged bytes
        line = str(error).strip().split("\n")[0][:200]
        raise DamagedError(f"{path}: not a checkpoint of tensors: {line}", "a .safetensors or .bin file") from error
    if not isinstance(loaded, dict):
        raise DamagedError(f"{path}: holds a {type(loaded).__name__} where tensors by name were expected")
    return {k: v for k, v in loaded.items() if isinstance(v, Tensor)}
