"""Reading one case and asking its questions, exactly as ``kvcli ask`` does. Whatever changes how a text is read for
its questions belongs in here and nowhere else."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from time import perf_counter

from kvcli import engine, memory
from kvcli.cache.context import Context
from kvcli.events import Answer, Prefill
from kvcli.focus import focused
from kvcli.hf.load import Model
from kvcli.look import look
from kvcli.prompt import Prompt
from kvcli.recipe import Recipe
from kvcli.types import CHUNK


@dataclass(frozen=True)
class Manner:
    """How a text is read for its questions.

    Attributes:
        focus: once for each question, which then stands before the text too.
        again: passages that are looked at a second time before each answer.
    """

    focus: bool = False
    again: int = 0


PLAIN = Manner()


@dataclass(frozen=True)
class Reading:
    """What came of one text.

    Attributes:
        answers: one for each question, in order.
        tokens: of the text and the words in front of it.
        kept: units per KV head of the layer that keeps most.
        bits: effective bits of a kept number, scales included.
        device_bytes, host_bytes: of the kept units, index and staging included.
        readings: how often the text was read.
        read_s: seconds of reading, all readings together.
        answer_s: seconds of asking, all questions together.
    """

    answers: tuple[str, ...]
    tokens: int
    kept: int
    bits: float
    device_bytes: int
    host_bytes: int
    readings: int
    read_s: float
    answer_s: float


def answer(
    model: Model,
    prompt: Prompt,
    recipe: Recipe,
    text: str,
    questions: Sequence[str],
    *,
    chunk: int = CHUNK,
    max_tokens: int = 32,
    manner: Manner = PLAIN,
) -> Generator[Prefill, None, Reading]:
    """Read a text and ask questions about it, greedily.

    A policy that does not know the question reads once and its tail is rewound between questions; one that does
    (``keep.question``), or a focused reading, reads once for each.

    Args:
        model: a loaded model, with heads where the recipe needs them.
        prompt: how it wants to be spoken to.
        recipe: which units survive.
        text: the document.
        questions: at least one.
        chunk: tokens per forward pass.
        max_tokens: longest answer; less where the model's positions end before.
        manner: focus, second look; a raw prompt knows neither.

    Yields:
        a :class:`Prefill` after each chunk.

    Raises:
        TooLongError: text and question do not fit the model's window under this recipe.
        ResourceError: nor the machine's memory.
    """
    spec = model.spec
    manner = PLAIN if prompt.raw else manner
    ids = prompt.document(text, focus=max(questions, key=len) if manner.focus else None)
    most, again = max(len(prompt.question(question)) for question in questions), manner.again * memory.PASSAGE
    room = memory.check_positions(spec, recipe, tokens=len(ids), chunk=chunk, question=most + again)
    plan, longest = memory.of_run(
        spec, recipe, tokens=len(ids), chunk=chunk, question=most, answer=max_tokens, passages=manner.again
    )
    horizon = spec.max_positions - room + longest
    plan.check(memory.available(spec.device), spec.device)
    answers: list[str] = []
    context: Context | None = None
    readings, read_s, answer_s = 0, 0.0, 0.0
    for question in questions:
        asked = prompt.question(question)
        began = perf_counter()
        if context is None or recipe.keep.question or manner.focus:
            context = None  # let go of the last one before the next is made
            used = recipe
            if manner.focus:
                ids, used = focused(prompt, recipe, text, question)
            probe = asked if recipe.keep.question else None
            context = yield from engine.read(model, ids, used, chunk=chunk, probe=probe, horizon=horizon)
            tail = engine.begin(model, context)
            readings += 1
        read_s += perf_counter() - began
        began = perf_counter()
        if manner.again:
            found = look(model, prompt, context, text, question, count=manner.again)
            asked = prompt.question(question, again=[text[p.start : p.end].strip() for p in found])
        tail.rewind()
        for event in engine.ask(model, tail, asked, max_tokens=longest, chunk=chunk):
            if isinstance(event, Answer):
                answers.append(event.text)
        answer_s += perf_counter() - began
    assert context is not None
    return Reading(
        tuple(answers),
        len(ids),
        context.kept,
        context.bits,
        context.nbytes,
        context.host_nbytes,
        readings,
        read_s,
        answer_s,
    )
