"""The interface of a sparse prefill: which keys a chunk's queries attend to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class SparsePrefill:
    """Attends to everything. A frozen dataclass whose fields are its hyper-parameters.

    A sparse prefill computes less of the attention between a chunk and the kept units. It changes the speed of prefill
    and neither memory nor decoding. Kept units depend on it, so it is a part of :attr:`kvcli.recipe.Recipe.reading`.
    """

    name: ClassVar[str] = "none"
    """Its name in recipes, equal to its module's name; ``none`` for this one, which no recipe writes."""
