"""InfiniGen: guesses are made a layer ahead from the right things, and what they leave out is what weighs least."""

import copy
import math
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kvcli.engine.generate import new_decode_cache
from kvcli.engine.prefill import prefill
from kvcli.models import query_prediction
from kvcli.models.attention import LAYER
from kvcli.recipe import parse
from kvcli.storage.infinigen import QUERIES, SQUARES, InfiniGen, PartialKeys, skew
from kvcli.storage.offload.layer import Offloaded, PrefetchingReader
from kvcli.utils.copy_stream import CopyStream
from tests import tiny
from tests.laws.helpers import distance, drain


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dim", [4, 8, 64])
def test_turned_products_are_the_products(dim: int) -> None:
    q, k = draw(2, 30, dim), draw(2, 50, dim, seed=1) * torch.linspace(0.1, 4, dim)
    turn = skew(q.transpose(1, 2) @ q)
    assert torch.allclose(turn @ turn.transpose(1, 2), torch.eye(dim).expand(2, -1, -1), atol=1e-5)
    assert distance((q @ turn) @ (k @ turn).transpose(1, 2), q @ k.transpose(1, 2)) < 1e-5


def test_a_few_turned_columns_say_more_than_a_few_plain_ones() -> None:
    """Queries that vary in three directions, none of them an axis."""
    mix = torch.linalg.qr(draw(16, 16, seed=2)).Q
    q = (draw(1, 200, 16) * torch.tensor([5.0, 4, 3, *[0.1] * 13])) @ mix
    k = draw(1, 300, 16, seed=1)
    state: dict[str, Tensor] = {}
    errors = []
    for how in ("text", "none"):
        hold = InfiniGen(partial=0.25, skew=how)  # type: ignore[arg-type]
        state.clear()
        hold.observe(state, 5, q, 0)
        turn = hold._rotation(state, None, k)
        assert turn.shape == (1, 16, 4)
        errors.append(distance((q @ turn) @ (k @ turn).transpose(1, 2), q @ k.transpose(1, 2)))
    assert errors[0] < 0.1 < errors[1]


@pytest.mark.parametrize("cuts", [[100], [1, 99], [30, 30, 40]])
def test_the_second_moment_does_not_depend_on_the_chunks(cuts: list[int]) -> None:
    q, state = draw(4, 100, 8), {}
    for part in q.split(cuts, dim=1):
        InfiniGen(skew="text").observe(state, 3, part, 0)
        InfiniGen().observe(state, 3, part, 0)
    moment = q.transpose(1, 2) @ q
    assert torch.allclose(state[QUERIES], moment, rtol=1e-4, atol=1e-4)
    assert torch.allclose(state[SQUARES], moment.diagonal(dim1=1, dim2=2), rtol=1e-4, atol=1e-4)


def test_unturned_columns_are_those_that_queries_and_keys_are_largest_in() -> None:
    """Each alone would name others: queries are large in the first half, keys in every other column."""
    q, k = draw(4, 60, 8) * torch.tensor([9.0] * 4 + [0.1] * 4), draw(2, 50, 8, seed=1) * torch.tensor([9.0, 0.1] * 4)
    hold, state = InfiniGen(partial=0.25, skew="none"), {}
    hold.observe(state, 3, q, 0)
    turn = hold._rotation(state, None, k)
    assert [sorted(head.argmax(0).tolist()) for head in turn] == [[0, 2], [0, 2]]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_layers_queries_are_what_its_attention_makes_of_its_input(model, family: str) -> None:
    """With the layer's own input the guess is no guess; so projections, norms and heads are as they should be."""
    made: dict[int, Tensor] = {}
    got: dict[int, Tensor] = {}
    attentions = [part for part in model(family).module.modules() if hasattr(part, LAYER)]
    hooks = [
        a.register_forward_pre_hook(
            lambda m, args, kwargs, i=i: made.update(
                {i: query_prediction.queries(m, args[0] if args else kwargs["hidden_states"])}
            ),
            with_kwargs=True,
        )
        for i, a in enumerate(attentions)
    ]
    tail = new_decode_cache(model(family), None)
    for layer in tail.layers:
        original = layer.attend

        def watched(q, *rest, layer=layer, original=original):
            got[layer.index] = q
            return original(q, *rest)

        layer.attend = watched  # type: ignore[method-assign]
    model(family).forward(torch.tensor(tiny.document(11)), tail, logits=False)
    for hook in hooks:
        hook.remove()
    assert set(made) == set(got) == set(range(3))
    for i, q in got.items():
        assert torch.allclose(made[i], q, atol=1e-6)


def context(model, hold: str):
    return drain(prefill(model, tiny.document(90), parse(f"full+{hold}"), chunk=16, horizon=160))


def test_layers_predict_only_for_storage_that_fetches_ahead(model) -> None:
    made = replace(model("llama"), module=copy.deepcopy(model("llama").module))
    layers = [part for part in made.module.modules() if hasattr(part, LAYER)]

    def hooks(hold: str) -> list[int]:
        new_decode_cache(made, context(made, hold))
        return [len(part._forward_pre_hooks) for part in layers]

    before = hooks("dense")
    after = hooks("infinigen")
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 0]
    assert hooks("infinigen") == after  # once for a model


