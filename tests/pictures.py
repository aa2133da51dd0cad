"""Tiny random models with vision towers, one of each family whose pictures kvcli reads, and random pictures."""

from __future__ import annotations

import random
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Idefics3Config,
    LlamaConfig,
    LlavaConfig,
    PreTrainedModel,
    SmolVLMConfig,
)

from kvcli.documents.document import Picture
from kvcli.documents.pictures import _picture
from kvcli.models.load import wrap
from kvcli.models.model import Model
from kvcli.models.pictures import PictureReader
from tests import tiny

FAMILIES = ("smolvlm", "idefics3", "llava")
IMAGE = 96  # the id of image tokens, unless a tokenizer says otherwise

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""As templates of such models are: it takes the parts of a message one by one, and no plain text."""

_VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}


def config(family: str, *, image: int = IMAGE, **sizes: Any) -> Any:
    """4 rows a tile for SmolVLM and Idefics 3, 16 a picture for LLaVA."""
    text = LlamaConfig(**{**tiny.SIZES, **sizes})
    if family == "llava":
        vision = CLIPVisionConfig(**_VISION, projection_dim=16)
        return LlavaConfig(vision_config=vision, text_config=text, image_token_id=image, vision_feature_layer=-2)
    kind = SmolVLMConfig if family == "smolvlm" else Idefics3Config
    return kind(vision_config=_VISION, text_config=text, scale_factor=2, image_token_id=image)


def processor(family: str) -> Any:
    """Pictures of more than 16 pixels become up to four tiles and a small whole; LLaVA cuts out a square."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    if family == "llava":
        return CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    kind = SmolVLMImageProcessorPil if family == "smolvlm" else Idefics3ImageProcessorPil
    return kind(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})


def build(family: str, *, seed: int = 0, **options: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    made = AutoModelForImageTextToText.from_config(config(family, **options), dtype=torch.float32)
    return tiny.randomise(made, seed)


def load(family: str, *, seed: int = 0) -> Model:
    """A random model that has passed the probe, with its image processor."""
    module = build(family, seed=seed)
    model = wrap(module, None, name=family, fingerprint=None)
    model.pictures = PictureReader(processor(family), module.config)
    return model


def png(width: int, height: int, seed: int = 0) -> bytes:
    """A picture of noise."""
    pixels = random.Random(seed).randbytes(3 * width * height)
    file = BytesIO()
    Image.frombytes("RGB", (width, height), pixels).save(file, "PNG")
    return file.getvalue()


def picture(width: int, height: int, seed: int = 0) -> Picture:
    return _picture(f"{seed}.png", png(width, height, seed))


def save(path: Path, family: str = "smolvlm", *, window: int = 4096) -> Path:
    """A random model as a directory: weights, image processor, byte tokenizer, and a template for parts."""
    from tests.e2e.conftest import byte_tokenizer

    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<image>", "<fake_token_around_image>", "<global-img>"], special_tokens=True)
    tokenizer.chat_template = TEMPLATE
    image = tokenizer.convert_tokens_to_ids("<image>")
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": window, "eos_token_id": tokenizer.eos_token_id}
    build(family, image=image, **sizes).save_pretrained(path)
    tokenizer.save_pretrained(path)
    processor(family).save_pretrained(path)
    return path
