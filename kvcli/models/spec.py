"""A model's sizes, from its config and the headers of its weights; planning needs no more. Imports no torch.

The sizes equal those that :func:`kvcli.models.load.load` finds in memory; a test compares both for every family that
the laws are tested with.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from kvcli.errors import ModelError
from kvcli.models import condensed, weights
from kvcli.models.defaults import default_dtype, device_name, known_dtype
from kvcli.models.weights import PACKED, ModelSource
from kvcli.types import DTYPE_BYTES, ModelSpec

UNPACKING = "kv_b_proj"
"""The matrix from latents to the keys and values of all heads, which ``--weights`` leaves whole."""

_NF4_BLOCK = 64  # weights that share one float32 scale


def fingerprint(source: ModelSource, stored: str = "bf16") -> str:
    """The fingerprint of a model whose weights are stored as ``stored``: other weights give another KV cache."""
    return _with_precision(source.fingerprint, stored)


def former_fingerprint(source: ModelSource, stored: str = "bf16") -> str:
    """The fingerprint of kvcli 0.1.0 (:func:`kvcli.models.weights.former_fingerprint`); empty without weights."""
    try:
        return _with_precision(weights.former_fingerprint(source.path), stored)
    except (ModelError, OSError):
        return ""


def _with_precision(fingerprint: str, stored: str) -> str:
    return fingerprint if stored == "bf16" else f"{fingerprint}-{stored}"


def spec(
    source: ModelSource,
    *,
    device: str | None = None,
    dtype: str | None = None,
    stored: str = "bf16",
    pictures: bool = False,
) -> ModelSpec:
    """The sizes of a model.

    Args:
        source: from :func:`kvcli.models.resolve.resolve`; its weights need not be there.
        device: as for loading; by default the first CUDA GPU, else the CPU.
        dtype: of weights and cache, as for loading; by default what this device would get.
        stored: one of :data:`kvcli.types.WEIGHTS`.
        pictures: count the weights of the vision tower too.

    Raises:
        UsageError: an unknown dtype or device.
        ModelError: the config does not say what is needed; names it.
    """
    device = device_name(device)
    dtype = known_dtype(dtype) or default_dtype(device)
    config = loaded_config(source.name, source.config)
    text = text_config(config)

    def need(*names: str) -> int:
        for name in names:
            if isinstance(text.get(name), int):
                return int(text[name])
        raise ModelError(f"{source.name}: its config has no {names[0]}", f"kvcli models show {source.name}")

    heads, hidden, kinds = need("num_attention_heads"), need("hidden_size"), layer_kinds(text)
    text = {**text, "num_hidden_layers": len(kinds) or need("num_hidden_layers")}
    text["tie_word_embeddings"] = config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    windows = sliding_windows(SimpleNamespace(**text))
    attending = [i for i in range(text["num_hidden_layers"]) if not kinds or _attends(kinds[i])]
    packing = config.get("quantization_config") or text.get("quantization_config") or {}
    latent = _keeps_latents(text, packing, device)
    shapes = tuple(_shape(text, heads, hidden, i, latent) for i in attending)
    if not shapes:
        raise ModelError(f"{source.name}: its config names no layer with attention", f"kvcli models show {source.name}")
    found = ModelSpec(
        name=source.name,
        fingerprint=fingerprint(source, stored),
        former_fingerprint=former_fingerprint(source, stored),
        layers=len(shapes),
        heads=max(own for own, _, _ in shapes),
        kv_heads=max(kv for _, kv, _ in shapes),
        head_dim=max(dim for _, _, dim in shapes),
        hidden=hidden,
        intermediate=intermediate_size(SimpleNamespace(**text)),
        vocab=need("vocab_size"),
        max_positions=need("max_position_embeddings"),
        sliding=tuple(windows[i] for i in attending),
        dtype=dtype,
        device=device,
        weight_bytes=0,
        state_bytes=_state_bytes(text, kinds, DTYPE_BYTES[dtype]),
        shapes=shapes if len(set(shapes)) > 1 else (),
        owners=_owners(text, kinds),
        passes=int(text.get("kvcli_passes") or 0),
        latent=latent,
        capped=bool(text.get("attn_logit_softcapping")),
    )
    if source.complete and packing:
        total = sum(_stored(source, text, packing, device, DTYPE_BYTES[dtype], pictures=pictures))
    else:
        matrices = _from_headers(source, text, pictures) if source.complete else _from_config(found, text)
        total = sum(_bytes(name, shape, DTYPE_BYTES[dtype], stored, packing, device) for name, shape in matrices)
    mapped = 0 if packing else _mapped_bytes(source, found, text, stored)
    return ModelSpec(**{**vars(found), "weight_bytes": total, "mapped_bytes": mapped})


def _keeps_latents(text: dict[str, Any], packing: dict[str, Any], device: str) -> bool:
    """Whether the matrix that unpacks latents (:mod:`kvcli.models.latent`) is there, and not quantised."""
    whole = not packing or unpacked(packing.get("quant_method"), device)
    return bool(text.get("kv_lora_rank")) and (whole or UNPACKING in (packing.get("llm_int8_skip_modules") or ()))


def _mapped_bytes(source: ModelSource, spec: ModelSpec, text: dict[str, Any], stored: str) -> int:
    """Bytes of the matrices that a CPU decodes with beside those of the model (:mod:`kvcli.models.cpu_linear`)."""
    if spec.device != "cpu" or spec.dtype not in ("float32", "bfloat16"):
        return 0
    if source.complete:
        tensors = ((n, t["shape"], t["dtype"]) for n, t in _tensors(source, text))
    else:
        tensors = ((n, shape, "BF16") for n, shape in _from_config(spec, text))
    spare = () if text.get("tie_word_embeddings") else ("embed", "embed_tokens.weight")
    found = [
        (shape, dtype)
        for name, shape, dtype in tensors
        if len(shape) == 2 and ".experts." not in name and not name.endswith(spare)
        if stored == "bf16" or re.search(rf"embed|lm_head|{UNPACKING}", name)
    ]
    few = source.few_bits and stored == "bf16"
    total = packed = _packed_bytes(source) if few else 0
    for (n, k), dtype in found:
        if few and k % 32 == 0:
            total += 0 if packed else -(-n // 16) * 16 * k * 9 // 8  # 4 bits are known only when they are written
        elif dtype == "BF16" and spec.dtype == "float32":
            total += 2 * n * k
    return total


def _packed_bytes(source: ModelSource) -> int:
    """Bytes of the packed weights, if they have been written."""
    try:
        tensors = json.loads(weights.header(source.path / PACKED))
    except (OSError, ValueError, ModelError):
        return 0
    return max((t["data_offsets"][1] for n, t in tensors.items() if n != "__metadata__"), default=0)


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a configuration, which may have parts for images and sound too."""
    for name in ("thinker_config", "text_config", "llm_config", "language_config"):
        if isinstance(config.get(name), dict):
            return text_config(config[name])
    return config


