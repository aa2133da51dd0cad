"""Steps of an answer: begun ahead of what is read, and made all alike, they say the same."""

import dataclasses
import gc

import pytest
import torch

from kvcli.engine.decode_step import make_decode_step
from kvcli.engine.generate import generate, new_decode_cache
from kvcli.engine.prefill import prefill
from kvcli.engine.recorded_step import RecordedStep
from kvcli.engine.sampling import Sampling, sample
from kvcli.engine.static_step import StaticStep, dynamic_reason
from kvcli.events import Answer, Token
from kvcli.models.load import wrap
from kvcli.recipe import parse
from tests import tiny
from tests.laws.helpers import distance, drain
from tests.laws.test_generate import Bytes
from tests.laws.traced_step import TracedStep, Waits

HELD = ["knorm(budget=24)", "keydiff(budget=24)+kivi(bits=4, group=8)"]
EXPANDED = ["full+think(recent=4)", "full+lorc", "full+kivi(bits=2, group=8)", "full+int8+kvsharer(map=0_0_2)"]
CODED = ["keydiff(budget=24)+int8", "knorm(budget=24)+turbo(bits=4)", "knorm(budget=24)+turbo(bits=8, fill=true)"]
FETCHING = [
    "full+quest(page=4, pages=3, dense=1)",
    "full+shadowkv(rank=6, chunk=2, chunks=3, outliers=2)",
    "full+infinigen(alpha=1, cap=0.3, dense=1, least=12)",
]
NO_GPU = "needs a CUDA GPU: what waits for the device can only be seen on one"


@pytest.fixture(scope="module", autouse=True)
def speaking(model):
    for known in (model(), *map(model, ("llama", "gemma3", "phi3-longrope"))):
        known.tokenizer = Bytes()


def behind(model, recipe: str, tokens: int = 80):
    context = drain(prefill(model, tiny.document(tokens), parse(recipe), chunk=16, horizon=max(400, tokens + 50)))
    return new_decode_cache(model, context)


def said(model, tail, **options: object) -> tuple[list[int], Answer, int]:
    *tokens, answer = generate(model, tail, tiny.document(9), **options)  # type: ignore[arg-type]
    assert isinstance(answer, Answer)
    return [t.id for t in tokens if isinstance(t, Token)], answer, tail.length


@pytest.mark.parametrize("how", [Sampling(), Sampling(temperature=2.0, seed=3)])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_beginning_ahead_changes_nothing(model, family: str, how: Sampling) -> None:
    one, two = (
        said(model(family), behind(model(family), HELD[0]), sampling=how, max_tokens=30, ahead=ahead)
        for ahead in (False, True)
    )
    assert one[0] == two[0]
    assert one[1].text == two[1].text
    assert one[1].finish_reason == two[1].finish_reason
    assert one[2] == two[2]


def test_beginning_ahead_leaves_the_tail_as_it_was_told(model) -> None:
    lengths = []
    for ahead in (False, True):
        tail = behind(model(), HELD[0])
        answer = generate(model(), tail, tiny.document(9), max_tokens=30, ahead=ahead)
        for _ in range(3):
            next(answer)
        answer.close()
        lengths.append(tail.length)
    assert lengths[0] == lengths[1] == 9 + 2


def test_no_step_makes_room(model) -> None:
    tail = behind(model(), HELD[0])
    answer = generate(model(), tail, tiny.document(9), max_tokens=300)
    next(answer)
    before = [layer.k.data_ptr() for layer in tail.layers]
    for _ in answer:
        pass
    assert [layer.k.data_ptr() for layer in tail.layers] == before


@pytest.mark.parametrize("recipe", [None, *HELD])
@pytest.mark.parametrize("family", ["llama", "phi3-longrope"])
def test_steps_that_are_all_alike_are_the_steps(model, family: str, recipe: str | None) -> None:
    tiny_model, ids = model(family), tiny.document(20, seed=5)
    tails = [new_decode_cache(tiny_model, None) if recipe is None else behind(tiny_model, recipe) for _ in range(2)]
    for tail in tails:
        assert dynamic_reason(tail) is None
        tail.reserve(40)
        tiny_model.forward(torch.tensor(ids[:6]), tail, logits=False)
        tail.extend(6)
    steady = StaticStep(tiny_model, tails[1])
    for number in ids[6:]:
        token = torch.tensor([number])
        expected = tiny_model.forward(token, tails[0], logits=True)
        with torch.inference_mode():
            assert distance(steady(token), expected) < 1e-5
        for tail in tails:
            tail.extend(1)


