"""Which class of transformers loads a configuration: language models alone, and those with parts for images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)


def auto_class(config: PretrainedConfig, *, pictures: bool = False) -> Any:
    """The class whose ``from_pretrained`` and ``from_config`` make a model of this type; imports the model's code.

    Without ``pictures``, models for images and text are used for text alone: their parts for images are neither made
    nor loaded.
    """
    causal, images = (
        found.get(type(config), None) for found in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
    )
    made = causal or images
    if pictures:
        return images
    if images is None or made is not images or isinstance(made, tuple):
        return AutoModelForCausalLM

    class TextOnly(made):  # type: ignore[misc, valid-type]
        def __init__(self, config: PretrainedConfig, *args: Any, **options: Any) -> None:
            super().__init__(config, *args, **options)
            dropped = drop_towers(self)
            usual: Any = getattr(self, "_keys_to_ignore_on_load_unexpected", None) or ()
            self._keys_to_ignore_on_load_unexpected = {*usual, *(rf"(^|\.){name}\." for name in dropped)}

        @classmethod
        def from_config(cls, config: PretrainedConfig, *, trust_remote_code: bool = False, **options: Any) -> Any:
            assert not trust_remote_code
            return cls._from_config(config, **options)

    TextOnly.__name__ = TextOnly.__qualname__ = made.__name__
    TextOnly.__module__ = made.__module__
    return TextOnly


def drop_towers(module: PreTrainedModel) -> list[str]:
    """Take out what is beside the language model on the way to it, but for the output matrix; return the names."""
    found = list(_towers(module))
    for owner, name in found:
        setattr(owner, name, nn.Identity())
    return [name for _, name in found]


def _towers(module: PreTrainedModel) -> Iterator[tuple[nn.Module, str]]:
    """Modules with weights beside the language model, except for the output matrix: owner and name."""
    decoder, head = module.get_decoder(), module.get_output_embeddings()
    path = next((name for name, part in module.named_modules() if part is decoder), "")
    owner: nn.Module = module
    for step in path.split(".") if path else ():
        for name, part in owner.named_children():
            if name != step and part is not head and next(part.parameters(), None) is not None:
                yield owner, name
        owner = owner.get_submodule(step)


def tower_parts(module: PreTrainedModel) -> set[nn.Module]:
    """The modules of a model's vision tower, and of what leads from it to the language model; none if it has none."""
    if not hasattr(module.config, "vision_config"):
        return set()
    return {part for owner, name in _towers(module) for part in owner.get_submodule(name).modules()}


def attend_by(module: PreTrainedModel, name: str) -> None:
    """Let the layers of a language model attend by a named function; its vision tower keeps torch's own."""
    parts = {"": name, "text_config": name, "vision_config": "sdpa"}
    module.set_attn_implementation(parts if tower_parts(module) else name)
