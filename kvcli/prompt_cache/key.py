"""The key of a saved prefill: two prefills with equal keys have equal numbers. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace

FORMAT = 1
"""Version of the file format and of the computation. Raise it if a change makes a policy keep other units."""


@dataclass(frozen=True)
class CacheKey:
    """Everything that the kept units of a prefill depend on.

    Attributes:
        version: :data:`FORMAT`.
        model: the model's fingerprint.
        dtype: of weights and cache.
        template: digest of the prompt's ids before the text, and of the content of pictures there.
        recipe: in canonical form, without storage that is applied after prefill.
        heads: digest of the retaining heads, if the policy uses them.
        chunk: tokens per forward pass.
        question: digest of the question's ids, if the policy is query-aware.
        horizon: planned RoPE positions, if the model's frequencies depend on them; else 0.
        text: digest of all token ids.
    """

    version: int
    model: str
    dtype: str
    template: str
    recipe: str
    heads: str
    chunk: int
    question: str
    horizon: int
    text: str

    @property
    def key(self) -> str:
        """The name of the file: 24 hexadecimal digits."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:24]

    @property
    def family(self) -> CacheKey:
        """The key without the text: prefills of one family can continue each other."""
        return replace(self, text="")

    def difference(self, other: CacheKey) -> tuple[str, object, object] | None:
        """The first field in which two keys differ, and both values."""
        for f in fields(self):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            if mine != theirs:
                return f.name, mine, theirs
        return None


def digest(ids: Iterable[int]) -> str:
    """Digest of token ids: 32 hexadecimal digits; empty for none."""
    data = pack(ids)
    return hashlib.sha256(data).hexdigest()[:32] if data else ""


def pack(ids: Iterable[int]) -> bytes:
    """Token ids as little-endian int32."""
    numbers = array("i", ids)
    if numbers.itemsize != 4:  # pragma: no cover  # a platform whose C int is not 32 bits
        numbers = array("l", numbers)
    return _little(numbers).tobytes()


def _little(numbers: array[int]) -> array[int]:
    import sys

    if sys.byteorder == "big":
        numbers = array(numbers.typecode, numbers)
        numbers.byteswap()
    return numbers
