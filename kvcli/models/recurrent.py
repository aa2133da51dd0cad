"""The state of layers that keep no keys: convolutions, Mamba, gated delta rules.

transformers' hybrid models share one interface for it, which this class is. Their attention layers hand it keys and
values too, and get them back unchanged, because kvcli's KV cache keeps those.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig


class RecurrentState(DynamicCache):  # type: ignore[misc]
    """Implements :class:`kvcli.cache.base.State`. A state after some tokens is exact, whatever was evicted."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config=config)
        self.layout: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values as they came."""
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002  # the name is transformers'
        """No keys are kept here."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:  # noqa: ARG002
        """As for a cache without keys."""
        return query_length, 0

    @property
    def nbytes(self) -> int:
        """Bytes of all states."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """All states by name: ``3.conv.0`` is the first convolution state of layer 3."""
        return {
            f"{i}.{kind}.{n}": tensor
            for i, layer in enumerate(self.layers)
            for kind in ("conv", "recurrent")
            for n, tensor in (getattr(layer, f"{kind}_states", None) or {}).items()
            if tensor is not None
        }

    def copy(self) -> RecurrentState:
        """An independent copy."""
        return copy.deepcopy(self)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over the states that :meth:`tensors` gave.

        Raises:
            ValueError: names, shapes or dtypes that this model's states do not have.
        """
        if (found := _layout(tensors)) != self.layout:
            name, form = next(iter(dict(set(found.items()) ^ set(self.layout.items())).items()))
            raise ValueError(f"the model and the file differ in the state {name} of {list(form[0])} {form[1]}")
        for name, tensor in tensors.items():
            index, kind, number = name.split(".")
            layer: Any = self.layers[int(index)]
            n = int(number)
            getattr(layer, f"{kind}_states")[n] = tensor
            getattr(layer, f"is_{kind}_states_initialized")[n] = True
            layer.has_previous_state[n] = True
            if kind == "conv":
                layer.conv_kernel_size[n] = tensor.shape[-1]
                layer.device, layer.dtype = tensor.device, tensor.dtype


def empty(config: PretrainedConfig) -> RecurrentState | None:
    """A state of no tokens; ``None`` if transformers knows no recurrent layer of this configuration."""
    try:
        made = RecurrentState(config)
    except (AttributeError, KeyError, TypeError, ValueError, NotImplementedError):
        return None
    return made if any(hasattr(layer, "conv_states") for layer in made.layers) else None


def first(config: PretrainedConfig, advanced: RecurrentState | None) -> RecurrentState | None:
    """A state of no tokens for a model whose layers advanced another one; ``None`` if they left it alone."""
    made = empty(config) if advanced is not None and advanced.nbytes else None
    if made is not None and advanced is not None:
        made.layout = _layout(advanced.tensors())
    return made


def _layout(tensors: dict[str, Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
