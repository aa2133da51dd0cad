"""A tiny model that talks, and conversations with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from kvcli.cache.context import Context
from kvcli.chat.conversation import ChatContext, Conversation
from kvcli.engine.prefill import freeze_and_keep, new_prefill_cache, prefill_steps
from kvcli.engine.prompt import Prompt
from kvcli.models.load import load
from kvcli.models.model import Model
from kvcli.models.weights import ModelSource
from kvcli.recipe import parse
from tests.e2e.conftest import save_tiny
from tests.laws.helpers import drain

CHUNK = 32
TEXT = "Queequeg was a native of Kokovoko, an island far away to the West and South. " * 4
Talk = Callable[..., Conversation]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = save_tiny(tmp_path_factory.mktemp("models") / "tiny", window=8192, letters="abcdefghijklmnop", wide=True)
    return load(ModelSource("tiny", path, "directory"), device="cpu", dtype="float32")


def base(
    model: Model, text: str, recipe: str, *, room: int = 200, total: int | None = None, system: str | None = None
) -> ChatContext:
    """A document, read."""
    prompt, how = Prompt(model.tokenizer, system=system), parse(recipe)
    if not text:
        return ChatContext(prompt, how, CHUNK, new_prefill_cache(model, how, 0, chunk=CHUNK), None, room, total)
    work = drain(prefill_steps(model, prompt.document(text), how, chunk=CHUNK, horizon=4096))
    return ChatContext(prompt, how, CHUNK, work, freeze_and_keep(work, how), room, total)


@pytest.fixture
def talk(model: Model) -> Talk:
    """``talk(text, recipe, …)`` begins a conversation."""

    def begin(
        text: str = TEXT,
        recipe: str = "keydiff(budget=96, stabilizers=16)",
        *,
        room: int = 200,
        total: int | None = None,
        reread: Callable[[Context, str], tuple[Sequence[str], Context]] | None = None,
        **more: object,
    ) -> Conversation:
        def make() -> ChatContext:
            return replace(base(model, text, recipe, room=room, total=total), reread=reread)

        return Conversation(model, make, **more)  # type: ignore[arg-type]

    return begin
