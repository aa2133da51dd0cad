"""Which heads belong to a model: named, trained by this person, or shipped with kvcli."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvcli.errors import DamagedError, ModelError, ResourceError
from kvcli.events import Download
from kvcli.retaining_heads import checkpoint
from kvcli.retaining_heads.checkpoint import HeadsCard
from kvcli.retaining_heads.module import RetainingHeads
from kvcli.utils import files

if TYPE_CHECKING:
    from kvcli.models.model import Model

SHIPPED = Path(__file__).with_name("shipped")


def folder() -> Path:
    """Where ``kvcli train`` puts heads and where they are found again."""
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
        model: a loaded model; its ``heads`` are set where some are found.
        where: a file, a folder with one, or a hub repository; by default the person's own and the shipped heads
            are searched for ones of exactly this model.
        offline: ask no hub.
        watch: is told of a download.

    Returns:
        the card of the heads, or ``None`` where none were found (only without ``where``).

    Raises:
        ModelError: ``where`` does not exist, or its heads belong to another model; names what differs.
        DamagedError: a file that is no heads file.
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
    """All heads that are found without being named: a person's own first. Files that cannot be read are passed over."""
    for place in _places():
        for path in sorted(place.glob("*.safetensors")):
            try:
                yield path, checkpoint.read_card(path)
            except (ModelError, DamagedError):
                continue


def _named(where: str, *, offline: bool, watch: Callable[[Download], None] | None) -> Path:
    path = Path(where).expanduser()
    if path.exists():
        return path
    if path.suffix in (".safetensors", ".bin") or where.startswith((".", "/", "~")):
        raise ModelError(f"there is no heads file {where}", f"kvcli train -o {where}")
    from kvcli.models import hub

    fetching = hub.heads(where, offline=offline)
    while True:
        try:
            event = next(fetching)
        except StopIteration as end:
            return Path(end.value)
        if watch is not None:
            watch(event)


def describe(heads: RetainingHeads, card: HeadsCard) -> str:
    """One line for a person."""
    origin = f"{card.steps:,} steps, {card.made}" if card.steps else "published checkpoint"
    return f"width {heads.width}, {heads.nbytes / 2**20:.0f} MiB, {origin}"
