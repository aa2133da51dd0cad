"""Conversations with a model whose recurrent layers cannot forget single tokens."""

from __future__ import annotations

import pytest

from benchmarks import small_models
from kvcli.cache.decode_cache import MARKS
from kvcli.chat.conversation import Conversation
from kvcli.models.load import wrap
from kvcli.models.model import Model
from tests.e2e.conftest import byte_tokenizer
from tests.unit.chat.conftest import TEXT, base
from tests.unit.chat.test_conversation import QUESTIONS, say


@pytest.fixture(scope="module")
def model() -> Model:
    tokenizer = byte_tokenizer()
    module = small_models.build("lfm2", vocab_size=len(tokenizer), max_position_embeddings=4096)
    return wrap(module, tokenizer, name="lfm2", fingerprint=None)


@pytest.mark.parametrize("turns", [1, MARKS + 2])
def test_undone_turns_leave_no_trace(model: Model, turns: int) -> None:
    chat = Conversation(model, lambda: base(model, TEXT, "keydiff(budget=96, stabilizers=16)", room=2000))
    first = [say(chat, question).text for question in QUESTIONS[: turns + 1]]
    for _ in range(turns):
        chat.undo()
    assert [say(chat, question).text for question in QUESTIONS[1 : turns + 1]] == first[1:]


def test_turns_are_evicted(model: Model) -> None:
    chat = Conversation(model, lambda: base(model, TEXT, "keydiff(budget=4000)", room=120))
    long = Conversation(model, lambda: base(model, TEXT, "keydiff(budget=4000)", room=4000))
    assert [say(chat, q).text for q in QUESTIONS[:6]] == [say(long, q).text for q in QUESTIONS[:6]]
    assert chat.evictions
