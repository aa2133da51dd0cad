"""The interface of a fold: a state of constant size that stands for the units that eviction drops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Forgets evicted units. A frozen dataclass whose fields are its hyper-parameters.

    A fold adds the units that eviction drops to a state, whose size does not depend on the text, and estimates from it
    what attention would have got from them. Each layer merges this term with its attention to kept units, in prefill
    and in decoding. Prefill depends on it, so it is a part of :attr:`kvcli.recipe.Recipe.reading`.
    """

    name: ClassVar[str] = "none"
    """The fold's name in recipes, equal to its module's name; ``none`` for this one, which no recipe writes."""
