"""Retaining heads that Locret's authors published, and how their paper uses them (arXiv 2410.01805, table 4).

Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvcli.types import ModelSpec

WIDTH = 1024
"""Hidden units of all published heads."""


@dataclass(frozen=True)
class PublishedHeads:
    """Heads of one model on the hub.

    Attributes:
        repo: their hub id.
        model: the hub id of their model.
        recipe: the published budget, stabilizers and tail; scores are not averaged over neighbours.
        chunk: tokens per prefill step.
    """

    repo: str
    model: str
    recipe: str
    chunk: int

    @staticmethod
    def numbers(spec: ModelSpec) -> int:
        """How many numbers the heads of a model of these sizes have."""
        features = (spec.heads + 2 * spec.kv_heads) * spec.head_dim
        return spec.layers * WIDTH * (features + spec.kv_heads)


_PUBLISHED = (
    PublishedHeads(
        "hyx21/Locret-llama-3.1-8B-instruct",
        "meta-llama/Llama-3.1-8B-Instruct",
        "locret(budget=16384, stabilizers=2500, tail=100, pool=1)",
        1024,
    ),
    PublishedHeads(
        "hyx21/Locret-phi-3-mini-128K",
        "microsoft/Phi-3-mini-128k-instruct",
        "locret(budget=6000, stabilizers=2500, tail=100, pool=1)",
        3072,
    ),
)


def of_model(name: str) -> PublishedHeads | None:
    """The heads of the model called ``name``: an alias or a hub id, with or without a revision."""
    from kvcli.models.catalogue import ALIASES

    wanted = (ALIASES[name].repo if name in ALIASES else name.partition("@")[0]).lower()
    wanted = wanted.replace("/meta-llama-3.1", "/llama-3.1")  # its first name on the hub
    return next((heads for heads in _PUBLISHED if heads.model.lower() == wanted), None)


def in_repo(repo: str) -> PublishedHeads | None:
    """The heads that are in ``repo``."""
    return next((heads for heads in _PUBLISHED if heads.repo.lower() == repo.lower()), None)
