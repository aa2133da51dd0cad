"""The embeddings of a text with pictures, chunk by chunk."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kvcli.errors import InputError, ModelError
from kvcli.models.model import Model
from kvcli.models.pictures import Pictures


class PictureRows:
    """The embeddings of a text with pictures. A picture's rows are computed when the first chunk needs them.

    Args:
        model: with its vision tower.
        pictures: of the text.
        ids: int64 ``[n]``, all tokens of the text.

    Raises:
        ModelError: the text has other image tokens than the pictures.
    """

    def __init__(self, model: Model, pictures: Pictures, ids: Tensor) -> None:
        assert model.pictures is not None
        self.model, self.pictures, self.reader = model, pictures, model.pictures
        self.marks = ids == self.reader.token
        if int(self.marks.sum()) != sum(pictures.rows):
            raise ModelError(f"{model.name}: the text has {int(self.marks.sum()):,} image tokens, and its pictures have"
                             f" {sum(pictures.rows):,}")  # fmt: skip
        self._last: tuple[int, Tensor] | None = None

    def embeds(self, ids: Tensor, start: int, new: int) -> Tensor | None:
        """Embeddings ``[m, hidden]`` of a chunk; ``None`` if it has no image token.

        Args:
            ids: the chunk's tokens, and the question's after them.
            start, new: the chunk's place in the text.
        """
        here = self.marks[start : start + new].nonzero()[:, 0]
        if not len(here):
            return None
        first, offset = int(self.marks[:start].sum()), 0
        rows: list[Tensor] = []
        with torch.inference_mode(), self.model.lock:
            for i, count in enumerate(self.pictures.rows):
                if offset < first + len(here) and first < offset + count:
                    rows.append(self._rows(i)[max(0, first - offset) : first + len(here) - offset])
                offset += count
            found: Tensor = self.model.module.get_input_embeddings()(ids)
            found[here] = torch.cat(rows).to(found)
        return found

    def _rows(self, index: int) -> Tensor:
        """The rows ``[count, hidden]`` of one picture."""
        if self._last is not None and self._last[0] == index:
            return self._last[1]
        data = self.pictures.files[index]
        if not data:
            raise InputError(f"picture {index + 1} must be read again, and its file was not named", "name all pictures")
        tower: Any = self.model.module.base_model
        found: list[Tensor] = []
        for tile in self.reader.tiles(data):
            here = {name: pixels.to(self.model.device) for name, pixels in tile.items()}
            here["pixel_values"] = here["pixel_values"].to(self.model.dtype)
            found += tower.get_image_features(**here, return_dict=True).pooler_output
        rows = torch.cat(found)
        if len(rows) != self.pictures.rows[index]:
            raise ModelError(
                f"{self.model.name}: its vision tower makes {len(rows):,} rows of picture {index + 1}, and its image"
                f" processor names {self.pictures.rows[index]:,}"
            )
        self._last = index, rows
        return rows
