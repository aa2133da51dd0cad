"""Which class of transformers loads a configuration: language models alone, and those with parts for images."""

from __future__ import annotations

from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
)


def auto_class(config: PretrainedConfig) -> Any:
    """The class whose ``from_pretrained`` and ``from_config`` make a model of this type; imports the model's code.

    Models for images and text are used for text alone.
    """
    causal, images = MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if causal.get(type(config), None) is None and images.get(type(config), None) is not None:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM
