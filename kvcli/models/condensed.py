"""Layer-Condensed KV cache (Wu and Tu 2024, arXiv 2405.10637): layers that use the keys and values of a higher layer.

A checkpoint (``lckv-llama``) is a Llama whose configuration names each layer's owner; only owners have projections for
keys and values. It is loaded as a Llama, so none of its own Python runs. A token of a layer below its owner sees the
owner's units of earlier tokens only, for those of its own do not exist yet. So a chunk passes the model several times:
each pass uses what the one before has made, and the last one counts (:meth:`kvcli.models.model.Model.forward`). As many
passes as tokens give exactly what single tokens do.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from kvcli.errors import ModelError
from kvcli.types import DRAFT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from kvcli.types import ModelSpec

KIND = "lckv-llama"
_OWN = (
    "layer_types",
    "forward_passes",
    "backward_passes",
    "sliding_window",
    "use_sequential",
    "force_nodiag",
    "auto_map",
)
_PROJECTION = re.compile(r"layers\.(\d+)\.self_attn\.[kv]_proj\.")


def as_llama(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration as that of a Llama with ``kvcli_owners`` and ``kvcli_passes``.

    Raises:
        ModelError: a share map that no such model has, or a variant that is not run.
    """
    layers = int(config.get("num_hidden_layers") or 0)
    text = str(config.get("layer_types") or "_".join(map(str, range(layers))))
    hint = "a model whose layers have keys of their own: kvcli models ls"
    if "s" in text or config.get("force_nodiag"):
        what = "windows in layers that share keys" if "s" in text else "force_nodiag=true"
        raise ModelError(f"{name} is a Layer-Condensed model with {what}, which kvcli does not run", hint)
    owners = [int(part) if part.isdecimal() else -1 for part in text.split("_")]
    if len(owners) != layers or any(not 0 <= o < layers or owners[o] != o for o in owners):
        raise ModelError(f"{name}: layer_types '{text}' in its config.json is no share map of {layers:,} layers", hint)
    ahead = any(owner > layer for layer, owner in enumerate(owners))
    passes = int(config.get("forward_passes") or 7) + int(config.get("backward_passes") or 2)
    plain = {key: value for key, value in config.items() if key not in _OWN}
    plain |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    return plain | {"kvcli_owners": owners, "kvcli_passes": passes if ahead else 0}


def without_spare(found: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Leave out of transformers' report the projections that borrowing layers do not have."""
    owners: Sequence[int] = config.get("kvcli_owners") or ()

    def spare(key: str) -> bool:
        match = _PROJECTION.search(key)
        return bool(owners) and match is not None and owners[int(match[1])] != int(match[1])

    return {**found, "missing_keys": [key for key in found["missing_keys"] if not spare(key)]}


def passes(spec: ModelSpec, tokens: int) -> int:
    """Return how often ``tokens`` tokens pass the model: once each if they are few, so that a draft changes nothing."""
    return 1 if not spec.passes else tokens if tokens <= max(spec.passes, DRAFT + 1) else spec.passes


def condense(module: Any, spec: ModelSpec) -> int:
    """Take the random projections of borrowing layers out of a loaded module; returns their bytes."""
    from torch import nn

    class NoKeys(nn.Module):
        """In the place of a projection: nothing reads its output."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.width = width

        def forward(self, x: Tensor) -> Tensor:
            return x.new_zeros(()).expand(*x.shape[:-1], self.width)

    removed = 0
    layers: Sequence[nn.Module] = module.model.layers
    for layer, owner in enumerate(spec.owners):
        if owner != layer:
            part: Any = layers[layer].self_attn
            for name in ("k_proj", "v_proj"):
                old = getattr(part, name)
                removed += sum(p.nbytes for p in old.parameters())
                setattr(part, name, NoKeys(old.out_features))
    return removed
