"""InfiniGen's pool: of constant size at its limit, the newest never go, counters never wrap."""

import math

import pytest
import torch

from kvcli.engine.generate import new_decode_cache
from kvcli.engine.prefill import new_prefill_cache, prefill, prefill_steps
from kvcli.errors import UsageError
from kvcli.planning import memory
from kvcli.recipe import parse
from kvcli.storage.infinigen import InfiniGen
from kvcli.storage.offload.host_eviction import COUNTER_LIMIT, pool_scores
from tests import tiny
from tests.laws.helpers import answer, asked, distance, drain, filled, reference
from tests.unit.storage.test_infinigen import draw

KINDS = ["counter", "lru", "fifo"]
POOL = 20


def recipe(victims: str, pool: int = POOL, alpha: float = 1) -> str:
    return f"full+infinigen(alpha={alpha}, dense=1, least=0, pool={pool}, victims={victims})"


@pytest.mark.parametrize("victims", KINDS)
@pytest.mark.parametrize("chunk", [1, 5, 16, 64])
def test_the_pool_has_its_size_and_the_newest_stay(model, victims: str, chunk: int) -> None:
    ids, named = tiny.document(70), parse(recipe(victims))
    work = new_prefill_cache(model(), named, len(ids), chunk=chunk)
    for event in prefill_steps(model(), ids, named, chunk=chunk, resume=work):
        newest = torch.arange(max(0, event.done - POOL // 2), event.done).int()
        for layer in work.layers:
            assert (layer.count, layer.k.shape[1]) == (min(event.done, POOL), POOL)
            pos = layer.pos[:, : layer.count]
            assert bool((pos.diff(dim=1) > 0).all())
            assert torch.equal(pos[:, -len(newest) :], newest.expand(2, -1))


@pytest.mark.parametrize("pool", [1, 2, 3])
def test_the_current_token_stays_in_the_smallest_pool(model, pool: int) -> None:
    work = filled(model(), tiny.document(30), recipe("counter", pool), 1)
    assert all((layer.count, int(layer.pos[0, pool - 1])) == (pool, 29) for layer in work.layers)


def test_the_oldest_go_first(model) -> None:
    work = filled(model(), tiny.document(70), recipe("fifo"), 8)
    assert all(layer.pos[:, :POOL].tolist() == [list(range(50, 70))] * 2 for layer in work.layers)


def test_victims_differ(model) -> None:
    kept = {
        v: [x.pos[:, :POOL].tolist() for x in filled(model(), tiny.document(70), recipe(v), 8).layers] for v in KINDS
    }
    assert kept["counter"] != kept["lru"] != kept["fifo"] != kept["counter"]


@pytest.mark.parametrize("victims", KINDS)
def test_a_pool_with_room_for_all_is_full_attention(model, victims: str) -> None:
    body, question = tiny.document(70), tiny.document(9, seed=1)
    got = asked(model(), body, question, recipe(victims, 70, math.inf).replace("least=0", "least=0, cap=1"), chunk=16)
    assert distance(got, reference(model(), body + question)[-9:]) < 1e-5


@pytest.mark.parametrize("victims", KINDS)
def test_a_limited_pool_answers_and_is_what_was_planned(model, victims: str) -> None:
    named = parse(recipe(victims, 40))
    held = drain(prefill(model(), tiny.document(90), named, chunk=16, horizon=160))
    assert (held.kept, held.seen) == (40, 90)
    assert len(answer(model(), new_decode_cache(model(), held), tiny.document(5, seed=1))) == 12
    plan = memory.plan(model().spec, named, tokens=90, chunk=16, tail=0)
    more = memory.plan(model().spec, named, tokens=9000, chunk=16, tail=0)
    assert plan.context == held.nbytes + held.host_nbytes
    assert more.prefill == plan.prefill


def test_who_was_wanted_is_worth_more() -> None:
    pos, wanted = torch.arange(6).int().expand(1, -1), torch.tensor([[True, False, False, True, False, False]])
    scores = torch.tensor([[3.0, 1, 0, 0]])
    assert pool_scores("counter", scores, wanted, pos).tolist() == [[4, 1, 0, 1, 0, 0]]
    assert pool_scores("lru", scores, wanted, pos).tolist() == [[5, 1, 0, 5, 4, 5]]
    assert pool_scores("fifo", scores, wanted, pos).tolist() == [[0, 1, 2, 3, 4, 5]]


def test_counters_saturate_safely() -> None:
    """Wanted a thousand times, a counter stays bounded and above one wanted half as often; other heads stay alone."""
    pos, scores = torch.arange(3).int().expand(2, -1), torch.zeros(2, 3)
    for step in range(1000):
        wanted = torch.tensor([[True, step % 2 == 0, False], [step < 9, False, False]])
        scores = pool_scores("counter", scores, wanted, pos)
        assert float(scores.max()) <= COUNTER_LIMIT
    assert float(scores[0, 0]) > float(scores[0, 1]) > float(scores[0, 2]) == 0
    assert scores[1].tolist() == [9, 0, 0]


def test_wanted_is_what_the_last_queries_would_fetch() -> None:
    """With one query of four units before it: those within alpha of its largest logit."""
    q, k = draw(2, 1, 8), draw(1, 5, 8, seed=1)
    logits = q[:, 0] @ k[0, :4].T * 0.5
    wanted = (logits >= logits.amax(1, keepdim=True) - 0.7).any(0)
    found = InfiniGen(alpha=0.7, cap=1, pool=9).pool_scores(torch.zeros(1, 4), q, k, torch.arange(5).int()[None], 0.5)
    assert found.tolist() == [[*wanted.float().tolist(), 0]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("full+infinigen(victims=oldest)", "'counter' or 'lru' or 'fifo'"),
        ("full+infinigen(pool=0)", "1 or more"),
        ("full+infinigen(pool=some)", "a whole number"),
        ("keydiff(budget=9)+infinigen(pool=8)", "evicts KV pairs, and so does keydiff"),
    ],
)
def test_unknown_values_are_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse(text)
