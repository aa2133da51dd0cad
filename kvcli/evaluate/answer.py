"""Reading one case and asking its questions, exactly as ``kvcli ask`` does. Whatever changes how a text is read for
its questions belongs in here and nowhere else."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from time import perf_counter

from kvcli.cache.context import Context
from kvcli.engine.generate import generate, new_decode_cache
from kvcli.engine.prefill import prefill
from kvcli.engine.prompt import Prompt
from kvcli.engine.query_aware import query_aware
from kvcli.evaluate.case import PLAIN, ReadOptions
from kvcli.events import Answer, Prefill
from kvcli.models.model import Model
from kvcli.planning import memory
from kvcli.planning.positions import check_positions
from kvcli.recipe import Recipe
from kvcli.retrieval.passages import retrieve_passages
from kvcli.types import CHUNK
from kvcli.utils.process_memory import available


@dataclass(frozen=True)
class Reading:
    """What came of one text with one number of passages looked at again.

    Attributes:
        look: that number.
        answers: one for each question, in order.
        tokens: of the text and the words in front of it.
        kept: units per KV head of the layer that keeps most.
        bits: effective bits of a kept number, scales included.
        device_bytes, host_bytes: of the kept units, index and staging included.
        readings: how often the text was read.
        read_s: seconds of reading, all readings together.
        answer_s: seconds of asking, all questions together.
    """

    look: int
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
    manner: ReadOptions = PLAIN,
) -> Generator[Prefill, None, list[Reading]]:
    """Read a text and ask questions about it, greedily.

    A policy that does not know the question reads once and its tail is rewound between questions; one that does
    (``keep.query_aware``), or a focused reading, reads once for each.

    Args:
        model: a loaded model, with heads where the recipe needs them.
        prompt: how it wants to be spoken to.
        recipe: which units survive.
        text: the document.
        questions: at least one.
        chunk: tokens per forward pass.
        max_tokens: longest answer; less where the model's positions end before.
        manner: focus, second look; a raw prompt knows neither and answers alike with any look.

    Yields:
        a :class:`Prefill` after each chunk.

    Returns:
        one for each of ``manner.looks``.

    Raises:
        TooLongError: text and question do not fit the model's window under this recipe.
        ResourceError: nor the machine's memory.
    """
    spec = model.spec
    focus, passages = manner.focus and not prompt.raw, 0 if prompt.raw else max(manner.looks)
    ids = prompt.document(text, focus=max(questions, key=len) if focus else None)
    most = max(len(prompt.question(question)) for question in questions)
    room = check_positions(spec, recipe, tokens=len(ids), chunk=chunk, question=most + passages * memory.PASSAGE)
    plan, longest = memory.plan_run(
        spec, recipe, tokens=len(ids), chunk=chunk, question=most, answer=max_tokens, passages=passages
    )
    horizon = spec.max_positions - room + longest
    plan.check(available(spec.device), spec.device)
    answers: dict[int, list[str]] = {count: [] for count in manner.looks}
    answer_s = dict.fromkeys(manner.looks, 0.0)
    context: Context | None = None
    readings, read_s = 0, 0.0
    for question in questions:
        began = perf_counter()
        if context is None or recipe.policy.query_aware or focus:
            context = None  # let go of the last one before the next is made
            used = recipe
            if focus:
                ids, used = query_aware(prompt, recipe, text, question)
            probe = prompt.question(question) if recipe.policy.query_aware else None
            context = yield from prefill(model, ids, used, chunk=chunk, probe=probe, horizon=horizon)
            tail = new_decode_cache(model, context)
            readings += 1
        read_s += perf_counter() - began
        for count in manner.looks:
            began = perf_counter()
            asked, sight = prompt.question(question), context
            if count and not prompt.raw:
                found = retrieve_passages(model, prompt, context, text, question, count=count)
                asked, sight = prompt.question(question, again=found.texts(text)), found.context
            tail.rewind()
            tail.set_context(sight)
            for event in generate(model, tail, asked, max_tokens=longest, chunk=chunk):
                if isinstance(event, Answer):
                    answers[count].append(event.text)
            answer_s[count] += perf_counter() - began
    assert context is not None
    return [
        Reading(
            count,
            tuple(answers[count]),
            len(ids),
            context.kept,
            context.bits,
            context.nbytes,
            context.host_nbytes,
            readings,
            read_s,
            answer_s[count],
        )
        for count in manner.looks
    ]
