"""Pictures for a model with a vision tower: their tokens in a prompt, their pixels, and the rows that the tower makes.

A picture is a run of image tokens. Prefill puts the tower's rows in the place of these tokens' embeddings, chunk by
chunk, so a chunk may begin or end inside a picture. Positions and attention are those of text, so only families are
read whose image tokens have ordinary positions and a causal mask. Imports no torch before a picture is read.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvcli.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from kvcli.documents.document import Picture
    from kvcli.models.weights import ModelSource

TYPES = ("idefics3", "llava", "smolvlm")
"""``model_type`` of the families whose pictures are read."""

_TOWERS = ("clip_vision_model", "siglip_vision_model")
"""Vision towers of LLaVA whose pictures all have the same size."""

_AROUND, _WHOLE = "<fake_token_around_image>", "<global-img>"


def require(name: str, config: dict[str, Any]) -> None:
    """Refuse pictures for a model that reads none, by its ``config.json``.

    Raises:
        ModelError: it is a text model, or of a family whose pictures are not read.
    """
    kind, vision = config.get("model_type"), config.get("vision_config")
    hint = "-m HuggingFaceTB/SmolVLM-256M-Instruct, or leave out the pictures"
    if vision is None and kind not in TYPES:
        raise ModelError(f"{name} is a text model and reads no pictures", hint)
    if kind not in TYPES or (kind == "llava" and (vision or {}).get("model_type", _TOWERS[0]) not in _TOWERS):
        raise ModelError(f"{name} ({kind}): kvcli reads the pictures of {', '.join(TYPES)} models only", hint)


@dataclass(frozen=True)
class Pictures:
    """The pictures of a prompt.

    Attributes:
        ids: token ids of all pictures and of the words between them.
        files: content of each picture's file; empty if only its size is known.
        rows: image tokens of each picture.
        digest: of the pictures' content, and of how they are made smaller.
    """

    ids: tuple[int, ...]
    files: tuple[bytes, ...]
    rows: tuple[int, ...]
    digest: str


@dataclass(frozen=True)
class PictureReader:
    """How a model reads pictures.

    Attributes:
        processor: transformers' image processor.
        config: the model's configuration.
    """

    processor: Any
    config: Any

    @classmethod
    def of(cls, source: ModelSource, config: Any = None) -> PictureReader:
        """Raises ``ModelError`` if the model reads no pictures, or has no image processor."""
        require(source.name, source.config)
        from transformers import AutoConfig, AutoImageProcessor

        try:
            if config is None:
                config = AutoConfig.from_pretrained(source.path, local_files_only=True, trust_remote_code=False)
            processor = AutoImageProcessor.from_pretrained(
                source.path, backend="pil", local_files_only=True, trust_remote_code=False
            )
        except (ImportError, OSError, ValueError, KeyError, TypeError) as error:
            why = " ".join(str(error).split())[:200]
            raise ModelError(
                f"{source.name}: its image processor cannot be loaded: {why}", "leave out the pictures"
            ) from error
        return cls(processor, config)

    @property
    def token(self) -> int:
        """The id that stands for a row of a picture."""
        return int(self.config.image_token_id)

    @property
    def _tile_rows(self) -> int:
        """Rows that the tower makes of one tile."""
        vision = self.config.vision_config
        if self.config.model_type != "llava":
            side = vision.image_size // vision.patch_size // self.config.scale_factor
            return int(side**2)
        size = self.processor.crop_size if getattr(self.processor, "do_center_crop", False) else self.processor.size
        patches = (size["height"] // vision.patch_size) * (size["width"] // vision.patch_size)
        first = vision.model_type == _TOWERS[0]  # the class token, which the strategy "default" leaves out
        return int(patches + first - (self.config.vision_feature_select_strategy == "default"))

    @property
    def nbytes(self) -> int:
        """Bytes at the peak of reading one picture, about: its pixels in float32, and the activations of one tile."""
        vision = self.config.vision_config
        tiles = 1
        if self.config.model_type != "llava" and self.processor.do_image_splitting:
            edge, tile = (getattr(self.processor, name)["longest_edge"] for name in ("size", "max_image_size"))
            tiles += math.ceil(edge / tile) ** 2
        pixels = 4 * tiles * 3 * vision.image_size**2 * 4  # each step of the processor makes a copy
        wide = 8 * vision.hidden_size + 2 * vision.intermediate_size
        return int(pixels + (vision.image_size // vision.patch_size) ** 2 * wide * 4)

    def ids(self, encode: Callable[[str], list[int]], width: int, height: int) -> list[int]:
        """The token ids of a picture, as transformers' processor of the family makes them.

        Args:
            encode: gives the ids of template text.
            width, height: of the picture, in pixels.
        """
        tile = [self.token] * self._tile_rows
        if self.config.model_type == "llava":
            return tile
        _, rows, columns = self.processor.get_number_of_image_patches(height, width)
        found, gap = list[int](), ""
        for row in range(1, rows + 1):
            for column in range(1, columns + 1):
                found += encode(f"{gap}{_AROUND}<row_{row}_col_{column}>") + tile
                gap = ""
            gap = "\n"
        return found + encode(f"{gap * 2}{_AROUND}{_WHOLE}") + tile + encode(_AROUND)

    def read(self, pictures: Sequence[Picture], encode: Callable[[str], list[int]]) -> Pictures:
        """The pictures of a prompt in order; several have numbers, pages of a PDF the numbers of their pages."""
        ids, rows = list[int](), list[int]()
        digest = hashlib.sha256(self.processor.to_json_string().encode())
        for number, picture in enumerate(pictures, 1):
            label = f"Page {picture.page}:\n" if picture.page else f"Picture {number}:\n" if len(pictures) > 1 else ""
            own = self.ids(encode, picture.width, picture.height)
            ids += [*(encode("\n") if ids else ()), *(encode(label) if label else ()), *own]
            rows.append(own.count(self.token))
            digest.update(picture.sha256.encode())
        return Pictures(tuple(ids), tuple(p.data for p in pictures), tuple(rows), digest.hexdigest()[:32])

    def tiles(self, data: bytes) -> Iterator[dict[str, Tensor]]:
        """What the tower gets of a picture, a tile at a time, so that memory does not grow with the picture."""
        from kvcli.documents.pictures import decode

        tiled = self.config.model_type != "llava"
        picture = decode(data)
        found = self.processor([[picture]] if tiled else picture, return_tensors="pt")
        names = [name for name in ("pixel_values", "pixel_attention_mask") if name in found]
        for i in range(found["pixel_values"].shape[1] if tiled else 1):
            yield {name: found[name][:, i : i + 1] if tiled else found[name] for name in names}