_PATTERN = {"M": "mamba", "*": "full_attention", "-": "mlp", "E": "moe"}


def layer_kinds(text: dict[str, Any]) -> list[str]:
    """What each layer is, from a language model's configuration; empty if it does not say, and all layers attend."""
    for name in ("layer_types", "layers_block_type"):
        if isinstance(kinds := text.get(name), list):
            return [str(kind) for kind in kinds]
    if isinstance(pattern := text.get("hybrid_override_pattern"), str):
        return [_PATTERN.get(letter, letter) for letter in pattern]
    layers = int(text.get("num_hidden_layers") or 0)
    if isinstance(every := text.get("full_attention_interval"), int):
        return ["linear_attention" if (i + 1) % every else "full_attention" for i in range(layers)]
    if isinstance(full := text.get("full_attn_idxs"), list):
        return ["full_attention" if i in full else "conv" for i in range(layers)]
    return []


def loaded_config(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration that is loaded: that of a Llama for a Layer-Condensed model, any other unchanged."""
    return condensed.as_llama(name, config) if config.get("model_type") == condensed.KIND else config


def kv_numbers(config: dict[str, Any]) -> int | None:
    """Numbers of keys and values that one token has in all layers that attend; ``None`` if the config does not say."""
    with suppress(ModelError):
        config = loaded_config("", config)
    text = text_config(config)
    kinds, layers = layer_kinds(text), text.get("num_hidden_layers")
    heads, hidden = text.get("num_attention_heads"), text.get("hidden_size")
    if not (isinstance(heads, int) and isinstance(hidden, int) and (kinds or isinstance(layers, int))):
        return None
    attending = [i for i in range(len(kinds) or int(layers or 0)) if not kinds or _attends(kinds[i])]
    try:
        owners = _owners(text, kinds)
        own = [i for n, i in enumerate(attending) if not owners or owners[n] == n]
        sides = 1 if text.get("kv_lora_rank") else 2
        return sum(sides * kv * dim for _, kv, dim in (_shape(text, heads, hidden, i, sides == 1) for i in own))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _attends(kind: str) -> bool:
    return kind in ("hybrid", "hybrid_sliding") or ("attention" in kind and "linear" not in kind)


def _shape(text: dict[str, Any], heads: int, hidden: int, layer: int, latent: bool) -> tuple[int, int, int]:
    """Heads, KV heads and head dimensions of a layer; ``latent``: kept as it is, and not unpacked for every head."""
    kv_heads, dim = text.get("num_key_value_heads") or heads, text.get("head_dim") or hidden // heads
    if text.get("kv_lora_rank"):
        rotated = int(text["qk_rope_head_dim"])
        if latent:
            return heads, 1, int(text["kv_lora_rank"]) + rotated
        return heads, heads, int(text["qk_nope_head_dim"]) + rotated
    heads = (text.get("num_attention_heads_per_layer") or {layer: heads})[layer]
    own = (text.get("per_layer_config") or {}).get(str(layer)) or {}
    full = (layer_kinds(text) or [""])[min(layer, len(layer_kinds(text)) - 1)] == "full_attention"
    if full and not own and text.get("global_head_dim"):
        own = {"head_dim": text["global_head_dim"], "num_key_value_heads": text.get("num_global_key_value_heads")}
    return heads, own.get("num_key_value_heads") or kv_heads, own.get("head_dim") or dim


def _owners(text: dict[str, Any], kinds: list[str]) -> tuple[int, ...]:
    """The layers whose keys and values layers use: the last ones share those of the last layer of their kind before."""
    if text.get("kvcli_owners"):
        return tuple(text["kvcli_owners"])
    own = len(kinds) - int(text.get("num_kv_shared_layers") or 0)
    if not 0 < own < len(kinds) or not set(kinds[own:]) <= set(kinds[:own]):
        return ()
    last = {kind: i for i, kind in enumerate(kinds[:own])}
    return tuple(i if i < own else last[kind] for i, kind in enumerate(kinds))


def _state_bytes(text: dict[str, Any], kinds: list[str], size: int) -> int:
    """Bytes of the states of all recurrent layers: gated delta rules, Mamba-2 or short convolutions."""

    def first(*names: str) -> int:
        return next((int(text[name]) for name in names if isinstance(text.get(name), int)), 0)

    mamba = first("mamba_n_heads", "mamba_num_heads")
    recurrent = sum(not _attends(kind) and kind not in ("mlp", "moe", "dense", "sparse") for kind in kinds)
    layers = recurrent if kinds else first("num_hidden_layers") if mamba else 0
    if values := first("linear_num_value_heads"):
        keys, value_dim = first("linear_num_key_heads"), first("linear_value_head_dim")
        key_dim = first("linear_key_head_dim")
        channels = 2 * keys * key_dim + values * value_dim
        return layers * (channels * first("linear_conv_kernel_dim") * size + values * key_dim * value_dim * 4)
    if mamba:
        wide, states = mamba * first("mamba_d_head", "mamba_head_dim"), first("mamba_d_state", "ssm_state_size")
        if not first("mamba_d_head", "mamba_head_dim"):
            wide = first("mamba_d_ssm") or first("mamba_expand", "expand") * first("hidden_size")
        channels = wide + 2 * first("mamba_n_groups", "n_groups") * states
        return layers * (channels * first("mamba_d_conv", "conv_kernel") * size + wide * states * 4)
    return layers * first("hidden_size") * first("conv_L_cache") * size


def sliding_windows(config: Any) -> tuple[int | None, ...]:
    """Per layer, the width of its sliding window or ``None``, from a transformers configuration."""
    width: int | None = getattr(config, "sliding_window", None)
    layers: int = config.num_hidden_layers
    kinds = getattr(config, "layer_types", None)
    qwen = str(getattr(config, "model_type", "")).startswith("qwen")  # whose configs have a width and do not use it
    if width is None or getattr(config, "use_sliding_window", not qwen) is False:
        return (None,) * layers
    every = getattr(config, "sliding_window_pattern", None)
    if kinds is None and isinstance(every, int):
        return tuple(width if (i + 1) % every else None for i in range(layers))
    if kinds is None:
        return (width,) * layers
    return tuple(width if kind == "sliding_attention" else None for kind in kinds)


def intermediate_size(config: Any) -> int:
    """The width of the widest feed-forward layer, from a transformers configuration."""
    found = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    return max(found) if isinstance(found, list | tuple) else int(found)


_Shape = tuple[str, tuple[int, ...]]


_TEXT = re.compile(r"(^|\.)(language_model|text_model)\.")
_IMAGES = re.compile(r"(^|\.)(visual|vision\w*|audio\w*|multi_modal_projector)\.")
_LAYER = re.compile(r"(^|\.)layers\.(\d+)\.")


def _tensors(
    source: ModelSource, config: dict[str, Any], *, pictures: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Tensors that are loaded: no parts for images without ``pictures``, and no layers that predict further tokens."""
    tied, layers = bool(config.get("tie_word_embeddings")), config.get("num_hidden_layers") or math.inf
    found = {n: t for shard in weights.shards(source.path) for n, t in json.loads(weights.header(shard)).items()}
    parts = any(_TEXT.search(name) for name in found)
    for name, tensor in found.items():
        if name == "__metadata__" or name.endswith("inv_freq") or (tied and name.endswith("lm_head.weight")):
            continue
        image = _IMAGES.search(name) or (parts and not _TEXT.search(name) and "lm_head" not in name)
        other = image and not pictures
        later = (layer := _LAYER.search(name)) is not None and not image and int(layer[2]) >= layers
        if not (other or later or name.startswith("mtp.")):
            yield name, tensor


def _from_headers(source: ModelSource, config: dict[str, Any], pictures: bool) -> Iterator[_Shape]:
    yield from ((name, tuple(tensor["shape"])) for name, tensor in _tensors(source, config, pictures=pictures))


def unpacked(method: str | None, device: str) -> bool:
    """Whether transformers unpacks this quantised checkpoint, so that only the file is small."""
    return method == "compressed-tensors" or (method == "fp8" and device == "cpu")


def _bits(packing: dict[str, Any]) -> int:
    """Bits per number of a quantised checkpoint's matrices."""
    groups = [group.get("weights") or {} for group in (packing.get("config_groups") or {}).values()]
    named = [packing.get("bits"), packing.get("w_bit"), *(group.get("num_bits") for group in groups)]
    if packing.get("load_in_4bit"):
        return 4
    return next((int(bits) for bits in named if bits), 8)


_SCALES = re.compile(r"(weight_scale(_inv)?|weight_zero_point|weight_shape|\w*_g_idx|\w*global_scale|input_\w+)$")


def _stored(
    source: ModelSource, config: dict[str, Any], packing: dict[str, Any], device: str, size: int, *, pictures: bool
) -> Iterator[int]:
    """Bytes of a quantised checkpoint's tensors in memory; 16 and 32 bit floats count in the model's dtype."""
    dense, bits = unpacked(packing.get("quant_method"), device), _bits(packing)
    for name, tensor in _tensors(source, config, pictures=pictures):
        begin, end = tensor["data_offsets"]
        if dense and _SCALES.search(name):
            continue
        if tensor["dtype"] in ("F16", "BF16", "F32"):
            yield math.prod(tensor["shape"]) * size
        else:
            yield (end - begin) * 8 // bits * size if dense else end - begin


def _from_config(spec: ModelSpec, config: dict[str, Any]) -> Iterator[_Shape]:
    """Bytes of the matrices of a Llama-like model; biases and norms are negligible."""
    from kvcli.models import catalogue

    alias = catalogue.known(spec.name)
    if alias is not None and alias.linear:
        once = spec.vocab * spec.hidden
        yield "layers.experts.all", (alias.experts // spec.hidden, spec.hidden)
        rank, values = (int(config.get(name) or 0) for name in ("kv_lora_rank", "v_head_dim"))
        unpacking = alias.layers * spec.heads * rank * (int(config.get("qk_nope_head_dim") or 0) + values)
        yield f"layers.{UNPACKING}", (unpacking // spec.hidden, spec.hidden)
        yield "layers.all", ((alias.linear - alias.experts - unpacking) // spec.hidden, spec.hidden)
        yield from [("embed", (spec.vocab, spec.hidden)), ("lm_head", (spec.vocab, spec.hidden))][: 2 - alias.tied]
        yield "norms", (alias.parameters - alias.linear - (2 - alias.tied) * once,)
        return
    if spec.state_bytes or spec.shapes:
        raise ModelError(f"{spec.name}: its config does not say how large it is", f"kvcli models pull {spec.name}")
    if any(config.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise ModelError(
            f"{spec.name} is a mixture of experts, whose size its config does not say", f"kvcli models pull {spec.name}"
        )
    yield from (("embed", (spec.vocab, spec.hidden)), ("norm", (spec.hidden,)))
    if not config.get("tie_word_embeddings"):
        yield "lm_head", (spec.vocab, spec.hidden)
    wide = spec.heads * spec.head_dim
    for i in range(spec.layers):
        at = f"layers.{i}."
        yield f"{at}qo", (2 * wide, spec.hidden)
        yield f"{at}kv", (2 * spec.kv_heads * spec.head_dim, spec.hidden)
        yield f"{at}mlp", (3 * spec.intermediate, spec.hidden)
        yield f"{at}norms", (2 * spec.hidden,)


_WHOLE = re.compile(rf"(?<!un)embed|lm_head|{UNPACKING}|\b(wte|wpe)\b|\.(gate|router)(\.layer)?\.weight$|bias$")


def _bytes(name: str, shape: tuple[int, ...], size: int, stored: str, packing: dict[str, Any], device: str) -> int:
    """Bytes of one tensor. Embeddings, routers, biases and convolutions stay whole; scales are included."""
    numbers = math.prod(shape)
    few = packing and not unpacked(packing.get("quant_method"), device)
    whole = len(shape) not in (2, 3) or _WHOLE.search(name) or (len(shape) == 3 and "conv" in name)
    if whole or (stored == "bf16" and not few) or (len(shape) == 3 and numbers // shape[0] % _NF4_BLOCK):
        return numbers * size
    if few and packing.get("quant_method") == "mxfp4":  # experts only, with a scale of 8 bits for 32 numbers
        return numbers * 17 // 32 if ".experts." in name else numbers * size
    if few:  # a scale of 16 bits and a zero point for each group
        group = packing.get("group_size") or packing.get("q_group_size") or 128
        return (numbers * _bits(packing) + numbers // (group if group > 0 else 128) * (16 + _bits(packing))) // 8
    if stored == "int8":
        return numbers + 4 * math.prod(shape[:-1])  # one float32 scale a row
    return math.ceil(numbers / 2) + 4 * math.ceil(numbers / _NF4_BLOCK)