def test_what_is_in_the_way_of_steps_that_are_all_alike(model) -> None:
    assert "window" in str(dynamic_reason(new_decode_cache(model("gemma3"), None)))
    coded = "keydiff(budget=24, positions=original)+turbo(bits=8, fill=true)"
    assert "by the model itself" in str(dynamic_reason(behind(model(), coded)))
    with pytest.raises(Waits):
        TracedStep(model(), ready(model(), coded))
    elsewhere = new_decode_cache(model(), None)
    elsewhere.spec = dataclasses.replace(elsewhere.spec, host_weight_bytes=1)
    assert "main memory" in str(dynamic_reason(elsewhere))


def ready(model, recipe: str | None, tokens: int = 80):
    """Behind a document and a question, with room for steps."""
    tail = new_decode_cache(model, None) if recipe is None else behind(model, recipe, tokens)
    with torch.inference_mode():
        tail.reserve(40)
    model.forward(torch.tensor(tiny.document(6, seed=5)), tail, logits=False)
    tail.extend(6)
    return tail


@pytest.mark.parametrize("recipe", [None, *HELD, *CODED])
@pytest.mark.parametrize("family", ["llama", "phi3-longrope"])
def test_a_step_that_is_recorded_and_done_again_is_the_step(model, family: str, recipe: str | None) -> None:
    one, two = (ready(model(family), recipe) for _ in range(2))
    assert dynamic_reason(two) is None
    traced = TracedStep(model(family), two)
    for number in tiny.document(14, seed=6):
        token = torch.tensor([number])
        expected = model(family).forward(token, one, logits=True)
        with torch.inference_mode():
            assert distance(traced(token), expected) < 1e-5
        one.extend(1)
        two.extend(1)


