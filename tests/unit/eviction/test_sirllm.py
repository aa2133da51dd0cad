"""SirLLM: surprise is that of the model, reaches the right units one chunk late, and is the same in all heads."""

import math

import pytest
import torch

from kvcli.engine.prefill import surprise
from kvcli.errors import UsageError
from kvcli.eviction.base import SURPRISE
from kvcli.eviction.sirllm import Sirllm
from tests import tiny
from tests.laws.helpers import filled, reference
from tests.unit.eviction.test_scores import chunk

MODEL = tiny.load("llama")


def expected(ids: list[int], size: int) -> torch.Tensor:
    """Of each token, from one full forward; a chunk's first token has the chunk's largest."""
    logits = reference(MODEL, ids)
    found = torch.cat([torch.zeros(1), surprise(logits[:-1], torch.tensor(ids[1:]))])
    for start in range(0, len(ids), size):
        found[start] = found[start + 1 : start + size].max()
    return found


def test_two_logits_by_hand() -> None:
    """(0, ln 3): token 0 has a quarter, token 1 three quarters."""
    logits = torch.tensor([[0.0, math.log(3)]]).expand(100, 2)
    assert surprise(logits[:2], torch.tensor([0, 1])).tolist() == pytest.approx([1.38629, 0.28768], abs=1e-4)
    assert len(surprise(logits, torch.ones(100, dtype=torch.long))) == 100


@pytest.mark.parametrize("size", [7, 16, 30])
def test_units_have_the_models_surprise_where_nothing_was_evicted(size: int) -> None:
    ids = tiny.document(60)
    wanted = expected(ids, size)
    for layer in filled(MODEL, ids, "sirllm(budget=60)", size).layers:
        last = (60 - 1) // size * size
        assert torch.allclose(layer.scores[:, :last], wanted[:last].expand(2, -1), atol=1e-4)
        assert bool(layer.scores[:, last:60].isinf().all())
        assert torch.allclose(layer.state[SURPRISE], wanted[last:], atol=1e-4)


def test_places_are_the_same_in_all_heads_and_layers() -> None:
    work = filled(MODEL, tiny.document(100), "sirllm(budget=30, stabilizers=3)", 10)
    for layer in work.layers:
        assert torch.equal(layer.pos[:, :30], work.layers[0].pos[:1, :30].expand(2, -1))
    assert work.layers[0].pos[0, 20:30].tolist() == list(range(90, 100)), "the last chunk"


def test_the_most_surprising_stay_and_old_scores_decay() -> None:
    keep = Sirllm(budget=6, sinks=0, stabilizers=0, decay=0.5)
    part = chunk(kept=4, new=2, start=11, state={SURPRISE: torch.tensor([3.0, 1.0])})
    part.pos = torch.tensor([0, 4, 9, 10, 11, 12]).int().expand(2, 6)
    part.scores = torch.tensor([[4.0, 8.0, float("inf"), float("inf")]] * 2)
    scores = keep.rescore(part)
    assert scores[0].tolist() == [2.0, 4.0, 3.0, 1.0, float("inf"), float("inf")]
    assert keep.choose(part, scores, 4, 0)[0].tolist() == [1, 2, 4, 5]
    assert keep.choose(part, scores, 1, 0)[0].tolist() == [5], "of a chunk without room, the newest"


def test_a_chunk_of_one_token_and_one_longer_than_the_budget() -> None:
    for size in (1, 50):
        work = filled(MODEL, tiny.document(90), "sirllm(budget=20)", size)
        assert all(layer.count == 20 for layer in work.layers)
        assert work.layers[0].pos[0, :4].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("decay", [0.0, 1.1, float("nan")])
def test_impossible_fields_are_refused(decay: float) -> None:
    with pytest.raises(UsageError, match="decay"):
        Sirllm(decay=decay)
