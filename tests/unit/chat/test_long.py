"""Two hundred turns: memory stays flat, and what the policy kept of the first one is known to the end."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from kvcli.chat.conversation import Conversation
from kvcli.events import Answer, TurnsEvicted
from kvcli.models.load import load
from kvcli.models.model import Model
from kvcli.models.weights import ModelSource
from tests.e2e.conftest import Call, call, environment, folder  # noqa: F401
from tests.handmade import knower
from tests.unit.chat.conftest import TEXT, base

TURNS = 200
ROOM = 256
FACT = "The number is 7."
KEEPS, FORGETS = "keydiff(budget=64, stabilizers=16)", "streaming(budget=64, sinks=4, stabilizers=16)"


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return knower(tmp_path_factory.mktemp("models") / "knower")


@pytest.fixture(scope="session")
def model(place: Path) -> Model:
    return load(ModelSource("knower", place, "directory"), device="cpu", dtype="float32")


def begin(model: Model, text: str, recipe: str) -> Conversation:
    return Conversation(model, lambda: base(model, text, recipe, room=ROOM))


def told(chat: Conversation) -> torch.Tensor:
    """Per unit of the only layer whether it is the digit of the first turn."""
    assert chat.context is not None
    assert chat.base is not None
    prompt, document = chat.base.prompt, TEXT if chat.base.document else ""
    ids = (prompt.document(document) if document else []) + prompt.question(FACT, document=bool(document))
    place = len(ids) - 1 - ids[::-1].index(chat.model.tokenizer.convert_tokens_to_ids("7"))
    return chat.context.layers[0].pos[0] == place


@pytest.mark.parametrize("text", [TEXT, ""])
@pytest.mark.parametrize("recipe", [KEEPS, FORGETS])
def test_two_hundred_turns_at_fixed_memory(model: Model, text: str, recipe: str) -> None:
    """The digit of turn 1 is answered as long as its unit is kept, and from what is kept alone."""
    chat = begin(model, text, recipe)
    answers, sizes, rooms, absorbed = [], [], [], 0
    for n in range(TURNS):
        for event in chat.ask(FACT if n == 0 else f"And turn {'xyzuvw'[n % 6]}, what is the number?", max_tokens=8):
            absorbed += isinstance(event, TurnsEvicted)
            if isinstance(event, Answer):
                answers.append(event.text)
        assert chat.cache is not None
        sizes.append(chat.nbytes)
        rooms.append(chat.cache.nbytes)
        if n == 0:
            assert chat.used < ROOM
    rounds = chat.evictions[1]  # by then context, tail and fill have had all their units
    assert absorbed == len(chat.evictions) > 30
    assert max(sizes[rounds:]) <= max(sizes[:rounds])
    assert max(rooms[rounds:]) <= max(rooms[:rounds])
    assert chat.context is not None
    assert (chat.context.kept, len(chat.turns)) == (64, TURNS)
    assert chat.context.seen > 30 * ROOM // 2
    if recipe == KEEPS:
        assert set(answers) == {"h"}
        assert int(told(chat).sum()) == 1
        with torch.inference_mode():
            chat.context.layers[0].v[:, told(chat)] = 0  # type: ignore[attr-defined]
    else:
        first = chat.evictions[0]
        assert set(answers[:first]) == {"h"}
        assert answers[first + 8 :] == ["?"] * (TURNS - first - 8)
        assert not told(chat).any()
    assert [e.text for e in chat.ask("What is it?", max_tokens=8) if isinstance(e, Answer)] == ["?"]


def test_two_hundred_lines_of_a_script(
    call: Call,  # noqa: F811
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same of the command: /memory names no more in the second half than in the first."""
    monkeypatch.setenv("KVCLI_DATA_DIR", str(tmp_path / "data"))
    lines = [FACT, *["What is the number?"] * (TURNS - 1)]
    for at in range(TURNS, 0, -5):
        lines.insert(at, "/memory")
    options = ("-m", place, "-n", "8", "--policy", KEEPS, "--chunk-size", "64")
    made = call("chat", *options, "--session", "a", stdin="\n".join(lines).encode())
    assert made.code == 0, made.err
    for name in ("KV cache", "prefill", "turns"):
        sizes = [float(size) for size in re.findall(rf"^{name} +([\d.]+) KiB$", made.out, re.MULTILINE)]
        assert len(sizes) > 30
        assert max(sizes[len(sizes) // 2 :]) == max(sizes[: len(sizes) // 2])
    saved = json.loads((tmp_path / "data" / "chats" / "a.json").read_text())
    assert [turn["answer"] for turn in saved["turns"]] == ["h"] * TURNS
    assert len(saved["absorbed"]) > 10
    assert made.err.count("evicted ") == 1
