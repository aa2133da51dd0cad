"""Discovery of a model's heads: named or trained by the user, shipped with kvcli, or published by Locret's authors."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvcli.errors import DamagedError, ModelError
from kvcli.events import Event, Notice, drain
from kvcli.models import hub
from kvcli.models.heads_on_disk import folders, local
from kvcli.retaining_heads import checkpoint, published
from kvcli.retaining_heads.checkpoint import HeadsCard
from kvcli.retaining_heads.module import RetainingHeads
from kvcli.retaining_heads.published import PublishedHeads

if TYPE_CHECKING:
    from kvcli.models.model import Model


def attach(
    model: Model,
    where: str | None = None,
    *,
    offline: bool = False,
    watch: Callable[[Event], None] | None = None,
) -> HeadsCard | None:
    """Give a model its heads: :func:`attach_events` run to its end, ``watch`` called with its events."""
    return drain(attach_events(model, where, offline=offline), watch)


def attach_events(
    model: Model, where: str | None = None, *, offline: bool = False
) -> Generator[Event, None, HeadsCard | None]:
    """Give a model its heads. Yields Download events and Notices.

    Args:
        model: a loaded model; its ``heads`` are set if heads are found.
        where: a file, a directory or a hub repository. By default the user's heads of exactly this model, then the
            shipped ones, then those that Locret's authors published for it.
        offline: do not contact a hub.

    Returns:
        the card of the heads, or ``None`` if there are none (only without ``where``).

    Raises:
        ModelError: ``where`` does not exist, or its heads belong to another model; names what differs.
        DamagedError: the file is not a heads file.
    """
    if where is not None:
        path = local(where) or (yield from hub.heads(where, offline=offline))
        return _attach(model, path, published.in_repo(where))
    if (found := _search(model)) is not None:
        return _attach(model, found, None)
    if (known_heads := published.of_model(model.name)) is None:
        return None
    most = 5 * known_heads.numbers(model.spec)  # float32, and something beside
    try:
        path = yield from hub.heads(known_heads.repo, offline=offline, most=most, timeout=2.0)
        return _attach(model, path, known_heads)
    except (ModelError, DamagedError) as error:
        yield Notice(f"the published heads {known_heads.repo} are not used: {error.message}")
        return None


def _attach(model: Model, path: Path, source: PublishedHeads | None) -> HeadsCard:
    heads, card = checkpoint.load(path, activation=checkpoint.backbone_activation(model.module))
    checkpoint.check(heads, card, model, path)
    if source is not None:
        origin = {"model": source.model, "made": source.repo, "recipe": source.recipe, "chunk": source.chunk}
        card = replace(card, **origin)  # type: ignore[arg-type]
    model.heads = heads = heads.to(model.device, model.dtype)
    for part in (heads.fc1, heads.fc2) if model.spec.devices else ():
        for i, weight in enumerate(part):
            weight.data = weight.data.to(model.spec.device_of(i, model.device))
    model.heads_card = card
    model.spec = replace(model.spec, heads_bytes=sum(p.nbytes for p in heads.parameters()))
    return card


def _search(model: Model) -> Path | None:
    wanted = checkpoint.identity(model)
    return next((path for path, card in known() if card.identity == wanted), None)


def known() -> Iterator[tuple[Path, HeadsCard]]:
    """Yield the user's heads, then the shipped ones. Skips unreadable files."""
    for place in folders():
        for path in sorted(place.glob("*.safetensors")):
            try:
                yield path, checkpoint.read_card(path)
            except (ModelError, DamagedError):
                continue


def describe(heads: RetainingHeads, card: HeadsCard) -> str:
    """Describe heads in one line."""
    origin = f"{card.steps:,} steps, {card.made}" if card.steps else f"published checkpoint {card.made}".rstrip()
    return f"width {heads.width}, {heads.nbytes / 2**20:.0f} MiB, {origin}"