def test_every_offloaded_layer_behind_the_first_is_guessed_for(model, monkeypatch) -> None:
    seen: list[int] = []
    original = PrefetchingReader.prefetch
    monkeypatch.setattr(
        PrefetchingReader, "prefetch", lambda self, q, s: (seen.append(q.shape[1]), original(self, q, s))[1]
    )
    tail = new_decode_cache(model(), context(model(), "infinigen(dense=0, least=0)"))
    model().forward(torch.tensor(tiny.document(7)), tail, logits=False)
    assert seen == [7, 7]
    seen.clear()
    other = new_decode_cache(model(), context(model(), "quest(page=4, pages=3, dense=0)"))
    model().forward(torch.tensor(tiny.document(7)), other, logits=False)
    assert seen == []


def test_what_is_fetched_ahead_is_waited_for(model, monkeypatch) -> None:
    """Each guess runs aside and is joined before it is attended to."""
    held = context(model(), "infinigen(dense=0, least=0)")
    told: list[str] = []
    run, join = CopyStream.run, CopyStream.join
    monkeypatch.setattr(CopyStream, "run", lambda self: (told.append("run"), run(self))[1])
    monkeypatch.setattr(CopyStream, "join", lambda self, mark: (told.append("join"), join(self, mark))[1])
    tail = new_decode_cache(model(), held)
    model().forward(torch.tensor(tiny.document(7)), tail, logits=False)
    assert told == ["run", "run", "join", "join"]


def test_what_is_read_aside_lives_until_it_is_waited_for(model, monkeypatch) -> None:
    """On a GPU its memory would be given to another while it is read."""
    held, guesses, alive = context(model(), "infinigen(dense=0, least=0)"), [], []
    foresee, join = PrefetchingReader.prefetch, CopyStream.join
    monkeypatch.setattr(
        PrefetchingReader, "prefetch", lambda self, q, s: (guesses.append(weakref.ref(q)), foresee(self, q, s))[1]
    )
    monkeypatch.setattr(
        CopyStream, "join", lambda self, mark: (alive.append(guesses[-1]() is not None), join(self, mark))[1]
    )
    tail = new_decode_cache(model(), held)
    model().forward(torch.tensor(tiny.document(7)), tail, logits=False)
    assert alive == [True, True]
    assert [guess() for guess in guesses] == [None, None]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a second stream needs a CUDA GPU")
def test_a_second_stream_sees_what_the_first_wrote() -> None:
    aside, x = CopyStream(torch.device("cuda")), torch.zeros(1 << 24, device="cuda")
    for step in range(20):
        x += 1
        with aside.run():
            y = x * 2
        aside.join(aside.mark())
        assert float(y.min()) == float(y.max()) == 2 * (step + 1)


def test_the_first_layers_are_dense(model) -> None:
    kinds = [isinstance(layer, Offloaded) for layer in context(model(), "infinigen(least=0)").layers]
    assert kinds == [False, False, True]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0, math.inf])
@pytest.mark.parametrize("m", [1, 3, 130])
def test_each_head_has_its_own_count_and_each_query_of_the_group_a_say(alpha: float, m: int) -> None:
    """With all columns: exactly the units within alpha of some query's largest logit."""
    keys, q = draw(2, 40, 8), draw(6, m, 8, seed=1)
    index = PartialKeys(keys, torch.eye(8).expand(2, -1, -1), alpha, 40)
    ids, lengths = index.select(q, 0.5)
    assert lengths is not None
    for head in range(2):
        logits = (q[3 * head : 3 * head + 3] @ keys[head].T * 0.5).view(-1, 40)
        wanted = (logits >= logits.amax(-1, keepdim=True) - alpha).any(0).nonzero().flatten().tolist()
        assert ids[head, : lengths[head]].tolist() == wanted
        assert (ids[head, lengths[head] :] == 40).all()
    if 0 < alpha < math.inf and m == 1:
        assert lengths[0] != lengths[1]


def test_the_cap_keeps_the_largest() -> None:
    keys, q = draw(1, 40, 8), draw(1, 1, 8, seed=1)
    ids, lengths = PartialKeys(keys, torch.eye(8)[None], math.inf, 5).select(q, 1.0)
    assert ids.tolist() == [sorted((q[0] @ keys[0].T)[0].topk(5).indices.tolist())]
    assert lengths is not None
    assert lengths.tolist() == [5]


def test_recall_of_the_true_largest_is_counted_per_layer(model) -> None:
    """As the bench counts it: with all columns and the layer's own queries it is 1."""
    from benchmarks.offload import recall

    (held,) = [x for x in context(model(), "infinigen(partial=1, alpha=inf, cap=0.2, least=0)").layers if x.host_nbytes]
    q, reader = draw(4, 1, 8), held.open()
    reader.attend(q, 0.3, 99)
    assert recall(reader, q) == 1.0
    assert recall(reader, -q) < 1.0
