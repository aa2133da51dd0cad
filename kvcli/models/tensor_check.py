"""A checkpoint must have exactly the tensors of its model: transformers draws missing ones at random."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kvcli.errors import ModelError

SHOWN = 3
"""Names of each kind in a message."""

_WRITES = re.compile(r"CausalLM|LMHead|ConditionalGeneration|Generat")
"""In the names of classes that generate text."""

_CONSTANTS = re.compile(r"\.(rotary_emb\.inv_freq|masked_bias|attn\.bias)$")
"""Tables that old checkpoints hold and models compute."""


def require_all(found: Mapping[str, Any], name: str, *, spare: bool = False, made: Sequence[str] = ()) -> None:
    """Refuse a model whose tensors were missing, had another shape or were not its own.

    Args:
        found: what ``from_pretrained(…, output_loading_info=True)`` reports; it leaves tied tensors out.
        name: of the model.
        spare: tensors that the model does not have are no fault, as in quantised checkpoints.
        made: the classes that the checkpoint was saved from, as its config says.

    Raises:
        ModelError: with the first names of each kind.
    """
    mismatched = [
        f"{key} ({_shape(theirs)} instead of {_shape(ours)})" for key, theirs, ours in sorted(found["mismatched_keys"])
    ]
    foreign = [] if spare else [key for key in sorted(found["unexpected_keys"]) if not _CONSTANTS.search(key)]
    kinds = {
        "missing": sorted(found["missing_keys"]),
        "of another shape": mismatched,
        "not in this architecture": foreign,
        "not read": sorted(map(str, found.get("error_msgs") or ())),
    }
    faults = [_fault(kind, names) for kind, names in kinds.items() if names]
    if faults and made and not any(_WRITES.search(cls) for cls in made):
        raise ModelError(f"{name} is a {made[0]}, which does not generate text", "kvcli models ls lists models that do")
    if faults:
        raise ModelError(
            f"{name} has not the weights that its config.json describes: {'; '.join(faults)}",
            "fetch the model again, or ask who converted it",
        )


def _fault(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"{len(names):,} {'tensor' if len(names) == 1 else 'tensors'} {kind}: {', '.join(names[:SHOWN])}{more}"


def _shape(shape: Any) -> str:
    return "×".join(map(str, shape)) or "a number"
