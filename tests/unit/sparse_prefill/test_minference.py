"""MInference: the chosen keys are those with mass, and attention is the softmax over exactly these."""

from itertools import pairwise

import pytest
import torch

from kvcli.engine.prefill import prefill
from kvcli.errors import DamagedError, InputError, ModelError, UsageError
from kvcli.planning import memory
from kvcli.recipe import parse
from kvcli.retaining_heads.prefill_patterns import search
from kvcli.sparse_prefill import minference, patterns, vertical_slash
from kvcli.sparse_prefill.minference import MInference
from kvcli.sparse_prefill.vertical_slash import BLOCK, chosen, pattern, sums
from kvcli_kernels.attention import CappedScale, causal_attention
from tests import tiny
from tests.laws.helpers import asked, distance, drain, filled

SCALE = 0.3


def tensors(m: int, n: int, *, heads: int = 4, kv_heads: int = 2, dim: int = 8, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((heads, m, dim), (kv_heads, n, dim), (kv_heads, n, dim))
    q, k, v = (torch.randn(shape, generator=generator) * 2 for shape in shapes)
    return q, k, v


def masked(q, k, v, mask):
    """Softmax over the chosen keys ``[H, m, n]`` at or before each query."""
    m, n = mask.shape[1:]
    k, v = (x.repeat_interleave(q.shape[0] // k.shape[0], 0) for x in (k, v))
    causal = torch.arange(n) <= torch.arange(n - m, n)[:, None]
    logits = (q @ k.transpose(1, 2) * SCALE).masked_fill(~(mask & causal), -torch.inf)
    return logits.softmax(-1) @ v


def chosen_keys(q, k, term: MInference, m: int):
    """The chosen keys of each query, ``[H, m, n]``."""
    n = k.shape[1]
    columns, diagonals = pattern(q, k, SCALE, term.vertical, term.slash)
    mask = torch.zeros(q.shape[0], m, n, dtype=torch.bool)
    for first in range(0, m, BLOCK):
        rows = range(n - m + first, n - m + min(m, first + BLOCK))
        mask[:, first : first + BLOCK, : rows.stop] = chosen(columns, diagonals, rows)[:, None]
    return mask


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few keys are chosen for certain, so that short texts show the rest."""
    for name, value in (("_SINKS", 2), ("_NEAREST", 3)):
        monkeypatch.setattr(vertical_slash, name, value)


def test_sums_of_two_rows_by_hand() -> None:
    columns, diagonals = sums(torch.tensor([[[0.1, 0.2, 0.7, 0.0], [0.1, 0.1, 0.3, 0.5]]]))
    assert torch.allclose(columns, torch.tensor([[0.2, 0.3, 1.0, 0.5]]))
    assert torch.allclose(diagonals, torch.tensor([[1.2, 0.5, 0.2, 0.1]]))


@pytest.mark.parametrize(("m", "n"), [(200, 200), (130, 300), (1, 400), (64, 257)])
@pytest.mark.usefixtures("short")
def test_attention_is_softmax_over_the_chosen_keys(m: int, n: int) -> None:
    q, k, v = tensors(m, n)
    term = MInference(vertical=9, slash=5)
    mask = chosen_keys(q, k, term, m)
    if n > m:
        assert float(mask.float().mean()) < 0.9, "the pattern is sparse"
    assert torch.allclose(term.attend(0, q, k, v, SCALE), masked(q, k, v, mask), atol=1e-5)


@pytest.mark.parametrize(("m", "n"), [(200, 200), (130, 300)])
@pytest.mark.usefixtures("short")
def test_everything_chosen_is_dense(monkeypatch: pytest.MonkeyPatch, m: int, n: int) -> None:
    q, k, v = tensors(m, n)
    dense = causal_attention(q, k, v, SCALE)
    assert torch.equal(MInference(vertical=n, slash=1).attend(0, q, k, v, SCALE), dense)
    monkeypatch.setattr(vertical_slash, "_largest", lambda values, _count: torch.ones_like(values, dtype=torch.bool))
    assert torch.allclose(MInference(vertical=9, slash=5).attend(0, q, k, v, SCALE), dense, atol=1e-5)


def test_capped_logits_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = tensors(64, 300)
    capped = CappedScale(SCALE, 2.0)
    expected = causal_attention(q, k, v, capped)
    monkeypatch.setattr(vertical_slash, "_largest", lambda values, _count: torch.ones_like(values, dtype=torch.bool))
    assert torch.allclose(MInference(vertical=1, slash=1).attend(0, q, k, v, capped), expected, atol=1e-5)
    assert not torch.allclose(expected, causal_attention(q, k, v, SCALE), atol=1e-3)


def test_sinks_neighbours_and_the_query_itself_are_chosen() -> None:
    q, k, _ = tensors(300, 700)
    mask = chosen_keys(q, k, MInference(vertical=1, slash=1), 300)
    assert bool(mask[:, :, :30].all())
    for row in (0, 63, 64, 299):
        assert bool(mask[:, row, 400 + row - 99 : 400 + row + 1].all())
    assert not bool(mask.all())


@pytest.mark.usefixtures("short")
def test_larger_patterns_include_smaller_ones() -> None:
    q, k, _ = tensors(150, 400)
    sizes = [(2, 2), (8, 2), (8, 9), (60, 40)]
    masks = [chosen_keys(q, k, MInference(vertical=v, slash=s), 150) for v, s in sizes]
    assert all(bool((small <= large).all()) for small, large in pairwise(masks))
    assert int(masks[-1].sum()) > int(masks[0].sum())


@pytest.mark.parametrize("policy", ["full", "h2o(budget=200)"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_patterns_as_large_as_the_text_change_no_bit(policy: str, family: str) -> None:
    model, ids, question = tiny.load(family), tiny.document(150), tiny.document(7, seed=3)
    one, two = (asked(model, ids, question, r, 64) for r in (policy, f"{policy}+minference"))
    assert torch.equal(one, two)


@pytest.mark.usefixtures("short")
def test_a_sparse_reading_differs_and_its_resumption_does_not() -> None:
    model, ids, question = tiny.load("llama"), tiny.document(400), tiny.document(7, seed=3)
    sparse = "full+minference(vertical=4, slash=4)"
    dense, got = (asked(model, ids, question, r, 128) for r in ("full", sparse))
    assert distance(got, dense) > 1e-3
    part = filled(model, ids[:256], sparse, 128).copy()
    part.reserve(400, 128)
    whole, resumed = filled(model, ids, sparse, 128), filled(model, ids, sparse, 128, resume=part)
    assert all(torch.equal(a.k[:, :400], b.k[:, :400]) for a, b in zip(whole.layers, resumed.layers, strict=True))
    shared = drain(prefill(model, ids, parse(f"{sparse}+kvsharer(map=0_0_2)"), chunk=128))
    assert shared.nbytes < drain(prefill(model, ids, parse(sparse), chunk=128)).nbytes


@pytest.mark.usefixtures("short")
def test_each_head_may_have_its_own_pattern() -> None:
    q, k, v = tensors(130, 300)
    texts = ["v9s5", "a4s20", "v60s3", "v300s300"]
    got = patterns.PerHead([texts]).attend(0, q, k, v, SCALE)
    for head, (vertical, slash) in ((0, (9, 5)), (2, (60, 3)), (3, (300, 300))):
        alone = MInference(vertical=vertical, slash=slash).attend(0, q, k, v, SCALE)
        assert torch.allclose(got[head], alone[head], atol=1e-5)
    columns, diagonals = pattern(q, k, SCALE, *patterns.sizes(texts))
    assert columns[1].nonzero().flatten().tolist() == [0, 1, 2, 3]
    assert diagonals[1].nonzero().flatten().tolist() == list(range(20))
    assert torch.equal(patterns.PerHead([["v300s1"] * 4]).attend(0, q, k, v, SCALE), causal_attention(q, k, v, SCALE))
    assert torch.equal(patterns.PerHead([[]]).attend(0, q, k, v, SCALE), causal_attention(q, k, v, SCALE))


@pytest.mark.usefixtures("short")
def test_a_search_finds_what_keeps_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """All columns keep the weights of all rows that count, so they win; without them, each head has its own best."""
    monkeypatch.setattr(patterns, "SKIPPED", 90)
    found = patterns.PatternSearch(["a2s3", "v150s3", "v8s3"], skipped=90)
    q, k, v = tensors(130, 150)
    assert torch.equal(found.attend(1, q, k, v, SCALE), causal_attention(q, k, v, SCALE))
    assert torch.allclose(found.mass[1][1], torch.full((4,), 60.0), atol=1e-3)
    assert found.best(3) == [[], ["v150s3"] * 4, []]
    few = patterns.PatternSearch(["a2s3", "v8s3", "v2s9"], skipped=0)
    few.attend(0, q, k, v, SCALE)
    for head, mass in enumerate(few.mass[0].T):
        assert few.best(1)[0][head] == few.candidates[int(mass.argmax())]
    model = tiny.load("gemma3")
    layers = drain(search(model, tiny.document(120)))
    assert [len(layer) for layer in layers] == [0, 4, 0], "layers with a window have none"
    with pytest.raises(InputError, match="90 tokens"):
        drain(search(model, tiny.document(90)))


def test_stored_patterns_are_found_and_checked(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVCLI_DATA_DIR", str(tmp_path))
    spec, recipe = tiny.load("llama").spec, parse("full+minference(heads=file)")
    with pytest.raises(ModelError) as missing:
        recipe.for_model(spec)
    assert "kvcli calibrate -m llama --prefill minference" in (missing.value.hint or "")
    layers = [["v30s800"] * 4, ["a100s800"] * 4, []]
    patterns.save(spec, layers, {"tokens": 5})
    named = recipe.for_model(spec)
    assert str(named) == f"full+minference(heads={patterns.digest(layers)})"
    assert named.for_model(spec) == named
    ids, question = tiny.document(150), tiny.document(7, seed=3)
    one, two = (asked(tiny.load("llama"), ids, question, r, 64) for r in ("full", str(named)))
    assert torch.equal(one, two), "no text is longer than these patterns"
    with pytest.raises(ModelError, match="the recipe says 12345678"):
        parse("full+minference(heads=12345678)").for_model(spec)
    for wrong in ([["v30s800"] * 3, [], []], [[], []], [["x"] * 4, [], []]):
        patterns.save(spec, wrong, {})
        with pytest.raises(DamagedError, match="not a file of patterns"):
            recipe.for_model(spec)


def test_it_is_planned() -> None:
    assert (minference.BLOCK, minference.ROWS) == (vertical_slash.BLOCK, vertical_slash.ROWS)
    spec = tiny.load("llama").spec
    plans = [memory.plan(spec, parse(r), tokens=20_000, chunk=512, tail=9) for r in ("full", "full+minference")]
    assert plans[1].activations > plans[0].activations
    assert plans[1].prefill == plans[0].prefill
    few = [
        memory.plan(spec, parse(f"knorm(budget=512){r}"), tokens=20_000, chunk=512, tail=9) for r in ("", "+minference")
    ]
    assert few[0] == few[1]


@pytest.mark.parametrize(
    "text",
    [
        "full+minference(vertical=0)",
        "full+minference(slash=-1)",
        "full+minference(v=1)",
        "full+minference(heads=file, slash=9)",
    ],
)
def test_what_it_cannot_be(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)


def test_it_is_refused_if_prefill_encodes_keys() -> None:
    with pytest.raises(UsageError, match=r"minference.*turbo"):
        parse("full+minference+turbo(bits=8, fill=true)")
    assert str(parse("full+turbo+minference(slash=9)")) == "full+minference(slash=9)+turbo"
