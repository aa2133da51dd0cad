"""A tiny model that talks, and conversations with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kvcli import engine
from kvcli.chat.conversation import Conversation, Ground
from kvcli.hf.load import Model, load
from kvcli.prompt import Prompt
from kvcli.recipe import parse
from tests.cli.conftest import save_tiny
from tests.laws.helpers import drain
from tests.tiny import randomise

CHUNK = 32
TEXT = "Queequeg was a native of Kokovoko, an island far away to the West and South. " * 4
Talk = Callable[..., Conversation]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path: Path = save_tiny(tmp_path_factory.mktemp("models") / "tiny", window=8192)
    model = load(SimpleNamespace(name="tiny", path=path, fingerprint="tiny-chat"), device="cpu", dtype="float32")
    randomise(model.module, seed=1)  # wide, so that answers depend on what was said before
    letters = set(model.tokenizer.convert_tokens_to_ids(list("abcdefghijklmnop")))
    with torch.no_grad():
        head = model.module.lm_head.weight
        head[[i for i in range(len(head)) if i not in letters]] = 0.0
    return model


def ground(
    model: Model, text: str, recipe: str, *, room: int = 200, total: int | None = None, system: str | None = None
) -> Ground:
    """A document, read."""
    prompt, how = Prompt(model.tokenizer, system=system), parse(recipe)
    if not text:
        return Ground(prompt, how, CHUNK, engine.start(model, how, 0, chunk=CHUNK), None, room, total)
    work = drain(engine.fill(model, prompt.document(text), how, chunk=CHUNK, horizon=4096))
    return Ground(prompt, how, CHUNK, work, engine.settle(work, how), room, total)


@pytest.fixture
def talk(model: Model) -> Talk:
    """``talk(text, recipe, …)`` begins a conversation."""

    def begin(
        text: str = TEXT,
        recipe: str = "keydiff(budget=96, stabilizers=16)",
        *,
        room: int = 200,
        total: int | None = None,
        **more: object,
    ) -> Conversation:
        return Conversation(model, lambda: ground(model, text, recipe, room=room, total=total), **more)  # type: ignore[arg-type]

    return begin
