"""Discovery of a model's heads: named by the user, trained by the user, or shipped with kvcli."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvcli.errors import DamagedError, ModelError, ResourceError
from kvcli.events import Download, drain
from kvcli.retaining_heads import checkpoint
from kvcli.retaining_heads.checkpoint import HeadsCard
from kvcli.retaining_heads.module import RetainingHeads
from kvcli.retaining_heads.named import local
from kvcli.utils import files

if TYPE_CHECKING:
    from kvcli.models.model import Model

SHIPPED = Path(__file__).with_name("shipped")


def folder() -> Path:
    """Return the directory in which ``kvcli train`` stores heads."""
    return files.private_dir(files.data_dir() / "heads")


def _places() -> list[Path]:
    """Where heads are looked for; a person's own folder only if there can be one."""
    with suppress(ResourceError):
        return [folder(), SHIPPED]
    return [SHIPPED]


def attach(
    model: Model,
    where: str | None = None,
    *,
    offline: bool = False,
    watch: Callable[[Download], None] | None = None,
) -> HeadsCard | None:
    """Give a model its heads.

    Args:
        model: a loaded model; its ``heads`` are set if heads are found.
        where: a file, a directory or a hub repository; by default the user's and the shipped heads of exactly this
            model.
        offline: do not contact a hub.
        watch: called with download events.

    Returns:
        the card of the heads, or ``None`` if there are none (only without ``where``).

    Raises:
        ModelError: ``where`` does not exist, or its heads belong to another model; names what differs.
        DamagedError: the file is not a heads file.
    """
    path = _search(model) if where is None else _named(where, offline=offline, watch=watch)
    if path is None:
        return None
    heads, card = checkpoint.load(path, activation=checkpoint.backbone_activation(model.module))
    checkpoint.check(heads, card, model, path)
    model.heads = heads = heads.to(model.device, model.dtype)
    model.heads_card = card
    model.spec = replace(model.spec, heads_bytes=sum(p.nbytes for p in heads.parameters()))
    return card


def _search(model: Model) -> Path | None:
    wanted = checkpoint.identity(model)
    return next((path for path, card in known() if card.identity == wanted), None)


def known() -> Iterator[tuple[Path, HeadsCard]]:
    """Yield the user's heads, then the shipped ones. Skips unreadable files."""
    for place in _places():
        for path in sorted(place.glob("*.safetensors")):
            try:
                yield path, checkpoint.read_card(path)
            except (ModelError, DamagedError):
                continue


def _named(where: str, *, offline: bool, watch: Callable[[Download], None] | None) -> Path:
    if (path := local(where)) is not None:
        return path
    from kvcli.models import hub

    return Path(drain(hub.heads(where, offline=offline), watch))


def describe(heads: RetainingHeads, card: HeadsCard) -> str:
    """Describe heads in one line."""
    origin = f"{card.steps:,} steps, {card.made}" if card.steps else "published checkpoint"
    return f"width {heads.width}, {heads.nbytes / 2**20:.0f} MiB, {origin}"