def test_drawing_is_multinomial() -> None:
    """Number for number, for seeds of answers that were given before."""
    logits = torch.randn(500, generator=torch.Generator().manual_seed(1))
    for seed in range(50):
        ours = sample(logits, Sampling(temperature=1.0), torch.Generator().manual_seed(seed))
        theirs = torch.multinomial(logits.softmax(-1), 1, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(ours, theirs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)
@pytest.mark.parametrize("graph", ["0", "1"])
@pytest.mark.parametrize("how", [Sampling(), Sampling(temperature=1.0, top_k=20, top_p=0.9, min_p=0.01, seed=1)])
@pytest.mark.parametrize("recipe", [HELD[0], *FETCHING])
def test_nothing_waits_for_the_gpu(monkeypatch, graph: str, how: Sampling, recipe: str) -> None:
    monkeypatch.setenv("KVCLI_CUDA_GRAPH", graph)
    model = wrap(tiny.build("llama").to("cuda", torch.bfloat16), Bytes(), name="llama", fingerprint=None)
    answer = generate(model, behind(model, recipe), tiny.document(9), sampling=how, max_tokens=30)
    next(answer)  # the question goes to the GPU and kernels are compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in answer:
            pass
    finally:
        torch.cuda.set_sync_debug_mode("default")


def recorded(model, tail) -> RecordedStep:
    step = make_decode_step(model, tail)
    assert isinstance(step, RecordedStep)
    return step


def steps_alike(step, model, tail, other, ids) -> None:
    """The recorded steps of a cache give the logits of plain ones of another, bit for bit."""
    for number in ids:
        token = torch.tensor([number])
        assert torch.equal(step(token), model.forward(token, other, logits=True))
        tail.extend(1)
        other.extend(1)


@pytest.mark.parametrize("recipe", [None, *HELD, *CODED, *EXPANDED])
@pytest.mark.parametrize("family", ["llama", "phi3-longrope", "qwen3", "llama in bfloat16"])
def test_a_recorded_step_is_a_plain_one_bit_for_bit(model, family: str, recipe: str | None) -> None:
    if "bfloat16" in family:
        tiny_model = wrap(tiny.build("llama").to(torch.bfloat16), Bytes(), name="llama", fingerprint=None)
    else:
        tiny_model = model(family)
    tail, other = (ready(tiny_model, recipe) for _ in range(2))
    for cache in (tail, other):
        cache.reserve(100)
    step = recorded(tiny_model, tail)
    steps_alike(step, tiny_model, tail, other, tiny.document(64, seed=6))
    assert step.calls
    assert step._checked
    for cache in (tail, other):  # rewound, with more room, and after several tokens at once
        cache.rewind(20)
        cache.reserve(200)
        tiny_model.forward(torch.tensor(tiny.document(5, seed=7)), cache, logits=False)
        cache.extend(5)
    steps_alike(step, tiny_model, tail, other, tiny.document(12, seed=8))
    tail.length = other.length = 195  # more tokens than anybody has reserved room for
    steps_alike(step, tiny_model, tail, other, tiny.document(12, seed=9))


def in_memory() -> int:
    """Bytes of all tensors of this process."""
    gc.collect()
    tensors = [x for x in gc.get_objects() if type(x) is torch.Tensor]
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


@pytest.mark.parametrize("recipe", [*HELD[:1], "full", *CODED, *EXPANDED])
def test_a_record_keeps_no_expanded_keys(model, recipe: str) -> None:
    """What it takes does not grow with the document: expanded keys are those of a step, not of the record."""
    taken = []
    for tokens in (100, 800):
        tail = ready(model(), recipe, tokens)
        step = recorded(model(), tail)
        before = in_memory()
        for number in tiny.document(12, seed=6):
            step(torch.tensor([number]))
            tail.extend(1)
        assert step.calls
        taken.append(in_memory() - before)
    assert taken[1] == taken[0]


def test_recorded_steps_of_two_contexts_do_not_meet(model) -> None:
    tiny_model = model("phi3-longrope")
    recipes = ["knorm(budget=24)", "full"]
    tails, others = ([ready(tiny_model, recipe) for recipe in recipes] for _ in range(2))
    made = [recorded(tiny_model, tail) for tail in tails]
    for number in tiny.document(16, seed=9):
        for step, tail, other in zip(made, tails, others, strict=True):
            steps_alike(step, tiny_model, tail, other, [number])
    for tail in tails:  # a cache moves to another context
        tail.set_context(tails[0].context)
    others[1].set_context(others[0].context)
    steps_alike(made[1], tiny_model, tails[1], others[1], tiny.document(12, seed=10))


def test_a_step_that_reads_numbers_is_not_recorded(model, monkeypatch) -> None:
    """If it shows while it is recorded, and if only the comparison finds it."""
    tiny_model = model()
    norm = tiny_model.module.base_model.norm
    plain, drawn = norm.forward, iter(range(1, 1000))
    odd = {
        "a number decides": lambda x: plain(x) * (2 if float(x.sum()) > 0 else 3),
        "Python counts": lambda x: plain(x) * next(drawn),
    }
    for forward in odd.values():
        tail = ready(tiny_model, HELD[0])
        step = recorded(tiny_model, tail)
        monkeypatch.setattr(norm, "forward", forward)
        for number in tiny.document(12, seed=11):
            step(torch.tensor([number]))
            tail.extend(1)
        assert step._failed


def test_a_result_that_is_written_to_does_not_stand_for_a_later_one(model, monkeypatch) -> None:
    tiny_model = model()
    norm = tiny_model.module.base_model.norm
    plain = norm.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        first = torch.exp(x * 0.1)
        first += 1
        return plain(x) + first - torch.exp(x * 0.1)

    monkeypatch.setattr(norm, "forward", forward)
    tail, other = (ready(tiny_model, HELD[0]) for _ in range(2))
    steps_alike(recorded(tiny_model, tail), tiny_model, tail, other, tiny.document(12, seed=12))
