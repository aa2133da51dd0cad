"""Split a model that is larger than the GPU: layers over all GPUs, and in main memory what they have no room for.

The keys and values of a layer are where the layer is (:attr:`kvcli.types.ModelSpec.devices`). accelerate copies a layer
from main memory to the GPU each time it is used. Prefill in large chunks hides part of these copies; decoding pays for
them with every token.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig

from kvcli.errors import ResourceError
from kvcli.models import partial_imports
from kvcli.models.auto_class import auto_class
from kvcli.utils.process_memory import available, host_available
from kvcli.utils.sizes import format_bytes

KEPT_BACK = 0.25
"""Share of the GPU's free memory that a model which does not fit leaves to the cache and to what is computed with."""


@dataclass(frozen=True)
class DeviceMap:
    """The device of each part of a model.

    Attributes:
        places: accelerate's device map.
        gpus: by GPU, bytes of weights on it.
        host: bytes of weights in main memory.
        text: one line for the user.
    """

    places: dict[str, str]
    gpus: dict[str, int]
    host: int
    text: str


def needed(config: PretrainedConfig, dtype: torch.dtype, device: str, name: str) -> DeviceMap | None:
    """How to split a model; ``None`` if the GPU holds all of it.

    The first GPU shares it with the others; any other GPU, named with ``--device``, has it for itself.

    Raises:
        ResourceError: not one layer fits a GPU, or the rest does not fit main memory.
    """
    free = available(device)
    partial_imports.complete()
    with torch.device("meta"):
        module = auto_class(config).from_config(
            config, dtype=dtype, attn_implementation="eager", trust_remote_code=False
        )
    module.tie_weights()
    if _bytes(module) <= free:
        return None
    gpus = [device] if device != "cuda:0" else [f"cuda:{i}" for i in range(max(1, torch.cuda.device_count()))]
    rooms = {gpu: int(available(gpu) * (1 - KEPT_BACK)) for gpu in gpus}
    return over(module, rooms, host_available(), name)


def over(module: nn.Module, rooms: Mapping[str, int], host: int, name: str, rest: str = "cpu") -> DeviceMap:
    """Split a model without weights between GPUs, each with its bytes of room, and ``host`` bytes of main memory.

    Raises:
        ResourceError: as for :func:`needed`.
    """
    from accelerate import infer_auto_device_map

    logging.getLogger("accelerate").setLevel(logging.ERROR)  # which says the same each time
    whole, gib = _bytes(module), format_bytes
    kinds = list(getattr(module, "_no_split_modules", None) or [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that buffers of fetched layers may not fit: they are a few frequencies
        most: dict[int | str, int] = {**dict(enumerate(rooms.values())), "cpu": host}
        found = infer_auto_device_map(module, most, no_split_module_classes=kinds)
    names, device = list(rooms), next(iter(rooms))
    have = f"{' and '.join(names)} {'has' if len(names) == 1 else 'have'}"
    room = gib(sum(rooms.values()))
    places = {part: names[where] if isinstance(where, int) else rest for part, where in found.items()}
    layers = [n for n, part in module.named_modules() if type(part).__name__ in kinds]
    counts = Counter(_place(places, layer) for layer in layers)
    on_gpus = sum(counts[gpu] for gpu in names)
    if "disk" in found.values():
        raise ResourceError(
            f"{name} takes {gib(whole)}, more than the {room} that {have} for it and the {gib(host)} of main memory"
            " together",
            "--weights nf4",
        )
    if not on_gpus:
        raise ResourceError(
            f"{name} takes {gib(whole)} and {have} {room} for it, less than its first layer needs",
            "--device cpu",
        )
    # Frequencies, and the last norm, by which a model's heads are found: small, and needed in host memory.
    small = [part for part in places if part.split(".")[-1] == "rotary_emb"]
    inside = tuple(f"{layer}." for layer in layers)
    norms = [n for n, m in module.named_modules() if n.split(".")[-1].endswith("norm") and not n.startswith(inside)]
    places.update(dict.fromkeys([*small, *norms], device))
    held = Counter[str]()
    for parameter, weight in module.named_parameters():
        held[_place(places, parameter)] += weight.nbytes
    parts = [f"{counts[gpu]} of {len(layers)} layers ({gib(held[gpu])}) on {gpu}" for gpu in names if counts[gpu]]
    text = f"{name} takes {gib(whole)}, and {device} has {gib(rooms[device])} for weights: {', '.join(parts)}"
    if left := whole - sum(held[gpu] for gpu in names):
        text += f", {gib(left)} offloaded to RAM, which is slow; --weights nf4 takes a third"
    return DeviceMap(places, {gpu: held[gpu] for gpu in names}, left, text)


def _place(places: dict[str, str], name: str) -> str:
    """The device of a parameter or module by its name: that of the longest part of it that has one."""
    while name not in places:
        if not name:
            raise KeyError("a part of the model has no place")
        name = name.rpartition(".")[0]
    return places[name]


def _bytes(module: nn.Module) -> int:
    return sum(p.nbytes for p in module.parameters())
