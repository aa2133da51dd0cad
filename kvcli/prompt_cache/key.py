"""What makes a reading this reading: two with the same identity hold the same numbers. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace

FORMAT = 1
"""Version of the file format, and of the arithmetic behind it: raise it when a policy comes to keep other units."""


@dataclass(frozen=True)
class CacheKey:
    """Everything that a reading's units depend on.

    Attributes:
        version: :data:`FORMAT`.
        model: the model's fingerprint.
        dtype: of weights and cache.
        template: digest of the prompt's ids in front of the text.
        recipe: in canonical form, but for a hold that only comes after the reading.
        heads: digest of the retaining heads, where the policy scores with them.
        chunk: tokens per forward pass.
        question: digest of the question's ids, where the policy reads for one.
        horizon: RoPE positions that were planned for, where the model's frequencies depend on them; else 0.
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
        """The reading's name in the library: 24 hexadecimal digits."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:24]

    @property
    def family(self) -> CacheKey:
        """The same without the text: readings of one family can continue each other."""
        return replace(self, text="")

    def difference(self, other: CacheKey) -> tuple[str, object, object] | None:
        """The first field in which two identities differ, and what it is in each."""
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
