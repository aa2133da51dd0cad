"""Split a model that is larger than the GPU: as many layers on it as fit, the others in main memory.

accelerate copies a layer from main memory to the GPU each time it is used. Prefill in large chunks hides part of these
copies; decoding pays for them with every token.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig

from kvcli.errors import ResourceError
from kvcli.models.auto_class import auto_class
from kvcli.utils.process_memory import available, host_available
from kvcli.utils.sizes import format_bytes

KEPT_BACK = 0.25
"""Share of the card's free memory that a model which does not fit leaves to the cache and to what is computed with."""


@dataclass(frozen=True)
class DeviceMap:
    """The device of each part of a model.

    Attributes:
        places: accelerate's device map.
        card, host: bytes of weights on the GPU and in main memory.
        text: one line for the user.
    """

    places: dict[str, str]
    card: int
    host: int
    text: str


def needed(config: PretrainedConfig, dtype: torch.dtype, device: str, name: str) -> DeviceMap | None:
    """How to split a model between GPU and main memory; ``None`` if the GPU holds all of it.

    Raises:
        ResourceError: not one layer fits the GPU, or the rest does not fit main memory.
    """
    free = available(device)
    with torch.device("meta"):
        module = auto_class(config).from_config(
            config, dtype=dtype, attn_implementation="eager", trust_remote_code=False
        )
    module.tie_weights()
    if _bytes(module) <= free:
        return None
    return over(module, device, int(free * (1 - KEPT_BACK)), host_available(), name)


def over(module: nn.Module, device: str, room: int, host: int, name: str, rest: str = "cpu") -> DeviceMap:
    """Split a model without weights between ``room`` bytes of a device and ``host`` bytes of main memory.

    Raises:
        ResourceError: as for :func:`needed`.
    """
    from accelerate import infer_auto_device_map

    logging.getLogger("accelerate").setLevel(logging.ERROR)  # which says the same, and of every reading
    whole, gib = _bytes(module), format_bytes
    kinds = list(getattr(module, "_no_split_modules", None) or [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that buffers of fetched layers may not fit: they are a few frequencies
        found = infer_auto_device_map(module, {0: room, "cpu": host}, no_split_module_classes=kinds)
    places = {part: device if where == 0 else rest for part, where in found.items()}
    layers = [n for n, part in module.named_modules() if type(part).__name__ in kinds]
    on_card = sum(_place(places, layer) == device for layer in layers)
    if "disk" in found.values():
        raise ResourceError(
            f"{name} takes {gib(whole)}, more than the {gib(room)} that {device} has for it and the {gib(host)} of main"
            " memory together",
            "--weights nf4",
        )
    if not on_card:
        raise ResourceError(
            f"{name} takes {gib(whole)} and {device} has {gib(room)} for it, less than its first layer needs",
            "--device cpu",
        )
    # Frequencies, and the last norm, by which a model's heads are found: small, and wanted where they can be read.
    small = [part for part in places if part.split(".")[-1] == "rotary_emb"]
    inside = tuple(f"{layer}." for layer in layers)
    norms = [n for n, m in module.named_modules() if n.split(".")[-1].endswith("norm") and not n.startswith(inside)]
    places.update(dict.fromkeys([*small, *norms], device))
    card = sum(p.nbytes for n, p in module.named_parameters() if _place(places, n) == device)
    text = (
        f"{name} takes {gib(whole)} and {device} has {gib(room)} for weights: {on_card} of {len(layers)} layers lie on"
        f" it, {gib(whole - card)} in main memory, fetched at every step; --weights nf4 takes a third"
    )
    return DeviceMap(places, card, whole - card, text)


def _place(places: dict[str, str], name: str) -> str:
    """The device of a parameter or module by its name: that of the longest part of it that has one."""
    while name not in places:
        if not name:
            raise KeyError("a part of the model has no place")
        name = name.rpartition(".")[0]
    return places[name]


def _bytes(module: nn.Module) -> int:
    return sum(p.nbytes for p in module.parameters())
